# SPDX-License-Identifier: Apache-2.0
"""Uploads are C2SP chunked-encryption messages: `cryptography.cobblestone` is the other side."""

import io

import pytest
from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from support import drain, key, pattern

from upseal import Opener, Sealer
from upseal.core import header as headers
from upseal.core.session import SessionKeys, derive

SIZES = [0, 1, 16383, 16384, 16385, 32768, 5 << 20]


@pytest.fixture
def session(engine):
    """An AES session's header, its upload key, and an opener for it."""
    recipient = key("x25519-a")
    sealer = Sealer([recipient.public_key], cipher="aes-256-gcm", engine=engine)
    header = headers.parse(sealer.seal(b""))
    secret = recipient.unwrap(header.entries[0].wrapped)
    return (
        sealer,
        header.raw,
        derive(secret, header.bound)[64:96],
        Opener([recipient], engine=engine),
    )


def theirs(direction, upload_key, context, data):
    out = direction(upload_key, b"\x03" + context)
    return bytes(out.update(data)) + bytes(out.finalize())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("context", [b"", b"agent 7"])
def test_cryptography_opens_our_uploads(session, size, context):
    sealer, header, upload_key, _ = session
    data = pattern(size)
    out = io.BytesIO()
    with sealer.writer(out, context) as writer:
        writer.write(data)
    sealed = out.getvalue()
    assert sealed.startswith(header + b"\x03")
    message = sealed[len(header) + 1 :]
    assert theirs(Cobblestone256Decryptor, upload_key, context, message) == data


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("context", [b"", b"agent 7"])
def test_we_open_uploads_made_by_cryptography(session, size, context):
    _, header, upload_key, opener = session
    data = pattern(size)
    message = theirs(Cobblestone256Encryptor, upload_key, context, data)
    got, error = drain(opener, header + b"\x03" + message, context, step=1 << 20)
    assert (got == data, error) == (True, None)


def test_our_derivation_is_what_makes_the_message_theirs(session, engine):
    # The same salt gives the same commitment: it is no accident of one random message.
    _, header, upload_key, _ = session
    message = theirs(Cobblestone256Encryptor, upload_key, b"c", b"")
    keys = SessionKeys(engine, headers.parse(header).cipher, bytes(64) + upload_key + bytes(32))
    assert keys.upload(message[:24], b"\x03c")[1] == message[24:56]
