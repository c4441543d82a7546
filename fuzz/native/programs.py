# SPDX-License-Identifier: Apache-2.0
"""Builds the fuzz targets of the C core with clang: for fuzzing, or for measuring coverage."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "fuzz" / "native"
OUT = ROOT / "build" / "fuzz"
SANITIZERS = "address,undefined"


@dataclass(frozen=True)
class Target:
    """One program: ``run_NAME`` of fuzz_NAME.c, its dictionary and the longest case in bytes."""

    name: str
    dictionary: str
    longest: int = 4096
    mutator: bool = False


TARGETS = {
    target.name: target
    for target in (
        Target("envelopes", "records", mutator=True),
        Target("envelope", "records", mutator=True),
        Target("batch", "records", mutator=True),
        Target("chunks", "chunks", 20000, mutator=True),
        Target("padding", "padding"),
        Target("keys", "padding", 512),
        Target("arena", "padding", 1024),
        Target("sequence", "records", 8192, mutator=True),
    )
}


def clang() -> str | None:
    """The compiler, if it can link libFuzzer, both sanitizers and OpenSSL."""
    found = shutil.which(os.environ.get("CLANG", "clang"))
    if found is None:
        return None
    OUT.mkdir(parents=True, exist_ok=True)
    probe = OUT / "probe"
    source = (
        "#include <openssl/evp.h>\n"
        "int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n);\n"
        "int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n)\n"
        "{ return d && n && !EVP_aes_256_gcm(); }\n"
    )
    tried = subprocess.run(  # noqa: S603
        [found, f"-fsanitize=fuzzer,{SANITIZERS}", "-x", "c", "-", "-lcrypto", "-o", probe],
        input=source,
        text=True,
        capture_output=True,
        check=False,
    )
    return found if tried.returncode == 0 else None


def ippcp() -> tuple[Path, Path] | None:
    """The library and headers of the second backend, as native/build_ffi.py finds them."""
    sys.path.insert(0, str(ROOT / "native"))
    import build_ffi

    found: tuple[Path, Path] | None = build_ffi.ippcp()
    return found


def build(cc: str, names: list[str], *, coverage: bool, native: Path, out: Path) -> None:
    """Programs ``out/NAME`` of the C core in ``native``, warnings as errors.

    What has been compiled before, of the same text and in the same way, is not compiled again.
    """
    flags = ["-std=c11", "-g", "-O2", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Wshadow"]
    flags += ["-Werror", f"-I{native}", f"-I{HERE}"]
    if coverage:
        instrument = ["-fprofile-instr-generate", "-fcoverage-mapping"]
        link = [*instrument, "-fsanitize=fuzzer"]
    else:
        instrument = [f"-fsanitize=fuzzer-no-link,{SANITIZERS}", "-fno-sanitize-recover=all"]
        link = [f"-fsanitize=fuzzer,{SANITIZERS}", "-fno-sanitize-recover=all"]
    core = [p.name for p in sorted(native.glob("*.c")) if p.name != "aead_ippcp.c"]
    libraries = ["-lcrypto"]
    if backend := ippcp():
        library, headers = backend
        core.append("aead_ippcp.c")
        flags += ["-DUPSEAL_WITH_IPPCP=1", f"-isystem{headers}"]
        libraries.insert(0, str(library))

    objects = out / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    headers_text = b"".join(p.read_bytes() for d in (native, HERE) for p in sorted(d.glob("*.h")))

    def run(*arguments: str | Path) -> None:
        subprocess.run([cc, *map(str, arguments)], check=True)  # noqa: S603

    def compiled(source: Path, *more: str) -> Path:
        way = repr((cc, flags, more)).encode()
        digest = hashlib.sha256(way + headers_text + source.read_bytes()).hexdigest()[:16]
        made = objects / f"{source.stem}-{digest}.o"
        if not made.exists():
            run(*flags, *more, "-c", source, "-o", made.with_suffix(".new"))
            made.with_suffix(".new").rename(made)
        return made

    # What is ours to look at is instrumented for coverage; what looks on is so only where its
    # branches tell kinds of cases apart.
    plain = [] if coverage else [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all"]
    guided = {f"fuzz_{name}.c" for name in TARGETS} | {"cases.c"}
    shared = [compiled(native / name, *instrument) for name in core]
    for source in sorted(HERE.glob("*.c")):
        if source.name != "driver.c":
            guide = ["-fsanitize=fuzzer-no-link"] if source.name in guided and not coverage else []
            shared.append(compiled(source, *plain, *guide))
    for name in names:
        macros = [f"-DTARGET=run_{name}"]
        if TARGETS[name].mutator:
            macros.append(f"-DMUTATOR=mutate_{name}")
        main = compiled(HERE / "driver.c", *plain, *macros)
        run(*link, main, *shared, *libraries, "-o", out / name)


def command(target: Target, program: Path, corpus: Path, crashes: Path, seed: int) -> list[str]:
    """What runs a target; new cases go to ``corpus``, failing ones to ``crashes``."""
    corpus.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(parents=True, exist_ok=True)
    return [
        *(str(program), str(corpus), str(HERE / "seeds" / target.name)),
        *(f"-seed={seed}", f"-max_len={target.longest}", "-timeout=25", "-rss_limit_mb=2560"),
        *(f"-dict={HERE / target.dictionary}.dict", f"-artifact_prefix={crashes}/{target.name}-"),
        *("-print_final_stats=1", "-reload=0"),
    ]
