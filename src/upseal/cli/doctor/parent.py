# SPDX-License-Identifier: Apache-2.0
"""What ``upseal doctor`` asks an agent's or relay's parent: that it answers, its clock, its word.

The answers are judged by the very code that agents judge them by, on a copy of what is believed in
a temporary folder: nothing here changes what anybody believes.
"""

from __future__ import annotations

import shutil
import ssl
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upseal.cli.doctor.lines import Line, fail, ok, unknown, warn
from upseal.fleet.agent.membership import TRUST
from upseal.fleet.capabilities import FILE as PARENT_FILE
from upseal.fleet.capabilities import Way
from upseal.fleet.hops import SKEW_MS
from upseal.fleet.http.client import Client, ClientTls, Response, Timeouts, Unreachable
from upseal.fleet.trust import Outcome, Trust

if TYPE_CHECKING:
    from upseal.fleet.agent.settings import Settings as AgentSettings
    from upseal.fleet.relay.settings import Settings as RelaySettings

_MANIFEST_MAX = 16 << 20
_DRIFT_MS = 30_000
"""Clocks that differ by more deserve a look; ``Date`` has whole seconds, and answers take time."""
_OUTCOMES = {
    Outcome.FORGED: (
        "the parent's manifest is signed by no key that is pinned here",
        "another deployment's relay or server answers at `parent`, or somebody in between does: "
        "check the address; do not enrol again before you know",
    ),
    Outcome.FOREIGN: (
        "the parent's manifest is another deployment's",
        "check the address in `parent`, or enrol with this deployment",
    ),
    Outcome.CONTRADICTION: (
        "the parent has another manifest under the serial that is known here",
        "two were signed under one serial: ask who holds the signing key (`upseal admin audit`)",
    ),
    Outcome.INVALID: (
        "the parent's manifest is signed, and not in order",
        "update upseal here, or ask who signs manifests",
    ),
}


@dataclass
class Asked:
    """The two answers, or why there are none."""

    manifest: Response | None = None
    capabilities: Response | None = None
    trouble: str = ""
    sent: int = 0
    """Unix milliseconds, as the request for the manifest went out..."""
    came: int = 0
    """...and as its answer was here."""


def ask(settings: AgentSettings | RelaySettings, serial: int, seconds: float) -> Asked:
    """Two public requests to the parent, and no more.

    Args:
        settings: whose parent.
        serial: of the manifest known here.
        seconds: to connect; each answer may take twice as long.
    """
    asked, http = Asked(), settings.http
    tls = None
    try:
        if settings.parent.startswith("https://"):
            tls = ClientTls(http.ca, http.certificate, http.key)
        client = Client(
            settings.parent, Timeouts(seconds, seconds, 2 * seconds), tls, connections=1
        )
    except (OSError, ValueError) as error:  # a file for TLS
        asked.trouble = f"TLS cannot be set up: {error}"
        return asked
    with client:
        try:
            asked.sent = _now()
            asked.manifest = client.request(
                "GET", f"/v1/manifest?since={serial}", limit=_MANIFEST_MAX
            )
            asked.came = _now()
            asked.capabilities = client.request("GET", "/v1/capabilities", limit=1 << 18)
        except Unreachable as error:
            asked.trouble = _reason(error)
    return asked


def _reason(error: Unreachable) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not believed: {cause.verify_message}"
        cause = cause.__cause__ or cause.__context__
    return str(error)


def reached(settings: Any, asked: Asked) -> Iterator[Line]:
    """Whether it answers."""
    if asked.manifest is None or asked.capabilities is None:
        yield fail(
            "parent",
            f"{settings.parent} does not answer: {asked.trouble}",
            "check the address, the network and that it runs; what is reported waits meanwhile",
        )
        return
    bad = [r.status for r in (asked.manifest, asked.capabilities) if r.status not in (200, 304)]
    if bad:
        yield fail(
            "parent",
            f"{settings.parent} answers with status {bad[0]}",
            "see the parent's own `upseal doctor` and log; a relay that starts has no manifest yet",
        )
    else:
        yield ok("parent", f"{settings.parent} answers")


def clock(asked: Asked) -> Iterator[Line]:
    """Ours against the parent's ``Date``."""
    date = None if asked.manifest is None else asked.manifest.date
    if date is None:
        yield unknown("clock", "the parent does not say what time it is", "see `parent`")
        return
    # Its second has begun somewhere between sending and receiving.
    early, late = asked.sent - date - 1000, asked.came - date
    off = early if early > 0 else min(late, 0)
    if abs(off) > SKEW_MS:
        yield fail(
            "clock",
            f"this clock is {_span(off)} the parent's; more than {SKEW_MS // 60_000} minutes are "
            "refused, and corrected for at each start",
            "set both by NTP (chronyc tracking, timedatectl)",
        )
    elif abs(off) > _DRIFT_MS:
        yield warn("clock", f"this clock is {_span(off)} the parent's", "set both by NTP")
    else:
        yield ok("clock", "as the parent's, to a few seconds")


def _span(milliseconds: int) -> str:
    seconds = abs(milliseconds) / 1000
    words = f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} min"
    return f"{words} {'ahead of' if milliseconds > 0 else 'behind'}"


def believed(settings: Any, asked: Asked) -> Iterator[Line]:
    """Its manifest and capabilities, as an agent would take them."""
    if asked.manifest is None or asked.capabilities is None:
        yield unknown("parent-manifest", "the parent has not answered", "see `parent`")
        return
    with tempfile.TemporaryDirectory(prefix="upseal-doctor-") as name:
        copy = Path(name)
        for file in (TRUST, PARENT_FILE):
            if (settings.directory / file).exists():
                shutil.copyfile(settings.directory / file, copy / file)
        trust = Trust.load(copy / TRUST)
        yield from _manifest(trust, asked.manifest)
        if trust.manifest is not None:
            way = Way(copy / PARENT_FILE, settings.parent, settings.parent_ids)
            yield from _capabilities(way, trust, asked.capabilities)


def _manifest(trust: Trust, answer: Response) -> Iterator[Line]:
    known = trust.manifest
    if answer.status == 304:
        yield ok("parent-manifest", "the parent has the manifest that is known here")
        return
    if answer.status != 200:
        yield unknown(
            "parent-manifest", f"the parent answered with {answer.status}", "see `parent`"
        )
        return
    outcome = trust.offer(answer.body.decode("latin-1").split(), _now())
    if outcome in _OUTCOMES:
        yield fail("parent-manifest", *_OUTCOMES[outcome])
    elif outcome is Outcome.OLDER:
        yield warn(
            "parent-manifest",
            "the parent has an older manifest than is known here",
            "it is behind, or was restored from a backup: see its own `upseal doctor`",
        )
    elif outcome is Outcome.ACCEPTED and trust.manifest is not None:
        serial = "none" if known is None else known.serial
        yield ok(
            "parent-manifest",
            f"the parent has serial {trust.manifest.serial}, here it is {serial}: genuine, and "
            "taken at the next look",
        )
    else:
        yield ok("parent-manifest", "the parent has the manifest that is known here")


def _capabilities(way: Way, trust: Trust, answer: Response) -> Iterator[Line]:
    assert trust.manifest is not None
    if answer.status != 200:
        yield unknown("capabilities", f"the parent answered with {answer.status}", "see `parent`")
        return
    hops = way.hear(answer.body, trust.manifest, _now())
    if way.stranger is not None:
        yield fail(
            "capabilities",
            f"another one answers at the parent's address than is believed: {way.stranger}",
            "if the relay was replaced: `upseal agent forget-parent` (or `upseal relay ...`), or "
            "name it in parent_ids",
        )
    elif not hops:
        yield warn(
            "capabilities",
            "what the parent says of itself is signed by nobody whom the manifest names",
            "if it is a new relay: `upseal admin relays add`; then wait for the next manifest",
        )
    elif not all(hop.accepts_sealed for hop in hops):
        no = next(hop for hop in hops if not hop.accepts_sealed)
        yield warn(
            "capabilities",
            f"{no.subject} takes no sealed reports: `optional` clients send in clear, `required` "
            "ones withhold",
            "update that relay, or `upseal admin relays`",
        )
    else:
        names = [
            "server" if hop.relay is None else hop.relay.name + (", decrypts" * hop.decrypts)
            for hop in hops
        ]
        yield ok("capabilities", f"sealed reports are taken all the way up: {' -> '.join(names)}")


def _now() -> int:
    return time.time_ns() // 1_000_000
