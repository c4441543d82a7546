# SPDX-License-Identifier: Apache-2.0
"""What the machine has, as far as it decides how work is done."""

from __future__ import annotations

import os
import platform


def cores(most: int = 4) -> int:
    """How many cores this process may use, up to ``most``."""
    try:
        here = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        here = os.cpu_count() or 1
    return max(1, min(most, here))


def kernel_says_aes() -> bool:
    """Whether the kernel lists AES instructions.

    Where it lists nothing (macOS, Windows), today's CPUs of the usual kinds have them.
    """
    try:
        with open("/proc/cpuinfo") as f:
            for line in f:
                if line.startswith(("flags", "Features")):
                    return "aes" in line.split()
    except OSError:
        return platform.machine().lower() in ("x86_64", "amd64", "arm64", "aarch64")
    return False
