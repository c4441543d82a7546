# SPDX-License-Identifier: Apache-2.0
"""Runs a command under what a unit's directives make of a process, as far as that needs no PID 1.

``python sandboxed.py UNIT COMMAND...``: SystemCallFilter, RestrictAddressFamilies,
MemoryDenyWriteExecute, NoNewPrivileges and the limits, by libseccomp and prctl(2).
"""

import ctypes
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

ALLOW, DENY, EQUAL = 0x7FFF0000, 0x00050001, 4  # the last: errno 1, EPERM
NO_NEW_PRIVILEGES, SET_MDWE = 38, 65


def directives(path):
    """All values of each directive, in order."""
    out = {}
    for line in Path(path).read_text().splitlines():
        name, found, value = line.strip().partition("=")
        if found and not line.startswith("#"):
            out.setdefault(name, []).append(value)
    return out


def syscalls(group):
    """The names of a group of systemd's, with those of the groups in it."""
    if not group.startswith("@"):
        return {group}
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True
    )
    words = [line.strip() for line in done.stdout.splitlines()[1:]]
    names = [word for word in words if word and not word.startswith("#")]
    return set().union(*(syscalls(name) for name in names))


def allowed(said):
    """What SystemCallFilter leaves."""
    out = set()
    for value in said["SystemCallFilter"]:
        names = set().union(*(syscalls(name) for name in value.lstrip("~").split()))
        out = out - names if value.startswith("~") else out | names
    return out


class Compared(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint), ("op", ctypes.c_int),
        ("a", ctypes.c_uint64), ("b", ctypes.c_uint64),
    )  # fmt: skip


def confine(path):
    """This process, and what it executes."""
    said = directives(path)
    for name, limit in (("LimitCORE", "RLIMIT_CORE"), ("LimitNOFILE", "RLIMIT_NOFILE")):
        number = int(said[name][0])
        resource.setrlimit(getattr(resource, limit), (number, number))
    libc = ctypes.CDLL(None, use_errno=True)
    names = allowed(said)
    families = [getattr(socket, name) for name in said["RestrictAddressFamilies"][0].split()]
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(DENY)))
    for name in sorted(names - {"socket"}):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            assert not seccomp.seccomp_rule_add(context, ALLOW, number, 0), name
    number = seccomp.seccomp_syscall_resolve_name(b"socket")
    for family in families:
        rule = Compared(0, EQUAL, family, 0)
        assert not seccomp.seccomp_rule_add_array(context, ALLOW, number, 1, ctypes.byref(rule))
    assert said["NoNewPrivileges"] == said["MemoryDenyWriteExecute"] == ["yes"]
    assert not libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if libc.prctl(SET_MDWE, 1, 0, 0, 0):  # before Linux 6.3
        print("MemoryDenyWriteExecute was not tried", file=sys.stderr)
    assert not seccomp.seccomp_load(context)


if __name__ == "__main__":
    confine(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])
