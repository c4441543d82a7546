# SPDX-License-Identifier: Apache-2.0
"""The agent: takes reports, keeps them sealed on the disk, and sends them until they are receipted.

``Agent`` and what goes with it are imported when they are first used: whoever wants the inventory
alone pays for nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upseal.fleet.agent.agent import Agent, AlreadySending
    from upseal.fleet.agent.database import SpoolDamaged, SpoolError, SpoolFull, SpoolUnusable
    from upseal.fleet.agent.enrolment import EnrolmentRefused, enrol
    from upseal.fleet.agent.membership import NotEnrolled
    from upseal.fleet.agent.settings import Settings
    from upseal.fleet.agent.uploads.manager import NoSuchUpload
    from upseal.fleet.settings import SettingsError

_ROOMS = {
    "Agent": "upseal.fleet.agent.agent",
    "AlreadySending": "upseal.fleet.agent.agent",
    "EnrolmentRefused": "upseal.fleet.agent.enrolment",
    "NoSuchUpload": "upseal.fleet.agent.uploads.manager",
    "NotEnrolled": "upseal.fleet.agent.membership",
    "Settings": "upseal.fleet.agent.settings",
    "SettingsError": "upseal.fleet.settings",
    "SpoolDamaged": "upseal.fleet.agent.database",
    "SpoolError": "upseal.fleet.agent.database",
    "SpoolFull": "upseal.fleet.agent.database",
    "SpoolUnusable": "upseal.fleet.agent.database",
    "enrol": "upseal.fleet.agent.enrolment",
}

__all__ = [
    "Agent",
    "AlreadySending",
    "EnrolmentRefused",
    "NoSuchUpload",
    "NotEnrolled",
    "Settings",
    "SettingsError",
    "SpoolDamaged",
    "SpoolError",
    "SpoolFull",
    "SpoolUnusable",
    "enrol",
]


def __getattr__(name: str) -> object:
    """Imports a public name."""
    from importlib import import_module

    if name not in _ROOMS:
        raise AttributeError(f"module 'upseal.fleet.agent' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_ROOMS[name]), name)
    return value
