# SPDX-License-Identifier: Apache-2.0
"""Uploads: in memory through writer and reader, and from file to file."""

import io
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import subjects
from subjects import MIB, Sink

from upseal import Opener, PrivateKey, Sealer, open_file, seal_file

BLOCK = 16 * MIB


def pieces(size):
    """``size`` bytes as a few large buffers, in little memory."""
    block = os.urandom(min(size, BLOCK))
    return [block] * (size // len(block))


def label(verb, size):
    return f"{verb} uploads of {size // 1024:,} KiB"


def test_writer(rows, subject, upload):
    data = pieces(upload)

    def seal():
        with subject.sealer.writer(Sink()) as writer:
            for piece in data:
                writer.write(piece)

    rows(label("seal", upload), upload, "byte", size=upload)(seal)


def test_reader(rows, subject, upload):
    sink = io.BytesIO()
    with subject.sealer.writer(sink) as writer:
        for piece in pieces(upload):
            writer.write(piece)
    sealed, buffer = sink.getvalue(), memoryview(bytearray(MIB))
    run = rows(label("open", upload), upload, "byte", size=upload)
    run(subjects.open_upload, subject.opener, sealed, buffer)


@pytest.mark.parametrize("verb", ["seal", "open"])
def test_cobblestone_of_cryptography_key_given(rows, upload, verb):
    from cryptography.cobblestone import Cobblestone256Encryptor
    from peers import cobblestone

    data, out = os.urandom(min(upload, BLOCK)), memoryview(bytearray(cobblestone.ROOM))
    key = Cobblestone256Encryptor.generate_key()
    run = rows(label(verb, upload), len(data), "byte", size=upload)
    if verb == "seal":
        run(cobblestone.encrypt, key, memoryview(data), out)
        return
    cipher = Cobblestone256Encryptor(key, cobblestone.CONTEXT)
    sealed = memoryview(cipher.update(data) + cipher.finalize())
    run(cobblestone.decrypt, key, sealed, out)


def test_bare_c_chunks_key_given(rows, native, cipher, upload):
    from bare import Bare

    data = os.urandom(min(upload, BLOCK))
    bare = Bare(native, 1 + subjects.CIPHERS.index(cipher))
    call = bare.seal_chunks(data, min(32, len(data) // 16384))
    rows(label("seal", upload), len(data), "byte", size=upload)(call)


@pytest.fixture
def place(folder):
    """In memory, or in the ignored folder beside the sources: on a disk, mostly."""
    shared = "/dev/shm"
    if folder == "memory" and not os.path.isdir(shared):
        pytest.skip("there is no file system in memory")
    inside = Path(shared) if folder == "memory" else Path(__file__).parents[1] / ".benchmarks"
    inside.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".upseal-bench-", dir=inside) as made:
        yield Path(made)


def warm(source, place):
    """As `files.py`, where the reasons stand: those are the figures to compare."""
    shutil.copyfile(source, place / "scratch")
    (place / "scratch").unlink()


def test_seal_file(rows, engine, place, folder, file_size, threads):
    source, target = place / "plain", place / "sealed"
    source.write_bytes(os.urandom(BLOCK) * (file_size // BLOCK))
    sealer = Sealer([PrivateKey.generate("x25519").public_key], engine=engine)

    def before():
        target.unlink(missing_ok=True)
        warm(source, place)

    def seal():
        return seal_file(source, target, sealer, threads=threads)

    run = rows(f"seal a file, {folder}", file_size, "byte", threads=threads, size=file_size)
    assert run.pedantic(seal, setup=before, rounds=5) == file_size


def test_open_file(rows, engine, place, folder, file_size, threads):
    plain, source, target = place / "plain", place / "sealed", place / "opened"
    plain.write_bytes(os.urandom(BLOCK) * (file_size // BLOCK))
    key = PrivateKey.generate("x25519")
    seal_file(plain, source, [key.public_key])
    opener = Opener([key], engine=engine)

    def before():
        target.unlink(missing_ok=True)
        warm(source, place)

    def opened():
        return open_file(source, target, opener, threads=threads)

    run = rows(f"open a file, {folder}", file_size, "byte", threads=threads, size=file_size)
    assert run.pedantic(opened, setup=before, rounds=5) == file_size
