# SPDX-License-Identifier: Apache-2.0
"""Checks of the core that no other test would miss (scripts/mutations)."""

import hashlib
import io
import os
import struct
from array import array
from types import SimpleNamespace

import pytest
from support import (
    CountingKey,
    Opener,
    Pipe,
    Sealer,
    blob,
    drain,
    key,
    load,
    open_any,
    pattern,
    upload,
    wait_for_children,
)
from support import engine as engine_of

from upseal import OpenError, Padding, PrivateKey, Truncated, UnsupportedFormat, open_file
from upseal.core import files, opener, reader
from upseal.core import writer as writer_module
from upseal.core.files import replacing
from upseal.engine.portable import XAES256GCM
from upseal.engine.records import packed
from upseal.engine.sizes import CHUNK, CHUNKS_MAX, NONCE, RECORD_MAX, SEALED_CHUNK, TAG
from upseal.engine.types import EngineError

KEY = PrivateKey.generate()
AES = 1
fork_only = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.fixture
def native():
    return engine_of("native[openssl]")


@pytest.fixture
def native_module(native):
    from upseal.engine import native as module

    return module


# -- what is read from a header -------------------------------------------------------------


@pytest.mark.parametrize("rest", [0, 1, 8, 9])
def test_an_unknown_suite_is_named_before_the_cut_behind_it(rest):
    front = b"USL\x01\x01\x01" + b"\x00\x11" + bytes(rest)
    with pytest.raises(UnsupportedFormat, match="not known here") as caught:
        Opener([KEY]).open(front)
    assert caught.value.offset == 6
    with pytest.raises(Truncated):
        Opener([KEY]).open(front[:7])


def test_a_header_that_changes_while_it_is_read_is_remembered_as_what_it_was(monkeypatch):
    """A memory that somebody writes to: what it said first must not stand for what was opened."""
    sealers = [Sealer([KEY.public_key]) for _ in "ab"]
    first, second = (sealer.seal(b"report") for sealer in sealers)
    memory, ours = bytearray(first), Opener([KEY])

    def digest(data):
        memory[:] = second
        return hashlib.sha256(data)

    monkeypatch.setattr(opener, "hashlib", SimpleNamespace(sha256=digest))
    ours.open_many([memory])
    monkeypatch.undo()
    for sealed in (first, second, sealers[0].seal(b"report"), sealers[1].seal(b"report")):
        assert ours.open(sealed) == b"report"


@pytest.mark.parametrize("call", ["open", "open_batch", "reader"])
def test_what_is_publicly_wrong_is_named_and_costs_no_unwrap(call):
    """Also where its session is remembered: the seal would be refused, but only after the work."""
    sealer, key = Sealer([KEY.public_key]), CountingKey(KEY)
    made = {
        "open": sealer.seal(b"report"),
        "open_batch": sealer.seal_batch([b"report"]),
        "reader": upload(sealer, b"report"),
    }
    names = {"open": "envelope", "open_batch": "batch", "reader": "upload"}
    ours = Opener([key])
    for known in (False, True):
        for other, data in made.items():
            if other != call:
                with pytest.raises(OpenError) as caught:
                    open_any(ours, call, data)
                assert caught.value.problem == f"this is {names[other]}, not {names[call]}"
        assert key.unwrapped == known
        assert ours.open(made["open"]) == b"report"


@pytest.mark.parametrize("vector", ["header-x25519-length-79", "header-x25519-length-81"])
def test_a_wrapped_secret_of_another_length_is_not_unwrapped(vector):
    (found,) = (v for v in load("hostile")["vectors"] if v["name"] == vector)
    counting = CountingKey(key(found["keys"][0]))
    with pytest.raises(OpenError) as caught:
        Opener([counting]).open(blob(found))
    assert "x25519 secret" in caught.value.problem
    assert counting.unwrapped == 0


@pytest.mark.parametrize("length", [0, TAG - 1, RECORD_MAX + TAG + 1, 2**32 - 1])
def test_a_record_of_no_possible_length_is_refused_with_the_table(engine, length):
    for padded in (False, True):
        for row in ((length,), (TAG + 1, length), (length, TAG + 1)):
            table = memoryview(struct.pack(f">{len(row)}I", *row))
            assert engine.sealed_ends(table, padded) is None
    assert engine.sealed_ends(memoryview(struct.pack(">I", TAG)), True) is None
    assert engine.sealed_ends(memoryview(struct.pack(">I", TAG)), False).tolist() == [0, TAG]


# -- what a sealer must not do twice, or at all ---------------------------------------------


def test_everything_that_is_sealed_draws_its_own_nonce_or_salt(engine):
    sealer = Sealer([KEY.public_key], engine=engine)
    front = len(sealer._take(1).header) + 1
    made = [
        call()[front : front + NONCE]
        for call in (
            lambda: sealer.seal(b"report"),
            lambda: sealer.seal_many([b"report"])[0],
            lambda: sealer.seal_batch([b"report"]),
            lambda: upload(sealer, b"report"),
        )
        for _ in range(3)
    ]
    assert len(set(made)) == 12


def test_a_seventeenth_recipient_is_refused():
    keys = [PrivateKey.generate().public_key for _ in range(17)]
    assert len(Sealer(keys[:16]).recipients) == 16
    with pytest.raises(ValueError, match="16 recipients, not 17"):
        Sealer(keys)


# -- limits that no real upload reaches -----------------------------------------------------


class Endless(io.RawIOBase):
    """The front of an upload, and zeros behind it up to any size. Seekable."""

    def __init__(self, front, size):
        super().__init__()
        self._front, self._size, self._at = front, size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self._at

    def seek(self, offset, whence=io.SEEK_SET):
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, target):
        count = max(0, min(len(target), self._size - self._at))
        piece = self._front[self._at : self._at + count].ljust(count, b"\0")
        target[:count] = piece
        self._at += count
        return count


def test_a_file_with_more_chunks_than_an_upload_has_is_no_upload(engine):
    front = upload(Sealer([KEY.public_key], engine=engine), b"")[:-TAG]
    file = Endless(front, len(front) + CHUNKS_MAX * SEALED_CHUNK + TAG)
    with pytest.raises(OpenError):
        Opener([KEY], engine=engine).reader(file)


@pytest.fixture(scope="module")
def four_chunks():
    return upload(Sealer([KEY.public_key]), pattern(3 * CHUNK + 5))


@pytest.mark.parametrize(("most", "opens"), [(3, False), (4, True)])
def test_a_pipe_with_more_chunks_than_an_upload_has_is_no_upload(
    four_chunks, monkeypatch, most, opens
):
    monkeypatch.setattr(reader, "CHUNKS_MAX", most)
    got, error = drain(Opener([KEY]), four_chunks, wrap=Pipe)
    assert (got, error) == (pattern(3 * CHUNK + 5), None) if opens else type(error) is OpenError


@pytest.mark.parametrize(("most", "opens"), [(3, False), (4, True)])
def test_a_regular_file_with_more_chunks_is_refused_before_anything_is_written(
    four_chunks, monkeypatch, tmp_path, most, opens
):
    monkeypatch.setattr(files, "CHUNKS_MAX", most)
    (tmp_path / "sealed").write_bytes(four_chunks)
    if opens:
        assert open_file(tmp_path / "sealed", tmp_path / "plain", [KEY]) == 3 * CHUNK + 5
        return
    with pytest.raises(OpenError):
        open_file(tmp_path / "sealed", tmp_path / "plain", [KEY])
    assert [path.name for path in tmp_path.iterdir()] == ["sealed"]


@pytest.mark.parametrize("cut", [1, TAG])
def test_a_pipe_that_is_cut_gives_the_whole_chunks_before_the_cut(four_chunks, cut):
    got, error = drain(Opener([KEY]), four_chunks[: -5 - cut], wrap=Pipe, step=1 << 20)
    assert (got, type(error)) == (pattern(3 * CHUNK), Truncated)


@pytest.mark.parametrize("chunks", [1, 2])
def test_the_last_chunk_of_a_full_upload_has_a_place_left(monkeypatch, chunks):
    """So many chunks, all of them full: the empty one at the end would be one too many."""
    monkeypatch.setattr(writer_module, "CHUNKS_MAX", chunks)
    out = io.BytesIO()
    writer = Sealer([KEY.public_key]).writer(out)
    with pytest.raises(ValueError, match="4 PiB"):  # the caller's mistake, or at the flush
        writer.write(bytes(chunks * CHUNK))
        writer.flush()
    writer.abort()


# -- what a writer leaves in memory ---------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "abort"])
def test_what_a_writer_held_is_wiped_at_its_end(end):
    writer = Sealer([KEY.public_key]).writer(io.BytesIO())
    writer.write(b"not for the next one")
    held = writer._held
    assert b"next one" in held
    getattr(writer, end)()
    assert not any(held)


def test_what_a_writer_outgrew_is_wiped():
    writer = Sealer([KEY.public_key]).writer(io.BytesIO())
    writer.write(b"not for the next one")
    small = writer._held
    writer.write(bytes(2 * CHUNK))
    assert writer._held is not small
    assert b"next one" in writer._held
    assert not any(small)
    writer.abort()


# -- files ----------------------------------------------------------------------------------


@fork_only
def test_a_child_that_fails_leaves_its_parents_unfinished_file_alone(tmp_path):
    parent, target = os.getpid(), tmp_path / "target"
    try:
        with replacing(target) as file:
            file.write(b"whole")
            child = os.fork()
            if not child:
                raise InterruptedError
            assert wait_for_children([child]) == [0]
    except InterruptedError:
        os._exit(0 if os.getpid() != parent else 1)
    finally:
        if os.getpid() != parent:
            os._exit(2)
    assert target.read_bytes() == b"whole"


# -- what an engine is asked for ------------------------------------------------------------


def test_a_last_chunk_shorter_than_a_tag_is_a_mistake(engine):
    key = engine.chunk_key(AES, bytes(44))
    for short in (0, 1, TAG - 1):
        with pytest.raises(ValueError, match=r"shorter|16 MiB"):
            engine.open_chunks(key, 0, True, memoryview(bytes(short)), memoryview(bytearray(CHUNK)))


def test_an_envelope_of_an_impossible_length_does_not_open(engine):
    key, sealing = engine.record_key(AES, bytes(32)), XAES256GCM(bytes(32))
    nonce = bytes(NONCE)
    longest = nonce + sealing.seal(nonce, b"", bytes(RECORD_MAX))
    assert engine.open_envelope(key, 0, b"", longest, False) == bytes(RECORD_MAX)
    too_long = nonce + sealing.seal(nonce, b"", bytes(RECORD_MAX + 1))
    for sealed in (too_long, nonce + bytes(TAG - 1), nonce, b""):
        assert engine.open_envelope(key, 0, b"", sealed, False) is None


@pytest.mark.parametrize("padded", [False, True])
def test_a_report_of_more_than_16_mib_is_not_sealed(engine, padded):
    seal = engine.sealing(engine.record_key(AES, bytes(32)), b"", padded)
    with pytest.raises(ValueError, match="16 MiB"):
        seal(bytes(NONCE), b"", bytes(RECORD_MAX + (not padded)))


def test_offsets_that_fall_are_measured_by_no_engine(engine):
    for offsets in ([0, 2, 1, 3], [0, 3, 3, 2, 3]):
        with pytest.raises(ValueError, match="offsets fall"):
            engine.measure(packed(b"abc", array("q", offsets)), False)


def test_only_private_memory_is_opened_into_directly():
    """The portable engine: `decrypt_into` writes before the tag has been checked."""
    engine, chunk = engine_of("portable"), bytearray(CHUNK)
    key, sealed = engine.chunk_key(AES, bytes(44)), bytearray(SEALED_CHUNK)
    engine.seal_chunks(key, 0, False, memoryview(bytes(CHUNK)), memoryview(sealed))
    direct, real = [], key.aead

    def into(*args):
        direct.append(args)
        return real.decrypt_into(*args)

    key.aead = SimpleNamespace(decrypt=real.decrypt, decrypt_into=into)
    for private in (False, True):
        assert engine.open_chunks(key, 0, False, memoryview(sealed), memoryview(chunk), private)
        assert len(direct) == private


def test_one_of_another_session_between_two_of_one_opens_as_well(engine):
    first, other = (Sealer([KEY.public_key], engine=engine) for _ in "ab")
    mixed = [first.seal(b"1"), other.seal(b"2"), first.seal(b"3")]
    assert Opener([KEY], engine=engine).open_many(mixed) == [b"1", b"2", b"3"]


# -- where the C core fails -----------------------------------------------------------------


class Failing:
    """The C core, of which some calls give a status."""

    def __init__(self, lib, **calls):
        self._lib, self._calls = lib, calls

    def __getattr__(self, name):
        if name in self._calls:
            return lambda *_: self._calls[name]
        return getattr(self._lib, name)


@pytest.mark.parametrize("call", ["upseal_seal_envelopes", "upseal_seal_batch"])
def test_what_the_core_failed_to_seal_together_is_not_handed_out(
    native, native_module, monkeypatch, call
):
    lib = native_module.lib
    sealer = Sealer([KEY.public_key], engine=native)
    seal = sealer.seal_many if call.endswith("envelopes") else sealer.seal_batch
    assert seal([b"report"] * 3)
    monkeypatch.setattr(native_module, "lib", Failing(lib, **{call: lib.UPSEAL_EBACKEND}))
    with pytest.raises(EngineError, match="status"):
        seal([b"report"] * 3)


def test_a_fault_of_the_core_is_not_taken_for_a_forgery(native, native_module, monkeypatch):
    lib = native_module.lib
    sealer, ours = (kind([k], engine=native) for kind, k in [(Sealer, KEY.public_key),
                                                             (Opener, KEY)])  # fmt: skip
    envelope, batch = sealer.seal(b"report"), sealer.seal_batch([b"report"])
    assert ours.open(envelope) == b"report"
    fault = lib.UPSEAL_EBACKEND
    monkeypatch.setattr(native_module, "_open_envelope", lambda *_: fault)
    with pytest.raises(EngineError, match="status"):
        ours.open(envelope)
    monkeypatch.setattr(native_module, "lib", Failing(lib, upseal_open_batch=fault))
    with pytest.raises(EngineError, match="status"):
        ours.open_batch(batch)


def test_a_backend_that_fails_its_known_answers_is_not_taken(native_module, monkeypatch):
    monkeypatch.setattr(native_module, "_works", lambda index: False)
    with pytest.raises(EngineError, match="known-answer"):
        native_module.NativeEngine()
    with pytest.raises(EngineError, match="not usable"):
        native_module.NativeEngine("openssl")


def test_no_opened_report_stays_in_a_work_space(native):
    report = b"not for the next one" * 10
    sealer, ours = Sealer([KEY.public_key], engine=native), Opener([KEY], engine=native)
    assert ours.open_many(sealer.seal_many([report] * 5)) == [report] * 5
    spaces = native._idle
    assert spaces
    assert not [space for space in spaces if report in space.out]


def test_a_forgery_in_one_share_leaves_nothing_of_the_others(native, native_module, monkeypatch):
    monkeypatch.setattr(native_module, "_SHARE", 1000)
    monkeypatch.setattr(native_module, "cores", lambda: 3)
    reports = [b"not for the next one" * 10] * 100
    sealer, ours = Sealer([KEY.public_key], engine=native), Opener([KEY], engine=native)
    batch, out = bytearray(sealer.seal_batch(reports)), bytearray(30_000)
    assert ours.open_packed(batch, out=out)[0].tobytes() == b"".join(reports)
    out[:] = bytes(len(out))
    batch[-1] ^= 1
    with pytest.raises(OpenError):
        ours.open_packed(batch, out=out)
    assert not any(out[: 200 * 100])


def test_padding_shows_nothing_that_lay_in_memory_before(native, native_module, monkeypatch):
    monkeypatch.setattr(native_module, "new_bytes", lambda size: b"\xaa" * size)
    sealer = Sealer([KEY.public_key], padding=Padding.PADME, engine=native)
    reports = [bytes(1000)] * 20
    batch = Opener([KEY], engine=native).open_batch(sealer.seal_batch(reports))
    assert list(batch) == reports
    assert b"\xaa" not in bytes(batch.values.obj)
