# SPDX-License-Identifier: Apache-2.0
"""The shim: built once for all tests, and driven from inside of a process that has it preloaded."""

import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
KINDS = (
    "open", "make", "read", "write", "sync", "name", "gone", "size", "map", "random", "alloc",
)  # fmt: skip
"""As in shim.c. ``make``: what is not there yet; ``name``: renames; ``gone``: unlinks; ``size``:
truncating and reserving; ``alloc``: in the native core."""
INSTEAD = {"SHORT": -1, "KILL": -2}
"""Of an error: half of what was asked for, and the end of the process."""
KILLED = 99

ONCE = {
    "open": ("EIO", "EINTR"),
    "make": ("ENOSPC", "EIO", "EINTR", "KILL"),
    "read": ("EIO", "EINTR", "EAGAIN", "SHORT"),
    "write": ("ENOSPC", "EIO", "EINTR", "EAGAIN", "SHORT", "KILL"),
    "sync": ("EIO", "ENOSPC", "EINTR", "KILL"),
    "name": ("EIO", "ENOSPC", "EINTR", "KILL"),
    "gone": ("EIO", "EINTR", "KILL"),
    "size": ("EIO", "ENOSPC", "EINTR", "KILL"),
    "map": ("ENOMEM",),
    "random": ("EIO", "EINTR", "EAGAIN", "SHORT"),
    "alloc": ("ENOMEM",),
}
"""What one call may be answered with."""

ROOM = ("make", "write", "size")
WORKS = ("make", "read", "write", "sync", "size")
ONWARD = {
    "make": (("ENOSPC", ROOM),),
    "write": (("ENOSPC", ROOM), ("EIO", WORKS), ("SHORT", ("read", "write"))),
    "read": (("EIO", WORKS), ("SHORT", ("read", "write"))),
    "sync": (("EIO", WORKS),),
    "alloc": (("ENOMEM", ("alloc",)),),
}
"""What may hold from one call on, and for which kinds: a disk that is full, one that has failed."""


def build(folder):
    """Compiles the shim into a folder; None where there is no compiler, or not this C library."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not hasattr(ctypes.CDLL(None), "__libc_memalign"):
        return None
    target = Path(folder) / "faults.so"
    subprocess.run(
        [compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
         "-o", target, SOURCE, "-ldl"],
        check=True,
    )  # fmt: skip
    return target


class Shim:
    """In a process that was started with it."""

    def __init__(self):
        self._lib = ctypes.CDLL(None)
        self._lib.faults_calls.restype = self._lib.faults_hits.restype = ctypes.c_long
        self._lib.faults_watch.argtypes = (ctypes.c_char_p,)
        self._lib.faults_arm.argtypes = (
            ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_uint,
        )  # fmt: skip
        self.core = bool(self._lib.faults_find_core())

    def watch(self, folder):
        self._lib.faults_watch(os.fsencode(folder))

    def count(self, kind=-1):
        """Lets everything go well, and counts it."""
        self._lib.faults_arm(-1 if kind == -1 else KINDS.index(kind), 0, 0, 0, 0)

    def arm(self, fault):
        error = INSTEAD.get(fault.error) or getattr(errno, fault.error)
        mask = sum(1 << KINDS.index(kind) for kind in fault.onward)
        kind = KINDS.index(fault.kind)
        self._lib.faults_arm(kind, fault.number, error, bool(fault.onward), mask)

    def disarm(self):
        self._lib.faults_disarm()

    @contextlib.contextmanager
    def quiet(self):
        """For what a scenario does by itself."""
        self._lib.faults_pause(1)
        try:
            yield
        finally:
            self._lib.faults_pause(0)

    @property
    def hits(self):
        return self._lib.faults_hits()

    def calls(self):
        return {kind: self._lib.faults_calls(i) for i, kind in enumerate(KINDS)}
