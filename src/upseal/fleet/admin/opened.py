# SPDX-License-Identifier: Apache-2.0
"""An opened deployment: its folder, its database, and what of it can be believed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from upseal.fleet import jws
from upseal.fleet.admin import signing
from upseal.fleet.admin.acting import View, take_turn
from upseal.fleet.admin.authority import Authority, Passphrase, bad_key, is_encrypted, read_private
from upseal.fleet.admin.folder import Settings, load_settings
from upseal.fleet.admin.refusals import Unusable
from upseal.fleet.identity import SigningKey, VerifyKey
from upseal.fleet.manifest import MANIFEST_MAX, Manifest
from upseal.fleet.server.store import Store, StoreError, manifests
from upseal.fleet.server.store.base import now_ms
from upseal.fleet.trust import Outcome as Seen
from upseal.fleet.trust import Trust

Clock = Callable[[], int]
TRUST = "trust.json"


class Opened:
    """A deployment's folder and its database: what `Deployment` builds its acts on."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        store: Store,
        trust: Trust,
        *,
        clock: Clock = now_ms,
        passphrase: Passphrase | None = None,
        signing_key: str | os.PathLike[str] | None = None,
        ca_key: str | os.PathLike[str] | None = None,
    ) -> None:
        """For `open`."""
        self.folder = folder
        self.settings = settings
        self.store = store
        self.clock = clock
        self.signing_path = folder / (signing_key or settings.signing_key)
        self.ca_path = folder / settings.ca_cert
        self.ca_key_path = folder / (ca_key or settings.ca_key)
        self._passphrase = passphrase
        self._trust = trust
        self._known: tuple[str, Manifest] | None = None
        self._authority: Authority | None = None
        self._signers: dict[Path, SigningKey] = {}

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        passphrase: Passphrase | None = None,
        signing_key: str | os.PathLike[str] | None = None,
        ca_key: str | os.PathLike[str] | None = None,
        clock: Clock = now_ms,
    ) -> Self:
        """Opens what `init` made.

        Args:
            folder: where deployment.toml lies.
            passphrase: asked for that of an encrypted key file, when that key is needed.
            signing_key: the file it is in, where it is not in the folder.
            ca_key: likewise.
            clock: unix milliseconds.

        Raises:
            Unusable: there is none, or it cannot be used.
        """
        path = Path(folder).absolute()
        settings = load_settings(path)
        try:
            trust = Trust.load(path / TRUST)
        except (OSError, ValueError) as error:
            raise Unusable(
                "open the deployment",
                f"cannot read {str(path / TRUST)!r}: {error}",
                "restore it: it says which manifests are genuine",
            ) from error
        try:
            store = Store.open(settings.database_of(path))
        except StoreError as error:
            raise Unusable("open the deployment", str(error), "check `database` in it") from error
        return cls(
            path, settings, store, trust, clock=clock, passphrase=passphrase,
            signing_key=signing_key, ca_key=ca_key,
        )  # fmt: skip

    # -- what acts need ---------------------------------------------------------

    @contextmanager
    def view(self, *, writing: bool = False) -> Iterator[View]:
        """The deployment at one moment; what is written in the block is one transaction."""
        with self.store.writing() if writing else self.store.reading() as db:
            if writing:
                take_turn(db)
            newest = manifests.newest(db)
            if newest is None:
                raise Unusable(
                    "open the deployment",
                    "its database has no manifest: its making was broken off",
                    "remove the folder (and the database), and make it again",
                )
            if self._known is None or self._known[0] != newest.jws:
                since = self._trust.manifest.serial if self._trust.manifest is not None else 0
                chain = [stored.jws for stored in manifests.chain(db, since)]
                self._known = (newest.jws, self._genuine(chain))
            yield View(db, self.clock(), self._known[1], newest.jws)

    def _genuine(self, chain: Sequence[str]) -> Manifest:
        """The newest manifest, if the signing key made it and none that we saw is newer.

        The database is the server's as well: what is signed next is built on what stands there.
        """
        seen = self._trust.offer(chain, self.clock())
        manifest = self._trust.manifest
        if seen in (Seen.ACCEPTED, Seen.SAME) and manifest is not None:
            return manifest
        if seen is Seen.OLDER or (seen is Seen.FORGED and self._was_genuine(chain[-1])):
            raise Unusable(
                "open the deployment",
                "the database has an older manifest than this folder has seen, as if it were "
                "restored from a backup",
                "restore a newer one, or go on with `upseal admin recover`",
            )
        raise Unusable(
            "open the deployment",
            f"the newest manifest in the database is not genuine ({seen.value}): somebody wrote "
            "to it",
            "find out who, and restore a backup from before",
        )

    def _was_genuine(self, token: str) -> bool:
        """Whether it is an older manifest, signed by a key that counted then."""
        keys: dict[str, VerifyKey] = {}
        for one in self._trust.since(0):
            words = jws.unverified(one, limit=MANIFEST_MAX)
            keys |= Manifest.from_claims(words).signers()
        try:
            older = Manifest.open(token, keys)
        except ValueError:
            return False
        newest = self._trust.manifest
        return newest is not None and older.serial < newest.serial

    @property
    def seen(self) -> Manifest | None:
        """The newest manifest that this folder has seen."""
        return self._trust.manifest

    def seen_since(self, serial: int) -> list[str]:
        """Those after ``serial``, as they were signed, that clients could need."""
        return self._trust.since(serial)

    def learn(self, tokens: Sequence[str]) -> Seen:
        """Takes newer manifests from elsewhere into what this folder has seen, if they are ours."""
        self._known = None
        return self._trust.offer(tokens, self.clock())

    def remember(self) -> None:
        """Writes down the newest manifest as seen."""
        self._known = None
        with self.view():
            pass

    def signer(self, view: View, *, announced: bool = False) -> SigningKey:
        """The key that signs the next manifest; asks for its passphrase."""
        return signing.next_signer(self, view) if announced else signing.signer(self, view)

    def authority(self) -> Authority:
        """The CA."""
        if self._authority is None:
            self._authority = self.read_authority(self.ca_path, self.ca_key_path)
        return self._authority

    def read_authority(self, certificate: Path, key: Path) -> Authority:
        """Another CA."""
        return Authority.read(certificate, key, self._passphrase)

    def signing_key(self, path: Path) -> SigningKey:
        """A signing key of ours, by its file."""
        found = self._signers.get(path)
        if found is None:
            data, secret = read_private(path), self.passphrase_of(path)
            try:
                found = SigningKey.from_pem(data, secret)
            except (ValueError, TypeError) as error:
                raise bad_key(path, error) from error
            self._signers[path] = found
        return found

    def passphrase_of(self, path: Path) -> bytes | None:
        """The passphrase of a key file; None if it needs none, or nobody can be asked."""
        if self._passphrase is None or not is_encrypted(read_private(path)):
            return None
        return self._passphrase(path)

    def forget_keys(self) -> None:
        """The key files have changed."""
        self._signers.clear()
        self._authority = None

    def close(self) -> None:
        """Closes the database."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
