# SPDX-License-Identifier: Apache-2.0
"""Installs a wheel into an empty environment and runs the core's tests there, for scripts/wheels.

Nothing of the sources can be imported there: only tests/ is beside it. Each wheel is also tried
where there is no libcrypto, which must make it work with the portable engine, and say why.
"""

# ruff: noqa: S603, S607 - what is run here is what is to be tried
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import lock_part

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements/setup.txt"
NEEDED = ["cryptography", "pynacl", "cffi"]
TESTING = ["pytest", "pytest-benchmark", "hypothesis", "cryptography-vectors", "psutil"]
# What the library does, and no test that wants compilers, other programs or minutes.
TESTS = [
    "vectors",
    "round_trips",
    "engines_agree",
    "engine_choice",
    "tampering",
    "splicing",
    "primitives",
    "cobblestone",
    "hpke",
    "padding",
    "packed",
    "packed_out",
    "openers",
    "sessions",
    "reader",
    "writer",
    "keys",
    "large_batches",
    "hostile_input",
    "explain",
    "inputs",
    "threads",
    "one_of_many",
]
# One of them reads the sources, which are not there.
CHOSEN = "not a_room_imports"
GLIBC = "manylinux_2_28", "manylinux_2_17", "manylinux2014"
MUSL = "musllinux_1_2", "musllinux_1_1"
# By qemu all of them would take half an hour.
EMULATED = ["vectors", "round_trips", "primitives", "cobblestone", "padding", "packed"]
# A program's first words: which engine runs here, and why.
WHY = "from upseal.engine import choose; print(choose().reason)"
MISSING = "libcrypto.so.3"


class Tried(NamedTuple):
    """One way in which a wheel was tried: no fault if it is good, None if it was not tried."""

    how: str
    fault: str | None
    said: str = ""


def trial(how: str, command: list[object], env: dict[str, str], seconds: int = 1500) -> Tried:
    """Runs a command that succeeds if the wheel is good; its last line is what it said."""
    clean = {name: os.environ[name] for name in ("HOME", "TMPDIR", "LANG") if name in os.environ}
    try:
        ran = subprocess.run(
            [str(one) for one in command],
            env={**clean, "PATH": "/nonexistent", **env},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return Tried(how, f"not done after {seconds} s")
    lines = (ran.stdout + ran.stderr).strip().splitlines()
    if ran.returncode:
        return Tried(how, "\n".join(lines[-15:]) or f"exit code {ran.returncode}")
    return Tried(how, "", lines[-1] if lines else "")


def tests_beside(folder: Path) -> Path:
    """The tests and what configures them, without the sources."""
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def pytest(folder: Path, names: list[str] = TESTS, also: str = "") -> list[object]:
    """The words that follow a Python to run the tests that were put into the folder."""
    return [
        *("-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", folder / "pyproject.toml"),
        *(
            "--rootdir",
            folder,
            "-k",
            CHOSEN + also,
            *(folder / f"tests/test_{one}.py" for one in names),
        ),
    ]


def locked(folder: Path) -> Path:
    """A lock of what the wheel and its tests need, and nothing else."""
    path = folder / "needed.txt"
    path.write_text(lock_part.part(LOCK.read_text("utf-8"), NEEDED + TESTING))
    return path


def pip(python: Path | str, *options: object) -> None:
    """Runs pip; RuntimeError with its output if it fails."""
    ran = subprocess.run(
        [str(python), "-m", "pip", "install", "-q", "--no-compile", *map(str, options)],
        capture_output=True,
        text=True,
    )
    if ran.returncode:
        raise RuntimeError(ran.stdout + ran.stderr)


def environment(python: str, wheel: Path, folder: Path) -> Path:
    """An empty environment of that Python with the wheel in it: its Python."""
    subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
    inside = folder / "venv/bin/python"
    pip(inside, "--require-hashes", "-r", locked(folder))
    pip(inside, "--no-deps", "--no-index", wheel)
    return inside


def foreign(folder: Path, wheel: Path, tags: list[str], version: str) -> Path:
    """A folder with the wheel and what it needs for another machine or C library."""
    site = folder / "site-packages"
    selected = [word for tag in tags for word in ("--platform", tag)]  # pip infers no older ones
    selected += ["--python-version", version, "--implementation", "cp"]
    common = ["--target", site, "--only-binary", ":all:", "--no-deps", *selected]
    pip(sys.executable, *common, "--require-hashes", "-r", locked(folder))
    pip(sys.executable, *common, "--no-index", wheel)
    return site


def pythons() -> dict[str, str]:
    """Python 3.11 and later, by version: the one that runs this, and those on PATH."""
    found = {}
    for name in (sys.executable, "python3.11", "python3.12", "python3.13", "python3.14"):
        asked = [name, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        try:
            number = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            continue
        found.setdefault(number.strip(), name)
    return found


def smoke(python: list[object], engine: str) -> list[object]:
    """The words that say whether that engine runs and works."""
    return [*python, ROOT / "scripts/smoke.py", engine]


def glibc(wheel: Path, folder: Path, _asked: argparse.Namespace) -> list[Tried]:
    """On this machine: a native wheel with each Python, the tests with the first."""
    done = []
    for number, python in pythons().items():
        here = folder / number
        here.mkdir()
        inside = environment(python, wheel, here)
        done.append(trial(f"Python {number}, native", smoke([inside, "-I"], "native"), {}))
        if done[1:]:
            continue
        done.append(trial("its tests", [inside, *pytest(tests_beside(here))], {}))
        done += without_libcrypto(inside)
    return done


def without_libcrypto(python: Path) -> list[Tried]:
    """The same where libcrypto cannot be loaded: an empty file stands in its place."""
    how = "without libcrypto: portable, and why"
    libraries = [*Path("/usr/lib/x86_64-linux-gnu").glob(f"{MISSING}*")]
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        return [Tried(how, None, "unshare -rm is not allowed here")]
    hidden = " && ".join(f"/bin/mount --bind /dev/null {one.resolve()}" for one in libraries)
    before = ["/usr/bin/unshare", "-rm", "/bin/sh", "-c", f'{hidden} && exec "$@"', "sh", python]
    return portable_because([*before, "-I"], how, {})


def portable_because(python: list[object], how: str, env: dict[str, str]) -> list[Tried]:
    """Works with the portable engine, and the reason it gives names the missing library."""
    works = trial(how, smoke(python, "portable"), env)
    if works.fault:
        return [works]
    why = trial(how, [*python, "-c", WHY], env)
    if why.fault or MISSING not in why.said:
        return [Tried(how, f"the reason does not name {MISSING}: {why.said or why.fault}")]
    return [why]


def pure(wheel: Path, folder: Path, _asked: argparse.Namespace) -> list[Tried]:
    """The wheel for any machine, here, where a compiler or the C core would not be looked at."""
    (number, python), *_ = pythons().items()
    inside = environment(python, wheel, folder)
    return [
        trial(f"Python {number}, portable", smoke([inside, "-I"], "portable"), {}),
        trial("its tests", [inside, *pytest(tests_beside(folder))], {}),
    ]


def arm64(wheel: Path, folder: Path, _asked: argparse.Namespace) -> list[Tried]:
    """Debian's Python for arm64 by qemu; as root, or where users may have namespaces."""
    how = "arm64, by qemu"
    for program in "mmdebstrap", "qemu-aarch64-static":
        if not shutil.which(program):
            return [Tried(how, None, f"no {program} here (scripts/cross-arm64 installs it)")]
    root = folder / "root"
    made = subprocess.run(
        [
            *("mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64"),
            *("--include=python3.11,libpython3.11-stdlib,libssl3", "bookworm", root),
        ],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        return [Tried(how, None, f"no system for arm64: {made.stderr.strip()[-300:]}")]
    site = foreign(folder, wheel, [f"{one}_aarch64" for one in GLIBC], "3.11")
    emulator = [shutil.which("qemu-aarch64-static"), "-L", root, root / "usr/bin/python3.11"]
    env = {
        **{"PYTHONPATH": str(site), "PYTHONHOME": str(root / "usr"), "LD_LIBRARY_PATH": ""},
        **{"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPLATLIBDIR": "lib"},
    }
    done = [trial(f"{how}, native", smoke(emulator, "native"), env)]
    # What starts a child is left out: qemu would not run it.
    alone = " and not fork and not subprocess and not second_implementation"
    chosen = pytest(tests_beside(folder), EMULATED, alone)
    done.append(trial(f"{how}, its tests", [*emulator, *chosen], env))
    for library in (root / "usr/lib/aarch64-linux-gnu").glob(f"{MISSING}*"):
        library.write_bytes(b"")  # gone, qemu would look for it among this machine's
    return [*done, *portable_because(emulator, f"{how}, without libcrypto: portable", env)]


def musl(wheel: Path, folder: Path, asked: argparse.Namespace) -> list[Tried]:
    """A Python for musl, if one was named; it has no libcrypto beside it but the one given here."""
    if not asked.musl_python:
        return [Tried("musl", None, "no Python for musl here: name one by --musl-python")]
    python = asked.musl_python
    asking = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    number = subprocess.run(asking, capture_output=True, text=True, check=True).stdout.strip()
    site = foreign(folder, wheel, [f"{one}_x86_64" for one in MUSL], number)
    env = {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = portable_because([python], "musl, without libcrypto: portable, and why", env)
    # A libcrypto for musl: psycopg's wheel brings one, the lock has its hash.
    other = folder / "libcrypto"
    part = folder / "psycopg.txt"
    part.write_text(lock_part.part(LOCK.read_text("utf-8"), ["psycopg-binary"]))
    pip(
        sys.executable,
        *("--target", other, "--only-binary", ":all:", "--no-deps", "--implementation", "cp"),
        *("--platform", "musllinux_1_2_x86_64", "--python-version", number),
        *("--require-hashes", "-r", part),
    )
    (library,) = (other / "psycopg_binary.libs").glob("libcrypto-*.so.3")
    (library.parent / MISSING).symlink_to(library.name)
    env["LD_LIBRARY_PATH"] = str(library.parent)
    done.append(trial("musl, native", smoke([python], "native"), env))
    done.append(trial("musl, its tests", [python, *pytest(tests_beside(folder))], env))
    return done


if __name__ == "__main__":  # cibuildwheel: this Python has the wheel, and what its tests need
    with tempfile.TemporaryDirectory() as scratch:
        words = pytest(tests_beside(Path(scratch)))
        sys.exit(subprocess.run([sys.executable, *map(str, words)], cwd=scratch).returncode)
