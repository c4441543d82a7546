# SPDX-License-Identifier: Apache-2.0
"""Making a deployment: its folder, keys, CA, database and first manifest."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from upseal.core.keys import PrivateKey
from upseal.fleet.admin import renewing
from upseal.fleet.admin.acting import DAY_MS, Outcome, who
from upseal.fleet.admin.authority import Authority, Passphrase, common_name, make_ca, private_pem
from upseal.fleet.admin.folder import (
    SETTINGS,
    SQLITE,
    Settings,
    check_folder,
    make_folder,
    own,
    remove,
    write_new,
)
from upseal.fleet.admin.refusals import Refused, Unusable
from upseal.fleet.identity import SigningKey
from upseal.fleet.manifest import Manifest, State, check_certificates
from upseal.fleet.server.settings import DATABASE, FIPS_KINDS
from upseal.fleet.server.store import Store, StoreError, audit, manifests
from upseal.fleet.server.tables import metadata
from upseal.fleet.trust import Trust

_WHAT = "make the deployment"


def create(
    folder: Path,
    *,
    name: str | None,
    key_type: str | None,
    fips: bool,
    database: str | None,
    ca: tuple[Path, Path] | None,
    new_passphrase: Callable[[], bytes] | None,
    passphrase: Passphrase | None,
    clock: Callable[[], int],
    dry_run: bool,
) -> Outcome:
    """As `Deployment.init`."""
    folder = folder.absolute()
    settings = Settings(
        name=name if name is not None else folder.name,
        deployment=secrets.token_bytes(16),
        database=_url(database) if database else DATABASE,
        fips=fips,
        key_type=key_type or (FIPS_KINDS[0] if fips else "x25519"),
        ca_key="ca.key" if ca is None else str(ca[1].absolute()),
    )
    settings.check()
    check_folder(folder)
    _refuse_existing(folder, settings)
    now = clock()
    authority = Authority.read(*ca, passphrase) if ca is not None else None
    if authority is not None:  # an expired CA is found out before anything is made
        authority.certify(PrivateKey.generate("p256").public_key, "-", now, 1)
    kind = "p256" if fips else "ed25519"
    secret = new_passphrase() if new_passphrase is not None and not dry_run else None
    signing, receipt = SigningKey.generate(kind), SigningKey.generate(kind)
    enrol = PrivateKey.generate(settings.key_type)
    files: dict[str, bytes] = {}
    if authority is None:
        pem, key = make_ca(settings.name, now)
        files |= {"ca.key": private_pem(key, secret), "ca.pem": pem}
        authority = Authority.of(pem, key)
    else:
        files["ca.pem"] = authority.pem.encode()
    files |= {
        "signing.pem": signing.to_pem(secret),
        "receipt.pem": receipt.to_pem(),
        "enrol.pem": enrol.to_pem(),
    }
    subject = common_name(settings.name, "enrolment")
    manifest = Manifest(
        deployment=settings.deployment,
        serial=1,
        issued=now,
        expires=now + settings.manifest_days * DAY_MS,
        state=State.DISABLED,
        authorities=(authority.pem,),
        encryption=(),
        pending=(),
        generation=0,
        oldest_generation=0,
        relays=(),
        receipt_keys=(receipt.public,),
        enrolment=renewing.make(
            authority, enrol.public_key, subject, 0, now, settings.certificate_days
        ),
        signing_keys=(signing.public,),
        revoked_agents=frozenset(),
        revoked_certificates=frozenset(),
        default_level=None,
        levels={},
    )
    check_certificates(manifest)
    messages: tuple[str, ...] = (
        f"deployment {settings.deployment.hex()} in {str(folder)!r}, encryption disabled",
        f"signing key {signing.public.fingerprint.hex()}",
        "next: run the server (`upseal server run`), and `upseal admin generate-key`",
    )
    if dry_run:
        messages = (f"would make a deployment in {str(folder)!r}, encryption disabled",)
        return Outcome(True, manifest, messages=messages, dry_run=True)
    _make(folder, settings, files, manifest, signing, now)
    result = {
        "folder": str(folder),
        "deployment": settings.deployment.hex(),
        "fingerprint": signing.public.fingerprint.hex(),
    }
    return Outcome(True, manifest, messages=messages, result=result)


def _url(database: str) -> str:
    return database if "://" in database else SQLITE + database


def _refuse_existing(folder: Path, settings: Settings) -> None:
    made = [SETTINGS, "trust.json", "signing.pem", "ca.pem", "ca.key", "enrol.pem", "receipt.pem"]
    database = settings.database_of(folder)
    for name in (*made, "keys", database if "://" not in database else SETTINGS):
        if os.path.lexists(folder / name):
            kind = "a deployment" if name == SETTINGS else repr(name)
            raise Refused(
                _WHAT,
                f"there is {kind} in {str(folder)!r} already",
                "name another folder with -d, or look at this one with `upseal admin status`",
            )


def _make(
    folder: Path,
    settings: Settings,
    files: dict[str, bytes],
    manifest: Manifest,
    signing: SigningKey,
    now: int,
) -> None:
    """All of it, or what was made goes again. The settings, which make it a deployment, go last."""
    token = manifest.sign(signing)
    with ExitStack() as undo:
        try:
            make_folder(folder)
            for name, data in files.items():
                write_new(folder / name, data, owner=folder)
                undo.callback(remove, folder / name)
            os.mkdir(folder / "keys", 0o700)
            undo.callback(os.rmdir, folder / "keys")
            own(folder / "keys", folder)
            undo.callback(remove, folder / "trust.json")
            trust = Trust.start(folder / "trust.json", signing.public.fingerprint,
                                settings.deployment, 1)  # fmt: skip
            trust.offer([token], now)
            store = Store.create(settings.database_of(folder), settings.deployment)
            undo.callback(_drop, store)
            with store.writing() as db:
                manifests.add(db, 1, token, changed_signing_keys=True, issued=now)
                audit.append(
                    db, who(), "init",
                    {"serial": [0, 1], "name": settings.name, "forced": [],
                     "signing_key": signing.public.fingerprint.hex()}, now,
                )  # fmt: skip
                write_new(folder / SETTINGS, settings.to_toml().encode(), owner=folder)
                undo.callback(remove, folder / SETTINGS)
        except StoreError as error:
            raise Unusable(_WHAT, str(error), "name a new database with --database") from error
        undo.pop_all()
        store.close()
    for path in folder.glob("*.db*"):
        own(path, folder)


def _drop(store: Store) -> None:
    """`Store.create` refuses a database that has our tables, so these are ours to remove."""
    if store.path is None:
        metadata.drop_all(store.engine)
    store.close()
    if store.path is not None:
        for path in store.path.parent.glob(store.path.name + "*"):
            remove(path)
