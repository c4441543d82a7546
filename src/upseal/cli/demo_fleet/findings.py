# SPDX-License-Identifier: Apache-2.0
"""What came of it: made against stored, what was found on the wire, and whether all of it held."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from upseal.cli.demo_fleet.acts import Played
from upseal.cli.demo_fleet.search import Found, Search, Stored
from upseal.cli.demo_fleet.site import LAST, Site
from upseal.cli.demo_fleet.uploads import Uploads, right
from upseal.fleet.admin.deployment import Deployment
from upseal.fleet.policy import Level
from upseal.fleet.server.settings import read_settings
from upseal.fleet.server.store import Store, units
from upseal.fleet.server.store import uploads as stored_uploads
from upseal.fleet.server.store.activity import SEALED
from upseal.fleet.server.store.uploads import StoredUpload

_LEAST_KILLS = 4


def findings(
    site: Site, deployment: Deployment, uploads: Uploads | None, seen: Played
) -> dict[str, Any]:
    """Everything for ``--json``; the processes have ended."""
    stored, files = _stored(site)
    clients = _clients(site, deployment, seen, stored)
    wire, disk, searched = _search(site, uploads, seen, stored, files)
    reports = {
        name: sum(client[name] for client in clients)
        for name in ("made", "stored", "lost", "doubled", "refused")
    }
    status = deployment.status()
    required = sorted(agent.name for agent in site.at_level(Level.REQUIRED))
    recorded_clear = len({(r.client, r.body) for r in stored if not r.sealed})
    plaintext = {
        "sealed_clients": wire.sealed,
        "clear_clients": wire.clear,
        "clear_reports": recorded_clear,
        "clear_reports_found": len(wire.distinct),
        "last_hop_while_enabled": wire.early,
        "by_hop": {name: wire.by_place[name] for name in site.wire.hops},
        "examples": wire.examples,
    }
    on_disk = {"sealed_clients": disk.sealed, "files": searched, "examples": disk.examples}
    audit = deployment.audit(verify=True)
    checks = {
        "none lost": reports["made"] > 0 and not reports["lost"] and not reports["refused"],
        "none doubled": not reports["doubled"],
        "nothing of sealed clients on the wire": not wire.sealed,
        "every clear report found": 0 < recorded_clear == len(wire.distinct),
        "the last hop sealed while encryption was enabled": not wire.early,
        "nothing of sealed clients in spools, queues and logs": not disk.sealed and searched > 0,
        "the orphans were foretold": seen.foretold == required and bool(seen.refused),
        "the orphans withheld and said so": required == _withheld(seen),
        "clear reports of OPTIONAL clients say why": _say_why(site, seen),
        "each client ended as it should": all(client["right"] for client in clients),
        "no alarms": not status.alarms,
        "the page shows who seals and who does not": _page_is_right(site, seen),
    }
    uploaded = None
    if uploads is not None:
        uploaded = uploads.facts(files)
        plaintext |= {"clear_marks": uploads.clear_marks, "clear_marks_found": len(wire.marks)}
        meanwhile = uploaded["plaintext_meanwhile"]
        checks |= {
            "every file stored once, with its SHA-256": right(uploaded),
            "relays were killed with files on their way through them":
                uploaded["relay_kills"] >= _LEAST_KILLS,
            "nothing of sealed files in spools, nor in relays when they were killed":
                not meanwhile["sealed_clients"] and meanwhile["files"] > 0,
            "every mark of the clear file found": len(wire.marks) == uploads.clear_marks,
            "the page shows the files": seen.page["uploads_shown"] == len(uploads.given),
        }  # fmt: skip
    return {
        "clients": clients,
        "reports": reports,
        "plaintext_on_wire": plaintext,
        "plaintext_on_disk": on_disk,
        "wire": {
            name: {"connections": len(hop.streams) // 2, "bytes": hop.bytes}
            for name, hop in site.wire.hops.items()
        },
        "uploads": uploaded,
        "page": seen.page,
        "rotation": seen.rotation,
        "orphans": {
            "foretold": seen.foretold,
            "refusal": seen.refused,
            "withheld": [
                {name: client[name] for name in ("name", "agent", "wanted", "actual", "why")}
                for client in seen.orphans
            ],
            "withheld_reports": seen.withheld,
            "seconds_disabled": round((seen.disabled[1] - seen.disabled[0]) / 1000, 2),
            "seconds_until_all_sealed_again": seen.after_enable,
        },
        "alarms": status.alarms,
        "audit_rows": audit["rows"],
        "sent_after_stopping": seen.rest,
        "checks": checks,
        "match": all(checks.values()),
    }


def _stored(site: Site) -> tuple[list[Stored], list[tuple[StoredUpload, str]]]:
    """All that the server has: reports, and files with their clients' names."""
    with Store.open(read_settings(site.deployment_folder).database) as store:
        reports = [
            Stored(
                report.name, report.body, report.reason in SEALED, report.id - report.position,
                report.received,
            )
            for report in units.read(store)
        ]  # fmt: skip
        return reports, list(stored_uploads.read(store))


def _clients(
    site: Site, deployment: Deployment, seen: Played, stored: list[Stored]
) -> list[dict[str, Any]]:
    by_client: dict[str, list[Stored]] = defaultdict(list)
    for report in stored:
        by_client[report.client].append(report)
    shown = {client["name"]: client for client in deployment.clients()}
    found = []
    for agent in site.agents:
        rows = by_client[agent.name]
        counters, now, then = agent.counters(), shown[agent.name], seen.during[agent.name]
        doubled = _doubled(rows)
        distinct = len(rows) - doubled
        expected = "clear" if agent.level is Level.NONE else "sealed"
        found.append(
            {
                "name": agent.name,
                "agent": agent.id,
                "parent": agent.parent,
                "wanted": now["wanted"],
                "actual": now["actual"],
                "why": now["why"],
                "while_disabled": {"actual": then["actual"], "why": then["why"]},
                "made": counters.made,
                "stored": distinct,
                "lost": counters.made - distinct,
                "doubled": doubled,
                "refused": counters.refused,
                "sealed_reports": sum(report.sealed for report in rows),
                "clear_reports": sum(not report.sealed for report in rows),
                "right": now["wanted"] == agent.level.value and now["actual"] == expected
                and not (agent.level is Level.REQUIRED and not all(r.sealed for r in rows)),
            }
        )  # fmt: skip
    return found


def _doubled(rows: list[Stored]) -> int:
    """Reports that are stored a second time, by what they say.

    Equal ones within one unit are none: a host may have two equal things, and a unit is stored
    once. A report made twice into units, or sent twice, would stand in two.
    """
    in_units: dict[bytes, Counter[int]] = defaultdict(Counter)
    for row in rows:
        in_units[row.body][row.unit] += 1
    return sum(sum(counts.values()) - max(counts.values()) for counts in in_units.values())


def _search(
    site: Site,
    uploads: Uploads | None,
    seen: Played,
    stored: list[Stored],
    files: list[tuple[StoredUpload, str]],
) -> tuple[Found, Found, int]:
    """The wire; the disk of relays and agents and all logs; and how many files that was."""
    required = [agent.name for agent in site.at_level(Level.REQUIRED)]
    clear = {} if uploads is None else uploads.marks(files)
    search = Search(f"demo-{site.run}", stored, required, clear)
    wire, disk = Found(), Found()
    for name, hop in site.wire.hops.items():
        until = seen.disabled[0] if name == LAST else 0
        search.wire(name, hop.streams, wire, sealed_until=until)
    folders = [site.folder / name for name in ("relays", "agents", "logs")]
    return wire, disk, search.files(folders, disk)


def _page_is_right(site: Site, seen: Played) -> bool:
    """All who should seal do, when the page is looked at, and nobody withholds."""
    sealed, clear = (
        len(site.at_level(*levels)) for levels in ((Level.REQUIRED, Level.OPTIONAL), (Level.NONE,))
    )
    expected = {"sealed": sealed, "clear": clear, "withheld": 0, "silent": 0, "orphaned": 0}
    return (seen.page["status"], seen.page["coverage"]) == (200, expected)


def _withheld(seen: Played) -> list[str]:
    return sorted(
        name
        for name, client in seen.during.items()
        if client["actual"] == "withheld" and client["why"] == "encryption-disabled"
    )


def _say_why(site: Site, seen: Played) -> bool:
    return all(
        seen.during[agent.name]["why"] == "encryption-disabled"
        for agent in site.at_level(Level.OPTIONAL)
    )
