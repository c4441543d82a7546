# SPDX-License-Identifier: Apache-2.0
"""Alarms, each with the name of whom it is about."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection

from upseal.fleet.server.store import clients
from upseal.fleet.server.store.alarms import Alarm


def facts(db: Connection, found: Iterable[Alarm]) -> list[dict[str, Any]]:
    """For machines; ``client`` is None where the subject is nobody who is enrolled."""
    listed = list(found)
    names = _names(db, listed)
    return [
        {
            "id": alarm.id,
            "kind": alarm.kind,
            "subject": alarm.subject.hex() or None,
            "client": names[alarm.subject],
            "first": alarm.first,
            "last": alarm.last,
            "times": alarm.times,
            "details": alarm.details,
            "acknowledged": alarm.acknowledged,
            "acknowledged_by": alarm.acknowledged_by,
        }
        for alarm in listed
    ]


def _names(db: Connection, found: Iterable[Alarm]) -> dict[bytes, str | None]:
    """By subject, whom these are about; None for nobody who is enrolled."""
    names: dict[bytes, str | None] = {b"": None}
    for subject in {alarm.subject for alarm in found} - {b""}:
        known = clients.find(db, subject) or clients.by_hop(db, subject)
        names[subject] = known.name if known is not None else None
    return names
