# SPDX-License-Identifier: Apache-2.0
"""FIPS mode: approved algorithms alone, all of them in a FIPS provider, or a refusal that says why.

``UPSEAL_FIPS=1`` turns it on, ``UPSEAL_FIPS=0`` off; otherwise the kernel decides
(``/proc/sys/crypto/fips_enabled``). It is on or off for a process from its first use on. There is
no half of it: where an engine has no FIPS provider it is not to be had, and `upseal.core.fips` sees
to the same for public-key work (docs/fips.md).
"""

from __future__ import annotations

import os
from functools import cache

from upseal.engine.types import EngineError

VARIABLE = "UPSEAL_FIPS"
KERNEL = "/proc/sys/crypto/fips_enabled"
_HINT = "activate a FIPS provider for each OpenSSL in this process (docs/fips.md)"


def kernel_says() -> bool:
    """Whether the system as a whole is in FIPS mode; False where it has no such word."""
    try:
        with open(KERNEL, "rb") as file:
            return file.read(16).strip() == b"1"
    except OSError:
        return False


@cache
def mode() -> str | None:
    """Who has turned it on, for people; None if it is off.

    Raises:
        EngineError: ``UPSEAL_FIPS`` says neither 1 nor 0.
    """
    said = os.environ.get(VARIABLE, "")
    if said not in ("", "0", "1"):
        raise EngineError(f"{VARIABLE} is 1 or 0, not {said!r}")
    if said:
        return f"{VARIABLE}=1" if said == "1" else None
    return f"{KERNEL} is 1" if kernel_says() else None


def refusal(why: str) -> EngineError:
    """What is raised instead of working outside of a provider."""
    who = mode()
    start = "in FIPS mode nothing would run:" if who is None else f"FIPS mode is on ({who}), and"
    return EngineError(f"{start} {why}; {_HINT}")


@cache
def cryptographys_openssl() -> str:
    """Checks that ``cryptography`` asks its OpenSSL for approved algorithms alone: who it is.

    OpenSSL gives out an algorithm under ``fips=yes`` only if a loaded provider claims that for it.
    Whether one is loaded, whoever uses it has to find out by a known answer.

    Raises:
        EngineError: it does not.
    """
    import cryptography
    from cryptography.hazmat.backends.openssl.backend import backend

    name = f"cryptography {cryptography.__version__} on {backend.openssl_version_text()}"
    # There is no public name of it; tests/test_fips.py would fail without it.
    if not backend._fips_enabled:
        raise refusal(f"{name} does not work in a FIPS provider")
    return name
