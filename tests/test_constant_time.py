# SPDX-License-Identifier: Apache-2.0
"""The C core's time depends on no secret, and what checks that can fail.

Here is no clock that decides: `test_the_clock_sees_leaks` has leaks to see of many times the noise.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

SCRIPT = ROOT / "scripts" / "constant-time"

pytestmark = pytest.mark.skipif(
    not (shutil.which("valgrind") and Path("/usr/include/valgrind/memcheck.h").exists()),
    reason="needs valgrind with its headers",
)

LEAKS = {
    "tags compared up to the first difference": (
        "core.c",
        "difference |= (uint8_t)(a[i] ^ b[i]);",
        "if (a[i] != b[i]) return 0;",
    ),
    "padding looked through up to the marker": (
        "records.c",
        "        seen |= nonzero;\n",
        "        seen |= nonzero;\n        if (seen) break;\n",
    ),
    "the length behind bad padding told": (
        "records.c",
        "return length & ~(0 - (size_t)(*bad & 1));",
        "return *bad ? 0 : length;",
    ),
    "doubling with an if": (
        "core.c",
        "k1[15] = (uint8_t)(l[15] << 1 ^ (0x87 & -(l[0] >> 7)));",
        "k1[15] = (uint8_t)(l[15] << 1);\n    if (l[0] >> 7) *(volatile uint8_t *)&k1[15] ^= 0x87;",
    ),
    "a key that is looked at": (
        "arena.c",
        "    memcpy(key->key, material, UPSEAL_KEY_LEN);\n",
        "    memcpy(key->key, material, UPSEAL_KEY_LEN);\n    if (!material[0]) key->slot = 0;\n",
    ),
}


def run(*arguments):
    return subprocess.run(
        [SCRIPT, sys.executable, *arguments], capture_output=True, text=True, timeout=280
    )


@pytest.fixture(scope="module")
def done():
    """All of the script, once."""
    return run()


def test_no_branch_or_address_depends_on_a_secret(done):
    assert done.returncode == 0, done.stdout + done.stderr
    assert "-O2: openssl" in done.stdout
    assert "leaky functions: found out" in done.stdout


def test_the_clock_sees_leaks(done):
    found = dict(re.findall(r"^(\S.*?) +\|t\| +([0-9.]+)", done.stdout, re.M))
    print(found)
    assert {"unpad", "tag comparison"} <= found.keys()
    assert float(found["leaky unpad"]) > 10
    assert float(found["leaky tag comparison"]) > 10


@pytest.mark.slow
@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_in_the_core_is_found(tmp_path, leak):
    name, old, new = LEAKS[leak]
    native = tmp_path / "native"
    shutil.copytree(ROOT / "native", native)
    source = (native / name).read_text()
    assert source.count(old) == 1
    (native / name).write_text(source.replace(old, new))
    done = run("follow", native)
    assert done.returncode == 9, done.stdout + done.stderr
    assert "depends on uninitialised value" in done.stderr
