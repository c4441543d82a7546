# SPDX-License-Identifier: Apache-2.0
"""``upseal cert``: certificates for encryption, and a small CA to try them with."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from typing import Any

from upseal.cli.common import BAD, IO, OK, USAGE, Failure, positive, say, say_json, shown, warn
from upseal.cli.common import write_new as _write_new
from upseal.cli.keyfiles import (
    add_passphrase_file,
    check_one_stdin,
    identity,
    passphrase_of,
    read_small,
    signing_key,
)

_NOTE = """\
examples:
  upseal cert -k server.pem --subject server.example -o server.crt      (RSA, P-256: self-signed)
  upseal cert --new-ca --subject "Example CA" -o ca.pem --ca-key-out ca.key
  upseal cert -k server.pub.pem --subject server.example --ca-key ca.key --ca-cert ca.pem
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.epilog = _NOTE
    parser.add_argument("-k", "--key", metavar="FILE", help="the key: private or public, PEM")
    parser.add_argument("--subject", metavar="NAME", required=True, help="whose key: common name")
    parser.add_argument(
        "--days", type=positive, help="how long it is valid (default: 825; a CA's: 3650)"
    )
    parser.add_argument("--ca-key", metavar="FILE", help="private key of the CA that signs")
    parser.add_argument("--ca-cert", metavar="FILE", help="certificate of that CA")
    parser.add_argument("--new-ca", action="store_true", help="make a CA (ECDSA P-256) instead")
    parser.add_argument("--ca-key-out", metavar="FILE", help="with --new-ca: its key (mode 0600)")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="a new file; default: standard output"
    )
    parser.add_argument(
        "--passphrase",
        action="store_true",
        help="with --new-ca: encrypt its key (UPSEAL_PASSPHRASE, or asked for)",
    )
    add_passphrase_file(parser)
    parser.add_argument("--json", action="store_true", help="say what was made, for machines")


def run(args: argparse.Namespace) -> int:
    """Makes a certificate."""
    output = None if args.output in (None, "-") else str(args.output)
    if output is not None and os.path.lexists(output):
        raise Failure(IO, f"{shown(output)} exists; name another file, or move it away first")
    try:
        pem = _new_ca(args, output) if args.new_ca else _certificate(args)
    except OverflowError:
        raise Failure(USAGE, f"{args.days} days is past the year 9999; give fewer") from None
    if output is not None and not args.new_ca:
        _write_new(output, pem, 0o666)
    if args.json:
        say_json(_facts(pem, output))
    elif output is None:
        say(pem.decode())
    return OK


def _certificate(args: argparse.Namespace) -> bytes:
    if args.key is None:
        raise Failure(USAGE, "no key to certify; give -k FILE, or --new-ca to make a CA")
    if (args.ca_key is None) != (args.ca_cert is None):
        raise Failure(USAGE, "--ca-key and --ca-cert belong together; give both or none")
    if args.ca_key_out or args.passphrase:
        raise Failure(USAGE, "--ca-key-out and --passphrase go with --new-ca; leave them away")
    check_one_stdin([args.key, args.ca_key or "", args.ca_cert or ""])
    from upseal.core.certificates import issue, load
    from upseal.core.keys import PrivateKey

    key: Any = _subject_key(args)
    if len(key.parts) > 1:
        raise Failure(
            USAGE,
            "there is no X.509 certificate for the hybrid mlkem768-x25519; "
            "give its public key file to recipients",
        )
    public = key.public_key if isinstance(key, PrivateKey) else key
    if args.ca_key is not None:
        signer = signing_key(args.ca_key, args.passphrase_file)
        try:
            issuer = load(read_small(args.ca_cert))
        except ValueError as error:
            raise Failure(BAD, f"{shown(args.ca_cert)} is no certificate: {error}") from error
    elif public.name == "x25519":
        raise Failure(
            USAGE,
            "an X25519 key cannot sign its own certificate; add --ca-key and --ca-cert "
            "(make a CA with --new-ca)",
        )
    elif isinstance(key, PrivateKey):
        signer, issuer = key.parts[0], None
    else:
        raise Failure(
            USAGE,
            f"{shown(args.key)} is a public key and cannot sign; "
            "give the private one, or --ca-key and --ca-cert",
        )
    try:
        pem = issue(public.parts[0], args.subject, signer, issuer, args.days or 825)
    except (ValueError, TypeError) as error:
        raise Failure(USAGE, f"cannot make the certificate: {error}") from error
    if issuer is not None and load(pem).not_valid_after_utc > issuer.not_valid_after_utc:
        day = issuer.not_valid_after_utc.date()
        warn(f"the certificate outlives its CA, which ends on {day}; give fewer --days")
    return pem


def _subject_key(args: argparse.Namespace) -> Any:
    """The private key, if the file holds one, else the public one."""
    from cryptography.exceptions import UnsupportedAlgorithm

    from upseal.core.keys import PublicKey

    if args.key != "-":
        data = read_small(args.key)
        if b"PRIVATE KEY-----" not in data:
            try:
                return PublicKey.from_pem(data)
            except (ValueError, UnsupportedAlgorithm) as error:
                raise Failure(BAD, f"cannot certify {shown(args.key)}: {error}") from error
    return identity(args.key, args.passphrase_file)


def _new_ca(args: argparse.Namespace, output: str | None) -> bytes:
    """A CA's certificate; its key goes to ``--ca-key-out``, the certificate to ``output``."""
    if args.key or args.ca_key or args.ca_cert:
        raise Failure(USAGE, "--new-ca makes its own key; leave -k, --ca-key and --ca-cert away")
    if args.ca_key_out is None:
        raise Failure(USAGE, "the CA needs a file for its key; give --ca-key-out FILE")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from upseal.core.certificates import issue_ca

    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if args.passphrase or args.passphrase_file is not None:
        secret = passphrase_of(args.ca_key_out, args.passphrase_file, new=True)
        encryption = serialization.BestAvailableEncryption(secret)
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        pem = issue_ca(key, args.subject, args.days or 3650)
    except ValueError as error:
        raise Failure(USAGE, f"cannot make the CA: {error}") from error
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    _write_new(args.ca_key_out, key_pem, 0o600)
    try:
        if output is not None:
            _write_new(output, pem, 0o666)
    except BaseException:  # both or none
        with suppress(OSError):
            os.unlink(args.ca_key_out)
        raise
    return pem


def _facts(pem: bytes, output: str | None) -> dict[str, Any]:
    from upseal.core.certificates import load
    from upseal.core.keys import PublicKey

    certificate = load(pem)
    key = PublicKey(certificate.public_key())
    return {
        "certificate": output,
        "pem": pem.decode(),
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "key_id": key.key_id.hex(),
        "suite": key.name,
        "serial": f"{certificate.serial_number:x}",
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
    }
