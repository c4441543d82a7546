# SPDX-License-Identifier: Apache-2.0
"""The authority that certifies encryption keys: the deployment's own CA, or the company's."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from upseal.core.certificates import issue, issue_ca, load
from upseal.core.keys import PublicKey
from upseal.fleet.admin.folder import read_file
from upseal.fleet.admin.refusals import Unusable

CA_DAYS = 3650
_DAY_MS = 86_400_000
_SLACK = datetime.timedelta(days=1)
_NAME_MAX = 64  # X.520's bound of a common name

Passphrase = Callable[[Path], bytes]
"""Asked for the passphrase of an encrypted key file."""


def moment(milliseconds: int) -> datetime.datetime:
    """A time on the wire, as X.509 has it."""
    return datetime.datetime.fromtimestamp(milliseconds // 1000, datetime.UTC)


def load_private(path: Path, passphrase: Passphrase | None) -> Any:
    """A private key that signs, as a ``cryptography`` object.

    Raises:
        Unusable: there is none, or it cannot be read with that passphrase.
    """
    data = read_private(path)
    secret = passphrase(path) if passphrase is not None and is_encrypted(data) else None
    try:
        return serialization.load_pem_private_key(data, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise bad_key(path, error) from error


def read_private(path: Path) -> bytes:
    """The PEM of a private key.

    Raises:
        Unusable: the file cannot be read.
    """
    try:
        return read_file(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unusable(
            "use the key", f"cannot read {str(path)!r}: {reason}", "name the file it is in"
        ) from error


def is_encrypted(pem: bytes) -> bool:
    """Whether a PEM needs a passphrase."""
    return b"ENCRYPTED" in pem


def bad_key(path: Path, error: Exception) -> Unusable:
    """For a file that is no such key, or not with that passphrase."""
    return Unusable("use the key", f"{str(path)!r}: {error}", "check the file and its passphrase")


def private_pem(key: Any, passphrase: bytes | None) -> bytes:
    """PKCS#8, encrypted if there is a passphrase."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )


def common_name(*parts: str) -> str:
    """A subject's common name, cut to what X.509 allows."""
    return " ".join(parts)[:_NAME_MAX]


def make_ca(name: str, now_ms: int, days: int = CA_DAYS) -> tuple[bytes, Any]:
    """A CA of the deployment's own (ECDSA P-256, also for FIPS): certificate in PEM, and key.

    It may issue end certificates only.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    # A clock may be set right after this: hence the slack.
    pem = issue_ca(key, common_name(name, "upseal CA"), days, moment(now_ms), _SLACK)
    return pem, key


@dataclass(frozen=True)
class Authority:
    """A CA's certificate and its key."""

    certificate: x509.Certificate
    key: Any

    @classmethod
    def of(cls, certificate: bytes, key: Any) -> Authority:
        """From what `make_ca` made."""
        return cls(load(certificate), key)

    @classmethod
    def read(cls, certificate: Path, key: Path, passphrase: Passphrase | None) -> Authority:
        """From files.

        Raises:
            Unusable: they cannot be read, are not a CA's, or do not belong together.
        """
        pem = read_private(certificate)
        try:
            found = load(pem)
        except ValueError as error:
            raise bad_key(certificate, error) from error
        authority = cls(found, load_private(key, passphrase))
        authority._check(certificate)
        return authority

    def _check(self, path: Path) -> None:
        why = ""
        extensions = self.certificate.extensions
        try:
            if not extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
                why = "it is not a CA's"
        except x509.ExtensionNotFound:
            why = "it is not a CA's"
        try:
            if not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign:
                why = why or "its key usage does not allow it to sign certificates"
        except x509.ExtensionNotFound:
            pass  # RFC 5280: without the extension there is no restriction
        if not why and self.certificate.public_key() != self.key.public_key():
            why = "the CA's key belongs to another certificate"
        if why:
            raise Unusable(
                "certify keys", f"{str(path)!r}: {why}", "name a CA with --ca-cert and --ca-key"
            )

    @property
    def pem(self) -> str:
        """The certificate, for the manifest."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def certify(self, public: PublicKey, subject: str, now_ms: int, days: int) -> str | None:
        """An encryption certificate in PEM, ending with the CA's at the latest.

        None for the hybrid, which X.509 has no form for.

        Raises:
            Unusable: the CA's certificate is not valid now.
        """
        now = moment(now_ms)
        last = self.certificate.not_valid_after_utc
        if not self.certificate.not_valid_before_utc <= now < last:
            raise Unusable(
                "certify keys",
                f"the CA's certificate is valid from {self.certificate.not_valid_before_utc} to "
                f"{last}, and it is {now}",
                "check the clock, or give a new CA with `upseal admin renew --ca-cert --ca-key`",
            )
        if len(public.parts) > 1:
            return None
        left = (last - now) // datetime.timedelta(days=1)
        if left < 1:
            raise Unusable(
                "certify keys",
                f"the CA's certificate ends within a day, at {last}",
                "give a new CA with `upseal admin renew --ca-cert --ca-key`",
            )
        name = subject[:_NAME_MAX] or "-"
        pem = issue(public.parts[0], name, self.key, self.certificate, min(days, left), now)
        return pem.decode()
