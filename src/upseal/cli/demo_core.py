# SPDX-License-Identifier: Apache-2.0
"""The core's part of ``upseal demo``: this host's own reports and files, checked byte by byte."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from upseal.cli.common import IO, Failure, printable_size, shown, table
from upseal.cli.inventory import gather
from upseal.cli.progress import Steps
from upseal.cli.tree import choose, sha256, tar_stream
from upseal.cli.version import engine_facts

if TYPE_CHECKING:
    from upseal.core.opener import Opener
    from upseal.core.sealer import Sealer

BATCH = 1000
_ROOM = 4
"""Times the upload's size: the plain and the sealed files that stand there at once."""
KEPT = 2
"""Of these, what `--keep` leaves."""
T = TypeVar("T")


def check_room(upload_mib: int, folder: Path) -> None:
    """Says at once if the disk is too full for it."""
    need_room(_ROOM * (upload_mib << 20), folder, "--upload-mib")


def need_room(need: int, folder: Path, option: str) -> None:
    """Says at once if fewer bytes are free; ``option`` is what to lower then."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise Failure(
            IO,
            f"the demo needs {printable_size(need)} in {shown(folder)} and "
            f"{printable_size(free)} are free; set TMPDIR, or give a smaller {option}",
        )


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = work()
    return result, max(time.perf_counter() - start, 1e-9)


def demonstrate(args: argparse.Namespace, folder: Path, steps: Steps) -> dict[str, Any]:
    """Seals, opens and compares; ``match`` says whether all came back."""
    from upseal import Opener, PrivateKey, Sealer, __version__

    begin = time.perf_counter()
    steps("making a key pair")
    key = PrivateKey.generate(args.type)
    sealer, opener = Sealer([key.public_key]), Opener([key])
    if args.keep:
        from upseal.cli.common import write_new

        write_new(str(folder / "key.pem"), key.to_pem(), 0o600)
        write_new(str(folder / "key.pub.pem"), key.public_key.to_pem(), 0o666)
    reports = gather(args.reports, steps("looking at this host"))
    result: dict[str, Any] = {
        "version": __version__,
        **engine_facts(),
        "cipher": str(sealer.cipher),
        "suite": key.public_key.name,
        "key_id": key.key_id.hex(),
        "reports": _reports(reports, sealer, opener, steps, folder if args.keep else None),
        "upload": None,
    }
    match = result["reports"]["match"]
    if args.upload_mib:
        with tempfile.TemporaryDirectory(prefix=".work-", dir=folder) as work:
            upload = _upload(args, Path(work), sealer, opener, steps)
            match = match and upload["sha256_match"]
            result["upload"] = upload
            if args.keep:
                os.replace(Path(work) / "tree.tar", folder / "tree.tar")
                os.replace(Path(work) / "file.sealed", folder / "tree.tar.sealed")
    return {**result, "match": match, "seconds": round(time.perf_counter() - begin, 2)}


def _reports(
    reports: list[bytes], sealer: Sealer, opener: Opener, steps: Steps, keep: Path | None
) -> dict[str, Any]:
    import json

    count, size = len(reports), sum(map(len, reports))
    steps(f"sealing {count} reports as envelopes")
    envelopes, seal_time = _timed(lambda: sealer.seal_many(reports))
    opened, open_time = _timed(lambda: opener.open_many(envelopes))
    right = sum(a == b for a, b in zip(opened, reports, strict=True))
    as_envelopes = _figures(count, size, sum(map(len, envelopes)), seal_time, open_time, right)

    steps(f"sealing {count} reports as batches of {BATCH}")
    parts = [reports[i : i + BATCH] for i in range(0, count, BATCH)]
    batches, seal_time = _timed(lambda: [sealer.seal_batch(part) for part in parts])
    unpacked, open_time = _timed(lambda: [list(opener.open_batch(batch)) for batch in batches])
    again = [report for batch in unpacked for report in batch]
    right = sum(a == b for a, b in zip(again, reports, strict=False))
    as_batches = _figures(count, size, sum(map(len, batches)), seal_time, open_time, right)
    if keep is not None:
        (keep / "reports.ndjson").write_bytes(b"\n".join(reports) + b"\n")
        (keep / "first-report.sealed").write_bytes(envelopes[0])
        for number, batch in enumerate(batches, 1):
            (keep / f"batch-{number:03}.sealed").write_bytes(batch)
    properties = Counter(json.loads(report)["property"] for report in reports)
    return {
        "made": count,
        "opened": min(as_envelopes["opened"], as_batches["opened"]),
        "bytes": size,
        "properties": dict(properties.most_common()),
        "envelopes": as_envelopes,
        "batches": {"batches": len(batches), **as_batches},
        "match": as_envelopes["match"] and as_batches["match"] and len(again) == count,
    }


def _figures(
    count: int, size: int, sealed: int, seal_time: float, open_time: float, right: int
) -> dict[str, Any]:
    return {
        "count": count,
        "opened": right,
        "match": right == count,
        "sealed_bytes": sealed,
        "overhead": sealed - size,
        "overhead_per_report": round((sealed - size) / count, 2),
        "seal_per_s": round(count / seal_time),
        "open_per_s": round(count / open_time),
    }


def _upload(
    args: argparse.Namespace, folder: Path, sealer: Sealer, opener: Opener, steps: Steps
) -> dict[str, Any]:
    """First from tar's pipe and back as a stream; then that tar file, file to file, by threads."""
    from upseal.core.files import open_file, seal_file

    piped, tar, sealed, again = (
        folder / name for name in ("pipe.sealed", "tree.tar", "file.sealed", "again.tar")
    )
    steps("choosing files of this host")
    files, _, folders = choose(args.upload_mib << 20)
    progress = steps("sealing tar's output, through a pipe")
    with tar_stream(files, folder) as stream:
        size, seal_time = _timed(lambda: seal_file(stream, piped, sealer, progress=progress))  # type: ignore[arg-type]
    digest = stream.digest()
    progress = steps("opening it, as a stream")
    with open(piped, "rb", buffering=0) as source, open(tar, "wb", buffering=0) as target:
        _, open_time = _timed(lambda: open_file(source, target, opener, progress=progress))
    steps("checking it")
    pipe = _upload_figures(size, piped, seal_time, open_time, sha256(tar) == digest)
    piped.unlink()

    progress = steps("sealing the tar file, by threads")
    _, seal_time = _timed(lambda: seal_file(tar, sealed, sealer, progress=progress))
    progress = steps("opening it, by threads")
    _, open_time = _timed(lambda: open_file(sealed, again, opener, progress=progress))
    steps("checking it")
    whole = _upload_figures(size, sealed, seal_time, open_time, sha256(again) == digest)
    return {
        "files": len(files),
        "folders": folders,
        "bytes": size,
        "sha256": digest,
        "sha256_match": pipe["sha256_match"] and whole["sha256_match"],
        "pipe": pipe,
        "file": whole,
    }


def _upload_figures(
    size: int, sealed: Path, seal_time: float, open_time: float, match: bool
) -> dict[str, Any]:
    length = sealed.stat().st_size
    return {
        "sha256_match": match,
        "sealed_bytes": length,
        "overhead": length - size,
        "seal_gb_per_s": round(size / 1e9 / seal_time, 3),
        "open_gb_per_s": round(size / 1e9 / open_time, 3),
    }


def in_words(result: dict[str, Any]) -> str:
    """Its table."""
    reports, upload = result["reports"], result["upload"]
    lines = [["", "count", "bytes", "overhead", "each", "sealed", "opened", "", "same"]]
    for name, part in (("envelopes", reports["envelopes"]), ("batches", reports["batches"])):
        lines.append(
            [f"reports as {name}", f"{part['count']:,}", f"{reports['bytes']:,}",
             f"{part['overhead']:,}", f"{part['overhead_per_report']:,.1f}",
             f"{part['seal_per_s']:,}", f"{part['open_per_s']:,}", "reports/s",
             same(part["match"])]
        )  # fmt: skip
    for name, part in (("tar | upseal", upload["pipe"]), ("tar file", upload["file"])) * bool(
        upload
    ):
        lines.append(
            [f"upload, {name}", f"{upload['files']:,}", f"{upload['bytes']:,}",
             f"{part['overhead']:,}", f"{part['overhead']:,}", f"{part['seal_gb_per_s']:.2f}",
             f"{part['open_gb_per_s']:.2f}", "GB/s", same(part["sha256_match"])]
        )  # fmt: skip
    kinds = ", ".join(f"{count} {name}" for name, count in reports["properties"].items())
    top = [
        ["engine", f"{result['engine']}, backend {result['backend']}: {result['reason']}"],
        ["cipher, key", f"{result['cipher']}, {result['suite']} {result['key_id']}"],
        ["reports", kinds],
    ]
    if upload:
        top.append(["upload", f"{upload['files']} files in {', '.join(upload['folders'])}"])
        top.append(["SHA-256", upload["sha256"]])
    note = "upload rates have tar and the disk in them: `upseal bench` measures without"
    end = f"\n{note}\n"
    return table(top) + "\n" + table(lines, right=(1, 2, 3, 4, 5, 6)) + end


def same(match: bool) -> str:
    """For people."""
    return "yes" if match else "NO"
