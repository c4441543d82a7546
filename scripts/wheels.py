# SPDX-License-Identifier: Apache-2.0
"""Builds every wheel that can be built on Linux for x86-64, tries each, and prints a table.

No container: zig (the package ``ziglang``) compiles for the C library, its version and the machine
that a wheel's tag names. A release's wheels come from cibuildwheel; these show, wherever a
developer sits, that the sources make them and that they work.
"""

# ruff: noqa: S603 - compilers and pip, called by name
import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import sbom
import wheel_faults
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection
from wheel_trying import Tried, arm64, glibc, musl, pure

ROOT = Path(__file__).resolve().parent.parent
HEADERS = Path("/usr/include/openssl"), Path("/usr/include/x86_64-linux-gnu/openssl")


class Target(NamedTuple):
    """What a wheel is built for, and how it can be tried here."""

    zig: str
    machine: str
    tag: str
    trial: Callable[[Path, Path, argparse.Namespace], list[Tried]] | None


TARGETS = {
    "manylinux-x86_64": Target("x86_64-linux-gnu.2.28", "x86_64", "manylinux_2_28_x86_64", glibc),
    "manylinux-aarch64": Target(
        "aarch64-linux-gnu.2.28", "aarch64", "manylinux_2_28_aarch64", arm64
    ),
    "musllinux-x86_64": Target("x86_64-linux-musl", "x86_64", "musllinux_1_2_x86_64", musl),
    "musllinux-aarch64": Target("aarch64-linux-musl", "aarch64", "musllinux_1_2_aarch64", None),
    "any": Target("", "", "any", pure),
}


# auditwheel knows the tags of the machine and C library it runs on; here it is told others.
AUDITWHEEL = """
import sys
from auditwheel.architecture import Architecture
from auditwheel.libc import Libc
machine, libc = sys.argv[1:3]
del sys.argv[1:3]
Architecture.detect = staticmethod(lambda **_: Architecture(machine))
Libc.detect = staticmethod(lambda: Libc[libc])
from auditwheel.main import main
sys.exit(main())
"""


def run(command: list[object], log: Path, **settings: object) -> None:
    """Runs a command, its output in the log; RuntimeError with the log's end if it fails."""
    with log.open("ab") as out:
        done = subprocess.run(
            [str(one) for one in command], stdout=out, stderr=subprocess.STDOUT, **settings
        )
    if done.returncode:
        shown = "\n".join(log.read_text("utf-8", "replace").splitlines()[-15:])
        raise RuntimeError(f"{Path(str(command[0])).name} failed:\n{shown}")


def linking_stub(zig: list[str], folder: Path, log: Path) -> None:
    """A libcrypto.so to link against: the names of OpenSSL 3.0's functions, and nothing in them."""
    with open("/usr/lib/x86_64-linux-gnu/libcrypto.so.3", "rb") as file:
        elf = ELFFile(file)
        definitions = elf.get_section_by_name(".gnu.version_d")
        assert isinstance(definitions, GNUVerDefSection)
        (first,) = [
            one.entry.vd_ndx
            for one, names in definitions.iter_versions()
            if next(names).name == "OPENSSL_3.0.0"
        ]
        numbers = elf.get_section_by_name(".gnu.version")
        names = sorted(
            symbol.name
            for index, symbol in enumerate(elf.get_section_by_name(".dynsym").iter_symbols())
            if symbol["st_info"]["type"] == "STT_FUNC"
            and numbers.get_symbol(index).entry["ndx"] == first
        )
    folder.mkdir()
    source, exports = folder / "stub.c", folder / "stub.map"
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in names))
    exports.write_text("OPENSSL_3.0.0 { global: *; };\n")
    run(
        [
            *(*zig, "-shared", "-fPIC", "-nostdlib", "-O1", "-w", "-fno-builtin"),
            *(f"-Wl,--version-script={exports}", "-Wl,-soname,libcrypto.so.3", source),
            *("-o", folder / "libcrypto.so"),
        ],
        log,
    )


def compiler(zig: list[str], folder: Path) -> Path:
    """A program that is called like gcc: the linker that zig has in it knows other words."""
    exports = folder / "exports.map"
    exports.write_text(f"{{ global: {wheel_faults.ENTRY}; local: *; }};\n")
    program = folder / "cc"
    program.write_text(
        textwrap.dedent(f"""\
            #!/bin/bash
            arguments=()
            for one in "$@"; do
                case $one in
                -Wl,--exclude-libs,*) arguments+=("-Wl,--version-script={exports}") ;;
                -shared) arguments+=(-shared "-Wl,--version-script={exports}") ;;
                -L/usr/*|-L{sys.base_prefix}/*) ;; # this machine's libraries are not the target's
                *) arguments+=("$one") ;;
                esac
            done
            exec {" ".join(zig)} "${{arguments[@]}}"
            """)
    )
    program.chmod(0o755)
    return program


def build(name: str, sdist: Path, out: Path, scratch: Path) -> Path:
    """The wheel of that target, with its SBOM.

    Raises:
        RuntimeError: it could not be built; with what the tool said.
    """
    target = TARGETS[name]
    log = scratch / "log"
    shutil.unpack_archive(sdist, scratch / "tree", filter="data")
    (source,) = (scratch / "tree").iterdir()
    for folder in "made", "tagged":
        (scratch / folder).mkdir()
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith("UPSEAL_")},
        **{"UPSEAL_BUILD": "native" if target.zig else "portable", "LC_ALL": "C", "TZ": "UTC"},
    }
    if target.zig:
        zig = [sys.executable, "-m", "ziglang", "cc", "-target", target.zig]
        linking_stub(zig, scratch / "stub", log)
        include = scratch / "include/openssl"
        for headers in HEADERS:
            shutil.copytree(headers, include, dirs_exist_ok=True)
        program = compiler(zig, scratch)
        kept = f"-ffile-prefix-map={source}=. -ffile-prefix-map={sys.prefix}=python"
        env |= {
            "CC": str(program),
            "LDSHARED": f"{program} -shared -Wl,-z,relro,-z,now",
            "CFLAGS": f"-g0 -I{include.parent} {kept} -ffile-prefix-map={sys.base_prefix}=python",
            "LDFLAGS": f"-L{scratch / 'stub'}",
            "_PYTHON_HOST_PLATFORM": f"linux-{target.machine}",
            "UPSEAL_IPPCP": "1" if target.machine == platform.machine() else "0",
        }
    made = scratch / "made"
    building = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", made]
    run(building, log, cwd=source, env=env)
    (wheel,) = made.iterdir()
    if target.zig:
        musl_ = "musl" in target.zig
        run(
            [
                *(sys.executable, "-c", AUDITWHEEL, target.machine, "MUSL" if musl_ else "GLIBC"),
                *("repair", "--patcher", "none", "--exclude", "libcrypto.so.*"),
                *("--exclude", "libc.so"),  # musl by its own name, which zig's linker uses
                *("--plat", target.tag, "--only-plat"),
                # Nothing of this machine's is looked at: what a tag allows, the target has.
                *("--ldpaths", scratch / "stub", "--wheel-dir", scratch / "tagged", wheel),
            ],
            log,
            env=env,
        )
        (wheel,) = (scratch / "tagged").iterdir()
    return sbom.embed(wheel, out, int(os.environ["SOURCE_DATE_EPOCH"]))


def audit(wheel: Path, log: Path) -> list[Tried]:
    """What is wrong with a wheel by itself."""
    found = [*wheel_faults.faults(wheel), *(f"SBOM {one}" for one in sbom.faults(wheel))]
    tools = [("twine check", ["twine", "check", "--strict"])]
    if "-abi3-" in wheel.name:
        tools.append(("abi3audit", ["abi3audit", "--strict"]))
    for name, command in tools:
        try:
            run([sys.executable, "-m", *command, wheel], log)
        except RuntimeError as error:
            found.append(f"{name}: {error}")
    return [Tried("audits", "; ".join(found))]


def main() -> None:
    """What is in the module's docstring."""
    parser = argparse.ArgumentParser(prog="scripts/wheels PYTHON", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TARGETS)}: these")
    parser.add_argument("--out", type=Path, default=ROOT / "build/wheels", help="where they go")
    parser.add_argument("--sdist", type=Path, help="built from this; otherwise from one made now")
    parser.add_argument("--musl-python", type=Path, help="a Python built for musl")
    parser.add_argument("--no-tests", action="store_true", help="build and audit, no more")
    asked = parser.parse_args()
    if strange := set(asked.names) - set(TARGETS):
        parser.error(f"no such wheel: {', '.join(sorted(strange))}")
    names = asked.names or list(TARGETS)
    if names != ["any"] and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        parser.error("all but 'any' needs Linux on x86-64")
    shutil.rmtree(asked.out, ignore_errors=True)
    asked.out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if not asked.sdist:
            run([ROOT / "scripts/build", sys.executable, scratch / "first"], scratch / "log")
            (asked.sdist,) = (scratch / "first").glob("*.tar.gz")
        asked.sdist = asked.sdist.resolve()
        rows, failed = [], False
        for name in names:
            here = scratch / name
            here.mkdir()
            try:
                wheel = build(name, asked.sdist, asked.out, here)
            except RuntimeError as error:
                print(f"{name}: {error}", file=sys.stderr)
                rows.append((name, "", "build", "FAILED"))
                failed = True
                continue
            tried = audit(wheel, here / "log")
            trial = TARGETS[name].trial
            if trial is None:
                tried.append(Tried("tests", None, "nothing here runs it"))
            elif not asked.no_tests:
                try:
                    tried += trial(wheel, here, asked)
                except RuntimeError as error:
                    tried.append(Tried("tests", f"no environment for it: {error}"))
            for one in tried:
                print(f"{name}: {one.how}: {one.fault or one.said or 'good'}", flush=True)
                verdict = "not tried" if one.fault is None else "FAILED" if one.fault else "passed"
                rows.append((wheel.name, f"{wheel.stat().st_size >> 10} KiB", one.how, verdict))
                failed |= bool(one.fault)
    print()
    for row in [("wheel", "size", "tried how", ""), *rows]:
        print(f"{row[0]:58} {row[1]:>9}  {row[2]:44} {row[3]}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
