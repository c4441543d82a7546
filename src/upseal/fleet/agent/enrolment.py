# SPDX-License-Identifier: Apache-2.0
"""How an agent joins a deployment."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from upseal import PrivateKey
from upseal.fleet.agent.membership import ENROLMENT, SPOOL_KEY, TRUST, Membership
from upseal.fleet.agent.parent import client_for
from upseal.fleet.agent.rows import now_ms
from upseal.fleet.agent.settings import FILE_NAME, Settings, toml_of
from upseal.fleet.credentials import BadEnrolment, Token, enrol_request, open_enrolled
from upseal.fleet.files import make_private_directory, write_private
from upseal.fleet.http.client import Client
from upseal.fleet.http.problems import Problem
from upseal.fleet.identity import SigningKey, load_or_make
from upseal.fleet.manifest import Manifest
from upseal.fleet.trust import Outcome, Trust

_PATIENCE = 30.0
_AGAIN = 1.0


class EnrolmentRefused(Exception):  # noqa: N818 - what happened
    """The other side would not, or what it said did not verify."""


def enrol(settings: Settings, token_text: str) -> Membership:
    """Makes the folder, its keys and its settings, and has them enrolled.

    Nothing is believed that the token does not vouch for: it carries the fingerprint of the key
    that signs manifests, and the manifest names the key that the request is sealed to and those
    that the answer may be signed by. After a failure it can be run again: the keys stay.

    Raises:
        ValueError: the token is none.
        FileExistsError: the folder is one of an enrolled agent.
        EnrolmentRefused: the server refused, or something did not verify.
        Unreachable: no answer came.
        OSError: a file cannot be written.
    """
    token = Token.decode(token_text)
    directory = settings.directory
    if (directory / ENROLMENT).exists():
        raise FileExistsError(17, "is enrolled already", str(directory))
    make_private_directory(directory)
    with client_for(settings.parent, settings.http) as client:
        manifest = first_manifest(client, token, directory)
        identity = load_or_make(directory / "identity.pem", settings.kind)
        hop = load_or_make(directory / "hop.pem", settings.kind)
        _spool_key(directory / SPOOL_KEY, settings.fips)
        member = ask(client, settings.name, token, manifest, identity, hop)
    if not (directory / FILE_NAME).exists():
        write_private(directory / FILE_NAME, toml_of(settings).encode())
    member.save(directory)
    return member


def first_manifest(client: Client, token: Token, directory: Path) -> Manifest:
    """Begins to trust what the token vouches for; also for a relay.

    A token made right after an act names a manifest that relays fetch within seconds: so long an
    older one is asked about again.
    """
    deadline = time.monotonic() + _PATIENCE
    path = directory / TRUST
    while True:
        response = client.request("GET", "/v1/manifest?since=0")
        if response.status != 200:
            problem = response.problem() or "no answer"
            raise EnrolmentRefused(f"the parent has no manifest: {problem}")
        path.unlink(missing_ok=True)  # of an enrolment that did not come to its end
        trust = Trust.start(path, token.fingerprint, token.deployment, token.least_serial)
        try:
            chain = response.body.decode("ascii").split()
        except UnicodeDecodeError:
            chain = []
        outcome = trust.offer(chain, now_ms()) if chain else Outcome.INVALID
        if outcome is Outcome.ACCEPTED and trust.manifest is not None:
            return trust.manifest
        if outcome is not Outcome.OLDER or time.monotonic() >= deadline:
            raise EnrolmentRefused(
                "the parent's manifest is not the one that the token vouches for "
                f"({outcome.name.lower()})"
            )
        time.sleep(_AGAIN)


def ask(
    client: Client,
    name: str,
    token: Token,
    manifest: Manifest,
    identity: SigningKey,
    hop: SigningKey,
    **wishes: Any,
) -> Membership:
    """Asks the server to enrol these keys; a relay's ``wishes`` go along."""
    request = enrol_request(token, manifest, identity, hop, name=name, now_ms=now_ms(), **wishes)
    response = client.request(
        "POST", "/v1/enrol", request, {"content-type": "application/octet-stream"}
    )
    problem = response.problem()
    if problem is not None:
        raise EnrolmentRefused(_words(problem)) from problem
    agent = identity.public.agent_id
    try:
        answer = open_enrolled(response.body, manifest.receivers(), token.deployment, agent)
    except BadEnrolment as error:
        raise EnrolmentRefused(f"the server's answer does not verify: {error}") from None
    return Membership(answer.deployment, answer.agent, answer.credential)


def _words(problem: Problem) -> str:
    return f"the server refuses: {problem.title}" + (f" ({problem.detail})" * bool(problem.detail))


def _spool_key(path: Path, fips: bool) -> None:
    """The agent's own encryption key; one that is there stays, with all that is sealed to it."""
    if not path.exists():
        key = PrivateKey.generate("p256" if fips else "x25519")
        write_private(path, key.to_pem())
