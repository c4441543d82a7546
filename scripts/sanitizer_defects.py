# SPDX-License-Identifier: Apache-2.0
"""Shows that each sanitizer and checker can fail: breaks a copy of the C core, here and there.

Usage: python scripts/sanitizer_defects.py [NAME ...]

Each defect must end the check named with an error, and with the words by which that check reports
such a thing. What is not here (clang-tidy, cppcheck, valgrind) is said and left out.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COPIED = ["native", "scripts", "src", "tests", "setup.py", "pyproject.toml", ".clang-tidy"]
COPIED += ["README.md", "LICENSE", "NOTICE"]


class Defect(NamedTuple):
    """One place to break, and who must see it."""

    check: list[str]
    """A script and its arguments after PYTHON."""
    changes: list[tuple[str, str, str]]
    """(file, what stands there once, what is put there)"""
    says: str
    """Part of the report."""
    compiler: str = "gcc"
    needs: str = ""


WRITES_ONE_MORE = (
    "native/chunks.c",
    "if (out && out_len) memset(out, 0, out_len);",
    "if (out && out_len) memset(out, 0, out_len + 1);",
)
UNINITIALISED = ("native/core.c", "*key = calloc(1, sizeof *key);", "*key = malloc(sizeof *key);")
RACE = (
    "native/records.c",
    "{\n    if (!work || !key || key->has_base_nonce) return UPSEAL_EARGUMENT;\n",
    "{\n    static unsigned long calls;\n    calls++;\n"
    "    if (!work || !key || key->has_base_nonce) return UPSEAL_EARGUMENT;\n",
)
DEFECTS = {
    "overflow": Defect(["ctest", "asan"], [WRITES_ONE_MORE], "heap-buffer-overflow"),
    "overflow-by-clang": Defect(
        ["ctest", "asan"], [WRITES_ONE_MORE], "heap-buffer-overflow", "clang", "clang"
    ),
    # libcrypto is not instrumented: only native/tests/sanitizers sees that it reads too far.
    "overflow-in-libcrypto": Defect(
        ["ctest", "asan"],
        [
            (
                "native/aead_openssl.c",
                "(len && !EVP_EncryptUpdate(s->sealing, out, &n, in, (int)len))",
                "(len && !EVP_EncryptUpdate(s->sealing, out, &n, in, (int)len + 1))",
            )
        ],
        "in may_touch",
    ),
    "use-after-free": Defect(
        ["ctest", "asan"],
        [
            (
                "native/core.c",
                "    upseal_wipe(work, sizeof *work);\n    free(work);\n",
                "    free(work);\n    upseal_wipe(work, sizeof *work);\n",
            )
        ],
        "use-after-free",
    ),
    "leak": Defect(
        ["ctest", "asan"],
        [("native/aead_openssl.c", "    EVP_CIPHER_CTX_free(s->deriving);\n", "")],
        "LeakSanitizer: detected memory leaks",
    ),
    "signed-overflow": Defect(
        ["ctest", "asan"],
        [
            (
                "native/records.c",
                "if (!offsets || offsets[0] < 0) return 0;",
                "if (!offsets) return 0;",
            )
        ],
        "signed integer overflow",
    ),
    "uninitialised": Defect(
        ["ctest", "msan"], [UNINITIALISED], "use-of-uninitialized-value", "clang", "clang"
    ),
    # Of what libcrypto reads, too, only native/tests/sanitizers tells.
    "uninitialised-nonce": Defect(
        ["ctest", "msan"],
        [("native/records.c", "    memset(iv, 0, 12);\n", "")],
        "use-of-uninitialized-value",
        "clang",
        "clang",
    ),
    "uninitialised-memcheck": Defect(
        ["ctest", "memcheck"], [UNINITIALISED], "depends on uninitialised", needs="valgrind"
    ),
    "uninitialised-in-python": Defect(
        ["memcheck-python"],
        [UNINITIALISED],
        "depends on uninitialised",
        needs="valgrind",
    ),
    "race": Defect(["ctest", "tsan"], [RACE], "data race"),
    "race-by-clang": Defect(["ctest", "tsan"], [RACE], "data race", "clang", "clang"),
    "race-in-python": Defect(["tsan-python", "--rounds", "2"], [RACE], "data race"),
    # One work space in two threads: what is raced for is inside the libraries.
    "race-in-libraries": Defect(
        ["tsan-python", "--rounds", "2"],
        [("src/upseal/engine/single.py", "space = idle.pop()", "space = idle[-1]")],
        "sanitizers/libraries.c",
    ),
    "null": Defect(
        ["check-c", "native/core.c"],
        [("native/core.c", "    if (!work) return NULL;\n    work->aead[0]", "    work->aead[0]")],
        "analyzer-possible-null",
    ),
    "conversion": Defect(
        ["check-c", "native/records.c"],
        [("native/records.c", "(uint32_t)sealed);", "sealed);")],
        "conversion",
    ),
    "clang-tidy": Defect(
        ["check-c", "native/core.c"],
        [("native/core.c", "calloc(1, sizeof *work)", "calloc(1, sizeof work)")],
        "bugprone-sizeof-expression",
        needs="clang-tidy",
    ),
    "cppcheck": Defect(
        ["check-c", "native/core.c"],
        [
            (
                "native/core.c",
                "for (size_t i = 0; i < 15; i++) k1[i]",
                "k1[16] = 0;\n    for (size_t i = 0; i < 15; i++) k1[i]",
            )
        ],
        "[arrayIndexOutOfBounds]",
        needs="cppcheck",
    ),
    "no-thread-calls-it": Defect(
        ["check-c", "native/core.c"],
        [
            (
                "native/upseal.h",
                "/* Arrow's 32-bit offsets",
                "int upseal_new_call(void);\n\n/* Arrow's 32-bit offsets",
            )
        ],
        "upseal_new_call is not called",
    ),
}


def seen(name: str, defect: Defect) -> bool:
    """Breaks a copy and runs the check; whether it failed as it should."""
    copy = ROOT / "build" / "defects" / name
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for entry in COPIED:
        if (ROOT / entry).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "_native*.so", "fleet")
            shutil.copytree(ROOT / entry, copy / entry, ignore=ignore)
        else:
            shutil.copy(ROOT / entry, copy / entry)
    for file, there, instead in defect.changes:
        text = (copy / file).read_text()
        if text.count(there) != 1:
            print(f"{name}: {file} has no such place any more: {there!r}")
            return False
        (copy / file).write_text(text.replace(there, instead))
    script, *arguments = defect.check
    done = subprocess.run(  # noqa: S603
        [f"scripts/{script}", sys.executable, *arguments],
        cwd=copy,
        env={**os.environ, "CC": defect.compiler, "UPSEAL_IPPCP": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    good = done.returncode != 0 and defect.says in done.stdout
    print(f"{name}: {'seen' if good else 'NOT SEEN'} by {' '.join(defect.check)}", flush=True)
    if good:
        shutil.rmtree(copy)
    else:
        print(done.stdout[-3000:])
    return good


def main() -> int:
    """All of them, or those named."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    failed = 0
    for name in sys.argv[1:] or DEFECTS:
        defect = DEFECTS[name]
        if defect.needs and not shutil.which(defect.needs):
            print(f"{name}: left out, there is no {defect.needs} here")
        else:
            failed += not seen(name, defect)
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
