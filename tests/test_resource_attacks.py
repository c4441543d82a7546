# SPDX-License-Identifier: Apache-2.0
"""What the core can be made to spend: each attack has its bound here, in counts and bytes.

Never by the clock: `benchmarks/attacks.py` measures time, beside an honest blob of the same length.
"""

import hashlib
import io
import os
import struct
import sys
import tracemalloc
from contextlib import contextmanager

import pytest
from support import (
    ENGINES,
    CountingKey,
    Opener,
    Pipe,
    Sealer,
    drain,
    engine,
    key,
    python,
    upload,
)

from upseal import OpenError, PrivateKey, PublicKey, Truncated, UnknownRecipient, explain
from upseal.core import header as headers
from upseal.core.bodies import BATCH_MAX
from upseal.core.header import Entry
from upseal.core.options import Cipher
from upseal.core.session import derive
from upseal.core.suites import Suite
from upseal.engine.sizes import CHUNK, RECORD_MAX, SEALED_CHUNK, TAG

MIB = 1 << 20
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


class CheapKey:
    """A key whose sessions anybody makes at no cost: the secret is SHA-256 of what wraps it."""

    suite, key_id = int(Suite.X25519), b"cheapkey"

    def __init__(self):
        self.unwrapped = 0

    def unwrap(self, wrapped):
        self.unwrapped += 1
        return hashlib.sha256(wrapped).digest()


def session(number, *, good=True):
    """Header and report key of a session of that key's; its commitment may be forged."""
    wrapped = number.to_bytes(80, "big")
    bound = headers.encode(Cipher.AES_256_GCM, [Entry(Suite.X25519, CheapKey.key_id, wrapped)])
    derived = derive(hashlib.sha256(wrapped).digest(), bound)
    return bound + (derived[96:] if good else bytes(32)), derived[:32]


def envelopes(numbers, *, good=True):
    """One of each session."""
    made = engine("portable")
    nonce, out = bytes(24), []
    for number in numbers:
        front, material = session(number, good=good)
        seal = made.sealing(made.record_key(Cipher.AES_256_GCM, material), front + b"\1", False)
        out.append(seal(nonce, b"\1", b"report"))
    return out


@contextmanager
def traced():
    """Gives a function for the most bytes of Python's memory so far, above what there was."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield lambda: tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


# -- headers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sixteen():
    """Sixteen keys of one opener, RSA-4096 the first."""
    names = ["rsa4096-a", "p256-a", "rsa2048-a", *(f"x25519-r{i:02}" for i in range(1, 14))]
    return [key(name) for name in names]


def spoiled(blob, where):
    """The blob with one bit changed, in a part of it."""
    header = headers.parse(blob)
    at = {
        "nothing": None,
        "first secret": 18 + 100,
        "all secrets": 18,
        "commitment": len(header.raw) - 1,
        "nonce": len(header.raw) + 5,
        "tag": len(blob) - 1,
    }[where]
    data = bytearray(blob)
    if where == "all secrets":
        at = 6
        for entry in header.entries:
            data[at + 12 + len(entry.wrapped) - 1] ^= 1
            at += 12 + len(entry.wrapped)
    elif at is not None:
        data[at] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    "where", ["nothing", "first secret", "all secrets", "commitment", "nonce", "tag"]
)
def test_sixteen_entries_that_are_all_ours_cost_one_unwrap(sixteen, where):
    keys = [CountingKey(one) for one in sixteen]
    sealer = Sealer([one.public_key for one in sixteen])
    tried = [
        (Opener.open, spoiled(sealer.seal(b"report"), where)),
        (Opener.open_batch, spoiled(sealer.seal_batch([b"report"]), where)),
        (lambda o, d: o.reader(io.BytesIO(d)).read(), spoiled(upload(sealer, b"file"), where)),
    ]
    for number, (call, data) in enumerate(tried, 1):
        opener = Opener(keys)
        if where == "nothing":
            call(opener, data)
        else:
            with pytest.raises(OpenError):
                call(opener, data)
        assert [one.unwrapped for one in keys] == [number] + [0] * 15
    # Fifty alike in one call cost one together, good or bad.
    Opener(keys).open_many([tried[0][1]] * 50)
    assert [one.unwrapped for one in keys] == [4] + [0] * 15


def many_entries(entries, body=bytes(100)):
    return headers.encode(Cipher.AES_256_GCM, entries) + bytes(32) + b"\1" + body


def test_entries_that_are_not_ours_cost_no_unwrap(sixteen):
    keys = [CountingKey(one) for one in sixteen]
    opener = Opener(keys)
    longest = {suite: bytes(suite.wrapped_len[-1]) for suite in Suite}
    others = [Entry(Suite.MLKEM768_X25519, one.key_id, longest[Suite.MLKEM768_X25519])
              for one in keys]  # fmt: skip
    strangers = [Entry(suite, os.urandom(8), longest[suite]) for suite in Suite] * 4
    mine = Entry(Suite(keys[0].suite), keys[0].key_id, longest[Suite.RSA_OAEP])
    for entries, error in (
        (others, UnknownRecipient),
        ([*strangers[:4], *others[:12]], UnknownRecipient),
        ([mine] * 2, OpenError),
        ([mine, *others[:14], mine], OpenError),
        ([*others[:16], mine], OpenError),  # seventeen
    ):
        data = many_entries(entries)
        with pytest.raises(error):
            opener.open(data)
        with pytest.raises(OpenError):
            opener.open_batch(data)
        with pytest.raises(OpenError):
            opener.reader(io.BytesIO(data))
        assert isinstance(opener.open_many([data, data])[1], OpenError)
    assert sum(one.unwrapped for one in keys) == 0
    assert opener.sessions.remembered == 0


# -- the memory of sessions -------------------------------------------------------------------

_SESSIONS = """
import sys
sys.path[:0] = {path!r}
from test_resource_attacks import *
from pathlib import Path

def status(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

size, rounds, good, name = {size}, {rounds}, {good}, {name!r}
opener = Opener([CheapKey()], cache=size, engine=engine(name))
warm = Opener([CheapKey()], cache=64, engine=engine(name))
one = envelopes(range(10**6, 10**6 + 64))
for data in one:
    warm.open(data)
start = status("VmRSS")
for turn in range(rounds):
    for at in range(turn * size, turn * size + size, 512):
        for data in envelopes(range(at, at + 512), good=good):
            try:
                opener.open(data)
            except OpenError:
                assert not good
    if not turn:
        first = status("VmRSS")
assert opener.sessions.opened == size * rounds
print(opener.sessions.remembered, first - start, status("VmHWM") - start)
"""


def flooded(name, size, rounds, *, good):
    """Sessions remembered; KiB after the first round, and at most, from the process's own book."""
    engine(name)
    code = _SESSIONS.format(
        path=[p for p in sys.path if p.endswith(("tests", "vectors"))], size=size, rounds=rounds,
        good=good, name=name,
    )  # fmt: skip
    done = python(code)
    assert done.returncode == 0, done.stderr
    return [int(part) for part in done.stdout.split()]


@LINUX
@pytest.mark.parametrize(("name", "each"), [("native[openssl]", 2), ("portable", 6)])
def test_sessions_made_up_without_end_fill_the_cache_and_no_more(name, each):
    """So many KiB of each one remembered, and three times as many take no more than once as many.

    The portable engine keeps the objects that ``cryptography`` makes of a key.
    """
    size = 8192
    remembered, first, most = flooded(name, size, 3, good=True)
    assert remembered == size
    assert first < each * size
    assert most < first + 4096


@LINUX
def test_forged_sessions_without_end_take_no_memory():
    remembered, _, most = flooded("native[openssl]", 8192, 2, good=False)
    assert remembered == 0
    assert most < 4096


@pytest.mark.parametrize("name", ENGINES)
def test_what_the_oldest_going_first_costs_an_honest_session(name):
    """One unwrap for each cache full of an attacker's sessions, however busy it is meanwhile."""
    cheap, size = CheapKey(), 64
    opener = Opener([cheap], cache=size, engine=engine(name))
    mine = envelopes([10**9])[0]
    opener.open(mine)
    made = envelopes(range(10 * size))
    cheap.unwrapped = 0
    for data in made:
        opener.open(data)
        opener.open(mine)
    honest = cheap.unwrapped - len(made)
    assert honest == 10
    assert opener.sessions.remembered == size


@pytest.mark.parametrize("name", ["native[openssl]", "portable"])
def test_a_list_of_envelopes_that_share_nothing(name):
    """`open_many`: one unwrap each, the cache as large as it may be, 2 KiB each meanwhile."""
    count, cheap = 4000, CheapKey()
    opener = Opener([cheap], cache=500, engine=engine(name))
    made = envelopes(range(count))
    with traced() as most:
        results = opener.open_many(made)
        assert most() < 2048 * count
    assert results == [b"report"] * count
    assert (cheap.unwrapped, opener.sessions.remembered) == (count, 500)
    forged = opener.open_many(envelopes(range(count, 2 * count), good=False))
    assert all(type(error) is OpenError for error in forged)
    assert opener.sessions.remembered == 500


# -- batches ----------------------------------------------------------------------------------


def claiming(count, lengths=b"", body=b""):
    front, _ = session(1)
    return front + b"\2" + bytes(24) + struct.pack(">I", count) + lengths + body


def table(length, count):
    return struct.pack(">I", length) * count


SIXTEENS = table(TAG, BATCH_MAX)
LIES = {
    "2^20 records, nothing behind": (Truncated, claiming(BATCH_MAX)),
    "2^32 - 1 records": (OpenError, claiming(0xFFFFFFFF, SIXTEENS)),
    "a table that lacks a byte": (Truncated, claiming(BATCH_MAX, SIXTEENS[:-1])),
    "a table only": (Truncated, claiming(BATCH_MAX, SIXTEENS)),
    "2^20 records of 16 MiB": (OpenError, claiming(BATCH_MAX, table(RECORD_MAX + TAG, BATCH_MAX))),
    "2^20 records of 1 KiB, 2^30": (Truncated, claiming(BATCH_MAX, table(1024 + TAG, BATCH_MAX))),
    "64 records of 16 MiB, 2^30": (Truncated, claiming(64, table(RECORD_MAX + TAG, 64))),
    "65 records of 16 MiB": (OpenError, claiming(65, table(RECORD_MAX + TAG, 65))),
    "2^20 records of 2^32 - 1": (OpenError, claiming(BATCH_MAX, table(0xFFFFFFFF, BATCH_MAX))),
    "one byte too few": (Truncated, claiming(BATCH_MAX, SIXTEENS, bytes(TAG * BATCH_MAX - 1))),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_batch_claims_costs_what_came(lie):
    """No unwrap; and beside the blob eight bytes for each length that is there: twice the table."""
    error, data = LIES[lie]
    cheap = CheapKey()
    opener = Opener([cheap])
    with traced() as most:
        with pytest.raises(OpenError) as caught:
            opener.open_batch(data)
        assert most() < 64 * 1024 + 2 * (len(data) if len(data) < 5 * MIB else 4 * BATCH_MAX)
    assert type(caught.value) is error
    assert caught.value.problem is not None
    assert cheap.unwrapped == 0


def test_what_a_batch_claims_costs_the_portable_engine_twenty_times_the_table():
    """It reads lengths as Python's numbers: 80 bytes for each length that is there."""
    cheap, rows = CheapKey(), 50_000
    opener = Opener([cheap], engine=engine("portable"))
    for lengths in (table(RECORD_MAX + TAG, rows), table(TAG, rows)):
        with traced() as most:
            with pytest.raises(OpenError):
                opener.open_batch(claiming(rows, lengths))
            assert most() < 64 * 1024 + 80 * rows
    assert cheap.unwrapped == 0


_EMPTY = """
import sys
from upseal import *
from pathlib import Path

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

key = PrivateKey.generate()
sealer, opener = Sealer([key.public_key]), Opener([key])
data = sealer.seal_batch([b""] * (1 << 20))
opener.open_batch(sealer.seal_batch([b""]))
Path("/proc/self/clear_refs").write_text("5")
before = peak()
opened = opener.open_batch(data)
print(len(opened), (peak() - before) * 1024)
reports = list(opened)
print(len(reports), (peak() - before) * 1024)
"""


@LINUX
def test_2_to_the_20_empty_records_take_64_bytes_each():
    """Opened they take 16 bytes each, and as separate objects some more; they came as 20."""
    done = python(_EMPTY)
    assert done.returncode == 0, done.stderr
    (count, opened), (_, listed) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert count == BATCH_MAX
    assert opened < 40 * BATCH_MAX
    assert listed < 64 * BATCH_MAX


# -- uploads ----------------------------------------------------------------------------------


class Counted(io.RawIOBase):
    """Counts what is written, and keeps nothing."""

    def __init__(self):
        super().__init__()
        self.size = self.calls = 0

    def writable(self):
        return True

    def write(self, data):
        self.size += len(data)
        self.calls += 1
        return len(data)


@pytest.fixture
def sealer():
    return Sealer([key("x25519-a").public_key])


@pytest.mark.parametrize("step", ["nothing", "a flush", "a byte", "a byte and a flush"])
def test_writes_without_end_write_what_they_hold(sealer, step):
    """A writer takes its buffers, a megabyte while one is wiped, whatever is written how."""
    times = {"nothing": 100_000, "a flush": 100_000}.get(step, 3 * CHUNK + 5)
    out = Counted()
    with traced() as most:
        with sealer.writer(out) as writer:
            front = out.size
            for _ in range(times):
                if step != "a flush":
                    writer.write(b"" if step == "nothing" else b"x")
                if "flush" in step:
                    writer.flush()
            plain = times if "byte" in step else 0
            assert writer.writable()
        assert most() < 1.1 * MIB
    assert out.size - front == plain + TAG * (plain // CHUNK + 1)
    # A flush writes only what is whole: no more chunks, and no more calls, than there must be.
    assert out.calls <= 2 + plain // CHUNK


class Spy:
    """An engine that counts the chunks it opens."""

    def __init__(self, real):
        self._real, self.chunks = real, 0

    def __getattr__(self, name):
        return getattr(self._real, name)

    def open_chunks(self, key, first, last, data, out, private=False):
        self.chunks += -(-len(data) // SEALED_CHUNK)
        return self._real.open_chunks(key, first, last, data, out, private)


def spied(data, source=io.BytesIO):
    spy = Spy(engine("native[openssl]"))
    opener = Opener([key("x25519-a")], engine=spy)
    return spy, opener.reader(source(data))


@pytest.mark.parametrize("source", [io.BytesIO, Pipe, lambda data: Pipe(data, 1)])
def test_a_byte_at_a_time_opens_each_chunk_once(sealer, source):
    """On a file the last one twice: first for the length."""
    plain = os.urandom(2 * CHUNK + 7)
    spy, reader = spied(upload(sealer, plain), source)
    with reader, traced() as most:
        assert all(reader.read(1) == plain[i : i + 1] for i in range(len(plain)))
        assert reader.read(1) == b""
        assert most() < 2 * MIB
    assert spy.chunks <= 3 + 1


def test_a_seek_and_a_byte_open_one_piece_at_most(sealer):
    """To and fro over a megabyte: 16 chunks each time at most, however far it goes."""
    plain = os.urandom(64 * CHUNK)
    spy, reader = spied(upload(sealer, plain))
    with reader, traced() as most:
        for turn in range(40):
            at = (turn % 2) * 40 * CHUNK + turn
            spy.chunks = 0
            reader.seek(at)
            assert reader.read(1) == plain[at : at + 1]
            assert spy.chunks <= 16
        spy.chunks = 0
        for turn in range(2000):  # to move alone opens nothing
            reader.seek(turn * 37)
        assert spy.chunks == 0
        assert most() < 2 * MIB


class Claims(io.RawIOBase):
    """A file that says it is longer than it is, and counts what it is asked for."""

    def __init__(self, data, size):
        super().__init__()
        self._data, self._size, self._at, self.given = data, size, 0, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self._at

    def seek(self, offset, whence=0):
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, target):
        piece = self._data[self._at : self._at + len(target)]
        piece += bytes(min(len(target), self._size - self._at) - len(piece))
        target[: len(piece)] = piece
        self._at += len(piece)
        self.given += len(piece)
        return len(piece)


@pytest.mark.parametrize("chunks", [1 << 20, (1 << 38) - 1, 1 << 38, (1 << 38) + 1, 1 << 45])
@pytest.mark.parametrize("rest", [0, TAG, 1000])
def test_an_upload_that_claims_to_be_endless_is_refused_by_its_end(sealer, chunks, rest):
    """Its last chunk is asked for first: one chunk is read, and nothing is taken for the rest."""
    data = upload(sealer, b"x" * 100)
    front = len(headers.parse(data).raw) + 57
    file = Claims(data, front + chunks * SEALED_CHUNK + rest)
    with traced() as most:
        with pytest.raises(OpenError):
            Opener([key("x25519-a")]).reader(file)
        assert most() < MIB
    assert file.given <= 20_000 + 8192 + SEALED_CHUNK


def test_a_pipe_that_never_ends_is_given_up_at_the_first_forged_chunk(sealer):
    class Endless(io.RawIOBase):
        given = 0

        def readable(self):
            return True

        def readinto(self, target):
            piece = front[self.given : self.given + len(target)] or bytes(len(target))
            target[: len(piece)] = piece
            Endless.given = self.given + len(piece)
            return len(piece)

    front = upload(sealer, b"y" * CHUNK)[:-TAG]
    got, error = drain(Opener([key("x25519-a")]), b"", wrap=lambda _: Endless())
    assert isinstance(error, OpenError)
    assert len(got) <= CHUNK
    assert Endless.given < 20_000 + 2 * 16 * SEALED_CHUNK


# -- what is read without a key ---------------------------------------------------------------


class Long(io.RawIOBase):
    """A pipe of so many bytes, most of them zeros."""

    def __init__(self, front, size):
        super().__init__()
        self._front, self.left = front, size

    def readable(self):
        return True

    def readinto(self, target):
        count = min(len(target), self.left)
        piece = self._front[:count] or bytes(count)
        self._front = self._front[len(piece) :]
        target[: len(piece)] = piece
        self.left -= len(piece)
        return len(piece)


@pytest.mark.parametrize("kind", [b"\1", b"\2", b"\x81", b"\x82", b"\3", b"\7"])
def test_explaining_a_long_pipe_keeps_4_mib_at_most(kind):
    """It reads on, since it says how long the pipe was; only what may matter is kept."""
    front, size = session(1)[0] + kind + bytes(24) + struct.pack(">I", BATCH_MAX), 64 * MIB
    with traced() as most:
        found = explain(Long(front, size))
        assert most() < 24 * MIB
    assert found.size == size
    assert found.problem is not None or kind == b"\3"


@pytest.mark.parametrize("wrap", [io.BytesIO, Pipe], ids=["file", "pipe"])
@pytest.mark.parametrize("records", [[b"r" * 50_000] * 200, [b""] * 50_000])
def test_a_long_batch_is_explained_by_its_table(sealer, wrap, records):
    data = sealer.seal_batch(records)
    assert len(data) > 1 << 16
    expected = explain(data)
    assert expected.problem is None
    assert (expected.count, expected.plaintext_size) == (len(records), sum(map(len, records)))
    assert explain(wrap(data)) == expected
    cut = explain(wrap(data[:-1]))
    assert cut == explain(data[:-1])
    assert cut.problem == "ends inside the records"
    more = explain(wrap(data + b"x"))
    assert more == explain(data + b"x")
    assert more.problem == "bytes follow the last record"


# -- keys -------------------------------------------------------------------------------------


def test_a_file_of_many_keys_is_not_read_through():
    """Three blocks tell that it is not one key: of a hundred thousand no more are looked at."""
    public, private = key("x25519-a").public_key.to_pem(), key("x25519-a").to_pem()
    many, most_private = public * 100_000, private * 100_000
    for read, data in ((PublicKey.from_pem, many), (PrivateKey.from_pem, most_private)):
        with traced() as most:
            with pytest.raises(ValueError, match="not a key upseal can use") as caught:
                read(data)
            assert most() < 100_000
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("filler", [b"x" * 4_000_000, b"-----BEGIN PUBLIC KEY-----\n" * 100_000])
def test_megabytes_that_hold_no_key(filler):
    for read in (PublicKey.from_pem, PrivateKey.from_pem):
        with traced() as most:
            with pytest.raises(ValueError, match="KEY"):
                read(filler)
            assert most() < 1_000_000


def test_a_key_too_long_for_any_suite_is_not_even_decoded():
    """A private RSA key of 8,192 bits is checked for seconds before its size is looked at."""
    body = b"\n".join([b"A" * 64] * 190)
    for read, label in ((PrivateKey.from_pem, b"PRIVATE KEY"), (PublicKey.from_pem, b"PUBLIC KEY")):
        with pytest.raises(ValueError, match="too long to be a key"):
            read(b"-----BEGIN " + label + b"-----\n" + body + b"\n-----END " + label + b"-----\n")
    longest = key("rsa4096-a")
    for pem, secret in ((longest.to_pem(), None), (longest.to_pem("passphrase"), "passphrase")):
        assert len(pem) < 4000
        assert PrivateKey.from_pem(pem.replace(b"\n", b"\r\n"), secret).key_id == longest.key_id
