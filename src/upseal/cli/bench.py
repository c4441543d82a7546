# SPDX-License-Identifier: Apache-2.0
"""``upseal bench``: what the engine does on this machine, by the public API alone.

A row is made by a function of `MEASURES`: add one there.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upseal.cli import stopping
from upseal.cli.common import OK, check_engine, doing, say, say_json, table
from upseal.cli.measure import Row, backends, machine, per_second
from upseal.cli.progress import Progress
from upseal.cli.version import engine_facts

if TYPE_CHECKING:
    from upseal.core.keys import PrivateKey
    from upseal.core.opener import Opener
    from upseal.core.sealer import Sealer

SIZES = (256, 1024, 4096)
MANY = 1000
"""Reports in one call of `seal_many`, and in one batch."""
UPLOAD = 32 << 20
FILE = 64 << 20
_MEASUREMENTS = 2 * (3 * len(SIZES) + 3)
"""Timings in a run for one cipher, to share the time among them."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument(
        "--seconds", type=_seconds, default=10.0, help="time for all of it (default: 10)"
    )
    parser.add_argument(
        "--cipher",
        choices=("aes-256-gcm", "chacha20-poly1305", "both"),
        help="default: what is fast on this CPU",
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError("must be above 0 and at most 3600")
    return value


@dataclass(frozen=True, slots=True)
class Setup:
    """What a measure works with."""

    key: PrivateKey
    sealer: Sealer
    opener: Opener
    cipher: str
    folder: Path
    seconds: float
    """For one timing."""

    def row(
        self,
        what: str,
        size: int,
        work: tuple[Callable[[], object], Callable[[], object]],
        amount: float,
        unit: str,
        overhead: float | None,
    ) -> Row:
        """Times sealing and opening; each call of ``work`` does ``amount``."""
        stopping.check()
        seal, opened = (per_second(each, amount, self.seconds) for each in work)
        return Row(what, self.cipher, size, seal, opened, unit, overhead)


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    check_engine()
    from upseal import Cipher, Opener, PrivateKey, Sealer, __version__

    ciphers = list(Cipher) if args.cipher == "both" else [args.cipher]
    key = PrivateKey.generate("x25519")
    rows: list[Row] = []
    with (
        doing("measure in a temporary folder"),
        tempfile.TemporaryDirectory(prefix="upseal-bench-") as folder,
        Progress("") as progress,
    ):
        for cipher in ciphers:
            sealer = Sealer([key.public_key], cipher=cipher)
            share = args.seconds / _MEASUREMENTS / len(ciphers)
            setup = Setup(
                key, sealer, Opener([key]), str(sealer.cipher), Path(folder), max(share, 1e-3)
            )
            for measure in MEASURES:
                for row in measure(setup):
                    rows.append(row)
                    progress.show(f"measured {row.what}, {row.cipher}")
    facts = {
        "version": __version__,
        **engine_facts(),
        "backends": backends(),
        "machine": machine(),
        "seconds": args.seconds,
        "rows": [row.as_dict() for row in rows],
    }
    if args.json:
        say_json(facts)
    else:
        say(_in_words(facts, rows))
    return OK


# -- what is measured ---------------------------------------------------------


def _envelope(setup: Setup) -> Iterator[Row]:
    """One call for each report, in a session that both sides know already."""
    for size in SIZES:
        reports = _reports(size, 64)
        sealed = [setup.sealer.seal(report) for report in reports]
        work = (
            partial(_each, setup.sealer.seal, reports),
            partial(_each, setup.opener.open, sealed),
        )
        overhead = len(sealed[0]) - size
        yield setup.row("envelope, one by one", size, work, len(reports), "reports/s", overhead)


def _many(setup: Setup) -> Iterator[Row]:
    """Independent envelopes, a thousand in a call."""
    for size in SIZES:
        reports = _reports(size, MANY)
        sealed = setup.sealer.seal_many(reports)
        work = (
            partial(setup.sealer.seal_many, reports),
            partial(setup.opener.open_many, sealed),
        )
        overhead = len(sealed[0]) - size
        yield setup.row(f"envelopes, {MANY} a call", size, work, MANY, "reports/s", overhead)


def _batch(setup: Setup) -> Iterator[Row]:
    """One batch; its opener is not asked to make an object of every report."""
    for size in SIZES:
        reports = _reports(size, MANY)
        sealed = setup.sealer.seal_batch(reports)
        work = (
            partial(setup.sealer.seal_batch, reports),
            partial(setup.opener.open_batch, sealed),
        )
        overhead = len(sealed) / MANY - size
        yield setup.row(f"batch of {MANY}", size, work, MANY, "reports/s", overhead)


def _session(setup: Setup) -> Iterator[Row]:
    """A new session for every report: what the first contact costs, public-key work included."""
    from upseal import Opener, Sealer

    report = os.urandom(SIZES[1])
    sealed = setup.sealer.seal(report)

    def seal() -> object:
        return Sealer([setup.key.public_key], cipher=setup.cipher).seal(report)

    def opened() -> object:
        return Opener([setup.key], cache=0).open(sealed)

    overhead = len(sealed) - len(report)
    work = (seal, opened)
    yield setup.row("new session (x25519)", len(report), work, 1, "sessions/s", overhead)


def _upload_in_memory(setup: Setup) -> Iterator[Row]:
    """One thread, no files: the writer and the reader."""
    data = os.urandom(1 << 20) * (UPLOAD >> 20)
    sink = io.BytesIO()
    with setup.sealer.writer(sink) as writer:
        writer.write(data)
    sealed = sink.getvalue()
    buffer = memoryview(bytearray(1 << 20))

    def seal() -> None:
        with setup.sealer.writer(_Sink()) as writer:  # type: ignore[arg-type]
            writer.write(data)

    def opened() -> None:
        with setup.opener.reader(io.BytesIO(sealed)) as reader:
            while reader.readinto(buffer):
                pass

    overhead = len(sealed) - UPLOAD
    yield setup.row("upload, in memory", UPLOAD, (seal, opened), UPLOAD / 1e9, "GB/s", overhead)


def _upload_files(setup: Setup) -> Iterator[Row]:
    """File to file with the default threads, in the page cache."""
    from upseal import open_file, seal_file

    plain, sealed, again = (setup.folder / name for name in ("plain", "sealed", "opened"))
    plain.write_bytes(os.urandom(1 << 20) * (FILE >> 20))

    def seal() -> object:
        return seal_file(plain, sealed, setup.sealer)

    def opened() -> object:
        return open_file(sealed, again, setup.opener)

    seal()
    overhead = sealed.stat().st_size - FILE
    yield setup.row("upload, file to file", FILE, (seal, opened), FILE / 1e9, "GB/s", overhead)


MEASURES: list[Callable[[Setup], Iterator[Row]]] = [
    _envelope,
    _many,
    _batch,
    _session,
    _upload_in_memory,
    _upload_files,
]
"""Each yields rows. Change `_MEASUREMENTS` with it, so that ``--seconds`` stays true."""


class _Sink:
    def write(self, data: bytes) -> int:
        return len(data)


def _reports(size: int, count: int) -> list[bytes]:
    whole = os.urandom(size * count)
    return [whole[i * size : (i + 1) * size] for i in range(count)]


def _each(work: Callable[[bytes], object], items: list[bytes]) -> None:
    for item in items:
        work(item)


# -- in words -----------------------------------------------------------------


def _in_words(facts: dict[str, Any], rows: list[Row]) -> str:
    host = facts["machine"]
    aes = {True: "yes", False: "no", None: "not known"}[host["cpu_has_aes"]]
    built_in = ", ".join(
        f"{b['name']}{'' if b['works'] else ' (does not work here)'}" for b in facts["backends"]
    )
    top = [
        ["upseal", facts["version"]],
        ["engine", f"{facts['engine']}, backend {facts['backend']} ({facts['backend_version']})"],
        ["why", facts["reason"]],
        ["built in", built_in or "none: the C core is not built"],
        ["CPU", f"{host['cpu']}, AES instructions: {aes}"],
        ["cores", f"{host['usable_cores']} of {host['cores']}"],
        ["system", f"{host['os']}, {host['python']}"],
    ]
    lines = [["", "cipher", "bytes", "sealed", "opened", "", "overhead"]]
    for row in rows:
        lines.append(
            [row.what, row.cipher, f"{row.size:,}", _rate(row.seal), _rate(row.open), row.unit,
             "" if row.overhead is None else f"{row.overhead:,.1f}"]
        )  # fmt: skip
    note = (
        "medians; overhead: bytes that sealing adds to one, with one x25519 recipient; "
        "files stay in the page cache\n"
    )
    return table(top) + "\n" + table(lines, right=(2, 3, 4, 6)) + "\n" + note


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
