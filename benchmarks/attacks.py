# SPDX-License-Identifier: Apache-2.0
"""What attacks on resources cost, beside honest data of the same length, side by side in one run.

    python benchmarks/attacks.py                 # two minutes
    python benchmarks/attacks.py --quick         # a quarter of it: only a look
    python benchmarks/attacks.py --sessions 1000000 --only cache    # the whole flood of sessions

Milliseconds are the least of some turns of each, which go by turns; memory is what the process
needed at most above what it had (VmHWM). `tests/test_resource_attacks.py` and
`tests/fleet/test_fleet_resource_attacks.py` hold the bounds, by counts and bytes.
"""

from __future__ import annotations

import argparse
import io
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import machine
from cryptography.hazmat.primitives.asymmetric import rsa
from machine import say

from upseal import Opener, OpenError, PrivateKey, PublicKey, Sealer, explain
from upseal.cli.common import table
from upseal.core import header as headers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fleet"))

Row = dict[str, Any]
MIB = 1 << 20


def spent(call: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds and MiB of one call; an OpenError or ValueError is what it may end in."""
    machine.peak_reset()
    before, begun = machine.peak_kib(), time.perf_counter()
    with suppress(OpenError, ValueError):
        call()
    seconds = time.perf_counter() - begun
    return seconds * 1e3, (machine.peak_kib() - before) / 1024


def beside(
    name: str, attack: Callable[[], object], honest: Callable[[], object], note: str, turns: int
) -> Row:
    """Both by turns; of each the least."""
    a, b = [], []
    for _ in range(turns):
        b.append(spent(honest))
        a.append(spent(attack))
    row = {"attack": name, "note": note}
    for prefix, found in (("", a), ("honest_", b)):
        row[prefix + "ms"] = min(ms for ms, _ in found)
        row[prefix + "mib"] = max(mib for _, mib in found)
    row["ratio"] = row["ms"] / row["honest_ms"]
    return row


def bent(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


# -- headers and sessions ---------------------------------------------------------------------


def of_headers(args: argparse.Namespace) -> Iterator[Row]:
    for name, first in (("X25519", "x25519"), ("RSA-4096 first", "rsa4096")):
        keys = [PrivateKey.generate(first), *(PrivateKey.generate() for _ in range(15))]
        strangers = [PrivateKey.generate() for _ in range(16 if first == "x25519" else 0)]
        good = Sealer([key.public_key for key in keys]).seal(b"r" * 100)
        forged = bent(good, len(headers.parse(good).raw) - 1)
        yield beside(
            f"16 entries, all ours, {name}: forged",
            lambda forged=forged, keys=keys: Opener(keys).open(forged),
            lambda good=good, keys=keys: Opener(keys).open(good),
            "one unwrap", args.turns * 5,
        )  # fmt: skip
        if strangers:
            other = Sealer([key.public_key for key in strangers]).seal(b"r" * 100)
            yield beside(
                "16 entries, none ours",
                lambda other=other, keys=keys: Opener(keys).open(other),
                lambda good=good, keys=keys: Opener(keys).open(good), "no unwrap", args.turns * 5,
            )  # fmt: skip


def of_cache(args: argparse.Namespace) -> Iterator[Row]:
    """A flood of genuine sessions, and a hundred honest clients in between."""
    key, size, clients = PrivateKey.generate(), 65_536, 100
    opener = Opener([key], cache=size)
    honest = [Sealer([key.public_key]).seal_many([b"r" * 100] * 200) for _ in range(clients)]
    turn = 0

    def reports(count: int) -> float:
        nonlocal turn
        begun = time.perf_counter()
        for _ in range(count):
            opener.open(honest[turn % clients][turn // clients % 200])
            turn += 1
        return time.perf_counter() - begun

    reports(clients)
    quiet = reports(20_000) / 20_000
    start, unwraps, took, flood = machine.peak_kib(), 0, 0.0, 0.0
    for _ in range(0, args.sessions, 1000):
        made = [Sealer([key.public_key]).seal(b"x") for _ in range(1000)]
        begun = time.perf_counter()
        for data in made:
            opener.open(data)
        flood += time.perf_counter() - begun
        before = opener.sessions.opened
        took += reports(1000)
        unwraps += opener.sessions.opened - before
    asked = args.sessions // 1000 * 1000
    yield {
        "attack": f"{asked:,} genuine sessions against a cache of {size:,}", "ratio": took / asked
        / quiet, "ms": flood / asked * 1e3, "honest_ms": quiet * 1e3,
        "mib": (machine.peak_kib() - start) / 1024, "honest_mib": 0.0,
        "note": f"{100 - 100 * unwraps / asked:.2f} % of honest reports hit, at "
        f"{asked / took:,.0f}/s (quiet {1 / quiet:,.0f}/s); {opener.sessions.remembered:,} kept",
    }  # fmt: skip
    header = len(headers.parse(made[0]).raw)
    forged = [bent(data, header - 1) for data in made]
    kept = opener.sessions.remembered

    def each(many: list[bytes]) -> None:
        for data in many:
            with suppress(OpenError):
                opener.open(data)

    yield beside(
        "1,000 forged commitments", lambda: each(forged), lambda: each(made),
        f"{opener.sessions.remembered - kept} kept; the honest ones are remembered", args.turns,
    )  # fmt: skip


def of_many(args: argparse.Namespace) -> Iterator[Row]:
    key, count = PrivateKey.generate(), 20_000 if args.quick else 100_000
    different = [Sealer([key.public_key]).seal(b"r" * 100) for _ in range(count)]
    alike = Sealer([key.public_key]).seal_many([b"r" * 100] * count)
    yield beside(
        f"open_many, {count:,} headers", lambda: Opener([key]).open_many(different),
        lambda: Opener([key]).open_many(alike), "one unwrap each", 1,
    )  # fmt: skip


# -- batches and uploads ----------------------------------------------------------------------


def of_batches(args: argparse.Namespace) -> Iterator[Row]:
    key = PrivateKey.generate()
    sealer, opener, many = Sealer([key.public_key]), Opener([key]), 1 << 20
    empty = sealer.seal_batch([b""] * many)
    usual = sealer.seal_batch([bytes(len(empty) // 20)] * 20)
    front = empty[: len(headers.parse(empty).raw) + 25]
    opener.open_batch(usual)
    yield beside(
        "2^20 empty records", lambda: opener.open_batch(empty), lambda: opener.open_batch(usual),
        f"{len(empty):,} bytes each", args.turns,
    )  # fmt: skip
    yield beside(
        "2^20 empty records, as a list", lambda: list(opener.open_batch(empty)),
        lambda: list(opener.open_batch(usual)), "", args.turns,
    )  # fmt: skip
    lies = {
        "2^20 records claimed, nothing behind": front + struct.pack(">I", many),
        "2^20 records claimed, a table only": front + struct.pack(">I", many)
        + struct.pack(">I", 16) * many,
        "2^20 records of 1 KiB claimed (2^30)": front + struct.pack(">I", many)
        + struct.pack(">I", 1040) * many,
    }  # fmt: skip
    for name, lie in lies.items():
        size = max(16, len(lie) - len(front) - 24)
        same = sealer.seal_batch([bytes(size)])
        yield beside(
            name, lambda lie=lie: opener.open_batch(lie),
            lambda same=same: opener.open_batch(same), f"{len(lie):,} bytes", args.turns,
        )  # fmt: skip


class Nowhere(io.RawIOBase):
    """Takes everything."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


def of_uploads(args: argparse.Namespace) -> Iterator[Row]:
    key, count = PrivateKey.generate(), 100_000 if args.quick else 1_000_000
    sealer, opener = Sealer([key.public_key]), Opener([key])

    def wrote(piece: bytes, times: int, flush: bool = False) -> None:
        with sealer.writer(Nowhere()) as writer:
            for _ in range(times):
                writer.write(piece)
                if flush:
                    writer.flush()

    whole = bytes(count)
    yield beside(
        f"write(b'') {count:,} times", lambda: wrote(b"", count), lambda: wrote(b"", 1),
        "nothing is written", 1,
    )  # fmt: skip
    yield beside(
        f"{count:,} writes of one byte", lambda: wrote(b"x", count), lambda: wrote(whole, 1), "", 1
    )
    yield beside(
        f"{count:,} writes of one byte, flushed", lambda: wrote(b"x", count, flush=True),
        lambda: wrote(whole, 1), "", 1,
    )  # fmt: skip
    out = io.BytesIO()
    with sealer.writer(out) as writer:
        writer.write(bytes(4 * MIB))
    data, some = out.getvalue(), count // 10

    def read(step: int, times: int) -> None:
        with opener.reader(io.BytesIO(data)) as reader:
            for _ in range(times):
                reader.read(step)

    def sought() -> None:
        with opener.reader(io.BytesIO(data)) as reader:
            for turn in range(1000):
                reader.seek(turn % 2 * 3 * MIB)
                reader.read(1)

    yield beside(
        f"{some:,} reads of one byte", lambda: read(1, some), lambda: read(some, 1), "", args.turns
    )
    yield beside(
        "1,000 seeks to and fro, a byte each", sought, lambda: read(16 * MIB, 1),
        "16 chunks each; honest: all of the 4 MiB once", args.turns,
    )  # fmt: skip


# -- without a key, keys, contexts -------------------------------------------------------------


class Endless(io.RawIOBase):
    """A pipe of so many bytes."""

    def __init__(self, front: bytes, size: int) -> None:
        super().__init__()
        self._front, self._left = front, size

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        count = min(len(target), self._left)
        piece, self._front = self._front[:count] or bytes(count), self._front[count:]
        target[: len(piece)] = piece
        self._left -= len(piece)
        return len(piece)


def of_keyless(args: argparse.Namespace) -> Iterator[Row]:
    key = PrivateKey.generate()
    sealer = Sealer([key.public_key])
    front, size = sealer.seal(b"")[:-16], (64 if args.quick else 1024) * MIB
    upload = io.BytesIO()
    with sealer.writer(upload):
        pass
    yield beside(
        f"explain a pipe of {size // MIB} MiB that begins as an envelope",
        lambda: explain(Endless(front, size)),
        lambda: explain(Endless(upload.getvalue()[:-16], size)), "honest: an upload", 1,
    )  # fmt: skip
    public = key.public_key.to_pem()
    yield beside(
        "PEM with 100,000 keys", lambda: PublicKey.from_pem(public * 100_000),
        lambda: public * 100_000, "honest: making the bytes", args.turns,
    )  # fmt: skip
    private = rsa.generate_private_key(65537, 2048)
    odd = rsa.RSAPublicNumbers((1 << 2046) + 1, private.public_key().public_numbers().n)
    strange, usual = PublicKey(odd.public_key()), PublicKey(private.public_key())
    yield beside(
        "wrap for RSA-2048 with an exponent of 2,047 bits",
        lambda: [strange.wrap(bytes(32)) for _ in range(100)],
        lambda: [usual.wrap(bytes(32)) for _ in range(100)],
        "100 times; beyond 3,072 bits OpenSSL takes 64", args.turns,
    )  # fmt: skip
    opener, envelope = Opener([key]), sealer.seal(b"r" * 100)
    for name, context in (("64 KiB", bytes(1 << 16)), ("1 MiB", bytes(MIB))):
        long = sealer.seal(b"r" * 100, context)
        yield beside(
            f"a context of {name}, each report", lambda d=long, c=context: opener.open(d, c),
            lambda: opener.open(envelope), "the caller's own choice", args.turns * 5,
        )  # fmt: skip


# -- the fleet --------------------------------------------------------------------------------


def of_fleet(args: argparse.Namespace) -> Iterator[Row]:
    """A server in a thread of this process: what one request of an enrolled agent costs."""
    from fleet_server_support import Site, sealed

    from upseal.fleet.units import bundle

    with tempfile.TemporaryDirectory(prefix="upseal-attacks-") as folder:
        site = Site(Path(folder) / "site")
        site.enable()
        site.configure("[rates]\nhop_requests = 0\nhop_bytes = 0\n")
        with site.running():
            agent = site.enrol("agent")
            agent.send(sealed(site, agent.unit(b"x")))

            def disk() -> int:
                return sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())

            def row(name: str, attack: bytes, honest: bytes) -> Row:
                marks = [disk()]
                found = []
                for body in (honest, attack):
                    found.append(spent(lambda body=body: agent.post("/v1/units", body)))
                    marks.append(disk())
                (b_ms, b_mib), (a_ms, a_mib) = found
                return {
                    "attack": name, "ms": a_ms, "honest_ms": b_ms, "ratio": a_ms / b_ms,
                    "mib": a_mib, "honest_mib": b_mib,
                    "note": f"{len(attack) / MIB:.1f} MiB sent, {(marks[2] - marks[1]) / MIB:.1f} "
                    f"on disk (honest {len(honest) / MIB:.1f}, {(marks[1] - marks[0]) / MIB:.1f})",
                }  # fmt: skip

            def plain(size: int) -> bytes:
                return sealed(site, agent.unit(*[os.urandom(size // 20)] * 20))

            good = sealed(site, agent.unit(b"x"))
            count = 2000 if args.quick else 20_000
            dead = bundle([good[:-40] + os.urandom(40) for _ in range(count)])
            yield row(f"a bundle of {count:,} bodies that do not open", dead, plain(len(dead)))
            short = 1 << (16 if args.quick else 20)
            many = sealed(site, agent.unit(*[b""] * (short - 2)))
            yield row(f"a unit of {short - 2:,} empty records", many, plain(len(many)))
            units = sealed(site, *[agent.unit(b"") for _ in range(1024)])
            yield row("1,024 units", units, plain(len(units)))
            epochs = sealed(site, *[agent.unit(epoch=os.urandom(16)) for _ in range(1024)])
            yield row("1,024 beacons, each of an epoch of its own", epochs, plain(len(epochs)))
            same = [agent.unit(b"")] * 1024
            yield row("one unit 1,024 times", sealed(site, *same), plain(len(units)))


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "headers": of_headers, "cache": of_cache, "many": of_many, "batches": of_batches,
    "uploads": of_uploads, "keyless": of_keyless, "fleet": of_fleet,
}  # fmt: skip


def in_words(result: dict[str, Any]) -> str:
    head = [["attack", "ms", "honest", "ratio", "MiB", "honest", ""]]
    for row in result["rows"]:
        head.append([
            row["attack"], f"{row['ms']:,.3f}", f"{row['honest_ms']:,.3f}", f"{row['ratio']:,.2f}",
            f"{row['mib']:,.1f}", f"{row['honest_mib']:,.1f}", row["note"],
        ])  # fmt: skip
    return "\n".join([*machine.heading(result), "", table(head, (1, 2, 3, 4, 5))])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--json", metavar="FILE", help="also write the result to this file")
    add("--quick", action="store_true", help="less of each: only a look")
    add("--only", metavar="NAME,NAME", help=f"these alone, of {', '.join(PARTS)}")
    add("--sessions", type=int, help="of the flood (131,072)")
    add("--turns", type=int, default=3, help="of what is short (3)")
    args = parser.parse_args()
    args.sessions = args.sessions or (8192 if args.quick else 131_072)
    only = args.only.split(",") if args.only else list(PARTS)
    if not set(only) <= set(PARTS) or args.turns < 1 or args.sessions < 1000:
        parser.error(f"--only names some of {', '.join(PARTS)}; --turns 1; --sessions 1000 or more")
    rows: list[Row] = []
    load = os.getloadavg()
    for name in only:
        say(name)
        rows += PARTS[name](args)
    result = {
        "host": machine.facts(), "load": load, "parts": {},
        "command": " ".join(["python", *sys.argv]), "rows": rows,
    }  # fmt: skip
    print(in_words(result))
    machine.save(args.json, "attacks", **result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
