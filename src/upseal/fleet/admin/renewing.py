# SPDX-License-Identifier: Apache-2.0
"""Certificates that would end before the manifest that carries them: made again, for the same key.

Otherwise the day would come on which no agent takes a new manifest any more, the enrolment key's
certificate being the first to end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from cryptography import x509

from upseal.core.certificates import load
from upseal.core.keys import PublicKey
from upseal.fleet.admin.authority import Authority, moment
from upseal.fleet.manifest import EncryptionKey, Manifest
from upseal.fleet.server.overview.oldkeys import carried

if TYPE_CHECKING:
    from upseal.fleet.admin.acting import View
    from upseal.fleet.admin.opened import Opened

DAY_MS = 86_400_000


def make(
    authority: Authority, public: PublicKey, subject: str, generation: int, now_ms: int, days: int
) -> EncryptionKey:
    """A key as the manifest carries it: certified, or plain for the hybrid."""
    pem = authority.certify(public, subject, now_ms, days)
    plain = None if pem is not None else public.to_pem().decode()
    return EncryptionKey(certificate=pem, public_key=plain, generation=generation)


def is_due(deployment: Opened, view: View) -> bool:
    """Whether a manifest issued now would have a certificate that ends too early."""
    until = view.now + deployment.settings.manifest_days * DAY_MS
    return any(_due(key, view.now, until) for key in carried(view.manifest))


def _due(key: EncryptionKey, now_ms: int, until_ms: int) -> bool:
    if key.certificate is None:
        return False
    certificate = load(key.certificate.encode())
    begins, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return end <= moment(until_ms) or begins > moment(now_ms)


def renewed(
    deployment: Opened, view: View, manifest: Manifest, authority: Authority | None
) -> Manifest:
    """The manifest with certificates that last, and with the authorities that issued them."""
    if authority is not None:

        def fresh(key: EncryptionKey) -> EncryptionKey:
            return _fresh(deployment, authority, key, manifest)

        manifest = replace(
            manifest,
            enrolment=fresh(manifest.enrolment),
            encryption=tuple(fresh(key) for key in manifest.encryption),
            pending=tuple(fresh(key) for key in manifest.pending),
            relays=tuple(
                replace(relay, keys=tuple(fresh(key) for key in relay.keys))
                for relay in manifest.relays
            ),
        )
    present = (authority.pem,) if authority is not None else ()
    candidates = dict.fromkeys((*present, *manifest.authorities))
    return replace(manifest, authorities=tuple(_used(candidates, manifest, present)))


def _fresh(
    deployment: Opened, authority: Authority, key: EncryptionKey, manifest: Manifest
) -> EncryptionKey:
    if key.certificate is None or not _due(key, manifest.issued, manifest.expires):
        return key
    old = load(key.certificate.encode())
    if authority.certificate.not_valid_after_utc <= old.not_valid_after_utc and (
        old.not_valid_before_utc <= moment(manifest.issued) < old.not_valid_after_utc
    ):
        return key  # it lasts as long as its CA: a new one would end no later
    days = deployment.settings.certificate_days
    return make(authority, key.public(), subject(key), key.generation, manifest.issued, days)


def subject(key: EncryptionKey) -> str:
    """Whose it is, by its certificate."""
    if key.certificate is not None:
        names = load(key.certificate.encode()).subject
        for name in names.get_attributes_for_oid(x509.NameOID.COMMON_NAME):
            return str(name.value)
    return key.key_id.hex()


def _used(
    candidates: dict[str, None], manifest: Manifest, present: tuple[str, ...]
) -> Iterator[str]:
    """Authorities that issued something in the manifest; the present one in any case."""
    certified = (key.certificate for key in carried(manifest) if key.certificate)
    issuers = {load(pem.encode()).issuer for pem in certified}
    kept = [pem for pem in candidates if pem in present or load(pem.encode()).subject in issuers]
    yield from kept or candidates  # a manifest of hybrid keys alone still names one
