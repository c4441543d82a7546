# SPDX-License-Identifier: Apache-2.0
"""Real files on their way up, through relays that are killed and started again meanwhile.

A relay is killed when its shelf says that a file is on its way through it: once while it takes one
from below, once while it passes one on. Nothing depends on how fast that goes, but that a file is
on its way through a hop for two seconds at least (`Site`), so that it can be seen there.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from upseal.cli import stopping
from upseal.cli.common import BAD, Failure
from upseal.cli.demo_fleet.processes import Process
from upseal.cli.demo_fleet.search import called, count_marks, mark
from upseal.cli.demo_fleet.site import DECRYPTING, PASSING, DemoAgent, Site, client_name
from upseal.cli.tree import choose, sha256
from upseal.fleet.agent.uploads.manager import FOLDER
from upseal.fleet.policy import Level
from upseal.fleet.relay.state import SHELF, WRAPS
from upseal.fleet.server.settings import read_settings
from upseal.fleet.server.store.base import now_ms
from upseal.fleet.server.store.uploads import StoredUpload
from upseal.fleet.server.uploads.content import incoming_folder, stored_folder
from upseal.fleet.uploads.held import CARD, PART, WHOLE

ROOM = 16
"""Times a file's size, of disk: two sources, two spools, three places on relays, two incoming and
two stored at the server, and five that the hops record."""
MOST_KEPT_FREE = 512 << 20
"""Bytes of disk that agents, relays and server leave free, and what everything else takes."""
OPTION = "--fleet-upload-mib"
_BELOW_PASSING, _BELOW_DECRYPTING, _IN_CLEAR = range(3)
"""Numbers of the clients that upload: required, optional, none."""
_MIB = 1 << 20
_SMALL, _SMALL_EVERY = 256 << 10, 64 << 10
"""The file that goes up in clear: it only shows that the search finds what there is."""
_KILLS = 2
"""Of each relay."""
_PART = 8
"""A relay is killed when this part of a file, or more, has come through."""
_LOOK = 0.02
_PATIENCE = 300.0


@dataclass
class Given:
    """A file that a client uploads."""

    client: str
    path: Path
    size: int
    every: int
    """Bytes from one mark to the next."""
    sealed: bool
    sha256: str = ""
    agent: DemoAgent | None = field(default=None, repr=False)
    upload: str = ""
    """Its id, when it was handed over."""

    @property
    def marks(self) -> int:
        """How many stand in it."""
        return -(-self.size // self.every)


class Kill(NamedTuple):
    """A relay that was killed."""

    relay: str
    client: str
    """Whose file was on its way through it."""
    doing: str
    """``receiving`` it, or ``sending``."""
    bytes: int
    """That had come, or had gone up."""
    of: int


class _Body(NamedTuple):
    """What lies on a shelf."""

    whole: bool
    bytes: int
    of: int


class Uploads:
    """All of them. Leaving the ``with`` ends its threads.

    Args:
        site: where they go up.
        size: bytes of each of the two large files.
        keep: the sources stay; else they go as soon as the agents have them.
    """

    def __init__(self, site: Site, size: int, *, keep: bool) -> None:
        self._site, self._keep = site, keep
        folder = site.folder / "sources"
        folder.mkdir(mode=0o700)
        some = ((_BELOW_PASSING, size, _MIB, True), (_BELOW_DECRYPTING, size, _MIB, True),
                (_IN_CLEAR, _SMALL, _SMALL_EVERY, False))  # fmt: skip
        self.given = [
            Given(client_name(site.run, number), folder / str(number), length, every, sealed)
            for number, length, every, sealed in some
        ]
        self._large = [given for given in self.given if given.sealed]
        self.kills: list[Kill] = []
        self.in_clear_meanwhile = [0, 0, 0]
        """Marks found in spools and on the relays that were dead; in how many files and bytes."""
        self.while_rotated = 0
        """Files that were under way when the key was rotated."""
        self._began = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(3, "upseal-demo")
        settings = read_settings(site.deployment_folder)
        self._stored, self._incoming = stored_folder(settings), incoming_folder(settings)
        self._made = self._threads.submit(self._make)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._threads.shutdown(cancel_futures=True)

    # -- files -----------------------------------------------------------------------------

    def _make(self) -> None:
        """Copies of this host's own files, one after the other, with marks."""
        files, _, _ = choose(max(given.size for given in self.given), OPTION)
        for given in self.given:
            digest, size = hashlib.sha256(), 0
            with open(given.path, "xb", buffering=0) as target:
                for block in _blocks(files, given):
                    stopping.check()
                    if self._stop.is_set():
                        return
                    digest.update(block)
                    size += target.write(block)
            if size != given.size:
                raise Failure(BAD, f"the demo failed: {given.path} has {size:,} bytes")
            given.sha256 = digest.hexdigest()

    def go(self) -> None:
        """Each agent gets its file; and each relay is killed twice while they go up.

        A file is handed over by a process of its own, while its agent goes on reporting.
        """
        site, processes = self._site, self._site.processes
        processes.until("files are copied", self._made.done, _PATIENCE)
        self._made.result()
        by_name = {agent.name: agent for agent in site.agents}
        handing: dict[str, Process] = {}
        self._began = now_ms()
        for given in self.given:
            given.agent = by_name[given.client]
            words = ("agent", "upload", "-d", str(given.agent.folder), "--json")
            named = ("--name", called(given.client), str(given.path))
            handing[given.client] = processes.start(f"{given.client}-upload", *words, *named)
            handing[given.client].expected = True
        killing = [self._threads.submit(self._kill, relay) for relay in (PASSING, DECRYPTING)]

        def done() -> bool:
            self._take(handing)
            site.say(f"relays killed: {len(self.kills)}")
            # One that has failed is asked first, so that the other one does not go on for nothing.
            return not handing and all(one.done() and one.result() is None for one in killing)

        processes.until("relays were killed and are back", done, _PATIENCE, _LOOK)

    def _take(self, handing: dict[str, Process]) -> None:
        """Learns the ids of those that were just handed over."""
        for given in self.given:
            process = handing.get(given.client)
            if process is None:
                continue
            if not given.upload:
                with suppress(ValueError):  # it is not done yet
                    given.upload = json.loads(process.log.read_bytes())["uploads"][0]["upload"]
                    self._look_for_marks([_agent(given).folder / FOLDER])
            if process.ended:
                self._site.processes.reap([process])
                del handing[given.client]
                if not self._keep:
                    given.path.unlink()

    # -- kills -----------------------------------------------------------------------------

    def _kill(self, relay: str) -> None:
        """No lock: the other one may be dead at the same time, and its chances must not pass."""
        seen: set[tuple[str, str]] = set()
        while len(seen) < _KILLS and not self._stop.is_set() and self.under_way():
            stopping.check()
            new = (k for k in self._on_the_way(relay) if (k.client, k.doing) not in seen)
            kill = next(new, None)
            if kill is None:
                time.sleep(_LOOK)
                continue
            seen.add((kill.client, kill.doing))
            self._site.kill(relay)
            self.kills.append(kill)
            folder = self._site.relay_folder(relay)
            self._look_for_marks([folder / SHELF, folder / WRAPS])
            self._site.restart(relay)

    def _on_the_way(self, relay: str) -> Iterator[Kill]:
        """Large files that a relay is just taking or passing on, somewhere in their middle."""
        here = _bodies(self._site.relay_folder(relay) / SHELF)
        decrypting = self._site.relay_folder(DECRYPTING) / SHELF
        above = _bodies(decrypting if relay == PASSING else self._incoming)
        for given in self._large:
            mine, other = here.get(given.upload), above.get(given.upload)
            if mine is not None and not mine.whole:
                body, doing = mine, "receiving"
            elif mine is not None and other is not None and not other.whole:
                body, doing = other, "sending"
            else:
                continue
            if body.of <= body.bytes * _PART < body.of * _PART:
                yield Kill(relay, given.client, doing, body.bytes, body.of)

    def _look_for_marks(self, folders: Iterable[Path]) -> None:
        found = count_marks(folders, [given.client for given in self._large])
        with self._lock:
            self.in_clear_meanwhile = [
                a + b for a, b in zip(self.in_clear_meanwhile, found, strict=True)
            ]

    # -- what came of them -----------------------------------------------------------------

    def under_way(self) -> list[Given]:
        """Those that the server does not have yet."""
        return [
            given for given in self.given
            if not given.upload
            or not (self._stored / _agent(given).id / given.upload).exists()
        ]  # fmt: skip

    def finish(self) -> None:
        """Waits until the server has all of them."""

        def none_left() -> bool:
            left = self.under_way()
            self._site.say(f"files stored: {len(self.given) - len(left)} of {len(self.given)}")
            return not left

        self._site.processes.until("the server has all files", none_left, _PATIENCE)

    def receipted(self) -> bool:
        """Whether their agents know that the server has them."""
        return not any(_agent(given).uploads().waiting for given in self.given)

    def facts(self, rows: list[tuple[StoredUpload, str]]) -> dict[str, Any]:
        """What it came to, by the agents' own counters and what the server has in its store."""
        mine = {(row.agent.hex(), row.upload.hex()): row for row, _ in rows}
        files, made, damaged = [], 0, 0
        for given in self.given:
            agent = _agent(given)
            counters, row = agent.uploads(), mine.get((agent.id, given.upload))
            made += counters.made
            right = row is not None and sha256(self._stored / row.path) == given.sha256
            damaged += row is not None and not right
            files.append({
                "client": given.client, "wanted": agent.level.value,
                "parent": agent.parent, "upload": given.upload, "bytes": given.size,
                "sha256": given.sha256, "form": None if row is None else row.form, "match": right,
                "receipts": counters.stored,
            })  # fmt: skip
        size = sum(given.size for given in self.given)
        stored = max((row.received for row in mine.values()), default=self._began)
        seconds = max(0.001, (stored - self._began) / 1000)
        found, searched, searched_bytes = self.in_clear_meanwhile
        return {
            "made": made,
            "stored": len(rows),
            "damaged": damaged,
            "relay_kills": len(self.kills),
            "bytes": size,
            "seconds": round(seconds, 2),
            "mib_per_s": round(size / _MIB / seconds, 1),
            "under_way_when_rotated": self.while_rotated,
            "kills": [kill._asdict() for kill in self.kills],
            "files": files,
            "plaintext_meanwhile": {
                "sealed_clients": found, "files": searched, "bytes": searched_bytes,
            },
        }  # fmt: skip

    def marks(self, rows: list[tuple[StoredUpload, str]]) -> dict[str, int]:
        """Clients whose file went up in clear, and when the server had it."""
        return {name: row.received for row, name in rows if row.form == "clear"}

    @property
    def clear_marks(self) -> int:
        """That stand in files that went up in clear."""
        return sum(given.marks for given in self.given if not given.sealed)


def right(found: dict[str, Any]) -> bool:
    """Whether all files arrived once, as they were, and in the form of their client's level."""
    forms = {Level.REQUIRED.value: "sealed", Level.OPTIONAL.value: "sealed"}
    return (
        found["made"] == found["stored"] == len(found["files"])
        and not found["damaged"]
        and all(
            file["match"] and file["receipts"] == 1
            and file["form"] == forms.get(file["wanted"], "clear")
            for file in found["files"]
        )
    )  # fmt: skip


def _agent(given: Given) -> DemoAgent:
    assert given.agent is not None
    return given.agent


def _blocks(files: list[str], given: Given) -> Iterator[bytes]:
    """So many bytes of these files, in blocks that begin with a mark each."""
    left, number = given.size, 0
    pieces = _pieces(files)
    rest = b""
    while left:
        block = bytearray(mark(given.client, number))
        room = min(given.every, left)
        while len(block) < room:
            if not rest:
                rest = next(pieces)
            taken = rest[: room - len(block)]
            block += taken
            rest = rest[len(taken) :]
        yield bytes(block[:room])
        left -= room
        number += 1


def _pieces(files: list[str]) -> Iterator[bytes]:
    """What stands in these files, again and again if need be: some may have become shorter."""
    while True:
        some = False
        for name in files:
            with suppress(OSError), open(name, "rb", buffering=0) as file:
                while piece := file.read(_MIB):
                    some = True
                    yield piece
        if not some:
            raise Failure(BAD, "the demo failed: none of this host's files can be read any more")


def _bodies(shelf: Path) -> dict[str, _Body]:
    """What lies on a shelf that another process uses, by the uploads' ids."""
    found = {}
    with suppress(FileNotFoundError):  # nothing ever came
        for card in shelf.glob(f"*{CARD}"):
            with suppress(OSError, ValueError):  # gone a moment ago
                said = json.loads(card.read_bytes())
                for kind in (WHOLE, PART):
                    with suppress(FileNotFoundError):
                        size = os.stat(card.with_suffix(kind)).st_size
                        found[said["upload"]] = _Body(kind == WHOLE, size, said["size"])
                        break
    return found
