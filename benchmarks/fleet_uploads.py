# SPDX-License-Identifier: Apache-2.0
"""Whole files through the fleet, end to end, against a plain HTTP PUT of the same file.

    python benchmarks/fleet_uploads.py                      # 1 GiB, about ten minutes
    python benchmarks/fleet_uploads.py --quick              # 64 MiB, one turn: only a look
    python benchmarks/fleet_uploads.py --json uploads.json
    python benchmarks/fleet_uploads.py --large 4096         # and most memory, with 4 GiB
    python benchmarks/fleet_uploads.py --held 500           # and so many slow uploads at one relay

A server, a passing and a decrypting relay run as `upseal server|relay run`, an agent as a process
of its own with the library. A file is given to the agent, and done when the agent has the receipt.
Sealed, clear (level `none`) and plain go by turns, on each way; medians, and ratios pair by pair.

Plain is a PUT of the file to a bare application on uvicorn that writes it and answers when it is
synced; in place of a relay, there are two of them in a row, the first of which stores and forwards.
It has no spool, no proofs and no digests, and cannot resume. An agent has a spool: it seals a file
to its disk first ("taking"), and sends it then ("sending"). With clear files it is the same, but
for another key, and they are opened on their way out.

CPU time is that of the processes, for one GiB; all of it shares this machine's cores and its disk.
Agents look for announcements to send every 0.1 s here, in place of 5 s.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import machine
from fleet_agents import real_agent
from fleet_load import SETTLE
from fleet_site import WAYS, Process, Site
from held_uploads import hold
from machine import say
from plain_put import put

from upseal.cli.common import table

HERE = Path(__file__).parent
PARTS = ("uvicorn", "starlette", "httptools", "uvloop", "SQLAlchemy", "urllib3")
PARTIES = ("agent", "relay", "server")
KINDS = ("sealed", "clear", "plain")
LEVELS = {"sealed": "required", "clear": "none"}
MIB, GIB = 1 << 20, 1 << 30
AGENT = """
[gather]
interval = 0
[batch]
seconds = 0.1
"""


@dataclass
class Turn:
    """One file, all the way."""

    way: str
    kind: str
    size: int
    seconds: float = 0.0
    taking: float = 0.0
    """Of those, until it was in the spool."""
    cpu: dict[str, float] = field(default_factory=dict)
    """Seconds, by party."""
    taking_cpu: float = 0.0
    """Of the agent's."""
    peak_mb: dict[str, float] = field(default_factory=dict)

    def rate(self, seconds: float) -> float:
        """MB/s."""
        return self.size / seconds / 1e6


# -- ours -----------------------------------------------------------------------------------


class Sender:
    """An agent's process."""

    def __init__(self, site: Site, way: str, kind: str) -> None:
        self.site = site
        name = f"{kind}-{WAYS[way] or 'direct'}"
        folder = site.folder / name
        if not folder.exists():
            real_agent(site, name, way, AGENT)
        script = (str(HERE / "upload_agent.py"), str(folder), LEVELS[kind])
        self.process = Process(name, site.folder / f"{name}.log", code=script, pipes=True)
        self.agent = self._said()["agent"]

    def _said(self) -> dict[str, Any]:
        assert self.process.child.stdout is not None
        line = self.process.child.stdout.readline()
        if not line:
            self.process.child.wait(10)
            self.process.check()
        found: dict[str, Any] = json.loads(line)
        return found

    def send(self, path: Path) -> dict[str, Any]:
        """What it says when the file is stored."""
        assert self.process.child.stdin is not None
        self.process.child.stdin.write(f"{path}\n")
        self.process.child.stdin.flush()
        said = self._said()
        if said["state"] != "UploadState.STORED":
            raise RuntimeError(f"an upload came to {said['state']}")
        return said


def upload(site: Site, way: str, kind: str, path: Path, digest: bytes) -> Turn:
    """One turn, in a process that has just begun."""
    turn = Turn(way, kind, path.stat().st_size)
    sender = Sender(site, way, kind)
    try:
        with measured(turn, _parties(site, way, sender.process)):
            said = sender.send(path)
    finally:
        sender.process.stop()
    turn.seconds, turn.taking = said["taken"] + said["sent"], said["taken"]
    turn.taking_cpu = said["taking_cpu"]
    stored = site.server_folder / "uploads" / "stored" / sender.agent / said["upload"]
    if sha256(stored) != digest:
        raise RuntimeError("what is stored is not what was sent")
    stored.unlink()  # the next one needs the room
    return turn


def _parties(site: Site, way: str, agent: Process) -> dict[str, Process]:
    parties = {"agent": agent, "server": site.processes["server"]}
    if WAYS[way]:
        parties["relay"] = site.processes[WAYS[way]]
    return parties


@contextmanager
def measured(turn: Turn, parties: dict[str, Process]) -> Iterator[None]:
    """CPU time and most memory of processes while the block runs."""
    for process in parties.values():
        process.peak_reset()
    before = {who: process.cpu() for who, process in parties.items()}
    yield
    time.sleep(SETTLE)
    for who, process in parties.items():
        process.check()
        turn.cpu[who] = process.cpu() - before[who]
        turn.peak_mb[who] = process.peak_mb()


# -- plain ----------------------------------------------------------------------------------


class Plain:
    """The bare applications; one is the server, each other stores and forwards to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.urls: dict[str, str] = {}
        self.server = self._start("plain-server")
        try:
            self.relay = self._start("plain-relay", "--next", self.urls["plain-server"])
        except BaseException:
            self.server.stop()
            raise

    def _start(self, name: str, *more: str) -> Process:
        folder = self._folder / name
        code = (str(HERE / "plain_put.py"), str(folder), *more)
        process = Process(name, self._folder / f"{name}.log", code=code)
        self.urls[name] = process.listening(folder / "address")
        return process

    def turn(self, way: str, path: Path, digest: bytes) -> Turn:
        """The client is this process."""
        turn = Turn(way, "plain", path.stat().st_size)
        parties = {"server": self.server, **({"relay": self.relay} if WAYS[way] else {})}
        machine.peak_reset()
        with measured(turn, parties):
            begin, own = time.perf_counter(), time.process_time()
            put(self.urls["plain-relay" if WAYS[way] else "plain-server"], path)
            turn.seconds = time.perf_counter() - begin
            turn.cpu["agent"] = time.process_time() - own
            turn.peak_mb["agent"] = machine.peak_kib() * 1024 / 1e6
        for stored in (self._folder / "plain-server").glob("*.put"):
            if sha256(stored) != digest:
                raise RuntimeError("what is stored is not what was sent")
            stored.unlink()
        return turn

    def stop(self) -> None:
        for process in (self.relay, self.server):
            process.stop()


# -- all of it --------------------------------------------------------------------------------


def sha256(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def make_file(path: Path, size: int) -> bytes:
    """Random bytes; their digest."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for at in range(0, size, MIB):
            piece = os.urandom(min(MIB, size - at))
            file.write(piece)
            digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.digest()


def compare(site: Site, plain: Plain, args: argparse.Namespace, folder: Path) -> list[Turn]:
    """All turns of all ways."""
    path = folder / "file"
    digest = make_file(path, args.size * MIB)
    turns = []
    for way in args.ways:
        for number in range(args.turns):
            # Nobody always comes second, when the disk is busy with what came before.
            for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
                say(f"{way}, {kind}")
                os.sync()
                turns.append(
                    plain.turn(way, path, digest)
                    if kind == "plain"
                    else upload(site, way, kind, path, digest)
                )
    path.unlink()
    return turns


def large(site: Site, args: argparse.Namespace, folder: Path) -> list[Turn]:
    """One of each, of a longer file: for the memory."""
    path = folder / "large"
    digest = make_file(path, args.large * MIB)
    turns = []
    for way in args.ways:
        for kind in LEVELS:
            say(f"{way}, {kind}, {args.large:,} MiB")
            turns.append(upload(site, way, kind, path, digest))
    path.unlink()
    return turns


def rows_of(turns: list[Turn]) -> list[dict[str, Any]]:
    """Medians over turns; ratios pair by pair, since machine and disk drift."""
    rows = []
    for way in dict.fromkeys(turn.way for turn in turns):
        of = {kind: [t for t in turns if (t.way, t.kind) == (way, kind)] for kind in KINDS}
        for kind in KINDS:
            mine = of[kind]
            gib = mine[0].size / GIB
            row: dict[str, Any] = {
                "way": way, "kind": kind,
                "seconds": median(t.seconds for t in mine),
                "rate": median(t.rate(t.seconds) for t in mine),
                "rates": [round(t.rate(t.seconds), 1) for t in mine],
                "sending_rate": median(t.rate(t.seconds - t.taking) for t in mine),
                "cpu": {w: median(t.cpu[w] for t in mine) / gib for w in mine[0].cpu},
                "taking_cpu": median(t.taking_cpu for t in mine) / gib,
                "peak_mb": {who: max(t.peak_mb[who] for t in mine) for who in mine[0].cpu},
            }  # fmt: skip
            for other in ("clear", "plain"):
                pairs = list(zip(mine, of[other], strict=True))
                row[f"of_{other}"] = median(a.seconds / b.seconds for a, b in pairs)
            row["sending_of_plain"] = median(
                (a.seconds - a.taking) / b.seconds for a, b in zip(mine, of["plain"], strict=True)
            )
            rows.append(row)
    return rows


def in_words(result: dict[str, Any]) -> str:
    args = result["settings"]
    parts = [
        *machine.heading(result),
        f"a file of {args['size']:,} MiB, {args['turns']} turns each, by turns: medians",
        "",
    ]  # fmt: skip
    lines = [["way", "", "seconds", "MB/s", "(turns)", "sending, MB/s", "time:clear", "time:plain",
              "sending:plain", "CPU s a GiB: agent", "(taking)", "relay", "server"]]  # fmt: skip
    for row in result["rows"]:
        lines.append([
            row["way"], row["kind"], f"{row['seconds']:.2f}", f"{row['rate']:.0f}",
            f"{min(row['rates']):.0f}-{max(row['rates']):.0f}", f"{row['sending_rate']:.0f}",
            f"{row['of_clear']:.2f}", f"{row['of_plain']:.2f}", f"{row['sending_of_plain']:.2f}",
            f"{row['cpu']['agent']:.2f}", f"{row['taking_cpu']:.2f}",
            *(f"{row['cpu'][w]:.2f}" if w in row["cpu"] else "-" for w in PARTIES[1:]),
        ])  # fmt: skip
    parts.append(table(lines, tuple(range(2, 13))))
    for name, found in (("most memory, MB", result["turns"]), ("the same, of a longer file",
                                                               result["large"])):  # fmt: skip
        if found:
            parts += [f"{name}: {found[0]['size'] / MIB:,.0f} MiB", _peaks(found)]
    if result["held"] is not None:
        one = result["held"]
        parts += [
            f"{one['uploads']} slow uploads at once at one relay, of {one['clients']} clients, "
            f"{one['seconds']:.0f} s: {one['open']} open, {one['pieces']:,} pieces of "
            f"{one['piece'] >> 10} KiB; most memory {one['peak_mb']:.0f} MB (before "
            f"{one['before_mb']:.0f} MB), {one['cpu']:.2f} of a core; answers {one['answers']}"
        ]
    return "\n".join(parts)


def _peaks(turns: list[dict[str, Any]]) -> str:
    lines = [["way", "", *PARTIES]]
    for way, kind in dict.fromkeys((turn["way"], turn["kind"]) for turn in turns):
        mine = [t["peak_mb"] for t in turns if (t["way"], t["kind"]) == (way, kind)]
        most = {who: max(peak[who] for peak in mine) for who in mine[0]}
        lines.append([way, kind, *(f"{most[w]:.0f}" if w in most else "-" for w in PARTIES)])
    return table(lines, (2, 3, 4))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--json", metavar="FILE", help="also write the result to this file")
    add("--quick", action="store_true", help="64 MiB, one turn: only a look")
    add("--size", type=int, metavar="MIB", help="of the file (1024)")
    add("--turns", type=int, help="of each kind on each way (3)")
    add("--ways", default=",".join(WAYS), help="some of: " + ", ".join(WAYS))
    add("--large", type=int, default=0, metavar="MIB", help="and one longer file, for the memory")
    add("--held", type=int, default=0, metavar="N", help="and so many slow uploads at one relay")
    add("--seconds", type=float, default=20.0, help="that those are held (20)")
    add("--folder", metavar="DIR", help="where the temporary deployment goes")
    args = parser.parse_args()
    args.size = args.size or (64 if args.quick else 1024)
    args.turns = args.turns or (1 if args.quick else 3)
    args.ways = args.ways.split(",")
    if not 1 <= args.size <= 1 << 16 or not 1 <= args.turns <= 30 or not 0 <= args.large <= 1 << 16:
        parser.error("--size and --large to 65536, --turns from 1 to 30")
    if not set(args.ways) <= set(WAYS) or not 0 <= args.held <= 700:
        parser.error(f"--ways names some of {', '.join(WAYS)}; --held goes to 700")
    return args


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    load, begin = os.getloadavg(), time.perf_counter()
    say("making the deployment")
    with Site(folder / "site", max(1, -(-args.held // 8)), 5.0) as site:
        plain = Plain(folder)
        try:
            turns = compare(site, plain, args, folder)
        finally:
            plain.stop()
        longer = large(site, args, folder) if args.large else []
        held = None
        if args.held:
            say(f"{args.held} slow uploads at one relay")
            held = hold(site, "passing relay", args.held, args.seconds)
    return {
        "settings": {k: v for k, v in vars(args).items() if k not in ("json", "folder")},
        "command": " ".join(["python benchmarks/fleet_uploads.py", *sys.argv[1:]]),
        "parts": {part: metadata.version(part) for part in PARTS},
        "host": machine.facts(), "load": load, "rows": rows_of(turns),
        "turns": [asdict(turn) for turn in turns], "large": [asdict(turn) for turn in longer],
        "held": held, "seconds": time.perf_counter() - begin,
    }  # fmt: skip


def main() -> int:
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="upseal-uploads-", dir=args.folder) as folder:
        result = measure(args, Path(folder))
    machine.save(args.json, "fleet-uploads", **result)
    print(in_words(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
