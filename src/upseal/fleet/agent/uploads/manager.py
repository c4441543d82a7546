# SPDX-License-Identifier: Apache-2.0
"""All that an agent has of uploads: what takes them, what waits, and what is said of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from upseal.core.files import Progress
from upseal.fleet.agent.membership import TRUST
from upseal.fleet.agent.parent import Believed
from upseal.fleet.agent.rows import now_ms
from upseal.fleet.agent.settings import Uploads
from upseal.fleet.agent.spool import Spool
from upseal.fleet.agent.uploads.bodies import Damaged
from upseal.fleet.agent.uploads.folder import Folder
from upseal.fleet.agent.uploads.ledger import Ledger
from upseal.fleet.agent.uploads.making import Maker
from upseal.fleet.agent.uploads.rows import Row, UploadCounters, UploadState
from upseal.fleet.agent.uploads.taking import Contexts, Taker
from upseal.fleet.policy import Absent, Certificate, Level, Parent, Seal, decide
from upseal.fleet.trust import Trust, TrustError

FOLDER = "uploads"
_LISTED = 1000


def remembered(directory: Path) -> Believed:
    """What counts by the newest manifest on the disk; of the parent nothing is known.

    Where that cannot be read, nothing is believed: then a file waits under the spool's own key.
    """
    with suppress(TrustError, OSError):
        return Believed(*Trust.load(directory / TRUST).counting(now_ms()), Parent())
    return Believed(None, Absent.NEVER_SEEN, Parent())


class NoSuchUpload(LookupError):  # noqa: N818 - what is the case
    """None is called so, or more than one begins so."""


class Manager:
    """Safe to share between threads, and between processes that use the same folder.

    Args:
        spool: whose file says what waits.
        directory: the agent's.
        limits: how much may wait.
        deployment: what is sealed for the server is bound to it.
    """

    def __init__(self, spool: Spool, directory: Path, limits: Uploads, deployment: bytes) -> None:
        self.limits = limits
        self.folder = Folder(
            directory / FOLDER, lambda: self.ledger.files(), lambda: self.ledger.settled_files()
        )
        self.ledger = Ledger(spool, self.folder, limits)
        contexts = Contexts(spool, deployment)
        self.maker = Maker(self.folder, self.ledger, contexts)
        self._taker = Taker(spool, self.folder, self.ledger, contexts, limits)

    def take(
        self,
        path: str | bytes | os.PathLike[str],
        name: str | bytes | None,
        progress: Progress | None,
        believed: Believed,
        level: Level,
    ) -> str:
        """As `Taker.take`, with what is believed now; the id in hex."""
        decision = decide(level, believed.certificate, believed.parent)
        certificate = believed.certificate if isinstance(decision, Seal) else None
        if not isinstance(certificate, Certificate):
            certificate = None
        return self._taker.take(path, name, progress, certificate, believed.serial).hex()

    def cancel(self, upload: str) -> str | None:
        """Gives one up that waits.

        Args:
            upload: its id, or how it alone begins: at least four hexadecimal digits.

        Returns:
            Its id; None if it had ended already.

        Raises:
            NoSuchUpload: there is none, or more than one.
            SpoolError: the spool cannot be used.
        """
        row = self._named(upload)
        return row.upload.hex() if self.ledger.end(row, UploadState.CANCELLED) else None

    def _named(self, upload: str) -> Row:
        text = upload.strip().lower()
        found = [row for row in self.ledger.newest(-1) if row.upload.hex().startswith(text)]
        if len(text) < 4 or not found:
            raise NoSuchUpload(f"there is no upload {upload!r}")
        if len(found) > 1:
            raise NoSuchUpload(f"{len(found)} uploads begin with {upload!r}")
        return found[0]

    def state(self, upload: str) -> UploadState | None:
        """What has become of one; None if that is not known any more."""
        row = self.ledger.find(bytes.fromhex(upload))
        return None if row is None else UploadState(row.state)

    def counters(self) -> UploadCounters:
        """As they are on the disk."""
        return self.ledger.counters()

    def status(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Numbers, and the oldest of those that wait.

        Args:
            told: what the sending process said last (`Uploading.snapshot`).
        """
        counters = self.counters()
        jobs = _jobs(told)
        return {
            "made": counters.made,
            "stored": counters.stored,
            "failed": counters.failed,
            "cancelled": counters.cancelled,
            "waiting": counters.waiting,
            "refused": counters.refused,
            "bytes": counters.bytes,
            "most_bytes": self.limits.max_bytes,
            "sent": sum(_number(job.get("sent")) for job in jobs.values()),
            "trouble": told.get("trouble"),
        }

    def listed(self, told: Mapping[str, Any], withheld: bool) -> list[dict[str, Any]]:
        """Each of those that wait, and the newest of those that have ended; oldest first.

        Args:
            told: as in `status`.
            withheld: whether nothing may be sent now.
        """
        jobs = _jobs(told)
        return [
            self._shown(row, jobs.get(row.upload.hex(), {}), withheld)
            for row in self.ledger.newest(_LISTED)
        ]

    def _shown(self, row: Row, job: Mapping[str, Any], withheld: bool) -> dict[str, Any]:
        state, why = row.state, row.why
        sent, of = _number(job.get("sent")), _number(job.get("of"))
        if row.state == UploadState.WAITING.value:
            state, why = str(job.get("stage", state)), job.get("why")
            if withheld and state == UploadState.WAITING.value:
                state = "withheld"
        try:
            name: str | None = os.fsdecode(self.ledger.facts(row).name)
        except Damaged:
            name = None
        percent = 100 if row.state == UploadState.STORED.value else 0
        if of:
            percent = min(100, 100 * sent // of)
        return {
            "upload": row.upload.hex(),
            "name": name,
            "size": row.size,
            "state": state,
            "percent": percent,
            "form": row.form,
            "why": why,
            "made": row.made,
            "ended": row.ended,
        }


def _jobs(told: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What a file says that another process wrote: taken with care."""
    found = told.get("jobs")
    if not isinstance(found, Mapping):
        return {}
    return {str(n): job for n, job in found.items() if isinstance(job, Mapping)}


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
