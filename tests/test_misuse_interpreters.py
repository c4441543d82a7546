# SPDX-License-Identifier: Apache-2.0
"""Odd interpreters: second ones in a process, -O, development mode, traced, at their limits.

Each in a Python of its own, whose exit code is looked at.
"""

import sys

import pytest
from support import ROOT, python

FRONT = """
import ctypes, gc, io, os, sys, threading
from array import array
from misuse_child import KEY as key, engine, everything, pattern
from upseal import *

name, folder = sys.argv[1:3]
"""
ENGINES = ["native[openssl]", "portable"]


def well(code, *args, **env):
    done = python(code, *args, PYTHONPATH=str(ROOT / "tests"), **env)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("what", "env"),
    [
        ("everything(engine(name), folder)", {"PYTHONOPTIMIZE": "2"}),
        (
            "everything(engine(name), folder, Padding.PADME)",
            {"PYTHONDEVMODE": "1", "PYTHONMALLOC": "debug", "PYTHONTRACEMALLOC": "1"},
        ),
        (
            "gc.set_threshold(1, 1, 1); everything(engine(name), folder)",
            {"PYTHONMALLOC": "pymalloc_debug"},
        ),
        (
            "sys.settrace(t := lambda *a: t); sys.setprofile(lambda *a: None); "
            "threading.setprofile(lambda *a: None); everything(engine(name), folder)",
            {},
        ),
        (
            "sys.setswitchinterval(1e-7); everything(engine(name), folder, Padding.PADME)",
            {"PYTHONHASHSEED": "0", "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONMALLOC": "malloc"},
        ),
    ],
    ids=["O2", "dev", "gc", "trace", "malloc"],
)
def test_everything_works_in_odd_modes(tmp_path, name, what, env):
    # With -O no assert is left: none of ours may be a check that anything rests on.
    well(FRONT + what, name, tmp_path, **env)


DEEP = (
    FRONT
    + """
chosen = engine(name)
sealer = Sealer([key.public_key], Limits(max_messages=3), engine=chosen)
opener = Opener([key], engine=chosen)
everything(chosen, folder)  # imported, all of it
truth = pattern(600_000)
whole = io.BytesIO()
with sealer.writer(whole) as writer:
    writer.write(truth)
ended = set()
LIMITS = (RuntimeError, ctypes.ArgumentError)  # RecursionError is one; ctypes makes its own of it

def deep(depth, work):
    return work() if depth == 0 else deep(depth - 1, work)

def at_every_depth(work, check):
    failed = 0
    for left in range(3, 90, 3):
        try:
            check(deep(sys.getrecursionlimit() - left - base, work))
        except LIMITS:
            failed += 1
    assert 0 < failed < 29, failed

def level():
    frame, depth = sys._getframe(), 0
    while frame:
        frame, depth = frame.f_back, depth + 1
    return depth

base = level() + 2
at_every_depth(lambda: sealer.seal(b"r"), lambda e: opener.open(e) == b"r" or sys.exit("seal"))
at_every_depth(
    lambda: sealer.seal_batch([b"r"] * 3),
    lambda b: list(opener.open_batch(b)) == [b"r"] * 3 or sys.exit("batch"),
)
envelope = sealer.seal(b"r")
fresh = lambda: Opener([key], engine=chosen).open(envelope)
at_every_depth(fresh, lambda r: r == b"r" or sys.exit("open"))
assert opener.open(sealer.seal(b"still")) == b"still"

for left in range(3, 60, 2):
    # A caller that goes on whatever happens: what looks whole must be whole.
    out = io.BytesIO()
    writer, failed = sealer.writer(out), False
    for part in (truth[:100_000], truth[100_000:]):
        try:
            deep(sys.getrecursionlimit() - left - base, lambda: writer.write(part))
        except LIMITS:
            failed = True
    writer.close()
    try:
        got = opener.reader(io.BytesIO(out.getvalue())).read()
    except OpenError:
        assert failed
        ended.add("cut")
    else:
        # Neither part began to be written, or both are there.
        assert got in (truth, truth[100_000:], truth[:100_000], b""), len(got)
        ended.add("whole")
    reader, got = opener.reader(io.BytesIO(whole.getvalue())), b""
    for _ in range(3):
        try:
            got += deep(sys.getrecursionlimit() - left - base, lambda: reader.read(250_000))
        except LIMITS:
            try:
                got += reader.read(250_000)
            except LIMITS:
                break
    assert truth.startswith(got)
assert "whole" in ended
print("well")
"""
)


@pytest.mark.parametrize("name", ENGINES)
def test_the_limit_of_recursion_reached_anywhere_inside_costs_nothing(tmp_path, name):
    assert well(DEEP, name, tmp_path) == "well\n"


SHORT = (
    FRONT
    + """
import resource
chosen = engine(name)
sealer, opener = Sealer([key.public_key], engine=chosen), Opener([key], engine=chosen)
everything(chosen, folder)
big = bytes(80 << 20)
offsets = array("q", range(0, len(big) + 1, 1 << 20))
batch = sealer.seal_packed(big[: 70 << 20], offsets[:71])
whole = io.BytesIO()
with sealer.writer(whole) as writer:
    writer.write(big)
sealed = whole.getvalue()
del whole, writer
with open("/proc/self/statm") as f:
    now = int(f.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (30 << 20),) * 2)
reader = opener.reader(io.BytesIO(sealed))
out = bytearray()
short = 0
for work in (
    lambda: sealer.seal_packed(big, offsets),
    lambda: sealer.seal_packed(big, offsets, out=out),
    lambda: opener.open_packed(batch),
    lambda: opener.open_packed(batch, out=out),
    lambda: opener.open_batch(batch),
    lambda: sealer.seal_many_packed(big, offsets),
    lambda: reader.read(),
    lambda: reader.read(70 << 20),
    lambda: bytes(1 << 40),
):
    try:
        work()
    except MemoryError:
        short += 1
    assert threading.active_count() == 1
assert short >= 8, short
assert reader.tell() == 0
total = 0
while piece := reader.read(1 << 20):
    assert piece == big[: len(piece)]
    total += len(piece)
assert total == len(big)
assert opener.open(sealer.seal(b"still")) == b"still"
print("well")
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("name", ENGINES)
def test_where_memory_runs_out_it_is_a_memory_error_and_all_goes_on(tmp_path, name):
    assert well(SHORT, name, tmp_path) == "well\n"


SECOND = (
    FRONT
    + """
import warnings
warnings.simplefilter("ignore")  # the module is a private one, and says so
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

CODE = '''
import sys
sys.path[:] = {path!r}
{first}
try:
    from upseal import Opener, PrivateKey, Sealer
    key = PrivateKey.generate()
    sealer = Sealer([key.public_key], engine={kind!r})
    assert Opener([key]).open(sealer.seal(b"in there")) == b"in there"
    said = "it works"
except ImportError as error:
    said = "ImportError: " + str(error)
import os
os.write({pipe}, said.encode() + bytes([10]))
'''

if before:
    everything(engine(name), folder)
reading, pipe = os.pipe()
kind = "portable" if name == "portable" else "native"
for first in ("", "import upseal"):
    for _ in range(2):
        one = interpreters.create()
        code = CODE.format(path=sys.path, first=first, kind=kind, pipe=pipe)
        failure = interpreters.run_string(one, code)
        assert failure is None, failure
        interpreters.destroy(one)
everything(engine(name), folder)  # the main one is as it was
os.close(pipe)
with open(reading, encoding="utf-8") as file:
    said = file.read().splitlines()
assert len(said) == 4, said
print(*sorted(set(said)), sep="\\n")
"""
)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", ENGINES)
def test_in_a_second_interpreter_it_works_or_is_an_import_error(tmp_path, name, before):
    # What is not allowed: a crash, there or, afterwards, in the main one.
    said = well(f"before = {before}\n" + SECOND, name, tmp_path).splitlines()
    assert said
    for line in said:
        assert line == "it works" or line.startswith("ImportError: "), said
