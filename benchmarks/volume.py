# SPDX-License-Identifier: Apache-2.0
"""High volume: clients, relays and a server under load that does not wait for them.

    python benchmarks/volume.py             # under two minutes
    python benchmarks/volume.py --quick     # under half a minute
    python benchmarks/volume.py --json > volume.json

Reports arrive by a schedule (Poisson), whether or not the last one is done: what falls behind is
seen as latency. Every case runs in a process of its own, so its memory is its own. Their contents
are random bytes; their sizes are log-normal, from 64 bytes to 16 KiB.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

from upseal import Limits, Opener, PrivateKey, Sealer, __version__
from upseal.cli.common import table
from upseal.cli.measure import calibration, interleave, machine
from upseal.cli.version import engine_facts

MU, SIGMA = math.log(1024), 1.0
SMALLEST, LARGEST = 64, 16384
MOST, BYTES, WAIT = 1000, 1 << 20, 0.1
"""A client's batch is sealed when it has so many reports or bytes, or has waited so long."""
CACHE = 65536
CLIENTS, HOUR = 200_000, 3600
POOL = 4096


def sizes(count: int, seed: int = 1) -> list[int]:
    rng = random.Random(seed)
    drawn = (int(rng.lognormvariate(MU, SIGMA)) for _ in range(count))
    return [min(max(size, SMALLEST), LARGEST) for size in drawn]


def reports(count: int) -> list[bytes]:
    return [os.urandom(size) for size in sizes(count)]


def arrivals(rate: float, seconds: float) -> list[float]:
    """Poisson, in seconds from the start."""
    rng, at, out = random.Random(2), 0.0, []
    while (at := at + rng.expovariate(rate)) < seconds:
        out.append(at)
    return out or [0.0]


def memory(what: str) -> float:
    """MB of this process: VmRSS now, or VmHWM, the most it ever had."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(what)) * 1024 / 1e6


def wait_until(due: float, start: float) -> None:
    if (left := due - (time.perf_counter() - start)) > 0:
        time.sleep(left)


class Run:
    """What an open loop has seen."""

    def __init__(self, due: Sequence[float]) -> None:
        self.due = due
        self.done: list[float] = []
        self.woken: list[float] = []
        self.cpu = 0.0
        self.before = memory("VmRSS")

    def facts(self) -> dict[str, Any]:
        late = sorted(done - due for done, due in zip(self.done, self.due, strict=True))
        last = self.due[-1]
        at = lambda share: late[min(int(share * len(late)), len(late) - 1)] * 1e3  # noqa: E731
        woken = sorted(self.woken)
        return {
            "seconds": last,
            "share_of_core": self.cpu / last,
            "us_each": self.cpu / len(self.due) * 1e6,
            "latency_ms": {"p50": at(0.5), "p99": at(0.99), "p99.9": at(0.999)},
            "woken_late_ms": woken[len(woken) // 2] * 1e3 if woken else None,
            "behind_at_end_s": self.done[-1] - last,
            "keeps_up": self.done[-1] - last < max(0.25, 0.05 * last) and self.cpu < last,
            "margin": last / self.cpu,
            "rss_grew_mb": memory("VmRSS") - self.before,
            "rss_most_mb": memory("VmHWM"),
        }


def one_by_one(due: Sequence[float], work: Callable[[int], object]) -> Run:
    """Calls ``work(i)`` for each arrival when it is due, or as soon as it can."""
    run, i = Run(due), 0
    start = time.perf_counter()
    while i < len(due):
        wait_until(due[i], start)
        run.woken.append(time.perf_counter() - start - due[i])
        ready = max(i + 1, bisect_right(due, time.perf_counter() - start))
        cpu = time.process_time()
        for i in range(i, ready):  # noqa: B020 - goes on where it stood
            work(i)
            run.done.append(time.perf_counter() - start)
        run.cpu += time.process_time() - cpu
        i += 1
    return run


def in_batches(
    due: Sequence[float], size: Sequence[int], work: Callable[[int, int], object]
) -> Run:
    """Calls ``work(i, j)`` when those from i to j are `MOST` or `BYTES`, or have waited `WAIT`."""
    run, i = Run(due), 0
    before = [0, *accumulate(size)]
    start = time.perf_counter()
    while i < len(due):
        most = max(i + 1, min(i + MOST, bisect_left(before, before[i] + BYTES), len(due)))
        ready = min(due[most - 1], due[i] + WAIT) if most < len(due) else due[i] + WAIT
        wait_until(ready, start)
        now = time.perf_counter() - start
        run.woken.append(now - ready)
        j = max(i + 1, min(most, bisect_right(due, now)))
        cpu = time.process_time()
        work(i, j)
        run.cpu += time.process_time() - cpu
        run.done += [time.perf_counter() - start] * (j - i)
        i = j
    return run


# -- the cases ----------------------------------------------------------------------


def client(rate: float, batches: bool, seconds: float) -> dict[str, Any]:
    sealer = Sealer([PrivateKey.generate().public_key])
    pool, due = reports(POOL), arrivals(rate, seconds)
    pool *= 2 + MOST // POOL
    sealer.seal(pool[0]), sealer.seal_batch(pool[:2])
    if batches:
        cycle = [len(pool[i % POOL]) for i in range(len(due))]
        take = lambda i, j: sealer.seal_batch(pool[i % POOL : i % POOL + j - i])  # noqa: E731
        run = in_batches(due, cycle, take)
    else:
        run = one_by_one(due, lambda i: sealer.seal(pool[i % POOL]))
    return {"rate": rate, "sealed": "in batches" if batches else "one by one", **run.facts()}


def backlog(rate: float, days: float, flush: int = 10_000) -> dict[str, Any]:
    """A day offline. Reading the spool is not counted: reports come from a pool in memory."""
    sealer = Sealer([PrivateKey.generate().public_key])
    pool = reports(flush)
    before, total = memory("VmRSS"), int(86400 * days * rate)
    cpu, wall, sealed = time.process_time(), time.perf_counter(), 0
    for at in range(0, total, flush):
        sealed += len(sealer.seal_batch(pool[: min(flush, total - at)]))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "rate": rate, "reports": total, "batch": flush, "seconds": wall, "cpu_seconds": cpu,
        "mb": sealed / 1e6, "us_each": cpu / total * 1e6,
        "rss_grew_mb": memory("VmRSS") - before, "rss_most_mb": memory("VmHWM"),
    }  # fmt: skip


def relay(rate: float, few: int, seconds: float, clients: int = 1000) -> dict[str, Any]:
    """Clients' batches of ``few``, each in its own session, into batches sealed to the server."""
    key, server = PrivateKey.generate(), PrivateKey.generate().public_key
    pool = reports(POOL)
    size = len(pool) // few
    batches = [pool[n % size * few : (n % size + 1) * few] for n in range(clients)]
    made = [Sealer([server, key.public_key]).seal_batch(batch) for batch in batches]
    due = arrivals(rate, seconds)
    opener, sealer = Opener([key]), Sealer([server])
    opener.open_batch(Sealer([key.public_key]).seal_batch(pool[:1]))

    def repackage(i: int, j: int) -> None:
        opened = [report for n in range(i, j) for report in opener.open_batch(made[n % clients])]
        sealer.seal_batch(opened)

    lengths = [BYTES * few // MOST + 1] * len(due)  # so that a batch has at most MOST reports
    facts = in_batches(due, lengths, repackage).facts()
    first = min(clients, len(due)) / len(due)
    return {"rate": rate, "reports_per_second": rate * few, "clients": clients,
            "first_contacts": first, **facts}  # fmt: skip


def _made(public: bytes, lengths: list[int]) -> list[bytes]:
    """One report of each length, each in a session of its own, as from so many clients."""
    from upseal import PublicKey

    sealer = Sealer([PublicKey.from_pem(public)], Limits(max_messages=1))
    return [sealer.seal(os.urandom(length)) for length in lengths]


def server(
    rates: Sequence[float], caches: Sequence[int], seconds: float, known: int
) -> list[dict[str, Any]]:
    """Reports of `CLIENTS` whose heartbeats take turns; sessions are renewed every hour."""
    key = PrivateKey.generate()
    renewals = CLIENTS / HOUR
    new = int(renewals * seconds * 1.5 + 100)
    need = new + known
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryFile() as file:
        wall = time.perf_counter()
        lengths, public = sizes(need), key.public_key.to_pem()
        parts = [(public, lengths[at : at + 1024]) for at in range(0, need, 1024)]
        ends = [0]
        with multiprocessing.get_context("spawn").Pool(cores) as workers:
            for made in workers.starmap(_made, parts, chunksize=1):
                for sealed in made:
                    file.write(sealed)
                    ends.append(ends[-1] + len(sealed))
        file.flush()
        made_in = time.perf_counter() - wall
        places = list(pairwise(ends))
        del parts, made

        def read(n: int) -> bytes:
            start, end = places[n]
            return os.pread(file.fileno(), end - start, start)

        out = []
        for cache in caches:
            opener = Opener([key], cache=cache)
            before, cpu = memory("VmRSS"), time.process_time()
            for n in range(new, need):
                opener.open(read(n))
            warm = (time.process_time() - cpu) / known
            each = (memory("VmRSS") - before) * 1e6 / min(known, cache)
            fresh, turn = 0, 0
            for rate in rates:
                out.append(
                    _serve(opener, read, rate, seconds / len(rates), (fresh, new), (turn, known))
                )
                out[-1] |= {
                    "cache": cache, "sessions_known": known, "made_in_s": made_in,
                    "us_first_contact_warming": warm * 1e6, "bytes_per_session": each,
                }  # fmt: skip
                fresh += out[-1].pop("fresh")
                turn += out[-1]["reports"]
        return out


def _serve(
    opener: Opener,
    read: Callable[[int], bytes],
    rate: float,
    seconds: float,
    fresh: tuple[int, int],
    turn: tuple[int, int],
) -> dict[str, Any]:
    due, chance = arrivals(rate, seconds), random.Random(3)
    share, which, (used, new), (at, known) = CLIENTS / HOUR / rate, [], fresh, turn
    for n in range(len(due)):
        if chance.random() < share and used < new:
            which.append(used)
            used += 1
        else:  # the client whose turn it is: the one not heard of for longest
            which.append(new + (at + n) % known)
    data = [read(n) for n in which]
    run = one_by_one(due, lambda i: opener.open(data[i]))
    return {"rate": rate, "reports": len(due), "fresh": used - fresh[0],
            "renewals_per_second": (used - fresh[0]) / due[-1], **run.facts()}  # fmt: skip


# -- all of it ----------------------------------------------------------------------


def _apart(work: Callable[..., Any], *args: Any) -> Any:
    """In a new process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work, args))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        sys.exit(f"volume: {work.__name__}{args} has failed")
    finally:
        process.join()


def _send(sender: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    sender.send(work(*args))


def run_all(quick: bool, full: bool) -> dict[str, Any]:
    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{text}".ljust(40), end="", file=sys.stderr, flush=True)

    short, server_seconds = (0.5, 2.0) if quick else (2.5, 40.0 if full else 12.0)
    known = 4_000 if quick else CLIENTS if full else CACHE + 8192
    caches = (2_000, 8_000) if quick else (CACHE, 1 << 18)
    facts: dict[str, Any] = {"client": [], "backlog": [], "relay": []}
    for rate in (100, 1_000, 10_000, 100_000):
        for batches in (False, True):
            say(f"client, {rate:,} reports/s")
            facts["client"].append(_apart(client, rate, batches, short))
    for rate in (1, 10):
        say(f"backlog of {rate:,}/s")
        facts["backlog"].append(_apart(backlog, rate, 0.1 if quick else 1.0))
    for rate in (17, 170, 1_000):
        say(f"relay, {rate:,} batches/s")
        facts["relay"].append(_apart(relay, rate, 10, short))
    say(f"server, making {known:,} sessions")
    facts["server"] = _apart(server, (222, 3_333), caches, server_seconds, known)
    say("")
    return facts


def in_words(facts: dict[str, Any]) -> str:
    head = ["rate/s", "", "of a core", "us each", "p50 ms", "p99 ms", "p99.9 ms", "woken ms",
            "keeps up", "grew MB", "most MB"]  # fmt: skip

    def line(row: dict[str, Any], what: str) -> list[str]:
        late = row["latency_ms"]
        keeps = f"{row['margin']:,.0f}x" if row["keeps_up"] else "no"
        return [
            f"{row['rate']:,}", what, f"{row['share_of_core']:.2%}", f"{row['us_each']:.1f}",
            *(f"{late[p]:.2f}" for p in late), f"{row['woken_late_ms']:.2f}", keeps,
            f"{row['rss_grew_mb']:.1f}", f"{row['rss_most_mb']:.0f}",
        ]  # fmt: skip

    right = (0, *range(2, 11))
    day = [["rate/s", "reports", "seconds", "CPU s", "MB sealed", "us each", "grew MB", "most MB"]]
    for row in facts["backlog"]:
        day.append([
            f"{row['rate']:,}", f"{row['reports']:,}", f"{row['seconds']:.2f}",
            f"{row['cpu_seconds']:.2f}", f"{row['mb']:,.0f}", f"{row['us_each']:.2f}",
            f"{row['rss_grew_mb']:.1f}", f"{row['rss_most_mb']:.0f}",
        ])  # fmt: skip
    relays = [line(r, f"batches of 10, {r['first_contacts']:.0%} first") for r in facts["relay"]]
    servers = [line(r, f"cache {r['cache']:,}") for r in facts["server"]]
    first = facts["server"][0]  # later ones find memory that this one has left
    return "\n".join([
        "client: reports as they arrive",
        table([head, *(line(row, row["sealed"]) for row in facts["client"])], right),
        f"a day offline, flushed in batches of {facts['backlog'][0]['batch']:,}",
        table(day, tuple(range(8))),
        "relay: opens clients' batches, seals what they hold to the server; 1,000 clients",
        table([head, *relays], right),
        f"server: {CLIENTS:,} clients, {CLIENTS / HOUR:.1f} new sessions a second",
        table([head, *servers], right),
        f"made before, and not counted: {first['sessions_known']:,} sessions of one report each "
        f"({first['made_in_s']:.0f} s on all cores),\nwhich the opener has met once; about "
        f"{first['bytes_per_session']:,.0f} bytes of memory for each it remembers.",
        "of a core, us each: CPU time; woken: how late the system woke the loop, at the median, "
        "which is in the latency",
        f"sizes: log-normal, mu {MU:.2f}, sigma {SIGMA}, {SMALLEST} to {LARGEST} bytes; mean "
        f"{sum(sizes(POOL)) / POOL:,.0f}. a client's batch: {MOST} reports, {BYTES} bytes "
        f"or {WAIT * 1e3:.0f} ms\n",
    ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="for machines")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="smaller and shorter: only a look")
    length.add_argument("--full", action="store_true", help="all 200,000 sessions: some minutes")
    args = parser.parse_args()
    begin, drift = time.perf_counter(), calibration()
    interleave([drift], begin + 0.5)
    facts = {"command": " ".join(["python", *sys.argv]), "version": __version__, **engine_facts(),
             "machine": machine(), "drift": drift.spread, "mu": MU, "sigma": SIGMA,
             **run_all(args.quick, args.full)}  # fmt: skip
    facts["took_s"] = time.perf_counter() - begin
    if args.json:
        print(json.dumps(facts))
    else:
        host = facts["machine"]
        print(
            f"upseal {__version__}, {facts['engine']} engine ({facts['backend']}), {host['cpu']},",
            f"{host['usable_cores']} cores, {host['python']}; drift {drift.spread:.0%}\n",
        )
        print(in_words(facts), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
