# SPDX-License-Identifier: Apache-2.0
"""What the tests of distributed engines share: sealed columns, and where keys must not be."""

import base64
import os
import random
import re
from contextlib import suppress
from pathlib import Path

from upseal import PrivateKey, Sealer

COUNTING = """
import os
from upseal import PrivateKey

class Counted:
    def __init__(self):
        with open(os.environ["COUNTED_KEY"], "rb") as file:
            self._key = PrivateKey.from_pem(file.read())
        self.suite, self.key_id = self._key.suite, self._key.key_id
        told("read")
    def unwrap(self, wrapped):
        told("unwrap")
        return self._key.unwrap(wrapped)

def told(what):
    with open(os.environ["COUNTED"], "a") as file:
        file.write(f"{os.getpid()} {what}\\n")

def key():
    return Counted()
"""
"""A module for a worker: its key tells when it is read, and when it unwraps."""


def key_file(folder, name="server.pem"):
    """A key, and the reference to it."""
    key = PrivateKey.generate()
    path = Path(folder) / name
    path.write_bytes(key.to_pem())
    path.chmod(0o600)
    return key, f"file:{path}"


def fleet_reports(key, count, sessions=7, context=b""):
    """Reports, and envelopes of them as a fleet's agents make them: many sessions, all mixed."""
    sealers = [Sealer([key.public_key]) for _ in range(sessions)]
    choose = random.Random(count)
    reports = [b"secret report %d " % i * choose.randrange(1, 9) for i in range(count)]
    return reports, [choose.choice(sealers).seal(report, context) for report in reports]


def forms(key):
    """The private key as it might stand somewhere: as it is, in hex, in base64, in PEM."""
    raw = key.parts[0].private_bytes_raw()
    body = key.to_pem().splitlines()[1]
    return [raw, raw.hex().encode(), base64.b64encode(raw), body]


def files_with(folder, needles):
    """The files below that hold one of them."""
    found = []
    for path in Path(folder).rglob("*"):
        with suppress(OSError):  # sockets, and what is removed meanwhile
            if path.is_file():
                data = path.read_bytes()
                if any(needle in data for needle in needles):
                    found.append(str(path))
    return found


def in_memory(pid, needles):
    """Which of them stand in what this process may write to."""
    found = set()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            begin, end, mode = re.match(r"(\w+)-(\w+) (\S+)", line).groups()
            if not mode.startswith("rw"):
                continue
            at, end = int(begin, 16), int(end, 16)
            while at < end:
                with suppress(OSError, OverflowError, ValueError):  # pages that cannot be read
                    memory.seek(at)
                    data = memory.read(min(1 << 26, end - at))
                    found.update(needle for needle in needles if needle in data)
                at += (1 << 26) - 4096  # some more once again: for what stands across
    return found


def descendants(pid):
    """All processes that this one started, and they, and so on: number and command."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    below, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - below
        below |= new
    found = {}
    for child in below:
        with suppress(OSError):
            found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found
