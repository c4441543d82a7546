# SPDX-License-Identifier: Apache-2.0
"""After the database was restored from a backup: what is newer, and known all the same.

Clients never go back to an older manifest, so the restored database must be brought forward to the
newest one: the folder remembers it as it was signed, and has the server's private keys. Who
enrolled since the backup must enrol again; nothing else is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from upseal.core.keys import PrivateKey
from upseal.fleet import jws
from upseal.fleet.admin.acting import Outcome, take_turn, who
from upseal.fleet.admin.folder import key_files, read_file
from upseal.fleet.admin.refusals import Refused, Unusable
from upseal.fleet.manifest import MANIFEST_MAX, Manifest
from upseal.fleet.server.store import audit, keys, manifests
from upseal.fleet.trust import Outcome as Seen
from upseal.fleet.trust import Trust
from upseal.integrations.keys import kept_elsewhere

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection

    from upseal.fleet.admin.opened import Opened

_WHAT = "bring the database forward"


def recover(deployment: Opened, trust: Path | None, *, dry_run: bool) -> Outcome:
    """As `Deployment.recover`."""
    seen = deployment.seen if trust is None else _seen_elsewhere(deployment, trust, dry_run)
    if seen is None:
        raise Unusable(_WHAT, "this folder has seen no manifest", "restore the folder as well")
    with deployment.store.writing() as db:
        take_turn(db)
        newest = manifests.newest(db)
        serial = newest.serial if newest is not None else 0
        if serial > seen.serial:
            raise Refused(
                _WHAT,
                f"its manifest {serial} is newer than {seen.serial}, the newest seen here",
                "there is nothing to recover: see `upseal admin status`",
            )
        if serial == seen.serial:
            return Outcome(False, seen, messages=("the database is as new as it must be",))
        messages = (
            f"the database goes from manifest {serial} to {seen.serial}",
            "clients that enrolled since the backup must enrol again",
        )
        if dry_run:
            return Outcome(True, seen, messages=messages, dry_run=True)
        now = deployment.clock()
        for token in deployment.seen_since(serial):
            words = jws.unverified(token, limit=MANIFEST_MAX)
            manifests.add(
                # To hand out one more of them than a client needs does no harm.
                db, int(words["serial"]), token, changed_signing_keys=True,
                issued=int(words["issued"]),
            )  # fmt: skip
        _restore_keys(deployment, db, seen, now)
        details = {"serial": [serial, seen.serial], "forced": []}
        audit.append(db, who(), "recover", details, now)
    return Outcome(True, seen, messages=messages)


def _seen_elsewhere(deployment: Opened, path: Path, dry_run: bool) -> Manifest | None:
    """The newest manifest that this folder or somebody else's ``trust.json`` has seen.

    What is there was signed by our key, or it does not count: so it may come from anybody.
    """
    try:
        other = Trust.load(path)
    except (OSError, ValueError) as error:
        raise Unusable(
            _WHAT, f"cannot read {str(path)!r}: {error}", "copy trust.json of a client or relay"
        ) from error
    seen = deployment.seen
    if other.deployment != deployment.settings.deployment or other.manifest is None:
        raise Refused(_WHAT, f"{str(path)!r} is of another deployment", "name one of this one")
    if seen is not None and other.manifest.serial <= seen.serial:
        return seen
    if dry_run:
        return other.manifest
    outcome = deployment.learn(other.since(0 if seen is None else seen.serial))
    if outcome is not Seen.ACCEPTED:
        raise Refused(
            _WHAT,
            f"the manifests in {str(path)!r} are not signed by a key of ours ({outcome.value})",
            "take trust.json of another client or relay",
        )
    return deployment.seen


def _restore_keys(deployment: Opened, db: Connection, manifest: Manifest, now: int) -> None:
    """The table of keys as the manifest has it; and what lies in the folder goes on opening."""
    wanted = {key.key_id: (key, keys.ACTIVE) for key in manifest.encryption}
    wanted |= {key.key_id: (key, keys.PENDING) for key in manifest.pending}
    servers = {part[0].key_id for part in (manifest.encryption, manifest.pending) if part}
    for row in keys.listing(db):
        if row.key_id in wanted:
            if row.state != wanted[row.key_id][1]:
                keys.set_state(db, row.key_id, wanted[row.key_id][1], now)
        elif row.generation < manifest.oldest_generation and row.state != keys.RETIRED:
            keys.set_state(db, row.key_id, keys.RETIRED, now)
        elif row.state in (keys.PENDING, keys.ACTIVE):
            keys.set_state(db, row.key_id, keys.DRAINING, now)
    for key_id, (key, state) in wanted.items():
        if keys.find(db, key_id) is None:
            public = key.public()
            keys.add(
                db, key_id=key_id, generation=key.generation,
                holder=keys.SERVER if key_id in servers else "escrow", suite=int(public.suite),
                public=public.to_pem().decode(), certificate=key.certificate, created=now,
                state=state,
            )  # fmt: skip
    for (generation, name), path in key_files(deployment.folder).items():
        if (
            generation < manifest.oldest_generation
            or keys.find(db, bytes.fromhex(name)) is not None
        ):
            continue
        try:
            data = read_file(path)
            public = (
                kept_elsewhere(data) if path.suffix == ".ref" else PrivateKey.from_pem(data)
            ).public_key
        except (ValueError, TypeError):
            continue  # no key of ours, or one under a passphrase: the server says so as well
        keys.add(
            db, key_id=public.key_id, generation=generation, suite=int(public.suite),
            public=public.to_pem().decode(), certificate=None, created=now, state=keys.DRAINING,
        )  # fmt: skip
