# SPDX-License-Identifier: Apache-2.0
"""Work for a profiler to watch: ``profile_work.py WORK [SECONDS]``."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from time import perf_counter

import upseal

REPORT = os.urandom(1024)
REPORTS = [os.urandom(1024) for _ in range(1000)]
PAYLOAD = os.urandom(16 << 20)
KEY = upseal.PrivateKey.generate("x25519")
SEALER, OPENER = upseal.Sealer([KEY.public_key]), upseal.Opener([KEY])
ENVELOPE, BATCH = SEALER.seal(REPORT), SEALER.seal_batch(REPORTS)
VALUES = b"".join(REPORTS)
OFFSETS = memoryview(b"".join((1024 * i).to_bytes(8, sys.byteorder) for i in range(1001))).cast("q")
NOWHERE = open(os.devnull, "wb")  # noqa: SIM115 - as long as the process


def seal() -> None:
    """One envelope of 1 KiB."""
    SEALER.seal(REPORT)


def open_() -> None:
    """One envelope of 1 KiB."""
    OPENER.open(ENVELOPE)


def seal_batch() -> None:
    """A list of 1,000 reports of 1 KiB."""
    SEALER.seal_batch(REPORTS)


def open_batch() -> None:
    """The batch of these, as a list."""
    list(OPENER.open_batch(BATCH))


def seal_packed() -> None:
    """The same 1,000 reports in Arrow's layout."""
    SEALER.seal_packed(VALUES, OFFSETS)


def upload() -> None:
    """16 MiB through a writer."""
    with SEALER.writer(NOWHERE) as writer:
        writer.write(PAYLOAD)


def contact() -> None:
    """The first envelope of a new session, sealed and opened."""
    OPENER.open(upseal.Sealer([KEY.public_key]).seal(REPORT))


def files() -> None:
    """An upload of 16 MiB, read back."""
    sealed = io.BytesIO()
    with SEALER.writer(sealed) as writer:
        writer.write(PAYLOAD)
    OPENER.reader(io.BytesIO(sealed.getvalue())).read()


WORK: dict[str, tuple[Callable[[], None], ...]] = {
    "seal": (seal,),
    "open": (open_,),
    "batch": (seal_batch, open_batch),
    "packed": (seal_packed,),
    "upload": (upload,),
    "files": (files,),
    "contact": (contact,),
    "reports": (seal, open_, seal_batch, open_batch),
}


def main() -> None:
    """Each of the calls in turn, for equally long."""
    if len(sys.argv) < 2 or sys.argv[1] not in WORK:
        sys.exit(f"which work? one of: {', '.join(WORK)}")
    end = perf_counter() + float(sys.argv[2] if len(sys.argv) > 2 else 10)
    while (now := perf_counter()) < end:
        for call in WORK[sys.argv[1]]:
            now = perf_counter()
            while perf_counter() < now + 0.02:
                call()


main()
