# SPDX-License-Identifier: Apache-2.0
"""Real facts about this host, by psutil and the package database: what an agent reports by itself.

No command lines and no environments are read: they may hold secrets.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

DPKG_STATUS = Path("/var/lib/dpkg/status")
Fact = dict[str, Any]


class Source(NamedTuple):
    """Something to look at."""

    look: Callable[[], Iterator[Fact]]
    steady: bool = False
    """Mostly the same at the next look: reported when it has changed, or once a day."""


def encode(fact: Mapping[str, Any]) -> bytes:
    """As JSON. Names that are no UTF-8 come out as escapes.

    Raises:
        ValueError: it has no form in JSON.
    """
    return json.dumps(fact, separators=(",", ":"), default=str, allow_nan=False).encode("ascii")


def lost_reports(client: str, lost: int) -> bytes:
    """The agent's report of how many others the server will not see."""
    return encode(
        {
            "property": "upseal_lost_reports",
            "client": client,
            "lost": lost,
            "time": round(time.time(), 3),
        }
    )


def once() -> Iterator[Fact]:
    """Things that stay as they are."""
    for source in SOURCES.values():
        if source.steady:
            yield from source.look()


def live() -> Iterator[Fact]:
    """Things that change from one look to the next."""
    for source in SOURCES.values():
        if not source.steady:
            yield from source.look()


def _users() -> Iterator[Fact]:
    for users in _tried(lambda: _psutil().users()):
        yield from ({"property": "user", **_named(user)} for user in users)


def _mounts() -> Iterator[Fact]:
    for partitions in _tried(lambda: _psutil().disk_partitions(all=True)):
        yield from ({"property": "mount", **_named(mount)} for mount in partitions)


def _networks() -> Iterator[Fact]:
    for interfaces in _tried(lambda: _psutil().net_if_addrs()):
        for name, addresses in interfaces.items():
            for address in addresses:
                yield {"property": "network_address", "name": name, **_named(address)}
    for interfaces in _tried(lambda: _psutil().net_if_stats()):
        for name, state in interfaces.items():
            yield {"property": "network_interface", "name": name, **_named(state)}


def _system() -> Iterator[Fact]:
    for found in _tried(os.uname):
        yield {
            "property": "operating_system",
            "system": found.sysname,
            "release": found.release,
            "version": found.version,
            "machine": found.machine,
        }
    for booted in _tried(lambda: _psutil().boot_time()):
        yield {"property": "boot_time", "value": booted}


def _processes() -> Iterator[Fact]:
    attributes = ["pid", "ppid", "name", "username", "status", "create_time", "num_threads",
                  "cpu_times", "memory_info"]  # fmt: skip
    for process in _psutil().process_iter(attributes, ad_value=None):
        found = {k: _plain(v) for k, v in process.info.items()}
        yield {"property": "process", **found}


def _cpu() -> Iterator[Fact]:
    for times in _tried(lambda: _psutil().cpu_times(percpu=True)):
        for number, of_one in enumerate(times):
            yield {"property": "cpu", "number": number, **_named(of_one)}
    for value in _tried(lambda: _psutil().cpu_stats()):
        yield {"property": "cpu_stats", **_named(value)}


def _memory() -> Iterator[Fact]:
    for name in ("virtual_memory", "swap_memory"):
        for value in _tried(getattr(_psutil(), name)):
            yield {"property": name, **_named(value)}


def _traffic() -> Iterator[Fact]:
    for counters in _tried(lambda: _psutil().net_io_counters(pernic=True)):
        for name, value in counters.items():
            yield {"property": "network_counters", "name": name, **_named(value)}
    for counters in _tried(lambda: _psutil().disk_io_counters(perdisk=True)):
        for name, value in (counters or {}).items():
            yield {"property": "disk_counters", "name": name, **_named(value)}


def _disks() -> Iterator[Fact]:
    for partitions in _tried(lambda: _psutil().disk_partitions()):
        for partition in partitions:
            for usage in _tried(partial(_psutil().disk_usage, partition.mountpoint)):
                yield {"property": "disk", "mountpoint": partition.mountpoint, **_named(usage)}


def _psutil() -> Any:
    """Imported when it is needed: the library works without, only this does not.

    Raises:
        ImportError: it is not installed.
    """
    import psutil

    return psutil


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


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "packages": Source(packages, steady=True),
        "users": Source(_users, steady=True),
        "mounts": Source(_mounts, steady=True),
        "networks": Source(_networks, steady=True),
        "system": Source(_system, steady=True),
        "processes": Source(_processes),
        "cpu": Source(_cpu),
        "memory": Source(_memory),
        "traffic": Source(_traffic),
        "disks": Source(_disks),
    }
)
"""What is built in, by the name that settings use."""
