# SPDX-License-Identifier: Apache-2.0
"""Memory stays flat however long an upload is."""

import sys

import pytest
from support import ENGINES, engine, python

CODE = """
import os, sys
from upseal import *
from upseal.engine.portable import PortableEngine
from pathlib import Path

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])

name, folder, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
if name == "portable":
    engine = PortableEngine()
else:
    from upseal.engine.native import NativeEngine
    engine = NativeEngine(name[7:-1])
key = PrivateKey.generate()
sealer, opener = Sealer([key.public_key], engine=engine), Opener([key], engine=engine)
idle = peak()
with open(folder / "plain", "wb") as file:
    file.truncate(size)
for threads in (1, 2):
    assert seal_file(folder / "plain", folder / "sealed", sealer, threads=threads) == size
    assert open_file(folder / "sealed", "/dev/null", opener) == size
    if size < 1 << 28:
        assert open_file(folder / "sealed", folder / "opened", opener, threads=threads) == size
    os.unlink(folder / "sealed")
print(peak() - idle)
"""


def peak_mib(name, folder, size):
    engine(name)  # skips where there is none
    done = python(CODE, name, folder, size)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("name", ENGINES)
def test_sealing_and_opening_a_long_file_takes_little_memory(tmp_path, name):
    assert peak_mib(name, tmp_path, 200 << 20) < 16


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("name", ENGINES)
def test_sealing_and_opening_1_gib_peaks_below_64_mib(tmp_path, name):
    assert peak_mib(name, tmp_path, 1 << 30) < 64
