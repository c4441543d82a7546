# SPDX-License-Identifier: Apache-2.0
"""Alarms, and the administrator's word that somebody has looked at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from upseal.fleet.admin.acting import Outcome, Plan, View, perform
from upseal.fleet.admin.refusals import Refused
from upseal.fleet.server.overview import alarms as overview
from upseal.fleet.server.store import alarms

if TYPE_CHECKING:
    from upseal.fleet.admin.opened import Opened

_NAMED = 1000  # ids in a row of the audit log


def listing(deployment: Opened, *, everything: bool) -> list[dict[str, Any]]:
    """As `Deployment.alarms`."""
    with deployment.view() as view:
        return overview.facts(view.db, alarms.listing(view.db, only_open=not everything))


def acknowledge(
    deployment: Opened, numbers: Sequence[int] | None, actor: str, *, dry_run: bool
) -> Outcome:
    """As `Deployment.acknowledge`."""
    what = "acknowledge alarms"

    def plan(view: View) -> Plan:
        there = {alarm.id: alarm for alarm in alarms.listing(view.db)}
        missing = [str(number) for number in numbers or () if number not in there]
        if missing:
            raise Refused(
                what, f"there is no alarm {', '.join(missing)}", "see `upseal admin alarms`"
            )
        wanted = there if numbers is None else {number: there[number] for number in numbers}
        chosen = [alarm for alarm in wanted.values() if alarm.acknowledged is None]
        if not chosen:
            return Plan("acknowledge", what, unchanged=True, messages=("nothing is open",))
        ids = sorted(alarm.id for alarm in chosen)
        return Plan(
            "acknowledge", what,
            write=lambda _: alarms.acknowledge(view.db, chosen, actor, view.now),
            messages=(f"{len(ids)} alarm(s) acknowledged",),
            details={"alarms": ids[:_NAMED], "count": len(ids)},
            result={"acknowledged": ids},
        )  # fmt: skip

    return perform(deployment, plan, dry_run=dry_run, force=False)
