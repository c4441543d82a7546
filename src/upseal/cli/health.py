# SPDX-License-Identifier: Apache-2.0
"""``health`` of ``upseal agent``, ``relay`` and ``server``: whether the process of a folder lives.

For who looks after containers: no shell, no other program, a word on stderr and an exit code.
"""

from __future__ import annotations

import argparse
import http.client
import json
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

from upseal.cli.common import IO, OK, Failure

if TYPE_CHECKING:
    from upseal.fleet.agent.agent import Agent

ABOUT = ("health", "say nothing and end with 0 if its process runs and gets on, with 4 if not")
_SECONDS = 5.0
_FRESH = 30_000
"""Milliseconds: an agent says how it is every five seconds."""
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - to connect to, not to bind


def add_ready(parser: argparse.ArgumentParser) -> None:
    """``--ready``."""
    parser.add_argument(
        "--ready", action="store_true", help="only if it can also do what it is there for"
    )


def serving(folder: Path, *, tls: bool, ready: bool) -> int:
    """Asks the process whose address stands in the folder, on this host."""
    try:
        address = (folder / "address").read_text("ascii").strip()
    except OSError:
        raise Failure(IO, f"no process serves from {str(folder)!r}; start it") from None
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    host = _EVERYWHERE.get(host, host)
    connection = (
        http.client.HTTPSConnection(host, int(port), timeout=_SECONDS, context=_ourselves())
        if tls
        else http.client.HTTPConnection(host, int(port), timeout=_SECONDS)
    )
    try:
        connection.request("GET", "/readyz" if ready else "/healthz")
        answer = connection.getresponse()
        said = answer.read(1 << 16)
    except ssl.SSLError as error:
        if ready or "ALERT" not in (error.reason or ""):
            raise Failure(IO, f"{address} does not speak TLS with us: {error.reason}") from error
        return OK  # it asks for a certificate that we do not have: it lives
    except (OSError, http.client.HTTPException) as error:
        raise Failure(IO, f"{address} does not answer: {error}; see its log") from error
    finally:
        connection.close()
    if answer.status == 200:
        return OK
    try:
        why = str(json.loads(said).get("why", answer.status))
    except (ValueError, AttributeError):
        why = f"status {answer.status}"
    raise Failure(IO, f"not ready: {why}")


def sending(agent: Agent, *, ready: bool) -> int:
    """What the agent that sends has written down of itself, lately."""
    found = agent.status()
    if not found["running"]:
        raise Failure(IO, "no process sends from this folder; start `upseal agent run`")
    age = time.time() * 1000 - (found["updated"] or 0)
    if age > _FRESH:
        raise Failure(IO, f"the process that sends has said nothing for {age / 1000:.0f} s")
    if ready and found["actual"] == "withheld":
        raise Failure(IO, f"not ready: it withholds everything: {found['why']}")
    return OK


def _ourselves() -> ssl.SSLContext:
    """The certificate is for names that others use. Here it is this host, and nothing is told."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
