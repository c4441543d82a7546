# SPDX-License-Identifier: Apache-2.0
"""What fuzzing has found: each input of these got past its documented errors once."""

import base64
import datetime
import tracemalloc

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support import key

from upseal import PublicKey
from upseal.core import certificates
from upseal.core.keys import _PEM_BLOCK
from upseal.fleet.agent import settings as agents
from upseal.fleet.files import read_private
from upseal.fleet.manifest import EncryptionKey, ManifestError
from upseal.fleet.relay import settings as relays
from upseal.fleet.server.settings import read_settings
from upseal.fleet.settings import SettingsError

SUBJECT_KEY_ID, AUTHORITY_KEY_ID = b"\x55\x1d\x0e", b"\x55\x1d\x23"
VERSION_3 = b"\xa0\x03\x02\x01\x02"


def certificate(*extensions):
    """An encryption certificate in DER, with these extensions as well."""
    issuer, start = ec.generate_private_key(ec.SECP256R1()), datetime.datetime(2026, 1, 1)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "found")])
    usage = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
         "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    public = key("x25519-a").public_key.parts[0]
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=900))
        .add_extension(x509.KeyUsage(key_agreement=True, **usage), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, False)
    made = builder.sign(issuer, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.DER)


def twice():
    """Two extensions of one name."""
    other = x509.AuthorityKeyIdentifier(b"k" * 20, None, None)
    return certificate(other).replace(AUTHORITY_KEY_ID, SUBJECT_KEY_ID)


def of_no_version():
    """X.509 version 9."""
    return certificate().replace(VERSION_3, b"\xa0\x03\x02\x01\x08")


def of_no_name():
    """An alternative name of a kind that nobody uses: an X.400 address."""
    oid = x509.ObjectIdentifier("2.5.29.17")
    return certificate(x509.UnrecognizedExtension(oid, b"\x30\x04\xa3\x02\x30\x00"))


def as_pem(der):
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("made", [twice, of_no_version, of_no_name])
def test_a_certificate_that_cannot_be_read_is_a_value_error(made):
    assert PublicKey.from_certificate(certificate()) == key("x25519-a").public_key
    with pytest.raises(ValueError):
        PublicKey.from_certificate(made())
    with pytest.raises(ManifestError):
        EncryptionKey(as_pem(made()), None, 1).public()


def test_a_certificate_of_no_version_is_a_value_error_where_it_is_only_loaded():
    with pytest.raises(ValueError):
        certificates.load(of_no_version())
    with pytest.raises(ValueError):
        certificates.load(as_pem(of_no_version()).encode())


PARENT = 'parent = "http://127.0.0.1:1"\n'
LONG = "0x" + "f" * 5000
"""A number that Python reads, and does not write in decimal."""


@pytest.mark.parametrize(
    "text",
    [
        PARENT + "a = " + "[" * 3000,  # RecursionError
        PARENT + "a = " + "9" * 5000,  # ValueError, and not tomllib's
        PARENT + f"name = {LONG}",
        PARENT + f'parent_ids = ["any", {LONG}]',
        PARENT + f"[uploads]\npiece = 1{'0' * 400}",  # OverflowError
        PARENT + f'listen = "h:{"9" * 5000}"',
    ],
    ids=["nested", "digits", "long-text", "long-in-list", "beyond-float", "port"],
)
@pytest.mark.parametrize("kind", [agents, relays], ids=["agent", "relay"])
def test_settings_that_no_file_should_have_are_settings_errors(tmp_path, kind, text):
    file = tmp_path / "found.toml"
    file.write_text(text)
    with pytest.raises(SettingsError):
        kind.Settings.load(file)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 3000,
        "a = " + "9" * 5000,
        f'deployment = "{"ab" * 16}"\n[listen]\nport = {LONG}',
        f'deployment = "{"ab" * 16}"\n[server]\nunwrap_share = nan',
        f'deployment = "{"ab" * 16}"\n[server]\nupload_expires_hours = inf',
    ],
    ids=["nested", "digits", "port", "nan", "inf"],
)
def test_a_servers_settings_likewise(tmp_path, text):
    (tmp_path / "deployment.toml").write_text(text)
    with pytest.raises(SettingsError):
        read_settings(tmp_path)


def test_a_file_takes_the_memory_it_needs_and_not_its_limits(tmp_path):
    file = tmp_path / "trust.json"
    file.write_bytes(b"x" * 3_000_000)
    tracemalloc.start()
    try:
        assert read_private(file, 512 << 20) == file.read_bytes()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20
    assert len(read_private(file, 3_000_000)) == 3_000_000
    with pytest.raises(OSError, match="longer than 2999999 bytes"):
        read_private(file, 2_999_999)


def test_blocks_that_never_end_take_no_more_than_their_length():
    """Doubling what is read must about double the work: it grew by four, to seconds at 16 KiB."""
    steps = {}
    for count in (500, 1000):
        text = b"-----BEGIN PUBLIC KEY-----" * count
        steps[count] = max(
            len(match.group()) for match in _PEM_BLOCK.finditer(text + b"-----END PUBLIC KEY-----")
        )
    # What is matched is the last block alone: no other was looked through to its end.
    assert steps == {500: 50, 1000: 50}
