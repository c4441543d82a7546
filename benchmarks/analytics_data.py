# SPDX-License-Identifier: Apache-2.0
"""The Parquet files that `analytics.py` reads: sealed reports as a fleet's agents send them."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import say

from upseal import PrivateKey, Sealer

REPORT = 1024
"""Bytes of each report."""
GROUP = 20_000
"""Rows of a row group, about 23 MB."""
FILE = 250_000
"""Rows of a file, about 290 MB."""
WORDS = 2**64


def dataset(folder: Path, reports: int, sessions: int, together: int) -> dict[str, Any]:
    """What is in the folder; made there if it is not yet, which takes minutes for millions."""
    wanted = {"reports": reports, "sessions": sessions, "together": together, "bytes": REPORT}
    note = folder / "dataset.json"
    if note.is_file():
        found: dict[str, Any] = json.loads(note.read_text())
        if {name: found.get(name) for name in wanted} == wanted:
            return found
        raise SystemExit(f"{folder} holds another dataset; remove it, or name another folder")
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty, and not a dataset; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    _check_room(folder, reports)
    made = {**wanted, **_make(folder, reports, sessions, together)}
    note.write_text(json.dumps(made) + "\n")
    return made


def _check_room(folder: Path, reports: int) -> None:
    found = os.statvfs(folder)
    free, need = found.f_bavail * found.f_frsize, reports * (REPORT + 200)
    if free < 1.1 * need:
        raise SystemExit(f"the dataset takes {need / 1e9:.1f} GB, and {free / 1e9:.1f} are free")


def _make(folder: Path, reports: int, sessions: int, together: int) -> dict[str, Any]:
    key = PrivateKey.generate()
    path = folder / "key.pem"
    path.touch(mode=0o600)
    path.write_bytes(key.to_pem())
    sealers = [Sealer([key.public_key]) for _ in range(min(sessions, reports))]
    random = np.random.default_rng(1)
    # Files of about this size, and two at least, so that two workers have something to read.
    rows_of_file = min(FILE, -(-reports // 2))
    lengths = checks = words = at = 0
    while at < reports:
        end = min(reports, at + rows_of_file)
        with pq.ParquetWriter(
            folder / f"part-{at // rows_of_file:05}.parquet",
            pa.schema([("id", pa.int64()), ("agent", pa.int32()), ("report", pa.binary())]),
            compression="none",  # sealed bytes do not get shorter
            use_dictionary=False,
            write_statistics=["id", "agent"],
        ) as writer:
            while at < end:
                count = min(GROUP, end - at)
                block = random.integers(32, 127, (count, REPORT), np.uint8)
                words += int(block.view(np.uint64).sum(dtype=np.uint64))
                plain = [row.tobytes() for row in block]
                checks += sum(map(zlib.crc32, plain))
                agents, sealed = _sealed(sealers, plain, together, random)
                lengths += sum(map(len, sealed))
                columns = [pa.array(range(at, at + count)), pa.array(agents, pa.int32()), sealed]
                writer.write_table(pa.table(columns, writer.schema), row_group_size=GROUP)
                at += count
        say(f"{at:,} of {reports:,} reports are sealed")
    return {"sealed_bytes": lengths, "crc32": checks, "words": words % WORDS}


def _sealed(
    sealers: list[Sealer], plain: list[bytes], together: int, random: np.random.Generator
) -> tuple[list[int], list[bytes]]:
    """Calls of so many reports, each of an agent that happens to come next."""
    agents: list[int] = []
    sealed: list[bytes] = []
    callers = random.integers(0, len(sealers), -(-len(plain) // together))
    for call, agent in enumerate(callers.tolist()):
        reports = plain[call * together : (call + 1) * together]
        sealed += sealers[agent].seal_many(reports)
        agents += [agent] * len(reports)
    return agents, sealed
