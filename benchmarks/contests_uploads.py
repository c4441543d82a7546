# SPDX-License-Identifier: Apache-2.0
"""Uploads in memory, threads, and what ``import upseal`` costs: more rows of `ratios.py`."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from contests import Builder, Claim, Contest, Setup
from cryptography.cobblestone import Cobblestone256Encryptor
from machine import cores
from peers import cobblestone
from subjects import MIB, Sink, open_upload, packed, pair, seal_upload
from timing import Work

from upseal.core.uploads import PIECE
from upseal.engine.sizes import CHUNK

BARE = "bare C, same data in pieces"
HOT = "bare C, in cache"
PEER = "cobblestone"
READ = "reader.read"
_KEY_GIVEN = "the key is given: no recipients"


def in_memory(setup: Setup) -> Iterator[Contest]:
    """A writer into nothing and a reader into one buffer, in one thread."""
    size = (64 if setup.full else 16) * MIB
    sealer, opener = setup.pair()
    data = os.urandom(size)
    whole, out = memoryview(data), memoryview(bytearray(cobblestone.ROOM))
    key = Cobblestone256Encryptor.generate_key()
    bare = setup.bare
    works = {
        "writer": Work(partial(seal_upload, sealer, data, Sink()), size, "session paid before"),
        PEER: Work(partial(cobblestone.encrypt, key, whole, out), size, _KEY_GIVEN),
    }
    if bare:
        works[BARE] = Work(bare.seal_chunks(data, PIECE), size, "nothing written, nothing joined")
        hot = bare.seal_chunks(data[: 16 * CHUNK], 16)
        works[HOT] = Work(hot, 16 * CHUNK, "256 KiB again and again")
    claims = _claims("seal an upload", "writer")
    yield Contest("upload-seal", "Seal an upload in memory", works, claims, "byte", size)

    sink = io.BytesIO()
    seal_upload(sealer, data, sink)
    sealed, buffer = sink.getvalue(), memoryview(bytearray(MIB))
    encryptor = Cobblestone256Encryptor(key, cobblestone.CONTEXT)
    theirs = memoryview(bytes(encryptor.update(data)) + encryptor.finalize())
    works = {
        "reader": Work(partial(open_upload, opener, sealed, buffer), size, "session paid before"),
        READ: Work(partial(_read, opener, sealed), size, "new bytes objects of 1 MiB"),
        PEER: Work(partial(cobblestone.decrypt, key, theirs, out), size, _KEY_GIVEN),
    }
    if bare:
        hot = bare.open_chunks(data[: 16 * CHUNK], 16)
        works[HOT] = Work(hot, 16 * CHUNK, "256 KiB again and again")
        works[BARE] = Work(bare.open_chunks(data, PIECE), size, "by way of the scratch")
    claims = _claims("open an upload", "reader")
    claims.append(
        Claim(f"read() an upload in memory, against {PEER}", READ, PEER, 1.3, counts=False)
    )
    yield Contest("upload-open", "Open an upload in memory", works, claims, "byte", size)


def _read(opener, sealed: bytes) -> None:
    with opener.reader(io.BytesIO(sealed)) as reader:
        while reader.read(MIB):
            pass


def _claims(what: str, subject: str) -> list[Claim]:
    return [
        Claim(f"{what} in memory, share of {BARE}", subject, BARE, 0.9, unit="%"),
        Claim(f"{what} in memory, share of {HOT}", subject, HOT, 0.9, counts=False, unit="%"),
        Claim(f"{what} in memory, one core, against {PEER}", subject, PEER, 1.3),
    ]


def in_threads(call: Callable[[], object], count: int, pool: ThreadPoolExecutor) -> None:
    """The same in so many threads at once, each on its own."""
    for future in [pool.submit(call) for _ in range(count)]:
        future.result()


def threads(setup: Setup) -> Iterator[Contest]:
    """Each thread seals an upload of its own; so does the peer, in one thread and in as many."""
    size = (32 if setup.full else 16) * MIB
    data = os.urandom(size)
    pool = ThreadPoolExecutor(cores())
    key = Cobblestone256Encryptor.generate_key()
    sealer, _ = pair(setup.name)

    def ours() -> None:
        seal_upload(sealer, data, Sink())

    def theirs() -> None:
        cobblestone.encrypt(key, memoryview(data), memoryview(bytearray(cobblestone.ROOM)))

    works = {}
    for count in _counts(cores()):
        work = partial(in_threads, ours, count, pool)
        works[f"writer x{count}"] = Work(work, size * count, "an upload of its own in each thread")
        work = partial(in_threads, theirs, count, pool)
        works[f"{PEER} x{count}"] = Work(work, size * count, _KEY_GIVEN)
    text = "two uploads in two threads, against cobblestone in "
    claims = [
        Claim(text + "one thread", "writer x2", f"{PEER} x1", 2.4),
        Claim(text + "two threads", "writer x2", f"{PEER} x2", 2.4, counts=False),
    ]
    yield Contest("threads-upload", "Uploads, one a thread", works, claims, "byte", size)

    values, offsets = packed(1024, 1000)
    works = {}
    for count in _counts(cores()):
        work = partial(in_threads, partial(_batches, sealer, values, offsets), count, pool)
        works[f"seal_packed x{count}"] = Work(work, 8000 * count, "8 batches in each thread")
    yield Contest("threads-batch", "Batches of 1,000 x 1 KiB", works, size=1024)
    pool.shutdown()


def _batches(sealer, values, offsets) -> None:
    for _ in range(8):
        sealer.seal_packed(values, offsets)


def _counts(most: int) -> list[int]:
    """1, 2, 4, ... and all."""
    return sorted({*(1 << i for i in range(most.bit_length()) if 1 << i <= most), most})


def imports(setup: Setup) -> Iterator[Contest]:
    """A whole process each time; what an interpreter costs that does nothing is taken off."""

    def start(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    works = {
        "import upseal": Work(partial(start, "import upseal")),
        "import Sealer, Opener": Work(partial(start, "from upseal import Sealer, Opener")),
        "interpreter": Work(partial(start, "pass"), note="taken off in the rows above"),
    }
    claims = [
        Claim("import upseal", "import upseal", "interpreter", 60, unit="ms"),
        Claim("from upseal import Sealer, Opener", "import Sealer, Opener", "interpreter", 60,
              counts=False, unit="ms"),
    ]  # fmt: skip
    yield Contest("import", "Starting", works, claims, "process")


UPLOADS: list[Builder] = [in_memory, threads, imports]
