# SPDX-License-Identifier: Apache-2.0
"""The published vectors: the product does what docs/format.md and its second implementation do."""

import io
import subprocess
import sys
from itertools import pairwise

import pytest
from support import (
    VECTORS,
    Opener,
    Pipe,
    blob,
    context,
    key,
    load,
    open_any,
    plaintext,
    seal_all,
    valid,
)

import upseal
from upseal.core import header as headers
from upseal.core.bodies import parse_batch
from upseal.core.session import SessionKeys, derive
from upseal.engine.records import pack

HOSTILE = load("hostile")["vectors"]


def named(vectors):
    return [pytest.param(v, id=v["name"]) for v in vectors]


@pytest.fixture(params=["every recipient", "cache warm"])
def openers(request, engine):
    """Openers for a vector: one for each of its recipients; or one of them twice."""

    def make(v):
        if request.param == "every recipient":
            return [Opener([key(name)], engine=engine) for name in v["recipients"]]
        return [Opener([key(v["recipients"][-1])], engine=engine)] * 2

    return make


@pytest.mark.parametrize("v", named(valid()))
def test_every_valid_vector_opens(openers, v):
    for opener in openers(v):
        assert open_any(opener, v["kind"], blob(v), context(v)) == plaintext(v)


@pytest.mark.parametrize("v", named(HOSTILE))
def test_every_hostile_vector_is_refused_with_its_own_error(engine, v):
    opener = Opener([key(name) for name in v["keys"]], engine=engine)
    for _ in range(2):  # the second time some of it is remembered
        with pytest.raises(upseal.OpenError) as caught:
            open_any(opener, v["call"], blob(v), context(v), Pipe)
        assert type(caught.value).__name__ == v["error"]


@pytest.mark.parametrize("v", named([v for v in HOSTILE if v["call"] == "reader"]))
def test_a_seekable_file_gives_the_same_error_unless_its_length_already_tells(engine, v):
    opener = Opener([key(name) for name in v["keys"]], engine=engine)
    with pytest.raises(upseal.OpenError) as caught:
        open_any(opener, "reader", blob(v), context(v), io.BytesIO)
    # The length of a seekable file is checked before any chunk.
    impossible = v["name"] == "upload-chunk-too-large"
    assert type(caught.value).__name__ == ("Truncated" if impossible else v["error"])


@pytest.mark.parametrize("v", named([v for v in HOSTILE if v["call"] == "open"]))
def test_open_many_gives_each_hostile_envelope_the_same_error(engine, v):
    opener = Opener([key(name) for name in v["keys"]], engine=engine)
    good = next(w for w in valid(kind="envelope") if set(v["keys"]) & set(w["recipients"]))
    first, bad, last = opener.open_many([blob(good), blob(v), blob(good)], context(v))
    assert type(bad).__name__ == v["error"]
    if context(v) == context(good):
        assert first == last == plaintext(good)


def test_an_unknown_recipient_error_names_whom_it_was_for(engine):
    (v,) = [v for v in HOSTILE if v["name"] == "batch-unknown-key"]
    with pytest.raises(upseal.UnknownRecipient) as caught:
        Opener([key(n) for n in v["keys"]], engine=engine).open_batch(blob(v))
    assert caught.value.recipients == ((0x0020, key("x25519-a").key_id),)


@pytest.mark.parametrize("v", named(valid()))
def test_session_keys_are_derived_as_published(v):
    header = bytes.fromhex(v["header"])
    derived = derive(bytes.fromhex(v["session_secret"]), header[:-32])
    names = ("report_key", "batch_key", "upload_key", "commitment")
    assert derived == b"".join(bytes.fromhex(v["keys"][n]) for n in names)
    assert header[-32:] == derived[96:]


@pytest.mark.parametrize("v", named(valid()))
def test_a_header_is_written_again_as_it_was_read(v):
    header = headers.parse(blob(v))
    assert headers.encode(header.cipher, list(header.entries)) + header.commitment == header.raw
    assert header.raw == bytes.fromhex(v["header"])
    for entry, name in zip(header.entries, v["recipients"], strict=True):
        assert (entry.suite, entry.key_id) == (key(name).suite, key(name).key_id)


@pytest.mark.parametrize("v", named(valid()))
def test_sealing_with_the_published_randomness_gives_the_published_bytes(engine, v):
    header, secret = bytes.fromhex(v["header"]), bytes.fromhex(v["session_secret"])
    keys = SessionKeys(engine, v["cipher"], derive(secret, header[:-32]))
    if v["kind"] == "upload":
        salt, data = bytes.fromhex(v["salt"]), plaintext(v)
        chunk_key, commitment = keys.upload(salt, b"\x03" + context(v))
        out = bytearray(len(data) + 16 * (len(data) // 16384 + 1))
        engine.seal_chunks(chunk_key, 0, True, memoryview(data), memoryview(out))
        assert header + b"\x03" + salt + commitment + out == blob(v)
        return
    nonce, padded = bytes.fromhex(v["nonce"]), v["padded"]
    if v["kind"] == "envelope":
        kind = b"\x81" if padded else b"\x01"
        aad = kind + context(v)
        parts = (keys.report, nonce, header + kind, aad)
        seal = engine.sealing(keys.report, header + kind, padded)
        assert seal(nonce, aad, plaintext(v)) == blob(v)
        assert seal_all(engine, *parts, [plaintext(v)], padded) == [blob(v)]
        return
    reports = plaintext(v)
    kind, count = b"\x82" if padded else b"\x02", len(reports).to_bytes(4, "big")
    head = header + kind + nonce + count
    aad = kind + bytes(4) + count + context(v)
    assert engine.seal_batch(keys.batch, nonce, head, aad, pack(reports), padded) == blob(v)


@pytest.mark.parametrize("v", named(valid(kind="batch")))
def test_a_batch_is_written_again_as_it_was_read(v):
    data, at = blob(v), len(bytes.fromhex(v["header"]))
    batch = parse_batch(memoryview(data), at, v["padded"])
    count = batch.total.to_bytes(4, "big")
    table = b"".join((b - a).to_bytes(4, "big") for a, b in pairwise(batch.ends))
    again = data[: at + 1] + batch.nonce + count + table + bytes(batch.records)
    assert again == data
    assert batch.nonce.hex() == v["nonce"]


def test_a_sealer_draws_what_the_vectors_are_given():
    # With everything random taken back out of a fresh envelope, the rest must follow.
    recipient = key("x25519-a")
    sealer = upseal.Sealer([recipient.public_key], cipher=1)
    header = headers.parse(sealer.seal(b"r", b"c"))
    secret = recipient.unwrap(header.entries[0].wrapped)
    assert len(secret) == 32
    assert derive(secret, header.bound)[96:] == header.commitment


def test_the_second_implementation_agrees_on_every_vector():
    done = subprocess.run(
        [sys.executable, VECTORS / "generate.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(valid())} valid, {len(HOSTILE)} hostile" in done.stdout


@pytest.mark.parametrize("kind", ["envelope", "batch", "upload"])
def test_the_second_implementation_opens_what_we_seal(engine, cipher, kind):
    import reference
    from support import Sealer, upload

    names = ("x25519-a", "p256-a", "rsa2048-a", "mlkem768-x25519-a")
    sealer = Sealer(
        [key(n).public_key for n in names],
        cipher=cipher,
        engine=engine,
        allow_mixed=True,
        padding=upseal.Padding.PADME,
    )
    reports = [b"", b"one", bytes(1000)]
    made = {
        "envelope": ("open", sealer.seal(reports[2], b"c"), reports[2]),
        "batch": ("open_batch", sealer.seal_batch(reports, b"c"), reports),
        "upload": ("reader", upload(sealer, bytes(40000), b"c"), bytes(40000)),
    }
    call, data, want = made[kind]
    for name in names:
        stored = load("keys")[name]
        theirs = reference.Key(stored["suite_id"], stored["private_pem"])
        assert reference.CALLS[call](data, b"c", [theirs]) == want
