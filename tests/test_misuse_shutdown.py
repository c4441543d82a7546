# SPDX-License-Identifier: Apache-2.0
"""The end of the interpreter, with everything still alive, at work, or only then begun.

Each in a Python of its own, whose exit code is looked at; in its development mode, which tells
what would else be ignored.
"""

import io

import pytest
from support import ROOT, Opener, drain, key, pattern, python

from upseal import Truncated
from upseal.engine.sizes import CHUNK

PIECE = 16 * CHUNK
FRONT = """
import atexit, io, os, sys, threading, time
from array import array
from misuse_child import KEY, Pipe, engine, pattern
from upseal import *

name, folder = sys.argv[1:3]
chosen = engine(name)
key = PrivateKey.from_pem(bytes.fromhex(sys.argv[3]))
sealer = Sealer([key.public_key], engine=chosen)
opener = Opener([key], engine=chosen)
data = pattern(9 << 20)
"""


@pytest.fixture(params=["native[openssl]", "portable"])
def end(request, tmp_path):
    """Runs code to its end; what it left in a folder, by name."""

    def run(code, returncode=0, quiet=True):
        pem = key("x25519-a").to_pem().hex()
        env = {"PYTHONDEVMODE": "1", "PYTHONPATH": str(ROOT / "tests")}
        done = python(FRONT + code, request.param, tmp_path, pem, **env)
        assert done.returncode == returncode, done.stderr
        if quiet:
            assert done.stderr == ""
        return {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    return run


@pytest.fixture
def opener():
    return Opener([key("x25519-a")])


ALIVE = """
from upseal.engine.records import Listed
out = open(f"{folder}/unfinished", "wb", buffering=0)
writer = sealer.writer(out)
writer.write(data[:300_000])
whole = io.BytesIO()
with sealer.writer(whole) as closed:
    closed.write(data)
reader = opener.reader(io.BytesIO(whole.getvalue()))
assert reader.read(100) == data[:100]
batch = opener.open_batch(sealer.seal_batch([b"r"] * 100))
view = batch.values[10:]
iterator = iter(batch)
groups = iter(chosen.seal_envelopes(
    chosen.record_key(1, bytes(32)), bytes(24), b"", b"", Listed([data[:9999]] * 90), False
))
next(groups)
room = chosen.room(100)
circle = [writer, reader, sealer, opener, groups]
circle.append(circle)
sys.modules["somebody"] = circle
atexit.register(out.close)
"""


def test_what_is_alive_at_the_end_ends_quietly_and_no_upload_looks_whole(end, opener):
    left = end(ALIVE)
    got, error = drain(opener, left["unfinished"], step=PIECE)
    assert type(error) is Truncated
    assert pattern(300_000).startswith(got)
    assert len(got) == 0 or len(got) % PIECE == 0


@pytest.mark.parametrize("way", ["sys.exit(3)", "raise SystemExit(3)", "os._exit(3)"])
def test_an_upload_left_by_the_end_of_the_program_is_cut_off(end, opener, way):
    left = end(
        f"""
with open(f"{{folder}}/upload", "wb", buffering=0) as out, sealer.writer(out) as writer:
    writer.write(data[:600_000])
    {way}
""",
        3,
    )
    assert type(drain(opener, left["upload"], step=PIECE)[1]) is Truncated


AT_THE_END = """
if early:  # all that is imported late is there already
    sealer.writer(io.BytesIO()).abort()
with open(f"{folder}/plain", "wb") as file:
    file.write(data)

def last():
    with open(f"{folder}/envelope", "wb") as file:
        file.write(sealer.seal(b"the last words"))
    with open(f"{folder}/many", "wb") as file:
        file.write(b"".join(sealer.seal_many([b"the last words"] * 3)))
    offsets = array("q", range(0, len(data) + 1, 1 << 16))
    with open(f"{folder}/batch", "wb") as file:
        file.write(sealer.seal_packed(data, offsets))
    seal_file(f"{folder}/plain", f"{folder}/sealed", sealer, threads=4)
    open_file(f"{folder}/sealed", f"{folder}/opened", opener, threads=4)
    with open(f"{folder}/piped", "wb") as target:
        seal_file(Pipe(data), target, sealer, threads=4)
    assert opener.open(sealer.seal(b"x")) == b"x"

atexit.register(last)
"""


@pytest.mark.parametrize("early", [False, True])
def test_what_is_called_at_exit_still_seals_and_opens_with_threads_or_without(end, opener, early):
    left = end(f"early = {early}\n" + AT_THE_END)
    data = pattern(9 << 20)
    assert opener.open(left["envelope"]) == b"the last words"
    assert opener.open(left["many"][: len(left["many"]) // 3]) == b"the last words"
    assert opener.open_packed(left["batch"])[0] == data
    assert left["opened"] == data
    for name in ("sealed", "piped"):
        assert opener.reader(io.BytesIO(left[name])).read() == data


DAEMONS = """
offsets = array("q", range(0, len(data) + 1, 1 << 16))
batch, many = sealer.seal_packed(data, offsets), sealer.seal_many([b"r" * 3000] * 90)
with open(f"{folder}/plain", "wb") as file:
    file.write(data)
whole = io.BytesIO()
seal_file(f"{folder}/plain", whole, sealer)
begun = threading.Semaphore(0)

def forever(number):
    work = [
        lambda: sealer.seal_packed(data, offsets),
        lambda: opener.open_packed(batch),
        lambda: [sealer.seal(b"r" * 5000) for _ in range(90)],
        lambda: opener.open_many(many),
        lambda: opener.reader(io.BytesIO(whole.getvalue())).read(),
        lambda: seal_file(f"{folder}/plain", f"{folder}/s", sealer, threads=2),
    ][number]
    while True:
        work()
        begun.release()

for number in range(6):
    threading.Thread(target=forever, args=(number,), daemon=True).start()
for _ in range(8):
    begun.acquire()
"""


def test_daemon_threads_at_work_do_not_crash_the_end(end, opener):
    for _ in range(3):
        left = end(DAEMONS, quiet=False)  # Python may tell of threads that it stopped half-way
        if "s" in left:
            assert opener.reader(io.BytesIO(left["s"])).read() == pattern(9 << 20)


def test_what_is_done_only_in_the_last_moments_does_not_crash(end, opener):
    # Modules are half gone by then: an error is all right, and Python ignores it.
    left = end(
        """
class Last:
    def __init__(self):
        self.sealer, self.opener, self.data = sealer, opener, data
        self.out = os.open(f"{folder}/last", os.O_WRONLY | os.O_CREAT)

    def __del__(self, write=os.write):
        write(self.out, self.sealer.seal(b"in __del__"))
        for work in (
            lambda: self.sealer.seal_many([b"r"] * 9),
            lambda: self.sealer.seal_batch([b"r"] * 9),
            lambda: self.sealer.writer(io.BytesIO()).write(self.data),
            lambda: self.opener.open(self.sealer.seal(b"r")),
        ):
            try:
                work()
            except Exception:
                pass

last = Last()
last.itself = last
sys.modules["last"] = last
""",
        quiet=False,
    )
    if left.get("last"):
        assert opener.open(left["last"]) == b"in __del__"


def test_a_file_that_waits_for_ever_does_not_keep_the_program_from_ending(end):
    end(
        """
reading, writing = os.pipe()  # nobody reads

def blocked():
    with open(writing, "wb", buffering=0) as target:
        seal_file(Pipe(data), target, sealer, threads=2)

threading.Thread(target=blocked, daemon=True).start()
time.sleep(0.3)
""",
        quiet=False,
    )
