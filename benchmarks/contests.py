# SPDX-License-Identifier: Apache-2.0
"""What runs against what, and what upseal promises of each: the rows of `ratios.py`.

The same work for everybody: reports in, sealed reports out (or back). What a row pays once for many
reports, or leaves out, stands in its note.
"""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from bare import HOT, Bare
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from peers import Peer, aesgcm, hpke
from subjects import Pair, best, engine, key, packed, pair, reports
from timing import Work

from upseal import Limits, Opener, Sealer
from upseal.core import header as headers

RANDOM = "AESGCM loop (urandom)"
COUNTER = "AESGCM loop (counter)"
INTO = "AESGCM encrypt_into (counter)"
BARE, BARE_HOT = "bare C, same data", "bare C, in cache"
BOX = "PyNaCl SealedBox"
_KEY_GIVEN = "key given, its schedule paid once; no recipients, no format"


@dataclass
class Claim:
    """``peer / subject`` (in time) is at least ``target``; without a peer, subject is at most."""

    text: str
    subject: str
    peer: str | None
    target: float
    counts: bool = True
    """Not: a figure to know, where no promise was made."""
    unit: str = "x"
    """``x``, ``%``, or ``us`` and ``ms`` for a time as such."""


@dataclass
class Contest:
    """Some ways of doing the same, timed by turns."""

    name: str
    title: str
    works: dict[str, Work]
    claims: list[Claim] = field(default_factory=list)
    per: str = "report"
    size: int = 0
    """Bytes of what ``per`` names."""


INTO_OUT = "seal_packed(out=)"
OPEN_OUT = "open_packed(out=)"


@dataclass
class Setup:
    """What a run is to do."""

    full: bool
    peers: list[Peer]
    name: str = field(default_factory=best)

    @property
    def bare(self) -> Bare | None:
        """The C core itself, if this engine has it."""
        return None if self.name == "portable" else Bare(engine(self.name))

    def pair(self) -> Pair:
        """A fresh one, in a lasting session."""
        return pair(self.name)

    def peer(self, name: str) -> Peer | None:
        """If it is there."""
        return next((peer for peer in self.peers if peer.name == name), None)


def sealing_loops(items: list[bytes]) -> dict[str, Work]:
    """Loops over AESGCM on these reports."""
    aead, count = AESGCM(AESGCM.generate_key(256)), len(items)
    out = memoryview(bytearray(sum(map(len, items)) + 16 * count))
    return {
        RANDOM: Work(partial(aesgcm.random_nonces, aead, items), count, _KEY_GIVEN),
        COUNTER: Work(partial(aesgcm.counter_nonces, aead, items), count, _KEY_GIVEN),
        INTO: Work(
            partial(aesgcm.into_one_buffer, aead, items, out),
            count,
            _KEY_GIVEN + "; memory used again",
        ),
    }


def opening_loops(items: list[bytes]) -> dict[str, Work]:
    """What opens the same."""
    aead, count = AESGCM(AESGCM.generate_key(256)), len(items)
    random, counter = aesgcm.random_nonces(aead, items), aesgcm.counter_nonces(aead, items)
    return {
        RANDOM: Work(partial(aesgcm.open_random_nonces, aead, random), count, _KEY_GIVEN),
        COUNTER: Work(partial(aesgcm.open_counter_nonces, aead, counter), count, _KEY_GIVEN),
    }


def bare_works(bare: Bare | None, opening: bool, size: int, count: int) -> dict[str, Work]:
    """The ceiling: on as much data, and on so little that it stays in the cache."""
    if bare is None:
        return {}
    make, hot = (bare.open_batch if opening else bare.seal_batch), max(1, HOT // size // 2)
    note = "the C core without Python: one call, nothing allocated"
    return {
        BARE: Work(make(size, count), count, note),
        BARE_HOT: Work(make(size, min(hot, count)), min(hot, count), note),
    }


def against_loops(verb: str, target: float, subject: str) -> list[Claim]:
    """The promise, against the loop anybody would write and against the strictest."""
    claims = [
        Claim(f"{verb}, against {RANDOM}", subject, RANDOM, target),
        Claim(f"{verb}, against {COUNTER}", subject, COUNTER, target),
    ]
    if not subject.startswith(("open", "list(open")):
        claims.append(Claim(f"{verb}, against {INTO}", subject, INTO, target, counts=False))
    return claims


def batches(setup: Setup) -> Iterator[Contest]:
    """Packed buffers and lists, sealed and opened, beside the loops and the ceiling."""
    size = 1024
    for count in (1000, 10_000) if setup.full else (1000,):
        sealer, opener = setup.pair()
        items, (values, offsets) = reports(size, count), packed(size, count)
        what, once = f"{count:,} x 1 KiB", "session paid before; one nonce a batch"
        if size * count >= 8 << 20:
            once += "; so large a packed batch may use several cores (--one-core keeps to one)"
        room = bytearray()
        works = {
            INTO_OUT: Work(
                partial(sealer.seal_packed, values, offsets, out=room),
                count,
                once + "; memory used again",
            ),
            "seal_packed": Work(partial(sealer.seal_packed, values, offsets), count, once),
            "seal_batch": Work(partial(sealer.seal_batch, items), count, once),
            **sealing_loops(items),
            **bare_works(setup.bare, False, size, count),
        }
        claims = [
            *against_loops(f"seal a packed batch, {what}", 5.5, INTO_OUT),
            *_shares(f"seal a packed batch, {what}", INTO_OUT),
            *to_know(against_loops(f"the same into new memory, {what}", 5.5, "seal_packed")),
            *against_loops(f"list of bytes in, batch out, {what}", 3, "seal_batch"),
        ]
        yield Contest(f"batch-seal-{count}", f"Seal a batch, {what}", works, claims, size=size)
        sealed = sealer.seal_batch(items)
        works = {
            OPEN_OUT: Work(
                partial(opener.open_packed, sealed, out=bytearray(len(sealed))),
                count,
                once + "; memory used again",
            ),
            "open_packed": Work(partial(opener.open_packed, sealed), count, once),
            "list(open_batch)": Work(lambda s=sealed, o=opener: list(o.open_batch(s)), count, once),
            **opening_loops(items),
            **bare_works(setup.bare, True, size, count),
        }
        claims = [
            *against_loops(f"open a packed batch, {what}", 5.5, OPEN_OUT),
            *_shares(f"open a packed batch, {what}", OPEN_OUT),
            *to_know(against_loops(f"the same into new memory, {what}", 5.5, "open_packed")),
            *against_loops(f"batch in, list of bytes out, {what}", 3, "list(open_batch)"),
        ]
        yield Contest(f"batch-open-{count}", f"Open a batch, {what}", works, claims, size=size)


def to_know(claims: list[Claim]) -> list[Claim]:
    """The same, without a promise."""
    return [replace(claim, counts=False) for claim in claims]


def _shares(what: str, subject: str) -> list[Claim]:
    return [
        Claim(f"{what}, share of {BARE}", subject, BARE, 0.75, unit="%"),
        Claim(f"{what}, share of {BARE_HOT}", subject, BARE_HOT, 0.75, counts=False, unit="%"),
    ]


def envelopes(setup: Setup) -> Iterator[Contest]:
    """Many envelopes in one call, beside the loops and SealedBox."""
    size, count = 1024, 1000
    sealer, opener = setup.pair()
    items, once = reports(size, count), "session paid before"
    box = setup.peer(BOX)
    few = items[:20]
    works = {
        "seal_many": Work(partial(sealer.seal_many, items), count, once),
        **sealing_loops(items),
        **bare_works(setup.bare, False, size, count),
    }
    claims = against_loops("seal_many, 1,000 x 1 KiB", 2, "seal_many")
    claims.append(Claim(f"seal_many, against {BOX}", "seal_many", BOX, 100))
    if box:
        works[BOX] = Work(lambda: [box.seal(item) for item in few], len(few), box.amortises)
    yield Contest("many-seal", "Seal 1,000 envelopes of 1 KiB", works, claims, size=size)
    sealed = sealer.seal_many(items)
    works = {
        "open_many": Work(partial(opener.open_many, sealed), count, once),
        **opening_loops(items),
        **bare_works(setup.bare, True, size, count),
    }
    claims = against_loops("open_many, 1,000 x 1 KiB", 2, "open_many")
    claims.append(Claim(f"open_many, against {BOX}", "open_many", BOX, 100))
    if box:
        boxed = [box.seal(item) for item in few]
        works[BOX] = Work(lambda: [box.open(item) for item in boxed], len(few), box.amortises)
    yield Contest("many-open", "Open 1,000 envelopes of 1 KiB", works, claims, size=size)


def single(setup: Setup) -> Iterator[Contest]:
    """One report in an established session: an absolute promise, beside what it stands on."""
    sealer, opener = setup.pair()
    report = os.urandom(1024)
    sealed = sealer.seal(report)
    loop = aesgcm.Loop()
    looped, once = loop.seal(report), "session paid before"
    works = {
        "seal": Work(partial(sealer.seal, report), 1, once),
        "open": Work(partial(opener.open, sealed), 1, once),
        "os.urandom(24)": Work(partial(os.urandom, 24), 1, "the nonce alone"),
        "AESGCM, os.urandom nonce": Work(partial(loop.seal, report), 1, _KEY_GIVEN),
        "AESGCM, opened": Work(partial(loop.open, looped), 1, _KEY_GIVEN),
    }
    if setup.bare:
        call = setup.bare.seal_envelope(1024, sealed[: len(sealed) - 1024 - 40])
        works["bare C call"] = Work(call, 1, "one envelope, nonce and memory ready")
    claims = [Claim("seal one report of 1 KiB, established session", "seal", None, 1.5, unit="us")]
    claims.append(Claim("open it", "open", None, 1.5, counts=False, unit="us"))
    yield Contest("single", "One report of 1 KiB", works, claims, size=1024)


def sessions(setup: Setup) -> Iterator[Contest]:
    """The unamortised case: a session for each report, and first contact with many."""
    report = os.urandom(1024)
    public, bare = key().public_key, hpke.Hpke()
    sealer = Sealer([public], Limits(max_messages=1), engine=engine(setup.name))
    works = {
        "fresh session, seal": Work(partial(sealer.seal, report), note="all of it"),
        hpke.Hpke.name: Work(partial(bare.seal, report), note="all of it"),
    }
    text = "fresh session for each report: speed, as a share of bare HPKE's"
    claims = [Claim(text, "fresh session, seal", hpke.Hpke.name, 1 / 1.1, unit="%")]
    yield Contest("fresh", "A session for each report of 1 KiB", works, claims, size=1024)

    total, group = (10_000, 250) if setup.full else (1000, 100)
    sealed = [sealer.seal(report) for _ in range(total)]
    groups = itertools.cycle([sealed[i : i + group] for i in range(0, total, group)])
    parsed = [headers.parse(envelope).entries[0].wrapped for envelope in sealed]
    wrapped = itertools.cycle([parsed[i : i + group] for i in range(0, total, group)])
    private, info = key()._hpke, b"upseal/v1 session"

    def opener() -> Opener:
        return Opener([key()], engine=engine(setup.name))

    def one_by_one() -> None:
        opening = opener()
        for envelope in next(groups):
            opening.open(envelope)

    def asymmetric() -> None:
        for secret in next(wrapped):
            hpke.SUITE.decrypt(secret, private, info=info)

    works = {
        "open_many": Work(lambda: opener().open_many(next(groups)), group, "first contact"),
        "open": Work(one_by_one, group, "first contact"),
        "HPKE decrypt of the secrets": Work(asymmetric, group, "the public-key work alone"),
    }
    text = f"{total:,} first contacts: asymmetric share of the time, "
    claims = [
        Claim(text + "open_many", "open_many", "HPKE decrypt of the secrets", 0.9, unit="%"),
        Claim(text + "open", "open", "HPKE decrypt of the secrets", 0.9, unit="%"),
    ]
    yield Contest("first-contact", f"Open {total:,} first contacts", works, claims, size=1024)


def small(setup: Setup) -> Iterator[Contest]:
    """Where Python could show most: short reports, many of them."""
    size, count = 256, 10_000
    items = reports(size, count)
    sealer, _ = setup.pair()
    works = {
        "seal_batch": Work(partial(sealer.seal_batch, items), count, "session paid before"),
        **bare_works(setup.bare, False, size, count),
    }
    text = "seal_batch of 10,000 x 256 B: share of its time in C"
    claims = [Claim(text, "seal_batch", BARE, 0.7, unit="%")]
    yield Contest("small", "10,000 short reports", works, claims, size=size)


def by_size(setup: Setup) -> Iterator[Contest]:
    """No promises: the curves of the report."""
    sealer, _ = setup.pair()
    for size in (64, 256, 1024, 4096, 16384):
        count = max(64, min(1000, (2 << 20) // size))
        items, (values, offsets) = reports(size, count), packed(size, count)
        works = {
            "seal_packed": Work(partial(sealer.seal_packed, values, offsets), count),
            "seal_batch": Work(partial(sealer.seal_batch, items), count),
            "seal_many": Work(partial(sealer.seal_many, items), count),
            "seal": Work(partial(sealer.seal, items[0])),
            COUNTER: sealing_loops(items)[COUNTER],
            **bare_works(setup.bare, False, size, count),
        }
        yield Contest(f"size-{size}", f"Sealing reports of {size} bytes", works, size=size)


def against_peers(setup: Setup) -> Iterator[Contest]:
    """No promises: one report with everybody who can, for the report's bars."""
    report, count = os.urandom(1024), 1000
    sealer, opener = setup.pair()
    items = reports(1024, count)
    fresh = Sealer([key().public_key], Limits(max_messages=1), engine=engine(setup.name))
    sealed, batch = sealer.seal(report), sealer.seal_batch(items)
    new = Opener([key()], cache=0, engine=engine(setup.name))
    once, nothing = "session paid before", Peer.amortises
    seals = {
        "upseal seal_batch": Work(partial(sealer.seal_batch, items), count, once),
        "upseal seal": Work(partial(sealer.seal, report), 1, once),
        "upseal, fresh session": Work(partial(fresh.seal, report), 1, nothing),
    }
    opens = {
        "upseal open_batch": Work(partial(opener.open_packed, batch), count, once),
        "upseal open": Work(partial(opener.open, sealed), 1, once),
        "upseal, fresh session": Work(partial(new.open, sealed), 1, nothing),
    }
    for peer in filter(operator.attrgetter("reports"), setup.peers):
        if peer.program and not setup.full:
            continue
        seals[peer.name] = Work(partial(peer.seal, report), 1, peer.amortises)
        opens[peer.name] = Work(partial(peer.open, peer.seal(report)), 1, peer.amortises)
    yield Contest("peers-seal", "Seal one report of 1 KiB", seals, size=1024)
    yield Contest("peers-open", "Open one report of 1 KiB", opens, size=1024)


Builder = Callable[[Setup], Iterator[Contest]]
REPORTS: list[Builder] = [batches, envelopes, single, sessions, small, by_size, against_peers]
