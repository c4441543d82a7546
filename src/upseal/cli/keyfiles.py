# SPDX-License-Identifier: Apache-2.0
"""Reading keys, certificates and passphrases. No passphrase is ever taken from the arguments."""

from __future__ import annotations

import argparse
import datetime
import os
import stat
from typing import TYPE_CHECKING, Any

from upseal.cli.common import BAD, USAGE, Failure, doing, read_all, reading, shown, warn

if TYPE_CHECKING:
    from upseal.core.keys import PrivateKey, PublicKey
    from upseal.integrations.keys import HeldKey

_KEY_FILE_MAX = 1 << 20
_ENVIRONMENT = "UPSEAL_PASSPHRASE"


def read_small(name: str) -> bytes:
    """A key file or certificate; ``-`` is standard input."""
    with doing(f"read {shown(name)}"), reading(None if name == "-" else name) as file:
        data = read_all(file, _KEY_FILE_MAX)
    if len(data) > _KEY_FILE_MAX:
        raise Failure(BAD, f"{shown(name)} is far too long for a key or certificate; check -r, -i")
    return data


def check_one_stdin(names: list[str | None]) -> None:
    """Standard input can be one thing only."""
    if sum(name in (None, "-") for name in names) > 1:
        raise Failure(USAGE, "standard input is named twice; name a file for one of them")


def recipients(names: list[str]) -> list[PublicKey]:
    """The public keys of ``-r``."""
    return [recipient(name) for name in names]


def recipient(name: str) -> PublicKey:
    """A public key in PEM, or the one in a certificate (PEM or DER), by what is in the file."""
    from cryptography.exceptions import UnsupportedAlgorithm

    from upseal.core.keys import PublicKey

    data = read_small(name)
    is_certificate = b"-----BEGIN CERTIFICATE-----" in data or data[:1] == b"\x30"
    if not is_certificate and b"PRIVATE KEY-----" in data:
        raise Failure(
            BAD,
            f"{shown(name)} is a private key, and recipients are public ones; "
            "get its public key with `upseal keygen --from`",
        )
    if whose := _of_another_program(data):
        raise Failure(
            BAD,
            f"{shown(name)} is a key of {whose}, which upseal cannot seal to; "
            "its owner makes one with `upseal keygen`",
        )
    try:
        key = PublicKey.from_certificate(data) if is_certificate else PublicKey.from_pem(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Failure(
            BAD, f"cannot seal to {shown(name)}: {error}; give a public key or certificate"
        ) from error
    if is_certificate:
        _check_dates(name, data)
    return key


def _of_another_program(data: bytes) -> str:
    """Whose public key it is, if people have them and upseal cannot use them."""
    start = data[:4096].lstrip()
    if start.startswith((b"ssh-", b"ecdsa-sha2-", b"sk-ssh-", b"sk-ecdsa-")):
        return "OpenSSH"
    if start.startswith((b"age1", b"# public key: age1", b"# recipient: age1")):
        return "age"
    if b"-----BEGIN PGP PUBLIC KEY BLOCK-----" in start:
        return "OpenPGP"
    return ""


def _check_dates(name: str, data: bytes) -> None:
    from upseal.core.certificates import load

    certificate = load(data)
    now = datetime.datetime.now(datetime.UTC)
    if now > certificate.not_valid_after_utc:
        day = certificate.not_valid_after_utc.date()
        warn(f"the certificate {shown(name)} expired on {day}; ask its owner for a new one")
    elif now < certificate.not_valid_before_utc:
        day = certificate.not_valid_before_utc.date()
        warn(f"the certificate {shown(name)} is valid from {day} on; check the clock")


def add_passphrase_file(parser: argparse.ArgumentParser) -> None:
    """``--passphrase-file``, for reading keys."""
    parser.add_argument(
        "--passphrase-file",
        metavar="FILE",
        help="passphrase of the private key, in the first line (else UPSEAL_PASSPHRASE, or asked)",
    )


def identity(name: str, passphrase_file: str | None = None) -> PrivateKey:
    """A private key in PEM."""
    from cryptography.exceptions import UnsupportedAlgorithm

    from upseal.core.keys import PrivateKey

    data, passphrase = _private_pem(name, passphrase_file)
    try:
        return PrivateKey.from_pem(data, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unusable(name, passphrase, error) from error


def openers(names: list[str], passphrase_file: str | None = None) -> list[PrivateKey | HeldKey]:
    """The private keys of ``-i``: files, and references (`upseal.integrations.keys`)."""
    found: list[PrivateKey | HeldKey] = []
    for name in names:
        if _elsewhere(name):
            found += _kept(name, passphrase_file)
        else:
            found.append(identity(name, passphrase_file))
    return found


def kept_key(name: str) -> PrivateKey | HeldKey:
    """The one key that a reference names."""
    if not _elsewhere(name):
        raise Failure(USAGE, f"{shown(name)} is no reference to a key: unix:... or pkcs11:...")
    found = _kept(name, None)
    if len(found) > 1:
        ids = ", ".join(key.key_id.hex() for key in found)
        raise Failure(USAGE, f"{shown(name)} names several keys; add # and one of {ids}")
    return found[0]


def _elsewhere(name: str) -> bool:
    """As `upseal.integrations.keys.is_reference`, which would import all of the cryptography."""
    return name.startswith(("unix:", "pkcs11:"))


def _kept(name: str, passphrase_file: str | None) -> list[PrivateKey | HeldKey]:
    from upseal.integrations.keys import PIN, open_keys

    pin: bytes | None = os.environb.get(PIN.encode()) or None
    if passphrase_file is not None:
        pin = passphrase_of(name, passphrase_file)
    try:
        return open_keys(name, passphrase=pin)
    except ValueError as error:
        raise Failure(USAGE, f"cannot use the key {shown(name)}: {error}") from error
    except ImportError as error:
        raise Failure(USAGE, str(error)) from error


def signing_key(name: str, passphrase_file: str | None = None) -> Any:
    """Any private key in PEM, as a ``cryptography`` object: a CA's may be of no suite of ours."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data, passphrase = _private_pem(name, passphrase_file)
    try:
        return load_pem_private_key(data, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unusable(name, passphrase, error) from error


def _private_pem(name: str, passphrase_file: str | None) -> tuple[bytes, bytes | None]:
    data = read_small(name)
    if b"PRIVATE KEY-----" not in data:
        kind = "a public key" if b"PUBLIC KEY-----" in data else "no private key"
        raise Failure(BAD, f"{shown(name)} is {kind}; give a private key in PEM")
    if name != "-":
        _warn_if_open(name)
    encrypted = b"ENCRYPTED" in data
    return data, passphrase_of(name, passphrase_file) if encrypted else None


def _unusable(name: str, passphrase: bytes | None, error: Exception) -> Failure:
    if passphrase is not None:
        hint = "check the passphrase"
        return Failure(BAD, f"cannot use the private key {shown(name)}: {error}; {hint}")
    return Failure(BAD, f"cannot use the private key {shown(name)}: {error}; make one with keygen")


def _warn_if_open(name: str) -> None:
    status = os.stat(name)
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o044:
        warn(f"others can read the private key {shown(name)}; do chmod 600 on it")


def passphrase_of(name: str, file: str | None, *, new: bool = False) -> bytes:
    """From the file, the environment, or the terminal (asked twice for a new key)."""
    if file is not None:
        secret = read_small(file).split(b"\n", 1)[0].removesuffix(b"\r")
    elif os.environb.get(_ENVIRONMENT.encode()):
        secret = os.environb[_ENVIRONMENT.encode()]
    else:
        secret = _ask(name, new=new)
    if not secret:
        raise Failure(USAGE, "the passphrase is empty; give one")
    return secret


def _ask(name: str, *, new: bool) -> bytes:
    import getpass

    try:  # getpass would fall back to standard input, which may be data
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise Failure(
            USAGE,
            f"{shown(name)} needs a passphrase and there is no terminal to ask at; "
            f"set {_ENVIRONMENT} or use --passphrase-file",
        ) from None
    try:
        secret = getpass.getpass(f"Passphrase of {shown(name)}: ")
        if new and getpass.getpass("The same again: ") != secret:
            raise Failure(USAGE, "the two passphrases differ; try again")
    except EOFError:
        raise Failure(USAGE, "no passphrase was given; try again") from None
    return secret.encode("utf-8", "surrogateescape")
