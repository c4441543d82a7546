# SPDX-License-Identifier: Apache-2.0
"""Enrolment: a token becomes an identity with a credential for its hop. Agents and relays alike."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from upseal.core.keys import PrivateKey
from upseal.core.opener import Opener
from upseal.errors import OpenError, UnknownRecipient
from upseal.fleet.credentials import (
    ENROL_MAX,
    EnrolRequest,
    enrolled_answer,
    issue_credential,
    open_enrol_request,
)
from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.seldom import Seldom
from upseal.fleet.identity import SigningKey
from upseal.fleet.manifest import Manifest
from upseal.fleet.server.directory import Directory
from upseal.fleet.server.meters import Meters
from upseal.fleet.server.store import Store, clients, now_ms, relays, tokens
from upseal.fleet.server.store.tokens import Redeemed

REQUEST_MAX = ENROL_MAX
_WHY = {
    Redeemed.UNKNOWN: "the token is not known here",
    Redeemed.EXPIRED: "the token is past its time",
    Redeemed.USED: "the token is used up",
    Redeemed.ROLE: "the token is for the other role",
}
_log = logging.getLogger("upseal.server.enrol")


class Enrolment:
    """Safe to share between threads."""

    def __init__(
        self,
        store: Store,
        deployment: bytes,
        enrol_key: PrivateKey,
        receipt_key: SigningKey,
        directory: Directory,
        manifest: Callable[[], Manifest | None],
        meters: Meters,
        *,
        fips: bool = False,
    ) -> None:
        """Enrols nobody yet; with ``fips`` it will take P-256 keys only."""
        self._fips = fips
        self._store = store
        self._deployment = deployment
        self._opener = Opener([enrol_key], cache=0)
        self._receipt_key = receipt_key
        self._directory = directory
        self._manifest = manifest
        self._meters = meters
        self._refusals = Seldom()

    def enrol(self, sealed: bytes) -> str:
        """The signed answer to a sealed request. The same request again gets the same credential.

        Raises:
            Problem: malformed, clock, token, revoked or conflict.
        """
        try:
            answer = self._enrol(sealed)
        except Problem as problem:
            self._meters.enrolments.labels(problem.name).inc()
            left_out = self._refusals.tell()
            if left_out is not None:
                event(_log, "enrolment refused", level=logging.WARNING, problem=problem.name,
                      why=problem.detail, left_out=left_out)  # fmt: skip
            raise
        self._meters.enrolments.labels("enrolled").inc()
        return answer

    def _enrol(self, sealed: bytes) -> str:
        now = now_ms()
        try:
            request = open_enrol_request(
                sealed, self._opener, self._deployment, lambda said: self._admissible(said, now)
            )
        except UnknownRecipient as error:
            raise Problem("stale-key", "sealed to another enrolment key") from error
        except (OpenError, ValueError) as error:
            raise Problem("malformed", "not an enrolment request for this server") from error
        agent, hop = request.identity.agent_id, request.hop.agent_id
        if self._fips and {request.identity.algorithm, request.hop.algorithm} != {"ES256"}:
            raise Problem("malformed", "this deployment takes P-256 keys only")
        manifest = self._manifest()
        if manifest is not None and {agent, hop} & manifest.revoked_agents:
            raise Problem("revoked")
        try:
            with self._store.writing() as db:
                credential = self._admit(db, request, now)
        except IntegrityError:
            # The hop key, or the first half of the identity's digest, is somebody else's.
            raise Problem("conflict", "this key is enrolled for another client") from None
        self._directory.forget(agent)
        event(_log, "enrolled", agent=agent.hex(), name=request.name, role=request.role)
        return enrolled_answer(request, self._receipt_key, now, credential)

    def _admissible(self, said: EnrolRequest, now: int) -> None:
        """Whoever has no token of ours costs no second public-key operation."""
        with self._store.reading() as db:
            found = tokens.look(db, said.secret, said.agent, said.role, now)
        if found not in (Redeemed.OK, Redeemed.AGAIN):
            raise Problem("token", _WHY[found])

    def _admit(self, db: Connection, request: EnrolRequest, now: int) -> str:
        """In one transaction: the token is used up by an enrolment, and by nothing else."""
        agent, hop = request.identity.agent_id, request.hop.agent_id
        redeemed = tokens.redeem(db, request.secret, agent, request.role, now)
        if redeemed not in (Redeemed.OK, Redeemed.AGAIN):
            raise Problem("token", _WHY[redeemed])
        known = clients.find(db, agent)
        if known is not None and known.identity != request.identity.der:
            raise Problem("conflict", "another identity has this id")
        if known is not None and (known.hop, known.role) == (hop, request.role):
            return known.credential  # the answer was lost on the way
        if redeemed is Redeemed.AGAIN:
            # An old request that somebody has kept must not bring back an old hop.
            raise Problem("token", _WHY[Redeemed.USED])
        credential = issue_credential(
            self._deployment, request.hop, request.role, self._receipt_key, now
        )
        new = clients.Agent(
            agent, request.name, request.identity.der, hop, request.role, credential, now,
            hashlib.sha256(request.secret).digest(),
        )  # fmt: skip
        if known is None:
            clients.add(db, new, request.hop.der)
        else:
            clients.renew(db, new, request.hop.der)
        if request.role == "relay":
            relays.put(
                db, relay=agent, name=request.name, identity=request.identity.der,
                accepts_sealed=request.accepts_sealed, decrypts=request.decrypts, enrolled=now,
            )  # fmt: skip
        return credential
