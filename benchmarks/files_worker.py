# SPDX-License-Identifier: Apache-2.0
"""One contestant of `files.py`, in a process of its own: so its peak memory is its own.

Reads ``[operation, source, target]`` as JSON lines, answers ``{"seconds", "peak_kib"}``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter

import peers
from machine import peak_kib, peak_reset
from peers.base import MissingError, Peer, run, scratch


class Upseal(Peer):
    """`seal_file` and `open_file`; a fresh session, to one X25519 recipient, for each."""

    package = "upseal"
    amortises = "nothing: public-key work included"
    files = True

    def __init__(self, threads: int) -> None:
        from upseal import PrivateKey, open_file, seal_file

        self._threads, self._key = threads, PrivateKey.generate("x25519")
        self._seal, self._open = seal_file, open_file

    def seal_file(self, source: Path, target: Path) -> None:
        self._seal(source, target, [self._key.public_key], threads=self._threads)

    def open_file(self, source: Path, target: Path) -> None:
        self._open(source, target, [self._key], threads=self._threads)


class UpsealProgram(Peer):
    """The command line, from start to end of the process."""

    program = True
    files = True

    def __init__(self) -> None:
        from upseal import PrivateKey

        key = PrivateKey.generate("x25519")
        folder = scratch()
        self._private, self._public = folder / "key", folder / "public"
        self._private.write_bytes(key.to_pem())
        self._private.chmod(0o600)
        self._public.write_bytes(key.public_key.to_pem())
        self._upseal = [sys.executable, "-m", "upseal"]

    def seal_file(self, source: Path, target: Path) -> int:
        return run([*self._upseal, "seal", "-r", self._public, "-o", target, source])

    def open_file(self, source: Path, target: Path) -> int:
        return run([*self._upseal, "open", "-i", self._private, "-o", target, source])


def contestant(name: str) -> Peer:
    """``upseal:THREADS``, ``upseal-program``, or a peer's module and class."""
    if name == "upseal-program":
        return UpsealProgram()
    if name.startswith("upseal:"):
        return Upseal(int(name.partition(":")[2]))
    return peers.one(name)


def main() -> None:
    """See the module."""
    try:
        peer = contestant(sys.argv[1])
    except (MissingError, ImportError) as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    ready = {"version": peer.version(), "amortises": peer.amortises, "program": peer.program}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        operation, source, target = json.loads(line)
        work = peer.seal_file if operation == "seal" else peer.open_file
        peak_reset()
        start = perf_counter()
        try:
            own = work(Path(source), Path(target))
        except Exception as error:  # this contestant's fault: the others go on
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
            continue
        seconds = perf_counter() - start
        peak = peak_kib() if own is None else own
        print(json.dumps({"seconds": seconds, "peak_kib": peak}), flush=True)


if __name__ == "__main__":
    main()
