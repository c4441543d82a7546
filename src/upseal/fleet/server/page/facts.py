# SPDX-License-Identifier: Apache-2.0
"""What the page shows, as data: gathered from the database, and kept for a moment.

Several that look at once, every five seconds each, share what was gathered. The more a look costs,
the longer it is kept, so that looking never takes more than a tenth of a core.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from upseal.fleet.manifest import Manifest
from upseal.fleet.server.overview import alarms as alarm_facts
from upseal.fleet.server.overview import duties, oldkeys, relays
from upseal.fleet.server.overview.census import Census, Choice, Counts
from upseal.fleet.server.overview.holders import holders
from upseal.fleet.server.overview.people import HOUR_MS
from upseal.fleet.server.page.asking import RANGES, Asked
from upseal.fleet.server.settings import Settings
from upseal.fleet.server.store import Store, alarms, coverage, deadletters, keys, now_ms, uploads
from upseal.fleet.server.store.coverage import MINUTE_MS, Sample

_KEPT = 1.0
"""Seconds, or ten times as long as it took."""
_SHARE = 10
_CHEAP = 0.02
_VIEWS = 64
_SHOWN = 10
_ALARMS_SHOWN = 20
_RELAYS_SHOWN = 200


class NoManifest(Exception):  # noqa: N818 - a state of affairs
    """The server has not seen one yet."""


class Facts:
    """Safe to share between threads."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        manifest: Callable[[], Manifest | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._settings, self._manifest = store, settings, manifest
        self._clock = clock
        self._lock = threading.RLock()
        self._known: OrderedDict[object, tuple[int, float, dict[str, Any]]] = OrderedDict()

    def status(self) -> dict[str, Any]:
        """All but the single clients and the chart.

        Raises:
            NoManifest: there is none yet.
        """
        return self._kept(None, _KEPT, self._look)

    def _kept(
        self, what: object, least: float, look: Callable[[Manifest], dict[str, Any]]
    ) -> dict[str, Any]:
        """What was gathered lately under this manifest, or is now."""
        manifest = self._present()
        with self._lock:
            serial, until, known = self._known.get(what, (-1, 0.0, {}))
            if serial == manifest.serial and self._clock() < until:
                return known
            begun = self._clock()
            known = look(manifest)
            ended = self._clock()
            took = ended - begun
            until = ended + max(least, _SHARE * took if took > _CHEAP else 0.0)
            self._known[what] = (manifest.serial, until, known)
            self._known.move_to_end(what)
            while len(self._known) > _VIEWS:
                self._known.popitem(last=False)
        return known

    def _present(self) -> Manifest:
        manifest = self._manifest()
        if manifest is None:
            raise NoManifest
        return manifest

    def _look(self, manifest: Manifest) -> dict[str, Any]:
        now, calendar = now_ms(), self._settings.calendar
        level = manifest.default_level
        with self._store.reading() as db:
            census = Census(db, manifest, now, calendar.silent_hours)
            counts = census.counts()
            use = keys.drain(db, now)
            drains = oldkeys.drains(db, now, calendar.drain_hours, use)
            waiting = holders(
                db, manifest, now - calendar.proof_hours * HOUR_MS, fips=self._settings.fips
            )
            switch = duties.switch_time(db, manifest, calendar.signing_wait_hours)
            known_relays = relays.listing(db, manifest)
            return {
                "now": now,
                "name": self._settings.name,
                "deployment": manifest.deployment.hex(),
                "state": manifest.state.value,
                "serial": manifest.serial,
                "issued": manifest.issued,
                "expires": manifest.expires,
                "generation": manifest.generation,
                "oldest_generation": manifest.oldest_generation,
                "default_level": level.value if level is not None else None,
                "levels": len(manifest.levels),
                "silent_hours": calendar.silent_hours,
                "coverage": counts.facts(),
                "orphaned": counts.orphaned,
                "rates": _rates(db, counts, now),
                "keys": _in_force(manifest, use),
                "old_keys": [
                    {**drain.facts(), "may_go": drain.may_go(now)} for drain in drains
                ],
                "readiness": [holder.facts() for holder in waiting],
                "relays": known_relays[:_RELAYS_SHOWN],
                "relays_in_all": len(known_relays),
                "dead_letters": _dead_letters(db),
                "uploads": _uploads(db),
                "alarms": alarm_facts.facts(
                    db, alarms.listing(db, now - 7 * duties.DAY_MS, _ALARMS_SHOWN, only_open=True)
                ),
                "warnings": list(
                    duties.to_do(manifest, now, calendar, drains, waiting, switch)
                ),
            }  # fmt: skip

    def clients(self, asked: Asked) -> dict[str, Any]:
        """A part of the clients.

        Raises:
            NoManifest: there is none yet.
        """
        return self._kept(
            (asked.choice, asked.page, asked.size),
            0.0,
            lambda manifest: self._part(manifest, asked),
        )

    def _part(self, manifest: Manifest, asked: Asked) -> dict[str, Any]:
        now = now_ms()
        with self._store.reading() as db:
            census = Census(db, manifest, now, self._settings.calendar.silent_hours)
            found = census.listing(asked.choice, asked.size, asked.offset)
            if asked.page == 1 and len(found) < asked.size:
                count = len(found)  # nobody else is there
            else:
                count = self._count(census, asked.choice)
        return {
            "now": now,
            "count": count,
            "page": asked.page,
            "pages": max(1, -(-count // asked.size)),
            "size": asked.size,
            "clients": [known.facts() for known in found],
        }

    def _count(self, census: Census, choice: Choice) -> int:
        """How many there are, maybe as of a moment ago: counting takes longer than listing."""
        if choice.search or choice.only in (None, "gaps"):
            return census.count(choice)
        status = self.status()
        found = status["orphaned"] if choice.only == "orphaned" else status["coverage"][choice.only]
        return int(found)

    def samples(self, asked: Asked) -> list[Sample]:
        """Coverage over the time that is asked for."""
        minutes, step, _ = RANGES[asked.range]
        now = now_ms() // MINUTE_MS
        with self._store.reading() as db:
            return coverage.samples(db, now - minutes, now + 1, step)


def _in_force(manifest: Manifest, use: list[keys.Drain]) -> list[dict[str, Any]]:
    """Active and pending keys, with what comes in under the server's."""
    of_key = {drain.key.key_id.hex(): drain for drain in use}
    found = []
    for key in oldkeys.in_force(manifest):
        drain = of_key.get(key["key_id"])
        found.append(
            {
                **key,
                "last_hour": None if drain is None else drain.last_hour,
                "clients": None if drain is None else drain.clients,
                "last_used": None if drain is None else drain.key.last_used,
            }
        )
    return found


def _rates(db: Connection, counts: Counts, now: int) -> dict[str, Any]:
    """Reports a minute, sealed and clear, over the last minutes and the last hour."""
    found: dict[str, Any] = {
        "sealed_reports": counts.sealed_reports,
        "clear_reports": counts.clear_reports,
    }
    for name, minutes in (("five_minutes", 5), ("hour", 60)):
        then = coverage.before(db, now // MINUTE_MS - minutes)
        found[name] = None
        if then is not None:
            passed = now / MINUTE_MS - then.minute
            found[name] = {
                "minutes": round(passed, 1),
                "sealed": round(max(0, counts.sealed_reports - then.sealed_reports) / passed, 2),
                "clear": round(max(0, counts.clear_reports - then.clear_reports) / passed, 2),
            }
    return found


def _dead_letters(db: Connection) -> dict[str, Any]:
    count, size = deadletters.usage(db)
    return {
        "count": count,
        "bytes": size,
        "by_reason": deadletters.by_reason(db) if count else {},
        "newest": [
            {
                "id": letter.id.hex(),
                "hop": letter.hop.hex(),
                "role": letter.role,
                "received": letter.received,
                "reason": letter.reason,
                "key_id": letter.key_id.hex() if letter.key_id is not None else None,
                "size": letter.size,
                "attempts": letter.attempts,
            }
            for letter in deadletters.newest(db, _SHOWN)
        ],
    }


def _uploads(db: Connection) -> dict[str, Any]:
    by_form = uploads.totals(db)
    return {
        "count": sum(count for count, _ in by_form.values()),
        "bytes": sum(size for _, size in by_form.values()),
        "sealed": by_form["sealed"][0],
        "clear": by_form["clear"][0],
        "newest": [
            {
                "upload": upload.upload.hex(),
                "agent": upload.agent.hex(),
                "client": client,
                "name": upload.name.decode("utf-8", "replace"),
                "size": upload.size,
                "sha256": upload.sha256.hex(),
                "form": upload.form,
                "received": upload.received,
            }
            for upload, client in uploads.newest(db, _SHOWN)
        ],
    }
