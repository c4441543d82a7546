# SPDX-License-Identifier: Apache-2.0
"""The fleet: agents, relays, a server, and what they agree on (docs/fleet.md).

``decide`` is pure and can be used alone, with no server of ours: it says whether a report is to be
sealed, sent in clear, or withheld. Everything else is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upseal.fleet.agent import Agent
    from upseal.fleet.policy import (
        Absent,
        Certificate,
        Clear,
        Decision,
        Level,
        Parent,
        Reason,
        Seal,
        Withheld,
        Withhold,
        decide,
    )

_POLICY = "upseal.fleet.policy"
_ROOMS = {
    "Absent": _POLICY,
    "Agent": "upseal.fleet.agent",
    "Certificate": _POLICY,
    "Clear": _POLICY,
    "Decision": _POLICY,
    "Level": _POLICY,
    "Parent": _POLICY,
    "Reason": _POLICY,
    "Seal": _POLICY,
    "Withheld": _POLICY,
    "Withhold": _POLICY,
    "decide": _POLICY,
}
"""Where each public name lives (PEP 562): whoever wants the table alone needs no extra for it."""

__all__ = [
    "Absent",
    "Agent",
    "Certificate",
    "Clear",
    "Decision",
    "Level",
    "Parent",
    "Reason",
    "Seal",
    "Withheld",
    "Withhold",
    "decide",
]


def __getattr__(name: str) -> object:
    """Imports a public name."""
    from importlib import import_module

    if name not in _ROOMS:
        raise AttributeError(f"module 'upseal.fleet' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_ROOMS[name]), name)
    return value


def __dir__() -> list[str]:
    """All public names, imported or not."""
    return sorted({*globals(), *_ROOMS})
