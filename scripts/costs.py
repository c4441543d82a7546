# SPDX-License-Identifier: Apache-2.0
"""Where the time of a report goes: each piece timed alone, by turns, medians in nanoseconds.

``costs.py [seal|portable|batch|contact|joining|groups ...]``; docs/performance.md shows the result.
The pieces within the C core are timed by scripts/paths.c (``scripts/costs`` builds and runs it).
"""

from __future__ import annotations

import gc
import hashlib
import os
import sys
from array import array
from collections.abc import Callable
from io import BytesIO
from itertools import accumulate, repeat
from statistics import median
from time import perf_counter_ns

import upseal
from upseal.core.header import parse
from upseal.core.session import Session, derive, seconds
from upseal.engine import native, resolve
from upseal.engine.native import ffi, lib
from upseal.engine.portable import XAES256GCM
from upseal.engine.records import Listed, pack

KEY = upseal.PrivateKey.generate("x25519")
REPORT, MANY = os.urandom(1024), 1000
REPORTS = [os.urandom(1024) for _ in range(MANY)]
PACKED = pack(REPORTS)


def by_turns(works: dict[str, tuple[Callable[[], object], int]], rounds: int = 301) -> None:
    """Prints the median of each, without the loop's own cost, divided by its number of reports.

    A fixed loop before and after each measurement tells whether a neighbour was at work on the
    sibling hardware thread; what was measured meanwhile is left out.
    """

    def once(call: Callable[[], object], count: int) -> float:
        start = perf_counter_ns()
        for _ in repeat(None, count):
            call()
        return (perf_counter_ns() - start) / count

    counts = {}
    for name, (call, _) in works.items():
        once(call, 10)
        counts[name] = max(1, int(300_000 / (once(call, 10) + 1)))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    before, loops = 0.0, []
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        for name, (call, each) in works.items():
            once(call, 2)
            time = once(call, counts[name]) / each
            after = once(int, 1000)  # an empty call of something written in C
            taken[name].append((time, max(before, after)))
            before = after
            loops.append(after)
    gc.enable()
    quiet = 1.1 * sorted(loops)[len(loops) // 20]
    for name, pairs in taken.items():
        kept = max(15, sum(loop <= quiet for _, loop in pairs))
        times = sorted(time for time, loop in sorted(pairs, key=lambda pair: pair[1])[:kept])
        low, high = times[len(times) // 10], times[len(times) * 9 // 10]
        print(
            f"{name:58} {median(times):9.1f}   10-90 %: {low:.1f} to {high:.1f}"
            f"   {kept} of {len(pairs)} rounds"
        )
    print(f"{'(the loop and an empty call)':58} {sorted(loops)[len(loops) // 20]:9.1f}\n")


def seal(engine_name: str = "native") -> None:
    """One envelope of 1 KiB."""
    engine = resolve(engine_name)
    sealer = upseal.Sealer([KEY.public_key], engine=engine)
    opener = upseal.Opener([KEY], engine=engine)
    envelope = sealer.seal(REPORT)
    session = sealer._take(1)
    key, prefix, nonce, aad = session.keys.report, session.envelope_prefix, os.urandom(24), b"\1"
    size = len(envelope)
    works = {
        "Sealer.seal": (lambda: sealer.seal(REPORT), 1),
        "Opener.open": (lambda: opener.open(envelope), 1),
        "engine.sealing": (lambda: session.seal(nonce, aad, REPORT), 1),
        "engine.open_envelope": (
            lambda: engine.open_envelope(key, len(prefix), aad, envelope, False),
            1,
        ),
        "os.urandom(24)": (lambda: os.urandom(24), 1),
        "session: clock": (lambda: seconds() < session.ends, 1),
        "session: lock, clock, count": (lambda: sealer._take(1), 1),
        "route of an envelope": (lambda: opener._route(envelope), 1),
        "a Python function that does nothing": (lambda: None, 1),
    }
    if engine_name == "native":
        space = engine._take()
        out = b"\0" * size
        kept = ffi.from_buffer("uint8_t[]", prefix)
        front = ffi.new("upseal_front *", (key, kept, len(prefix), 0))
        nobody = ffi.new("upseal_front *")
        works |= {
            "output: new bytes": (lambda: b"\0" * size, 1),
            "cffi: same arguments, returns at once": (
                lambda: lib.upseal_seal_report(
                    space.work, nobody, nonce, aad, 1, REPORT, 1024, out, 0
                ),
                1,
            ),
            "cffi: no arguments (upseal_cpu_has_aes)": (lib.upseal_cpu_has_aes, 1),
            "the C call: cffi and all in it": (
                lambda: lib.upseal_seal_report(
                    space.work, front, nonce, aad, 1, REPORT, 1024, out, size
                ),
                1,
            ),
        }
    else:
        material = os.urandom(32)
        xaes = XAES256GCM(material)
        aead = xaes._subkey(nonce[:12])

        def subkey() -> object:
            xaes._last = (b"", aead)
            return xaes._subkey(nonce[:12])

        works |= {
            "subkey: integers, ECB of cryptography, AESGCM": (subkey, 1),
            "AESGCM.encrypt of 1 KiB": (lambda: aead.encrypt(nonce[12:], REPORT, aad), 1),
            "joining prefix, nonce and ciphertext": (lambda: prefix + nonce + REPORT, 1),
        }
    print(f"-- one envelope of 1 KiB, {engine.describe()}")
    by_turns(works)


def portable() -> None:
    """One envelope of 1 KiB by the portable engine."""
    seal("portable")


def batch() -> None:
    """One record of a batch of 1,000 x 1 KiB, both engines, packed and as a list."""
    works: dict[str, tuple[Callable[[], object], int]] = {}
    for name in ("native", "portable"):
        engine = resolve(name)
        sealer = upseal.Sealer([KEY.public_key], engine=engine)
        opener = upseal.Opener([KEY], engine=engine)
        sealed = sealer.seal_batch(REPORTS)
        works |= {
            f"{name}: seal_packed": (
                lambda s=sealer: s.seal_packed(PACKED.values, PACKED.offsets),
                MANY,
            ),
            f"{name}: seal_batch of a list": (lambda s=sealer: s.seal_batch(REPORTS), MANY),
            f"{name}: open_packed": (lambda o=opener, b=sealed: o.open_packed(b), MANY),
            f"{name}: open_batch to a list": (
                lambda o=opener, b=sealed: list(o.open_batch(b)),
                MANY,
            ),
        }
    listed, into = Listed(REPORTS), BytesIO()
    engine = resolve("native")

    def join() -> None:
        for start, end in listed.groups(native._GROUP):
            listed.read(start, end, into).release()

    works |= {
        "list: types, lengths, offsets (Listed)": (lambda: Listed(REPORTS), MANY),
        "list: joined by groups": (join, MANY),
        "measuring": (lambda: engine.measure(PACKED, False), MANY),
        "output: new bytes, 1.04 MB": (lambda: bytes(1_040_000), MANY),
        "splitting into bytes objects": (native_split, MANY),
    }
    print("-- one record of a batch of 1,000 x 1 KiB")
    by_turns(works)


def native_split() -> object:
    """What reading a whole batch as a list adds."""
    from upseal.engine.records import split

    return split(PACKED)


def contact() -> None:
    """The first envelope of a session."""
    opener = upseal.Opener([KEY], cache=0)
    sealer = upseal.Sealer([KEY.public_key])
    envelope, secret = sealer.seal(REPORT), os.urandom(32)
    header = parse(envelope)
    wrapped = header.entries[0].wrapped
    engine = resolve("native")
    works: dict[str, tuple[Callable[[], object], int]] = {
        "Sealer(...) and its first seal": (
            lambda: upseal.Sealer([KEY.public_key]).seal(REPORT),
            1,
        ),
        "  a session": (
            lambda: Session(engine, sealer.cipher, sealer.recipients, sealer.limits, b"\1", False),
            1,
        ),
        "    HPKE: wrapping the secret": (lambda: KEY.public_key.wrap(secret), 1),
        "Opener.open, not seen before": (lambda: opener.open(envelope), 1),
        "    HPKE: unwrapping": (lambda: KEY.unwrap(wrapped), 1),
        "    HKDF, both sides": (lambda: derive(secret, header.bound), 1),
        "    parsing the header": (lambda: parse(envelope), 1),
        "    SHA-256 of the header": (lambda: hashlib.sha256(header.raw).digest(), 1),
        "    a key of the C core": (lambda: engine.record_key(1, secret), 1),
    }
    print("-- first contact, x25519")
    by_turns(works)
    for _ in range(3):
        envelopes = [upseal.Sealer([KEY.public_key]).seal(REPORT) for _ in range(10_000)]
        crowded = upseal.Opener([KEY])
        start = perf_counter_ns()
        for envelope in envelopes:
            crowded.open(envelope)
        first = perf_counter_ns()
        for envelope in envelopes:
            crowded.open(envelope)
        print(
            f"10,000 sessions: {(first - start) / 1e7:.1f} us an envelope, the first time;", end=" "
        )
        print(f"{(perf_counter_ns() - first) / 1e7:.1f} us when known")


def joining() -> None:
    """A list handed to C: joined into one kept buffer, or as an array of pointers."""
    print("-- handing 1,000 reports to C, each")
    for size in (64, 256, 1024, 4096, 16384):
        reports = [os.urandom(size) for _ in range(MANY)]
        into = BytesIO()

        def join(reports: list[bytes] = reports, into: BytesIO = into) -> None:
            listed = Listed(reports)
            for start, end in listed.groups(native._GROUP):
                listed.read(start, end, into).release()

        def pointers(reports: list[bytes] = reports) -> object:
            held = [ffi.from_buffer("uint8_t[]", report) for report in reports]
            lengths = array("q", map(len, reports))
            return ffi.new("uint8_t *[]", held), lengths, held

        works: dict[str, tuple[Callable[[], object], int]] = {
            f"{size} B: joined by groups": (join, MANY),
            f"{size} B: array of pointers": (pointers, MANY),
            f"{size} B: b''.join of all": (
                lambda r=reports: (b"".join(r), array("q", accumulate(map(len, r), initial=0))),
                MANY,
            ),
        }
        by_turns(works, 151)


def groups() -> None:
    """How large the groups are in which a list is joined: a report of 1,000 and 20,000 x 1 KiB."""
    sealer = upseal.Sealer([KEY.public_key], engine="native")
    for many in (1000, 20_000):
        reports = REPORTS * (many // MANY)
        works: dict[str, tuple[Callable[[], object], int]] = {}
        for size in (32, 64, 128, 256, 512, 1024, 4096, 32768):

            def sealed(size: int = size, reports: list[bytes] = reports) -> None:
                native._GROUP = size * 1024
                sealer.seal_batch(reports)

            works[f"{many:,} reports, groups of {size} KiB"] = (sealed, many)
        by_turns(works, 151)
    native._GROUP = 256 * 1024


if __name__ == "__main__":
    known = (seal, portable, batch, contact, joining, groups)
    for wanted in known:
        if wanted.__name__ in sys.argv[1:] or len(sys.argv) == 1:
            wanted()
