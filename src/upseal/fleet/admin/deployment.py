# SPDX-License-Identifier: Apache-2.0
"""`Deployment`: the administrator's way into a deployment, as a library.

    with Deployment.open("/srv/upseal") as deployment:
        print(deployment.status().facts())
        deployment.generate_key()
        deployment.ready(timeout=60)
        outcome = deployment.enable(dry_run=True)

Every act checks, then changes the database in one transaction, which adds a signed manifest and a
row to the audit log; or it is refused with a `Refused` that says why, and nothing has changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upseal.fleet.admin import (
    creating,
    lifecycle,
    logins,
    members,
    noticing,
    readying,
    recovering,
    relaying,
    renewal,
    retiring,
    signing,
    status,
)
from upseal.fleet.admin.acting import Outcome, who
from upseal.fleet.admin.authority import Passphrase
from upseal.fleet.admin.opened import Clock, Opened
from upseal.fleet.policy import Level
from upseal.fleet.server.overview import relays
from upseal.fleet.server.store.base import now_ms

if TYPE_CHECKING:
    from upseal.fleet.admin.readying import Progress
    from upseal.fleet.admin.status import Status


class Deployment(Opened):
    """A deployment's folder and its database. Close it, or use it in a ``with``.

    One thread at a time.
    """

    @classmethod
    def init(
        cls,
        folder: str | os.PathLike[str],
        *,
        name: str | None = None,
        key_type: str | None = None,
        fips: bool = False,
        database: str | None = None,
        ca_cert: str | os.PathLike[str] | None = None,
        ca_key: str | os.PathLike[str] | None = None,
        new_passphrase: Callable[[], bytes] | None = None,
        passphrase: Passphrase | None = None,
        clock: Clock = now_ms,
        dry_run: bool = False,
    ) -> Outcome:
        """Makes a deployment: keys, a CA unless one is given, database, and the first manifest.

        Args:
            folder: a new one, or an empty one.
            name: what it is called; the folder's name unless given.
            key_type: of encryption keys, as `upseal.PrivateKey.generate` takes it.
            fips: approved primitives only: P-256 signatures, P-256 or RSA encryption keys.
            database: SQLite's file or a URL of PostgreSQL; server.db in the folder unless given.
            ca_cert: certificate of the company's CA, with ``ca_key``.
            ca_key: its key; it stays where it is.
            new_passphrase: gives the passphrase that the signing key and our CA's are kept under.
            passphrase: gives the passphrase of the company's CA key.
            clock: unix milliseconds.
            dry_run: only say what would be made.

        Raises:
            Refused: there is a deployment already, or the folder cannot be used.
            ValueError: an argument is wrong.
        """
        return creating.create(
            Path(folder),
            name=name,
            key_type=key_type,
            fips=fips,
            database=database,
            ca=None if ca_cert is None or ca_key is None else (Path(ca_cert), Path(ca_key)),
            new_passphrase=new_passphrase,
            passphrase=passphrase,
            clock=clock,
            dry_run=dry_run,
        )

    # -- looking ------------------------------------------------------------------

    def status(self) -> Status:
        """State, keys and their drain, readiness, coverage, alarms, who would be orphaned."""
        return status.status(self)

    def clients(self, only: str | None = None) -> list[dict[str, Any]]:
        """Each client: wanted, actual, and why; ``only`` is one of `census.FILTERS`."""
        return status.clients(self, only)

    def relays(self) -> list[dict[str, Any]]:
        """The relays of the manifest, and those that enrolled and wait to be let in."""
        with self.view() as view:
            return relays.listing(view.db, view.manifest)

    def signing_keys(self) -> dict[str, Any]:
        """The present signing key, and the announced one."""
        with self.view() as view:
            return signing.facts(self, view)

    def audit(self, *, verify: bool = False, limit: int | None = None) -> dict[str, Any]:
        """The log of acts, the newest ``limit``; ``verify`` walks its whole chain of hashes."""
        return status.audit_log(self, verify=verify, limit=limit)

    def alarms(self, *, everything: bool = False) -> list[dict[str, Any]]:
        """Alarms that nobody has acknowledged, or all of them, newest first."""
        return noticing.listing(self, everything=everything)

    def logins(self) -> list[dict[str, Any]]:
        """Who may look at the server's page."""
        return logins.listing(self)

    # -- acts on encryption --------------------------------------------------------

    def generate_key(
        self,
        key_type: str | None = None,
        *,
        escrow: Sequence[lifecycle.Escrow] | None = None,
        replace: bool = False,
        dry_run: bool = False,
        force: bool = False,
        kept: lifecycle.KeptKey | None = None,
    ) -> Outcome:
        """Makes the next key of the server: pending, or pending rotation.

        Args:
            key_type: as `upseal.PrivateKey.generate` takes it; the deployment's unless given.
            escrow: names and keys that may open everything as well; as now unless given.
            replace: drop the key that is pending already.
            dry_run: only say what would be done.
            force: sign although the clock stands before the newest manifest.
            kept: make none: where one is kept, and its public key.
        """
        return lifecycle.generate_key(
            self, key_type=key_type, escrow=escrow, replace_pending=replace, dry_run=dry_run,
            force=force, kept=kept,
        )  # fmt: skip

    def cancel_key(self, *, dry_run: bool = False, force: bool = False) -> Outcome:
        """Takes the pending key back."""
        return lifecycle.cancel_key(self, dry_run=dry_run, force=force)

    def ready(
        self, timeout: float = 60, *, progress: Progress | None = None, dry_run: bool = False
    ) -> Outcome:
        """Asks the server and each decrypting relay for a fresh proof that they have their key.

        Returns when all have given it, or after ``timeout`` seconds; those who have not are in
        ``refusals``. ``progress`` is called with all holders after each look.
        """
        return readying.ready(self, timeout=timeout, progress=progress, dry_run=dry_run)

    def enable(self, *, dry_run: bool = False, force: bool = False) -> Outcome:
        """Clients seal to the pending key; relays that came later get their certificates.

        Raises:
            NotReady: somebody has not proven his key; ``force`` goes on without.
        """
        return lifecycle.enable(self, dry_run=dry_run, force=force)

    def rotate(
        self,
        key_type: str | None = None,
        *,
        timeout: float = 60,
        progress: Progress | None = None,
        dry_run: bool = False,
        force: bool = False,
    ) -> Outcome:
        """`generate_key`, `ready` and `enable` in one; goes on with a key that is pending."""
        return lifecycle.rotate(
            self, key_type=key_type, timeout=timeout, progress=progress, dry_run=dry_run,
            force=force,
        )  # fmt: skip

    def retire(
        self,
        key_id: str | None = None,
        *,
        all_old: bool = False,
        dry_run: bool = False,
        force: bool = False,
    ) -> Outcome:
        """An old key goes, with all that are older.

        Raises:
            StillUsed: reports came in under it lately, or clients sealed to it last.
        """
        return retiring.retire(self, key_id, all_old=all_old, dry_run=dry_run, force=force)

    def disable(self, *, dry_run: bool = False, force: bool = False) -> Outcome:
        """Nobody seals any more.

        Raises:
            WouldOrphan: some clients must.
        """
        return lifecycle.disable(self, dry_run=dry_run, force=force)

    # -- acts on clients and relays --------------------------------------------------

    def set_level(
        self,
        level: Level | str | None,
        *,
        clients: Sequence[str] = (),
        everyone: bool = False,
        dry_run: bool = False,
        force: bool = False,
    ) -> Outcome:
        """Sets the level of some clients, or the default; None takes it back.

        Raises:
            WouldOrphan: some of them could not report.
        """
        found = Level.parse(level) if isinstance(level, str) else level
        return members.set_level(
            self, found, clients=clients, everyone=everyone, dry_run=dry_run, force=force
        )

    def token(
        self,
        role: str = "agent",
        *,
        uses: int = 1,
        lifetime: float = 86_400,
        note: str = "",
        dry_run: bool = False,
    ) -> Outcome:
        """Makes tokens, each for one enrolment: in ``result["tokens"]``, and nowhere else.

        Args:
            role: ``agent`` or ``relay``.
            uses: how many.
            lifetime: seconds until they expire.
            note: for the listing.
            dry_run: make none.
        """
        return members.token(
            self, role=role, uses=uses, lifetime_ms=int(lifetime * 1000), note=note,
            dry_run=dry_run,
        )  # fmt: skip

    def revoke(self, target: str, *, undo: bool = False, dry_run: bool = False) -> Outcome:
        """Revokes a client or relay by name or id, or a certificate by serial number."""
        return members.revoke(self, target, undo=undo, dry_run=dry_run)

    def add_relay(
        self,
        name: str,
        *,
        decrypts: bool | None = None,
        accepts_sealed: bool | None = None,
        dry_run: bool = False,
        force: bool = False,
    ) -> Outcome:
        """Puts an enrolled relay into the manifest, or changes what stands there."""
        return relaying.add(
            self, name, decrypts=decrypts, accepts_sealed=accepts_sealed, dry_run=dry_run,
            force=force,
        )  # fmt: skip

    def remove_relay(self, name: str, *, dry_run: bool = False) -> Outcome:
        """Takes a relay out of the manifest."""
        return relaying.remove(self, name, dry_run=dry_run)

    def acknowledge(self, alarms: Sequence[int] | None, *, dry_run: bool = False) -> Outcome:
        """Says that somebody has looked at these alarms (their ids; None: all that are open).

        One that comes again is open again.
        """
        return noticing.acknowledge(self, alarms, who(), dry_run=dry_run)

    def add_login(self, name: str, *, dry_run: bool = False) -> Outcome:
        """Lets somebody look at the server's page: the password is in ``result``, nowhere else."""
        return logins.add(self, name, dry_run=dry_run)

    def remove_login(self, name: str, *, dry_run: bool = False) -> Outcome:
        """Takes a login away; whoever is logged in by it is out."""
        return logins.remove(self, name, dry_run=dry_run)

    # -- acts on the manifest itself ----------------------------------------------------

    def renew(
        self,
        ca: tuple[Path, Path] | None = None,
        *,
        dry_run: bool = False,
        force: bool = False,
    ) -> Outcome:
        """A new manifest that expires later, with certificates that last as long.

        With ``ca``, a certificate and a key file, that CA certifies all keys anew, and from now on.
        """
        return renewal.renew(self, ca, dry_run=dry_run, force=force)

    def recover(
        self, trust: str | os.PathLike[str] | None = None, *, dry_run: bool = False
    ) -> Outcome:
        """Brings a database that was restored from a backup forward to what this folder knows.

        ``trust``: and to what a client or relay knows, by a copy of its ``trust.json``.
        """
        return recovering.recover(self, None if trust is None else Path(trust), dry_run=dry_run)

    def announce_signing_key(
        self,
        *,
        replace: bool = False,
        new_passphrase: Callable[[], bytes] | None = None,
        dry_run: bool = False,
    ) -> Outcome:
        """Makes the next signing key, and tells clients."""
        return signing.announce(
            self, replace_next=replace, new_passphrase=new_passphrase, dry_run=dry_run
        )

    def switch_signing_key(self, *, dry_run: bool = False, force: bool = False) -> Outcome:
        """Signs with the announced key from now on.

        Raises:
            Refused: none is announced, or clients have not had the time to hear of it.
        """
        return signing.switch(self, dry_run=dry_run, force=force)

    def cancel_signing_key(self, *, dry_run: bool = False) -> Outcome:
        """Takes the announced signing key back."""
        return signing.cancel(self, dry_run=dry_run)
