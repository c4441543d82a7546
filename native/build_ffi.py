# SPDX-License-Identifier: Apache-2.0
"""Describes the extension ``upseal.engine._native`` to cffi: the header is the only declaration.

The environment may say ``UPSEAL_IPPCP=0`` (leave the ippcp backend out), ``UPSEAL_WERROR=1``
(warnings are errors), ``UPSEAL_SANITIZE=1`` (AddressSanitizer and UBSan), ``UPSEAL_PROFILE=1``
(frame pointers and symbols, for perf and py-spy) and ``UPSEAL_PROBES=0`` (no static probes).
"""

import hashlib
import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
# What pyproject.toml pins, by content: a build must not link anything else into agents.
IPPCP_SHA256 = "6e3dd015c760d6c49eea0f7b92d3a12611eee7a1ad769f4ed7c6afd8c93baa44"


def declarations() -> str:
    """The header without its preprocessor lines, and the numbers Python needs."""
    header = (HERE / "upseal.h").read_text()
    body = re.sub(r"^#.*\n", "", header, flags=re.M).replace("UPSEAL_MUST_CHECK ", "")
    constants = re.findall(r"^#define (UPSEAL_\w+) [\d(]", header, flags=re.M)
    return body + "".join(f"#define {name} ...\n" for name in constants)


def ippcp() -> tuple[Path, Path] | None:
    """The static library and the folder of its headers, where the pinned packages are installed."""
    wanted = os.environ.get("UPSEAL_IPPCP", "1") != "0"
    if not (wanted and sys.platform == "linux" and platform.machine() == "x86_64"):
        return None

    def locate(package: str, ending: str) -> Path | None:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            return None
        found = [Path(str(f.locate())).resolve() for f in files if f"/{f}".endswith(ending)]
        return found[0] if found else None

    library = locate("ipp-crypto-static", "/libippcp.a")
    header = locate("ipp-crypto-include", "/include/ippcp.h")
    if library is None or header is None:
        return None
    if hashlib.sha256(library.read_bytes()).hexdigest() != IPPCP_SHA256:
        print(f"upseal: {library} is not the pinned release, left out", file=sys.stderr)
        return None
    return library, header.parent


def builder() -> FFI:
    """The FFI object that setuptools builds from."""
    sources = ["core.c", "arena.c", "derive.c", "selftest.c", "records.c", "chunks.c"]
    sources.append("aead_openssl.c")
    compile_args = [] if sys.platform == "win32" else ["-std=c11", "-O2", "-fvisibility=hidden"]
    # Bound at once, or the first call of each function saves all registers on the stack, and what
    # keys they hold with them.
    link_args = ["-Wl,-z,relro,-z,now"] if sys.platform == "linux" else []
    macros: list[tuple[str, str]] = []
    objects: list[str] = []
    if found := ippcp():
        library, headers = found
        sources.append("aead_ippcp.c")
        macros.append(("UPSEAL_WITH_IPPCP", "1"))
        objects.append(str(library))
        compile_args.append(f"-isystem{headers}")
        link_args.append("-Wl,--exclude-libs,ALL")
    if os.environ.get("UPSEAL_WERROR") == "1":
        # Not -Wconversion: what cffi writes does not keep it. scripts/ctest has it for our files.
        compile_args += ["-Wall", "-Wextra", "-Wshadow", "-Werror"]
    if os.environ.get("UPSEAL_SANITIZE") == "1":
        sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        compile_args += [*sanitize, "-fno-omit-frame-pointer", "-g"]
        link_args += sanitize
    if os.environ.get("UPSEAL_PROFILE") == "1":
        compile_args += ["-g", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"]
    if os.environ.get("UPSEAL_PROBES") == "0":
        macros.append(("UPSEAL_NO_PROBES", "1"))
    ffi = FFI()
    ffi.cdef(declarations())
    ffi.set_source(
        "upseal.engine._native",
        '#include "upseal.h"',
        sources=[f"native/{name}" for name in sources],
        # aead_ippcp.c also where it is not built: what is named here goes into the sdist.
        depends=[
            *("native/upseal.h", "native/aead.h", "native/probes.h", "native/secrets.h"),
            *("native/aead_ippcp.c", "native/build_ffi.py"),
        ],
        include_dirs=["native"],
        define_macros=macros,
        extra_objects=objects,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        libraries=["libcrypto" if sys.platform == "win32" else "crypto"],
        py_limited_api=True,
    )
    return ffi


ffi = builder()
