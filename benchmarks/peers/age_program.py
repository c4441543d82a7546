# SPDX-License-Identifier: Apache-2.0
"""The program ``age``."""

from __future__ import annotations

import subprocess
from pathlib import Path

from peers.base import Peer, find_program, pipe, run, scratch


class Age(Peer):
    """X25519 recipient; ChaCha20-Poly1305 in pieces of 64 KiB."""

    name = "age (program)"
    amortises = "nothing; its process is started for each report"
    program = True
    reports = True
    files = True

    def __init__(self) -> None:
        self._age = find_program("age")
        folder = scratch()
        self._key = folder / "key.txt"
        made = subprocess.run(
            [find_program("age-keygen"), "-o", self._key],
            capture_output=True,
            text=True,
            check=True,
        )
        self._public = made.stderr.split()[-1]

    def version(self) -> str:
        done = subprocess.run([self._age, "--version"], capture_output=True, text=True, check=False)
        return f"age {done.stdout.strip()}"

    def seal(self, report: bytes) -> bytes:
        return pipe([self._age, "-r", self._public], report)

    def open(self, sealed: bytes) -> bytes:
        return pipe([self._age, "-d", "-i", self._key], sealed)

    def seal_file(self, source: Path, target: Path) -> int:
        return run([self._age, "-r", self._public, "-o", target, source])

    def open_file(self, source: Path, target: Path) -> int:
        return run([self._age, "-d", "-i", self._key, "-o", target, source])


PEERS = [Age]
