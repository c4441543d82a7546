# SPDX-License-Identifier: Apache-2.0
"""What units and beacons tell of their clients: written by the server in the same transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, bindparam, case, select

from upseal.fleet.policy import Level, Reason
from upseal.fleet.server.store.prepared import Prepared
from upseal.fleet.server.store.units import NewUnit
from upseal.fleet.server.tables import beacons, client_counts, clients, key_use, keys, streams
from upseal.fleet.units import Status

SEALED = frozenset({int(Reason.SEALED), int(Reason.STALE_MANIFEST)})
"""Reasons that say: it was sealed. All others say why not."""


def note_units(
    db: Connection, units: Sequence[NewUnit], results: Sequence[Status], now_ms: int
) -> None:
    """Counts what was stored, for clients, their sequences and the keys.

    Duplicates count for nothing: they are the same unit.
    """
    stored = [u for u, status in zip(units, results, strict=True) if status is Status.STORED]
    _note_clients(db, units, results, now_ms)
    if not stored:
        return
    counts: dict[tuple[bytes, int], int] = {}
    runs: dict[tuple[bytes, bytes], list[int]] = {}
    used: dict[tuple[bytes, int], list[int]] = {}
    for u in stored:
        reports = len(u.records)
        counts[u.agent, u.reason] = counts.get((u.agent, u.reason), 0) + reports
        run = runs.setdefault((u.agent, u.epoch), [u.sequence, u.sequence, 0, u.received])
        run[0], run[1] = min(run[0], u.sequence), max(run[1], u.sequence)
        run[2] += 1
        run[3] = max(run[3], u.received)
        if u.key_id is not None:
            use = used.setdefault((u.key_id, u.received // 60_000), [0, 0, u.received])
            use[0] += 1
            use[1] += reports
            use[2] = max(use[2], u.received)
    _ADD_COUNTS.run(db, [{"agent": a, "reason": r, "reports": n} for (a, r), n in counts.items()])
    _note_runs(db, runs, beacon=False)
    _note_key_use(db, used)


def _note_clients(
    db: Connection, units: Sequence[NewUnit], results: Sequence[Status], now_ms: int
) -> None:
    rows: dict[bytes, dict[str, object]] = {}
    for u, status in zip(units, results, strict=True):
        row = rows.get(u.agent)
        if row is None:
            row = rows[u.agent] = {
                "agent": u.agent, "wanted": u.level, "actual": "", "reason": u.reason,
                "last_seen": -1, "stated": u.stated, "suite": None, "key_id": None,
                "sealed": 0, "clear": 0, "units": 0, "beacons": 0, "contradictions": 0,
                "now_ms": now_ms,
            }  # fmt: skip
        if status is Status.CONTRADICTION:
            row["contradictions"] += 1  # type: ignore[operator]
        if status is not Status.STORED:
            continue
        sealed = u.reason in SEALED
        row["sealed" if sealed else "clear"] += len(u.records)  # type: ignore[operator]
        row["units"] += 1  # type: ignore[operator]
        if u.received >= row["last_seen"]:  # type: ignore[operator]
            row["actual"] = "sealed" if sealed else "clear"
            row["wanted"], row["reason"] = u.level, u.reason
            row["last_seen"], row["stated"] = u.received, u.stated
        if u.key_id is not None:
            row["suite"], row["key_id"] = u.suite, u.key_id
    _MERGE_CLIENTS.run(db, [row for row in rows.values() if row["units"] or row["contradictions"]])


def _merged(insert: Any) -> Any:
    """Newer words win; a row with an ``actual`` of "" only counts.

    A dead letter that is replayed keeps the time at which it came in, so it says nothing new. What
    stands there from the future was written when this clock was wrong.
    """
    statement = insert(clients)
    given, have = statement.excluded, clients.c
    wrong = have.last_seen > bindparam("now_ms", type_=BigInteger)
    newer = ((given.last_seen >= have.last_seen) | wrong) & (given.actual != "")
    changed = {
        name: case((newer, given[name]), else_=have[name])
        for name in ("wanted", "actual", "reason", "last_seen", "stated")
    }
    for name in ("suite", "key_id"):
        changed[name] = case((newer & given.key_id.is_not(None), given[name]), else_=have[name])
    for name in ("sealed", "clear", "units", "beacons", "contradictions"):
        changed[name] = have[name] + given[name]
    return statement.on_conflict_do_update(index_elements=["agent"], set_=changed)


_MERGE_CLIENTS = Prepared(_merged, [*clients.c.keys(), "now_ms"])


def note_beacons(db: Connection, new: Iterable[NewUnit], now_ms: int) -> list[Status]:
    """Beacons, in the order they came in: STORED if it was news, else DUPLICATE.

    The newest wins. An epoch that was seen before and is not the present one, or a sequence not
    above the last, is an old beacon that somebody sent again: it says nothing.
    """
    results = []
    for b in new:
        last = _LAST_BEACON.first(db, agent=b.agent, epoch=b.epoch)
        if last is not None and (
            b.sequence <= last[0] or last[1] is None or bytes(last[1]) != b.epoch
        ):
            results.append(Status.DUPLICATE)
            continue
        results.append(Status.STORED)
        _note_runs(db, {(b.agent, b.epoch): [b.sequence, b.sequence, 1, b.received]}, beacon=True)
        values = {
            "epoch": b.epoch, "sequence": b.sequence, "stated": b.stated, "received": b.received,
            "level": b.level, "reason": b.reason,
        }  # fmt: skip
        _NEW_BEACON.run(db, [{"agent": b.agent, **values}])
        _MERGE_CLIENTS.run(
            db,
            [
                {
                    "agent": b.agent, "wanted": b.level, "actual": _actual(b), "reason": b.reason,
                    "last_seen": b.received, "stated": b.stated, "suite": None, "key_id": None,
                    "sealed": 0, "clear": 0, "units": 0, "beacons": 1, "contradictions": 0,
                    "now_ms": now_ms,
                }
            ],
        )  # fmt: skip
    return results


def _actual(beacon: NewUnit) -> str:
    """A beacon is sent when withholding begins, and once more when it is over."""
    if beacon.reason in SEALED:
        return "sealed"
    return "withheld" if beacon.level == Level.REQUIRED.number else "clear"


def _added(insert: Any) -> Any:
    statement = insert(client_counts)
    total = client_counts.c.reports + statement.excluded.reports
    return statement.on_conflict_do_update(
        index_elements=["agent", "reason"], set_={"reports": total}
    )


def _went_on(insert: Any) -> Any:
    statement = insert(streams)
    given, have = statement.excluded, streams.c
    changed = {
        "lowest": case((given.lowest < have.lowest, given.lowest), else_=have.lowest),
        "highest": _later(given.highest, have.highest),
        "stored": have.stored + given.stored,
        "last_seen": _later(given.last_seen, have.last_seen),
    }
    return statement.on_conflict_do_update(index_elements=["agent", "epoch"], set_=changed)


def _used(_: Any) -> Any:
    when = bindparam("at_time", type_=BigInteger)
    return (
        keys.update()
        .where(keys.c.key_id == bindparam("key"))
        .values(
            units=keys.c.units + bindparam("more_units", type_=BigInteger),
            reports=keys.c.reports + bindparam("more_reports", type_=BigInteger),
            first_used=case((keys.c.first_used < when, keys.c.first_used), else_=when),
            last_used=case((keys.c.last_used > when, keys.c.last_used), else_=when),
        )
    )


def _used_by_minute(insert: Any) -> Any:
    statement = insert(key_use)
    total = key_use.c.reports + statement.excluded.reports
    return statement.on_conflict_do_update(
        index_elements=["key_id", "minute"], set_={"reports": total}
    )


def _later(one: Any, other: Any) -> Any:
    return case((one > other, one), else_=other)


_ADD_COUNTS = Prepared(_added, client_counts.c.keys())
_GO_ON = Prepared(_went_on, streams.c.keys())
_USE_KEY = Prepared(_used, ("key", "at_time", "more_units", "more_reports"))
_USE_BY_MINUTE = Prepared(_used_by_minute, key_use.c.keys())
_LAST_BEACON = Prepared(
    lambda _: (
        select(streams.c.highest, beacons.c.epoch)
        .join_from(streams, beacons, beacons.c.agent == streams.c.agent, isouter=True)
        .where(streams.c.agent == bindparam("agent"), streams.c.epoch == bindparam("epoch"))
    ),
    ("agent", "epoch"),
)
_NEW_BEACON = Prepared(
    lambda insert: (statement := insert(beacons)).on_conflict_do_update(
        index_elements=["agent"],
        set_={c.name: c for c in statement.excluded if c.name != "agent"},
    ),
    beacons.c.keys(),
)


def _note_runs(db: Connection, runs: dict[tuple[bytes, bytes], list[int]], *, beacon: bool) -> None:
    _GO_ON.run(
        db,
        [
            {
                "agent": agent, "epoch": epoch, "beacon": beacon, "lowest": low, "highest": high,
                "stored": stored, "last_seen": seen,
            }
            for (agent, epoch), (low, high, stored, seen) in runs.items()
        ],
    )  # fmt: skip


def note_upload(db: Connection, key_id: bytes, received: int) -> None:
    """A file that came in under a key: for its drain as good as a report."""
    _note_key_use(db, {(key_id, received // 60_000): [0, 1, received]})


def _note_key_use(db: Connection, used: dict[tuple[bytes, int], list[int]]) -> None:
    """(Key id, minute): units, reports, and when: what the drain is read from."""
    rows = [
        {"key": key_id, "at_time": when, "more_units": units, "more_reports": reports}
        for (key_id, _), (units, reports, when) in used.items()
    ]
    _USE_KEY.run(db, rows)
    _USE_BY_MINUTE.run(
        db,
        [
            {"key_id": key_id, "minute": minute, "reports": reports}
            for (key_id, minute), (_, reports, _) in used.items()
        ],
    )
