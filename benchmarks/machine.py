# SPDX-License-Identifier: Apache-2.0
"""Where something was measured, and with what: stands in every result."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("upseal", "cryptography", "PyNaCl", "cffi")


def cpu_model() -> str:
    """What the CPU calls itself."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def system() -> str:
    """The distribution, or what stands for it."""
    with suppress(OSError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return platform.platform(terse=True)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> float:
    """GiB of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def facts() -> dict[str, Any]:
    """Of this machine and this installation."""
    from upseal.engine import choose

    versions = {"Python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "cores": cores(),
        "memory_gib": round(memory(), 1),
        "os": f"{system()}, Linux {platform.release()}"
        if sys.platform == "linux"
        else platform.platform(),
        "engine": choose().engine.describe(),
        "versions": versions,
        "revision": _revision(),
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load": round(os.getloadavg()[0], 2),
    }


def heading(result: dict[str, Any]) -> list[str]:
    """Machine, versions, load and command of a result, as lines for people.

    Of ``result``: ``host`` (`facts`), ``parts`` (more versions), ``load`` before, ``command``;
    ``drift`` of the clock where there is one.
    """
    host = result["host"]
    versions = {**host["versions"], **result["parts"]}
    load = "load before " + " ".join(f"{part:.2f}" for part in result["load"])
    drift = f"; drift {100 * result['drift']:.0f}%" if "drift" in result else ""
    return [
        f"{host['cpu']}, {host['cores']} cores, {host['memory_gib']:g} GiB, {host['os']}",
        f"upseal {versions.pop('upseal', '?')} ({host['revision']}), {host['engine']['engine']} "
        f"engine ({host['engine']['backend']})",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"{host['when']}, {load}{drift}",
        result["command"],
    ]


def say(text: str) -> None:
    """Where a long run is, for whoever waits for it."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def save(path: str | None, kind: str, **content: Any) -> None:
    """Writes a result as JSON, with what `report.py` knows it by."""
    if path is None:
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    whole = {"kind": kind, "machine": facts(), **content}
    target.write_text(json.dumps(whole, indent=1) + "\n")


def peak_reset() -> None:
    """Forgets how much memory this process has needed until now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_kib() -> int:
    """How much it has needed at most since then (``VmHWM``)."""
    with suppress(OSError, IndexError, ValueError):
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    return 0


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    with suppress(OSError, subprocess.CalledProcessError):
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()
    return ""
