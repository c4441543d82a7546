# SPDX-License-Identifier: Apache-2.0
"""Looking at the host, again and again, by what is built in and by plug-ins.

A plug-in is an entry point of the group ``upseal.gather``: a callable without arguments that yields
dicts. Each source runs in a thread of its own with a time limit, so one that fails or hangs costs
no other source anything.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from upseal.fleet.agent.database import SpoolError
from upseal.fleet.agent.inventory import SOURCES, Source, encode
from upseal.fleet.agent.settings import REPORT_MAX, Gather
from upseal.fleet.http.logs import event

GROUP = "upseal.gather"
DAY = 86400.0
_GROUP_FACTS = 500
_GROUP_BYTES = 1 << 18
_FACTS_MAX = 100_000
"""Of one source at one look: what yields more has gone mad."""
_log = logging.getLogger("upseal.agent.gather")

Take = Callable[[list[bytes]], object]


class Outcome(NamedTuple):
    """What one source gave at one look."""

    reports: int
    problem: str | None = None
    """Why it gave no more; None if all was well. Never a word out of a plug-in's own error."""


def sources(what: Collection[str] | None = None) -> dict[str, Source]:
    """All that are built in or installed, or those of these names."""
    found = dict(SOURCES)
    for point in entry_points(group=GROUP):
        if point.name in SOURCES:
            event(_log, "plug-in has a built-in's name", level=logging.WARNING, source=point.name)
        else:
            found[point.name] = Source(_plug_in(point))
    if what is None:
        return found
    return {name: source for name, source in found.items() if name in what}


def _plug_in(point: EntryPoint) -> Callable[[], Any]:
    def look() -> Iterable[Mapping[str, Any]]:
        found: Iterable[Mapping[str, Any]] = point.load()()
        return found

    return look


class Gatherer:
    """Looks at all sources, and hands reports on in small groups.

    Args:
        settings: how often, at what, how long.
        client: the name that every report carries.
        take: takes reports; what it raises as `SpoolError` ends that source's look.
        found: the sources; None for those that the settings name.
    """

    def __init__(
        self,
        settings: Gather,
        client: str,
        take: Take,
        found: Mapping[str, Source] | None = None,
    ) -> None:
        self._settings = settings
        self._client = client
        self._take = take
        self._sources = sources(settings.what) if found is None else dict(found)
        self._threads: dict[str, threading.Thread] = {}
        self._known: dict[str, tuple[bytes, float]] = {}
        for name in set(settings.what or ()) - set(self._sources):
            event(_log, "no such source", level=logging.WARNING, source=name)

    def run(self, stop: threading.Event) -> None:
        """Looks at once, and then at every interval, until told to stop."""
        if self._settings.interval <= 0:
            return
        while not stop.is_set():
            began = time.monotonic()
            self.look(stop)
            stop.wait(max(1.0, began + self._settings.interval - time.monotonic()))

    def look(self, stop: threading.Event | None = None) -> dict[str, Outcome]:
        """One look at everything."""
        outcomes = {}
        for name, source in self._sources.items():
            if stop is not None and stop.is_set():
                break
            outcomes[name] = outcome = self._one(name, source, stop)
            if outcome.problem is not None:
                event(
                    _log,
                    "source failed",
                    level=logging.WARNING,
                    source=name,
                    problem=outcome.problem,
                )
        event(_log, "looked", reports=sum(o.reports for o in outcomes.values()))
        return outcomes

    def _one(self, name: str, source: Source, stop: threading.Event | None) -> Outcome:
        before = self._threads.get(name)
        if before is not None and before.is_alive():
            return Outcome(0, "still at its last look")
        look = _Look(name, source, self._client, self._take, self._known)
        thread = threading.Thread(target=look.run, name=f"upseal-gather-{name}", daemon=True)
        self._threads[name] = thread
        thread.start()
        end = time.monotonic() + self._settings.timeout
        while thread.is_alive() and time.monotonic() < end:
            thread.join(0.2)
            if stop is not None and stop.is_set():
                break
        if thread.is_alive():
            look.given_up = True
            return Outcome(look.reports, f"took longer than {self._settings.timeout:g} s")
        return Outcome(look.reports, look.problem)


class _Look:
    """One source, looked at once, in a thread."""

    def __init__(
        self,
        name: str,
        source: Source,
        client: str,
        take: Take,
        known: dict[str, tuple[bytes, float]],
    ) -> None:
        self._name = name
        self._source = source
        self._client = client
        self._take = take
        self._known = known
        self.reports = 0
        self.problem: str | None = None
        self.given_up = False
        """Nobody waits for it any more: what it still finds is thrown away."""

    def run(self) -> None:
        try:
            if self._source.steady:
                self._if_changed(list(self._facts()))
            else:
                self._hand_on(self._facts())
        except SpoolError as error:
            self.problem = f"not taken: {type(error).__name__}"
        except BaseException as error:  # also one that would end the process
            # Its text may hold what was to be reported, and this goes into the log.
            self.problem = f"failed: {type(error).__name__}"

    def _facts(self) -> Iterable[dict[str, Any]]:
        for count, fact in enumerate(self._source.look()):
            if self.given_up:
                return
            if count >= _FACTS_MAX:
                raise OverflowError
            if not isinstance(fact, Mapping):
                raise TypeError
            yield {"property": self._name, **fact, "client": self._client}

    def _if_changed(self, facts: list[dict[str, Any]]) -> None:
        digest = hashlib.sha256(b"\n".join(map(encode, facts))).digest()
        last = self._known.get(self._name)
        now = time.monotonic()
        if last is not None and last[0] == digest and now - last[1] < DAY:
            return
        self._hand_on(facts)
        if self.problem is None:
            self._known[self._name] = (digest, now)

    def _hand_on(self, facts: Iterable[dict[str, Any]]) -> None:
        group: list[bytes] = []
        size = 0
        now = round(time.time(), 3)
        try:
            for fact in facts:
                try:
                    report = encode({**fact, "time": now})
                except (ValueError, TypeError, RecursionError):
                    self.problem = "a report was no JSON"
                    continue
                if len(report) > REPORT_MAX:
                    self.problem = "a report was too long"
                    continue
                group.append(report)
                size += len(report)
                if len(group) >= _GROUP_FACTS or size >= _GROUP_BYTES:
                    whole, group, size = group, [], 0
                    self._give(whole)
        finally:  # what a source found before it failed counts
            self._give(group)

    def _give(self, group: list[bytes]) -> None:
        if group and not self.given_up:
            self._take(group)
            self.reports += len(group)
