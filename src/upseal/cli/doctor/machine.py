# SPDX-License-Identifier: Apache-2.0
"""What ``upseal doctor`` asks of any machine: engine, CPU, randomness, memory of keys, FIPS."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator

from upseal.cli.common import printable_size
from upseal.cli.doctor.lines import Check, Line, fail, ok, unknown, warn

_PACKAGES = ("cryptography", "pynacl", "cffi")
_FLEET = ("starlette", "uvicorn", "sqlalchemy", "urllib3", "psycopg")
_REINSTALL = "pip install --force-reinstall --no-cache-dir upseal, with gcc and libssl-dev there"


def checks(*, fips: bool) -> Iterator[tuple[str, Check]]:
    """All of them.

    Args:
        fips: FIPS mode is what is wanted: without it the lines about it fail.
    """
    yield "version", _version
    yield "engine", _engine
    yield "backends", _backends
    yield "cpu", _cpu
    yield "random", _random
    yield "key-memory", _key_memory
    yield "core-dumps", _core_dumps
    yield "fips", lambda: _fips(wanted=fips)
    yield "fips-bulk", lambda: _fips_bulk(wanted=fips)
    yield "fips-public-key", lambda: _fips_public_key(wanted=fips)


def _version() -> Iterator[Line]:
    import ssl

    from upseal import __version__

    found = {}
    for name in (*_PACKAGES, *_FLEET):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name in _PACKAGES:
                yield fail("version", f"{name} is not installed", "pip install upseal again")
    python = f"{platform.python_implementation()} {platform.python_version()}"
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    yield ok("version", f"upseal {__version__}, {python}, {ssl.OPENSSL_VERSION}; {listed}")


def _engine() -> Iterator[Line]:
    from upseal.cli.version import engine_facts

    facts = engine_facts()
    if "error" in facts:
        yield fail(
            "engine",
            f"none runs: {facts['error']}",
            "unset UPSEAL_ENGINE and UPSEAL_BACKEND, and mend what is named",
        )
        return
    what = (
        f"{facts['engine']}, backend {facts['backend']} ({facts['backend_version']}): "
        f"{facts['reason']}"
    )
    forced = [name for name in ("UPSEAL_ENGINE", "UPSEAL_BACKEND") if os.environ.get(name)]
    if forced:
        said = " and ".join(f"{name}={os.environ[name]}" for name in forced)
        yield warn("engine", f"{what}; {said} decides", f"unset {' and '.join(forced)}")
    elif facts["engine"] == "portable":
        yield warn("engine", f"{what}; it gives the same bytes, more slowly", _REINSTALL)
    else:
        yield ok("engine", what)


def _backends() -> Iterator[Line]:
    from upseal.engine import fips
    from upseal.engine.native import backends

    for name, version, works in backends():
        if works:
            yield ok("backends", f"{name} ({version}) gives the known answers")
        elif name == "ippcp":
            why = "is no FIPS provider" if fips.mode() else "cannot run on this CPU (it needs VAES)"
            yield ok("backends", f"{name} ({version}) {why}, and is not used")
        else:
            yield fail("backends", f"{name} ({version}) fails its known-answer test", _REINSTALL)


def _cpu() -> Iterator[Line]:
    from upseal.engine.machine import kernel_says_aes

    aes = kernel_says_aes()
    model = f"{_cpu_name()}, {os.cpu_count() or '?'} threads"
    if aes:
        yield ok("cpu", f"{model}, with instructions for AES")
    else:
        yield warn(
            "cpu",
            f"{model}, without instructions for AES: ChaCha20-Poly1305 is the default here",
            "a virtual machine: have the host pass `aes` and `pclmulqdq` through",
        )


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _random() -> Iterator[Line]:
    if not hasattr(os, "getrandom"):
        os.urandom(16)
        yield ok("random", "the system's random source answers")
        return
    try:
        os.getrandom(16, os.GRND_NONBLOCK)
    except BlockingIOError:
        yield fail(
            "random",
            "the kernel's random source is not ready: whatever seals now waits for it",
            "give a virtual machine virtio-rng, or start upseal later in the boot",
        )
        return
    yield ok("random", "getrandom answers: the kernel's random source is initialised")


def _key_memory() -> Iterator[Line]:
    from upseal.engine import choose
    from upseal.engine.sizes import AES_256_GCM

    engine = choose().engine
    key = engine.session_key(AES_256_GCM, bytes(96))
    found = engine.key_memory()
    del key
    if engine.name == "portable":
        yield warn(
            "key-memory",
            "the portable engine keeps keys in ordinary memory, which may go to swap",
            _REINSTALL,
        )
        return
    locked = f"{printable_size(found.locked)} of {printable_size(found.size)} for keys is locked"
    if found.locked < found.size:
        yield warn(
            "key-memory",
            f"{locked} ({_limit('RLIMIT_MEMLOCK')} allowed): keys may go to swap",
            "raise the limit: ulimit -l, or LimitMEMLOCK= of the unit; or encrypt the swap",
        )
    else:
        yield ok("key-memory", f"{locked} ({_limit('RLIMIT_MEMLOCK')} allowed), out of core dumps")


def _limit(name: str) -> str:
    import resource

    soft, _ = resource.getrlimit(getattr(resource, name))
    return "any number" if soft == resource.RLIM_INFINITY else printable_size(soft)


def _core_dumps() -> Iterator[Line]:
    if sys.platform == "win32":  # no such limit to look at
        return
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    if soft == 0:
        yield ok("core-dumps", "none are written")
    else:
        yield warn(
            "core-dumps",
            f"up to {_limit('RLIMIT_CORE')} may be written: without the C core's keys, but with "
            "private keys and reports as Python has them",
            "ulimit -c 0, or LimitCORE=0 of the unit",
        )


# -- FIPS -------------------------------------------------------------------------------

_DOCS = "docs/fips.md says how"


def _fips(*, wanted: bool) -> Iterator[Line]:
    from upseal.engine import fips
    from upseal.engine.types import EngineError

    try:
        mode = fips.mode()
    except EngineError as error:
        yield fail("fips", str(error), f"set {fips.VARIABLE}=1, 0, or not at all")
        return
    kernel = fips.kernel_says()
    system = f"the kernel's FIPS mode is {'on' if kernel else 'off'}"
    if mode is not None:
        yield ok("fips", f"FIPS mode is on: {mode}; {system}")
    elif wanted:
        yield fail("fips", f"FIPS mode is off; {system}", f"set {fips.VARIABLE}=1; {_DOCS}")
    elif kernel:
        yield warn(
            "fips",
            f"FIPS mode is off by {fips.VARIABLE}=0, and {system}",
            f"unset {fips.VARIABLE}; {_DOCS}",
        )
    else:
        yield ok("fips", f"FIPS mode is off; {system}")


def _fips_bulk(*, wanted: bool) -> Iterator[Line]:
    from upseal.engine import fips

    if fips.mode() is None and not wanted:
        return
    try:
        from upseal.engine.backends import fips_provider
    except ImportError as error:
        yield unknown("fips-bulk", f"there is no C core ({error})", _REINSTALL)
        return
    who = fips_provider(self_test=True)
    if who is None:
        yield fail(
            "fips-bulk",
            "the OpenSSL under the C core has no FIPS provider that gives all that is needed, or "
            "it fails its self-tests",
            f"activate one in openssl.cnf, a copy for each OpenSSL in a process; {_DOCS}",
        )
    else:
        yield ok("fips-bulk", f"AES-256-GCM, CMAC, HMAC and SHA-512 by {who}; self-tests passed")


def _fips_public_key(*, wanted: bool) -> Iterator[Line]:
    from upseal.core.fips import public_key_work
    from upseal.engine.fips import mode
    from upseal.engine.types import EngineError

    if mode() is None and not wanted:
        return
    try:
        who = public_key_work()
    except EngineError as error:
        yield fail("fips-public-key", str(error), f"give `cryptography` a FIPS provider; {_DOCS}")
    else:
        yield ok("fips-public-key", f"{who}; known answers are right")
