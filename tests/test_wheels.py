# SPDX-License-Identifier: Apache-2.0
"""What wheels are built for is what cibuildwheel understands, and what is in them is checked.

Each check of a wheel is also shown to fail where what it checks is broken.
"""

import io
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import setuptools
from elftools.elf.elffile import ELFFile
from support import ROOT

import upseal.engine

sys.path.insert(0, str(ROOT / "scripts"))
import archives
import lock_part
import sbom
import wheel_faults

SECONDS = 1_790_000_000
DT_DEBUG = 21  # which says nothing in a library
CONFIGURED = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]


# ---- what is built -----------------------------------------------------------------


def identifiers(platform, archs, project=ROOT):
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "cibuildwheel", "--print-build-identifiers"),
            *("--platform", platform, "--archs", archs, str(project)),
        ],
        env={name: value for name, value in os.environ.items() if not name.startswith("CIBW_")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


@pytest.mark.parametrize(
    "platform, archs, wanted",
    [
        ("linux", "x86_64", {"manylinux_x86_64", "musllinux_x86_64"}),
        ("linux", "aarch64", {"manylinux_aarch64", "musllinux_aarch64"}),
        ("macos", "x86_64", {"macosx_x86_64"}),
        ("macos", "arm64", {"macosx_arm64"}),
    ],
)
def test_cibuildwheel_builds_one_wheel_for_all_pythons_and_one_for_the_free_threaded(
    platform, archs, wanted
):
    found = identifiers(platform, archs)
    assert set(found) == {f"{python}-{one}" for python in ("cp311", "cp314t") for one in wanted}


def test_cibuildwheel_builds_nothing_for_windows():
    assert identifiers("windows", "auto64") == []


def test_word_that_cibuildwheel_does_not_know_is_seen(tmp_path):
    text = (ROOT / "pyproject.toml").read_text()
    assert "[tool.cibuildwheel]\n" in text
    wrong = text.replace("[tool.cibuildwheel]\n", "[tool.cibuildwheel]\nbefore-everything = 'x'\n")
    (tmp_path / "pyproject.toml").write_text(wrong)
    with pytest.raises(AssertionError, match="before-everything"):
        identifiers("linux", "x86_64", tmp_path)


def test_commands_of_cibuildwheel_exist():
    words = (ROOT / "scripts/wheel-tools").read_text()
    cases = set(re.findall(r"^([a-z-]+)\)$", words, flags=re.M))
    named = re.findall(r"scripts/wheel-tools ([a-z-]+)", str(CONFIGURED))
    assert set(named) == cases == {"before-all", "before-build", "repair", "before-test", "test"}
    ran = subprocess.run([ROOT / "scripts/wheel-tools", "x"], capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stderr.startswith("Usage: scripts/wheel-tools before-all")


# ---- what setup.py does with a system --------------------------------------------


@pytest.mark.parametrize(
    "platform, said, native",
    [
        ("linux", None, True),
        ("linux", "", True),
        ("linux", "portable", False),
        ("darwin", None, True),
        ("win32", None, False),
        ("win32", "native", True),
    ],
)
def test_setup_builds_the_core_but_on_windows(monkeypatch, platform, said, native):
    asked = {}
    monkeypatch.setattr(setuptools, "setup", lambda **given: asked.update(given))
    monkeypatch.setattr(sys, "platform", platform)
    if said is None:
        monkeypatch.delenv("UPSEAL_BUILD", raising=False)
    else:
        monkeypatch.setenv("UPSEAL_BUILD", said)
    runpy.run_path(str(ROOT / "setup.py"))
    assert bool(asked["cffi_modules"]) == native
    abi3 = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"py_limited_api": "cp311"}
    assert asked["options"] == ({"bdist_wheel": abi3} if native else {})


# ---- parts of locks --------------------------------------------------------------

LOCK = """\
# SPDX-License-Identifier: Apache-2.0
--require-hashes
a==1 \\
    --hash=sha256:aa
    # via pyproject.toml
b-b==2 ; os_name == 'nt' \\
    --hash=sha256:bb \\
    --hash=sha256:b2
    # via a, c
c==3 \\
    --hash=sha256:cc
    # via pyproject.toml
d==4 \\
    --hash=sha256:dd
    # via b-b
"""


def test_part_of_a_lock_has_what_is_needed_with_its_hashes():
    found = lock_part.part(LOCK, ["A"])
    assert re.findall(r"^([\w-]+)==", found, flags=re.M) == ["a", "b-b", "d"]
    assert "--require-hashes" in found and "sha256:b2" in found and "sha256:cc" not in found
    with pytest.raises(ValueError, match="has no e"):
        lock_part.part(LOCK, ["a", "e"])


def test_what_wheel_tools_installs_is_locked():
    text = (ROOT / "scripts/wheel-tools").read_text().replace("\\\n", " ")
    calls = re.findall(r"^ +(?:.*\|\| )?install \S+ (\w+) (.+)$", text, flags=re.M)
    assert len(calls) == 5
    for lock, names in calls:
        assert lock_part.part((ROOT / f"requirements/{lock}.txt").read_text(), names.split())


# ---- what is in a wheel --------------------------------------------------------------


@pytest.fixture(scope="module")
def core():
    found = [*Path(upseal.engine.__file__).parent.glob("_native.abi3.so")]
    if not found:
        pytest.skip("the C core is not built")
    return unsearched(found[0].read_bytes())


def unsearched(core):
    """As a release links it: built in place, Python may have its own folder searched."""
    dynamic = ELFFile(io.BytesIO(core)).get_section_by_name(".dynamic")
    for place, tag in enumerate(dynamic.iter_tags()):
        if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
            at = dynamic["sh_offset"] + place * dynamic["sh_entsize"]
            core = core[:at] + DT_DEBUG.to_bytes(8, "little") + core[at + 8 :]
    return core


METADATA = """\
Metadata-Version: 2.4
Name: upseal
Version: 0.1.0
Summary: Message-level encryption
License-Expression: Apache-2.0
License-File: LICENSE
Requires-Dist: cryptography>=50

text
"""
INFO = "upseal-0.1.0.dist-info"
TAG = f"manylinux_2_34_{sysconfig.get_platform().rpartition('-')[2]}"


def write(folder, members, name):
    folder.mkdir(exist_ok=True)
    path = folder / name
    archives.write_wheel(members, path, SECONDS)
    return path


@pytest.fixture
def wheel(tmp_path, core):
    """A good wheel, around the C core that is installed."""
    name = f"upseal-0.1.0-cp311-abi3-{TAG}.whl"
    members = {
        "upseal/py.typed": (b"", False),
        "upseal/engine/_native.abi3.so": (core, True),
        f"{INFO}/METADATA": (METADATA.encode(), False),
        f"{INFO}/WHEEL": (f"Root-Is-Purelib: false\nTag: cp311-abi3-{TAG}\n".encode(), False),
        f"{INFO}/RECORD": (b"", False),
        f"{INFO}/licenses/LICENSE": ((ROOT / "LICENSE").read_bytes(), False),
        f"{INFO}/licenses/NOTICE": ((ROOT / "NOTICE").read_bytes(), False),
    }
    plain = write(tmp_path / "plain", members, name)
    out = tmp_path / "out"
    out.mkdir()
    return sbom.embed(plain, out, SECONDS)


def test_good_wheel_has_no_faults(wheel):
    assert wheel_faults.faults(wheel) == []
    assert sbom.faults(wheel) == []


def test_wheel_carries_the_licence_of_what_is_linked_in(wheel, core, tmp_path):
    read = sbom.read_wheel(wheel)
    name = f"{INFO}/licenses/{sbom.IPP_LICENCE}"
    inside = bool(sbom.read_shared(core).ipp)
    assert (name in read.members) == inside
    assert (sbom.IPP_LICENCE in read.metadata.get_all("License-File")) == inside
    if inside:
        assert b"Apache License" in read.members[name][0]
        kept = {one: held for one, held in read.members.items() if one != name}
        found = wheel_faults.faults(write(tmp_path / "bare", kept, wheel.name))
        assert found == [f"has {sbom.IPP} in it, and not its licence"]


def patched(old, new):
    def change(members, core):
        assert old in core
        return {**members, "upseal/engine/_native.abi3.so": (core.replace(old, new), True)}

    return change


def without(name):
    return lambda members, _core: {one: held for one, held in members.items() if one != name}


def adding(name, content=b""):
    return lambda members, _core: {**members, name: (content, False)}


SONAME = "upseal/engine/_native.abi3.so"


@pytest.mark.parametrize(
    "change, fault",
    [
        (without(f"{INFO}/licenses/LICENSE"), "has not the project's LICENSE"),
        (adding(f"{INFO}/licenses/NOTICE", b"none"), "has not the project's NOTICE"),
        (without("upseal/py.typed"), "has no upseal/py.typed"),
        (without(SONAME), "has 0 shared objects"),
        (adding("native/core.c"), "belongs to the sources"),
        (adding("tests/test_x.py"), "belongs to the sources"),
        (adding(f"{INFO}/WHEEL", b"Root-Is-Purelib: false\nTag: cp39-abi3-x\n"), "inside, and"),
        (adding(f"{INFO}/WHEEL", f"Root-Is-Purelib: true\nTag: cp311-abi3-{TAG}".encode()), "Pure"),
        (patched(b"OPENSSL_3.0.0\0", b"OPENSSL_3.9.0\0"), "not every OpenSSL 3 has it"),
        (patched(b"PyInit__native\0", b"PyInit__nativX\0"), "should show PyInit__native alone"),
    ],
)
def test_fault_of_a_wheel_is_seen(wheel, core, tmp_path, change, fault):
    members = change(dict(sbom.read_wheel(wheel).members), core)
    found = wheel_faults.faults(write(tmp_path / "bad", members, wheel.name))
    assert any(fault in one for one in found), found


@pytest.mark.parametrize(
    "old, new, fault",
    [
        (r"manylinux_2_34", "manylinux_2_5", "newer than the tag"),
        (r"manylinux_2_34", "musllinux_1_2", "newer than the tag"),
        (r"manylinux_2_34", "linux", "which no index takes"),
        (r"_(x86_64|aarch64)\.whl", "_ppc64le.whl", "and the tag for ppc64le"),
        (r"cp311-abi3", "cp314-cp314t", "is not of the tag's interface"),
        (r"cp311-abi3-.*\.whl", "py3-none-any.whl", "in a wheel for any machine"),
    ],
)
def test_name_that_the_content_does_not_bear_out_is_seen(wheel, tmp_path, old, new, fault):
    renamed = tmp_path / re.sub(old, new, wheel.name)
    shutil.copy(wheel, renamed)
    found = wheel_faults.faults(renamed)
    assert any(fault in one for one in found), found


@pytest.mark.parametrize(
    "options, fault",
    [
        (["-Wl,-rpath,/tmp"], "would look for libraries in ['/tmp']"),
        (["-Wl,-z,norelro"], "no RELRO"),
        (["-Wl,-z,execstack"], "a stack that can be executed"),
        (["-Wl,-z,lazy"], "not bound at once"),
        (["-DMORE"], "should show PyInit__native alone"),
    ],
)
def test_way_of_linking_that_is_wrong_is_seen(wheel, tmp_path, options, fault):
    source = tmp_path / "small.c"
    source.write_text("int PyInit__native(void) { return 0; }\n#ifdef MORE\nint more;\n#endif\n")
    made = tmp_path / "small.so"
    good = ["-shared", "-fPIC", "-Wl,-z,relro,-z,now", "-o", made, source]
    subprocess.run([*os.environ.get("CC", "gcc").split(), *good, *options], check=True)
    members = dict(sbom.read_wheel(wheel).members)
    members["upseal/engine/_native.abi3.so"] = made.read_bytes(), True
    found = wheel_faults.faults(write(tmp_path / "bad", members, wheel.name))
    assert any(fault in one for one in found), found
    subprocess.run([*os.environ.get("CC", "gcc").split(), *good], check=True)
    members["upseal/engine/_native.abi3.so"] = made.read_bytes(), True
    assert wheel_faults.faults(write(tmp_path / "good", members, wheel.name)) == []
