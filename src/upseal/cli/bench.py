# SPDX-License-Identifier: Apache-2.0
"""``upseal bench``: what this machine can do, and what deployment that is enough for.

By the public API alone. A function of `MEASURES` or `PUBLIC_KEY` makes lines: add one there.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upseal.cli import capacity, stopping
from upseal.cli.capacity import Sink
from upseal.cli.common import (
    OK,
    USAGE,
    Failure,
    check_engine,
    doing,
    positive,
    say,
    say_json,
    table,
)
from upseal.cli.measure import Probe, Row, backends, calibration, interleave, machine
from upseal.cli.progress import Progress
from upseal.cli.version import engine_facts

if TYPE_CHECKING:
    from upseal.core.keys import PrivateKey
    from upseal.core.opener import Opener
    from upseal.core.options import Padding
    from upseal.core.sealer import Sealer

SIZES = (256, 1024, 4096)
MANY = 1000
"""Reports in one call of `seal_many`, and in one batch."""
UPLOAD = 8 << 20
FILE = 32 << 20
SECONDS = 16.0
"""By default, so that with its preparations it is over in 20."""
_BYTES_MAX = 256 << 20


def _number(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be {low:g} to {high:g}")
        return value

    return number


_LOAD: tuple[tuple[str, Callable[[str], object], str], ...] = (
    ("clients", positive, "in all"),
    ("reports_per_hour", _number(1e-3, 1e9), "of one client"),
    ("report_bytes", positive, "bytes of one report"),
    ("upload_bytes_per_day", _number(0, 1e15), "of one client"),
    ("agent_batch", positive, "reports an agent seals in one call"),
    ("batch", positive, "reports a decrypting relay seals in one batch"),
    ("clients_per_relay", positive, "below one relay"),
    ("session_age", _number(1, 1e9), "seconds that a session lasts"),
    ("cache", positive, "sessions that an opener remembers"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument(
        "--seconds",
        type=_number(1e-3, 3600),
        default=SECONDS,
        help=f"time for all of it (default: {SECONDS:.0f})",
    )
    parser.add_argument(
        "--cipher",
        choices=("aes-256-gcm", "chacha20-poly1305", "both"),
        help="default: what is fast on this CPU",
    )
    load, usual = parser.add_argument_group("capacity, for what load"), capacity.Load()
    for name, kind, about in _LOAD:
        default = getattr(usual, name)
        load.add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            default=default,
            metavar="N",
            help=f"{about} (default: {default:,.10g})",
        )
    load.add_argument(
        "--suite",
        choices=("x25519", "p256", "mlkem768-x25519", "rsa2048", "rsa3072", "rsa4096"),
        default=usual.suite,
        help=f"of server and relays (default: {usual.suite})",
    )


def _load_of(args: argparse.Namespace) -> capacity.Load:
    load = capacity.Load(suite=args.suite, **{name: getattr(args, name) for name, _, _ in _LOAD})
    most = max(load.batch, load.agent_batch)
    if load.report_bytes > 16 << 20 or most > 1 << 20 or most * load.report_bytes > _BYTES_MAX:
        raise Failure(
            USAGE,
            "a report is at most 16 MiB, and a batch here 2^20 of them and 256 MiB; "
            "lower --report-bytes, --batch or --agent-batch",
        )
    return load


@dataclass(frozen=True, slots=True)
class Setup:
    """What a measure works with."""

    key: PrivateKey
    sealer: Sealer
    opener: Opener
    cipher: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Line:
    """A row to be timed. ``amount`` is what each of its two works does, in its unit."""

    what: str
    size: int
    seal: Probe
    open: Probe
    unit: str
    overhead: float | None
    cipher: str = ""

    def row(self) -> Row:
        """Once it is timed."""
        return Row(self.what, self.cipher, self.size, self.seal.rate, self.open.rate, self.unit,
                   self.overhead)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    until = time.perf_counter() + args.seconds
    check_engine()
    from upseal import Cipher, Opener, PrivateKey, Sealer, __version__

    load = _load_of(args)
    ciphers = list(Cipher) if args.cipher == "both" else [args.cipher]
    with (
        doing("measure in a temporary folder"),
        tempfile.TemporaryDirectory(prefix="upseal-bench-") as folder,
        Progress("") as progress,
    ):
        progress.show("making keys")
        drift, lines = calibration(), []
        for cipher in ciphers:
            key = PrivateKey.generate("x25519")
            sealer = Sealer([key.public_key], cipher=cipher)
            setup = Setup(key, sealer, Opener([key]), str(sealer.cipher), Path(folder))
            for measure in MEASURES:
                lines += list(measure(setup))
        others = [line for measure in PUBLIC_KEY for line in measure()]
        sized = capacity.Bench(load, None if args.cipher == "both" else args.cipher)
        probes = [drift, *sized.probes]
        for line in [*lines, *others]:
            probes += [line.seal, line.open]
        rounds = interleave(probes, until, lambda done: progress.show(f"measured {done:.0%}"))
        rows, suites = [line.row() for line in lines], [line.row() for line in others]
    facts = {
        "version": __version__,
        **engine_facts(),
        "backends": backends(),
        "machine": machine(),
        "seconds": args.seconds,
        "rounds": rounds,
        "drift": drift.spread,
        "rows": [row.as_dict() for row in rows if not row.what.endswith("padded")],
        "padded": [row.as_dict() for row in rows if row.what.endswith("padded")],
        "suites": [row.as_dict() for row in suites],
        "capacity": capacity.as_facts(load, sized.costs()),
    }
    if args.json:
        say_json(facts)
    else:
        say(_in_words(facts, rows, suites))
    return OK


# -- what is measured ---------------------------------------------------------


def _envelope(setup: Setup) -> Iterator[Line]:
    """One call for each report, in a session that both sides know already."""
    for size in SIZES:
        reports = _reports(size, 64)
        sealed = [setup.sealer.seal(report) for report in reports]
        yield Line(
            "envelope, one by one",
            size,
            Probe(partial(_each, setup.sealer.seal, reports), len(reports)),
            Probe(partial(_each, setup.opener.open, sealed), len(reports)),
            "reports/s",
            len(sealed[0]) - size,
            setup.cipher,
        )


def _many(setup: Setup) -> Iterator[Line]:
    """Independent envelopes, a thousand in a call."""
    for size in SIZES:
        reports = _reports(size, MANY)
        sealed = setup.sealer.seal_many(reports)
        yield Line(
            f"envelopes, {MANY} a call",
            size,
            Probe(partial(setup.sealer.seal_many, reports), MANY),
            Probe(partial(setup.opener.open_many, sealed), MANY),
            "reports/s",
            len(sealed[0]) - size,
            setup.cipher,
        )


def _batch(setup: Setup, padding: Padding | None = None) -> Iterator[Line]:
    """One batch; its opener is not asked to make an object of every report."""
    from upseal import Sealer

    sealer = setup.sealer
    if padding:
        sealer = Sealer([setup.key.public_key], cipher=setup.cipher, padding=padding)
    for size in SIZES:
        reports = _reports(size, MANY)
        sealed = sealer.seal_batch(reports)
        yield Line(
            f"batch of {MANY}" + (", padded" if padding else ""),
            size,
            Probe(partial(sealer.seal_batch, reports), MANY),
            Probe(partial(setup.opener.open_batch, sealed), MANY),
            "reports/s",
            len(sealed) / MANY - size,
            setup.cipher,
        )


def _padded(setup: Setup) -> Iterator[Line]:
    """The same with Padmé."""
    from upseal import Padding

    return _batch(setup, Padding.PADME)


def _session(setup: Setup) -> Iterator[Line]:
    """A new session for every report: what the first contact costs, public-key work included."""
    from upseal import Limits, Opener, Sealer

    report = os.urandom(SIZES[1])
    sealer = Sealer([setup.key.public_key], Limits(max_messages=1), cipher=setup.cipher)
    sealed = sealer.seal(report)
    yield Line(
        "new session (x25519)",
        len(report),
        Probe(partial(sealer.seal, report)),
        Probe(partial(Opener([setup.key], cache=0).open, sealed)),
        "sessions/s",
        len(sealed) - len(report),
        setup.cipher,
    )


def _upload_in_memory(setup: Setup) -> Iterator[Line]:
    """One thread, no files: the writer and the reader."""
    data = os.urandom(1 << 20) * (UPLOAD >> 20)
    sink = io.BytesIO()
    with setup.sealer.writer(sink) as writer:
        writer.write(data)
    sealed = sink.getvalue()
    buffer = memoryview(bytearray(1 << 20))

    def seal() -> None:
        with setup.sealer.writer(Sink()) as writer:  # type: ignore[arg-type]
            writer.write(data)

    def opened() -> None:
        with setup.opener.reader(io.BytesIO(sealed)) as reader:
            while reader.readinto(buffer):
                pass

    work = Probe(seal, UPLOAD / 1e9), Probe(opened, UPLOAD / 1e9)
    yield Line("upload, in memory", UPLOAD, *work, "GB/s", len(sealed) - UPLOAD, setup.cipher)


def _upload_files(setup: Setup) -> Iterator[Line]:
    """File to file with the default threads, in the page cache: by the clock on the wall."""
    from upseal import open_file, seal_file

    names = ("plain", f"sealed-{setup.cipher}", "opened")
    plain, sealed, again = (setup.folder / name for name in names)
    plain.write_bytes(os.urandom(1 << 20) * (FILE >> 20))
    seal = partial(seal_file, plain, sealed, setup.sealer)
    seal()
    work = (
        Probe(seal, FILE / 1e9, time.perf_counter),
        Probe(partial(open_file, sealed, again, setup.opener), FILE / 1e9, time.perf_counter),
    )
    overhead = sealed.stat().st_size - FILE
    yield Line("upload, file to file", FILE, *work, "GB/s", overhead, setup.cipher)


def _suites() -> Iterator[Line]:
    """A session secret, wrapped and unwrapped; the bytes of it."""
    from upseal import PrivateKey
    from upseal.core.keys import KINDS

    for kind in KINDS:
        stopping.check()
        key, secret = PrivateKey.generate(kind), os.urandom(32)
        wrapped = key.public_key.wrap(secret)
        work = Probe(partial(key.public_key.wrap, secret)), Probe(partial(key.unwrap, wrapped))
        yield Line(f"wrap, unwrap: {kind}", 32, *work, "secrets/s", len(wrapped) - 32)


MEASURES: list[Callable[[Setup], Iterator[Line]]] = [
    _envelope,
    _many,
    _batch,
    _session,
    _upload_in_memory,
    _upload_files,
    _padded,
]
"""For each cipher."""
PUBLIC_KEY: list[Callable[[], Iterator[Line]]] = [_suites]
"""Where the cipher does not matter."""


def _reports(size: int, count: int) -> list[bytes]:
    whole = os.urandom(size * count)
    return [whole[i * size : (i + 1) * size] for i in range(count)]


def _each(work: Callable[[bytes], object], items: list[bytes]) -> None:
    for item in items:
        work(item)


# -- in words -----------------------------------------------------------------


def _in_words(facts: dict[str, Any], rows: list[Row], suites: list[Row]) -> str:
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
        ["drift", f"{facts['drift']:.0%} between the rounds, of {facts['rounds']}"],
    ]
    lines = [["", "cipher", "bytes", "sealed", "opened", "", "overhead"]]
    for row in [*rows, *suites]:
        lines.append(
            [row.what, row.cipher, f"{row.size:,}", _rate(row.seal), _rate(row.open), row.unit,
             "" if row.overhead is None else f"{row.overhead:,.1f}"]
        )  # fmt: skip
    note = (
        "medians of CPU time, so for one core; file to file: elapsed time, with threads, files "
        "stay in\nthe page cache; overhead: bytes that sealing adds, with one x25519 recipient\n"
    )
    rest = capacity.in_words(facts["capacity"])
    return table(top) + "\n" + table(lines, right=(2, 3, 4, 6)) + "\n" + note + "\n" + rest


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
