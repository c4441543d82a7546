# SPDX-License-Identifier: Apache-2.0
"""``cp``: what a file costs that is not sealed at all."""

from __future__ import annotations

from pathlib import Path

from peers.base import Peer, find_program, run


class Copy(Peer):
    """GNU ``cp``, told to copy: a shared extent is no copy."""

    name = "cp"
    amortises = "seals nothing"
    program = True
    files = True

    def __init__(self) -> None:
        self._cp = find_program("cp")

    def seal_file(self, source: Path, target: Path) -> int:
        return run([self._cp, "--reflink=never", source, target])

    open_file = seal_file


PEERS = [Copy]
