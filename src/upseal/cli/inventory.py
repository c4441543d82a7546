# SPDX-License-Identifier: Apache-2.0
"""Real reports about this host, by psutil and the package database: what an agent would send.

No command lines and no environments are read: they may hold secrets.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from upseal.cli.common import USAGE, Failure

DPKG_STATUS = Path("/var/lib/dpkg/status")
Fact = dict[str, Any]


def load_psutil() -> Any:
    """The module, or how to get it."""
    try:
        import psutil
    except ImportError:
        raise Failure(
            USAGE, "the demo needs psutil to look at this host; pip install upseal[demo]"
        ) from None
    return psutil


def gather(count: int, progress: Callable[[int, int | None], None]) -> list[bytes]:
    """So many JSON reports: first each thing once, then live values again and again."""
    psutil = load_psutil()
    reports: list[bytes] = []
    for fact in (*_once(psutil), *_live(psutil)):
        reports.append(_encode(fact))
    sequence = 0
    while len(reports) < count:
        sequence += 1
        now = time.time()
        before = len(reports)
        for fact in _live(psutil):
            reports.append(_encode({**fact, "sequence": sequence, "time": now}))
        progress(min(len(reports), count), count)
        if len(reports) == before:
            raise Failure(
                USAGE, "psutil finds nothing on this host to report; give fewer --reports"
            )
    return reports[:count]


def _encode(fact: Fact) -> bytes:
    # Names that are no UTF-8 come out as JSON escapes.
    return json.dumps(fact, separators=(",", ":"), default=str).encode("ascii")


def _once(psutil: Any) -> Iterator[Fact]:
    """Things that stay as they are."""
    yield from packages()
    for users in _tried(psutil.users):
        yield from ({"property": "user", **_named(user)} for user in users)
    for partitions in _tried(lambda: psutil.disk_partitions(all=True)):
        yield from ({"property": "mount", **_named(mount)} for mount in partitions)
    for interfaces in _tried(psutil.net_if_addrs):
        for name, addresses in interfaces.items():
            for address in addresses:
                yield {"property": "network_address", "name": name, **_named(address)}
    for interfaces in _tried(psutil.net_if_stats):
        for name, state in interfaces.items():
            yield {"property": "network_interface", "name": name, **_named(state)}
    for booted in _tried(psutil.boot_time):
        yield {"property": "boot_time", "value": booted}


def _live(psutil: Any) -> Iterator[Fact]:
    """Things that change from one look to the next."""
    attributes = ["pid", "ppid", "name", "username", "status", "create_time", "num_threads",
                  "cpu_times", "memory_info"]  # fmt: skip
    for process in psutil.process_iter(attributes, ad_value=None):
        found = {k: _plain(v) for k, v in process.info.items()}
        yield {"property": "process", **found}
    for times in _tried(lambda: psutil.cpu_times(percpu=True)):
        for number, of_one in enumerate(times):
            yield {"property": "cpu", "number": number, **_named(of_one)}
    for name in ("cpu_stats", "virtual_memory", "swap_memory"):
        for value in _tried(getattr(psutil, name)):
            yield {"property": name, **_named(value)}
    for counters in _tried(lambda: psutil.net_io_counters(pernic=True)):
        for name, value in counters.items():
            yield {"property": "network_counters", "name": name, **_named(value)}
    for counters in _tried(lambda: psutil.disk_io_counters(perdisk=True)):
        for name, value in (counters or {}).items():
            yield {"property": "disk_counters", "name": name, **_named(value)}
    for partitions in _tried(psutil.disk_partitions):
        for partition in partitions:
            for usage in _tried(partial(psutil.disk_usage, partition.mountpoint)):
                yield {"property": "disk", "mountpoint": partition.mountpoint, **_named(usage)}


def _tried(look: Callable[[], Any]) -> Iterator[Any]:
    """What it finds, or nothing where this host has none or does not let us see it."""
    try:
        yield look()
    except (OSError, RuntimeError, NotImplementedError, AttributeError):
        return
    except Exception as error:  # psutil's own: AccessDenied, ZombieProcess
        if not type(error).__module__.startswith("psutil"):
            raise


def _named(value: Any) -> Fact:
    return {name: _plain(each) for name, each in value._asdict().items()}


def _plain(value: Any) -> Any:
    return _named(value) if hasattr(value, "_asdict") else value


# -- packages -----------------------------------------------------------------


def packages() -> Iterator[Fact]:
    """From dpkg, else rpm, else Python's own distributions."""
    found = list(_dpkg()) or list(_rpm()) or list(_python())
    yield from found


def _dpkg() -> Iterator[Fact]:
    """Paragraphs of ``Field: value`` lines, a blank line between them (deb822)."""
    try:
        text = DPKG_STATUS.read_text("utf-8", "replace")
    except OSError:
        return
    for paragraph in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] > " "
        )
        if "Package" in fields and fields.get("Status", "").endswith(" installed"):
            yield {
                "property": "package",
                "name": fields["Package"],
                "version": fields.get("Version"),
                "architecture": fields.get("Architecture"),
                "section": fields.get("Section"),
                "installed_kib": fields.get("Installed-Size"),
                "summary": fields.get("Description"),
            }


def _rpm() -> Iterator[Fact]:
    rpm = shutil.which("rpm")
    if rpm is None:
        return
    names = ("name", "version", "architecture", "section", "installed_bytes", "summary")
    tags = "%{NAME}\\t%{VERSION}-%{RELEASE}\\t%{ARCH}\\t%{GROUP}\\t%{SIZE}\\t%{SUMMARY}\\n"
    done = subprocess.run(  # noqa: S603 - the host's own rpm, no input
        [rpm, "-qa", "--qf", tags], capture_output=True, timeout=60, check=False
    )
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        values = line.split("\t")
        if len(values) == len(names):
            yield {"property": "package", **dict(zip(names, values, strict=True))}


def _python() -> Iterator[Fact]:
    from importlib.metadata import distributions

    for found in distributions():
        name = found.metadata["Name"]
        yield {"property": "package", "name": name, "version": found.version, "section": "python"}
