# SPDX-License-Identifier: Apache-2.0
"""The static probes of the C core: those documented, with arguments that tell no secret."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

native = pytest.importorskip("upseal.engine._native", reason="the C core is not built")
ROOT = Path(__file__).parent.parent
CALLS = ("envelopes", "batch", "chunks")
NAMES = {f"{verb}_{what}" for verb in ("seal", "open") for what in CALLS}
PROBES = {f"{name}__{end}" for name in NAMES for end in ("entry", "return")}
SIZES = {"8", "-4"}  # a size_t, or the status


def fired(source):
    """Name and arguments of each probe in a C source."""
    return re.findall(r"UPSEAL_PROBE\d\((\w+), ([^;]*)\);", source)


def notes():
    """Name, address and arguments of each probe in the extension; skips if it has none."""
    if not shutil.which("readelf"):
        pytest.skip("readelf is not here")
    read = subprocess.run(
        ["readelf", "-nW", native.__file__], capture_output=True, text=True, check=True
    )
    found = re.findall(
        r"Provider: upseal\s+Name: (\w+)\s+Location: 0x(\w+),[^\n]*\s+Arguments: ([^\n]*)",
        read.stdout,
    )
    if not found:
        pytest.skip("built without probes: <sys/sdt.h> (systemtap-sdt-dev) was not there")
    return found


def test_extension_has_every_probe():
    assert {name for name, _, _ in notes()} == PROBES


def test_arguments_are_numbers():
    for name, _, arguments in notes():
        sizes = [argument.partition("@")[0] for argument in arguments.split()]
        assert 1 <= len(sizes) <= 2 and set(sizes) <= SIZES, name


def test_a_probe_is_one_nop():
    """While nobody watches, that is all a probe executes."""
    found = notes()
    nop = {"x86_64": b"\x90", "aarch64": bytes.fromhex("1f2003d5")}.get(platform.machine())
    if nop is None:
        pytest.skip(f"what a nop is on {platform.machine()} is not known here")
    code = Path(native.__file__).read_bytes()
    sections = subprocess.run(
        ["readelf", "-SW", native.__file__], capture_output=True, text=True, check=True
    )
    address, offset = re.search(r"\s\.text\s+PROGBITS\s+(\w+)\s+(\w+)", sections.stdout).groups()
    for name, location, _ in found:
        at = int(location, 16) - int(address, 16) + int(offset, 16)
        assert code[at : at + len(nop)] == nop, name


def test_only_public_numbers_are_given():
    """Counts, sealed lengths and statuses: nothing here may be a pointer, or a report's length."""
    allowed = {"count", "out_len", "values_len", "records_len", "in_len", "status", "unopened"}
    for path in sorted((ROOT / "native").glob("*.c")):
        for name, arguments in fired(path.read_text()):
            given = {argument.strip() for argument in arguments.split(",")}
            assert given <= allowed, name
            # What goes into sealing is plain, and its length is secret where it is padded.
            if name.startswith("seal_"):
                assert not given & {"in_len", "values_len"}, name


def test_documented_as_they_are():
    text = (ROOT / "docs/performance.md").read_text()
    named = set(re.findall(r"`(?:\w+:)?((?:seal|open)_(?:envelopes|batch|chunks))`", text))
    assert named == NAMES
    assert "__entry" in text and "__return" in text
