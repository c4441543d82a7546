# SPDX-License-Identifier: Apache-2.0
"""How an act is done: looked at first, then checked again and written in one transaction.

The first look refuses early, before anybody is asked for a passphrase; a dry run ends there. In the
second all is checked again, and the new manifest goes in only if the newest is still the one that
was looked at, so of two administrators at once one wins and the other is told. What must be on disk
before the database names it (a private key) is written before; what may only go once it is no
longer named, after.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from upseal.fleet import jws
from upseal.fleet.admin import renewing
from upseal.fleet.admin.folder import sweep
from upseal.fleet.admin.refusals import Overtaken, Refused, Unusable
from upseal.fleet.identity import SigningKey
from upseal.fleet.manifest import MANIFEST_MAX, Manifest, ManifestError
from upseal.fleet.server.store import audit, manifests

if TYPE_CHECKING:
    from upseal.fleet.admin.authority import Authority
    from upseal.fleet.admin.opened import Opened

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
_SLACK_MS = 300_000
_TRIES = 5
_NAMED = 1000  # orphans in a row of the audit log


@dataclass(frozen=True)
class View:
    """The deployment at one moment, inside a transaction."""

    db: Connection
    now: int
    manifest: Manifest
    token: str
    """The manifest as it was signed."""

    @property
    def signer_id(self) -> str:
        """Key id of who signed it."""
        return jws.key_in(self.token, limit=MANIFEST_MAX).key_id.hex()


@dataclass(frozen=True)
class Tools:
    """What makes a manifest: given to `Plan.build`, read before the transaction."""

    signer: SigningKey
    authority: Authority | None


Build = Callable[[Tools], Manifest]
Write = Callable[[Manifest], None]


@dataclass(frozen=True)
class Plan:
    """What an act would do, found by looking only."""

    act: str
    what: str
    """The act in words, for messages: "enable encryption"."""
    build: Build | None = None
    """The new manifest; its serial, times and authorities are filled in. None: no new one."""
    write: Write | None = None
    """Further rows, in the same transaction."""
    finish: Callable[[Manifest], None] | None = None
    """After the commit: deletes files that nothing names any more."""
    unchanged: bool = False
    certifies: bool = False
    orphans: tuple[Any, ...] = ()
    messages: tuple[str, ...] = ()
    refusals: tuple[Refused, ...] = ()
    """What stands in the way but may be forced; what may not is raised."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """For the audit log."""
    result: Mapping[str, Any] = field(default_factory=dict)
    """For the caller; also what no log may hold, as a token."""


@dataclass(frozen=True)
class Outcome:
    """What came of an act."""

    changed: bool
    """In a dry run: whether the act would change anything."""
    manifest: Manifest
    """The newest one; after a dry run still the old."""
    orphans: tuple[Any, ...] = ()
    messages: tuple[str, ...] = ()
    refusals: tuple[Refused, ...] = ()
    """What was overridden; in a dry run what would have to be."""
    dry_run: bool = False
    result: Mapping[str, Any] = field(default_factory=dict)


def perform(
    deployment: Opened,
    plan: Callable[[View], Plan],
    *,
    dry_run: bool,
    force: bool,
    prepare: Callable[[Plan], None] | None = None,
    abandon: Callable[[], None] | None = None,
    next_signer: bool = False,
    authority: Authority | None = None,
) -> Outcome:
    """Does what ``plan`` finds, or says why not.

    Args:
        deployment: whose.
        plan: looks and finds; called twice, so it must change nothing itself.
        dry_run: only look.
        force: override what may be.
        prepare: makes what must be on disk before the database names it.
        abandon: undoes ``prepare`` where the act was not done after all.
        next_signer: the new manifest is signed by the announced key.
        authority: certifies in place of the deployment's.

    Raises:
        Refused: and why; nothing has changed.
    """
    with deployment.view() as view:
        first = plan(view)
        refusals = (*_clock(first, view), *first.refusals)
        if dry_run or first.unchanged or (refusals and not force):
            if refusals and not (dry_run or force):
                raise refusals[0]
            return Outcome(
                not first.unchanged, view.manifest, first.orphans, first.messages, refusals,
                dry_run, first.result,
            )  # fmt: skip
    # Outside of the transaction: somebody may be asked for a passphrase.
    serial = view.manifest.serial
    tools = None
    if first.build is not None:
        certifies = first.certifies or renewing.is_due(deployment, view)
        signer = deployment.signer(view, announced=next_signer)
        if certifies and authority is None:
            authority = deployment.authority()
        tools = Tools(signer, authority)
    try:
        if prepare is not None:
            prepare(first)
        outcome, finish = _write(deployment, plan, serial, tools, force, first.what)
    except BaseException:
        if abandon is not None:
            with suppress(Refused, SQLAlchemyError, OSError):
                abandon()
        raise
    try:
        deployment.remember()
        if finish is not None:
            finish(outcome.manifest)
        sweep(deployment.folder, outcome.manifest.oldest_generation)
    except OSError as error:  # the act is done, and must not look as if it were not
        note = f"done, but a file could not be put in order: {error}; the next act tries again"
        return replace(outcome, messages=(*outcome.messages, note))
    return outcome


def _write(
    deployment: Opened,
    plan: Callable[[View], Plan],
    serial: int,
    tools: Tools | None,
    force: bool,
    what: str,
) -> tuple[Outcome, Callable[[Manifest], None] | None]:
    """The transaction; once more where the database could not put it beside another's."""
    for attempt in range(_TRIES):
        try:
            with deployment.view(writing=True) as view:
                found = plan(view)
                if view.manifest.serial != serial:
                    raise Overtaken(found.what)
                refusals = (*_clock(found, view), *found.refusals)
                if refusals and not force:  # since the first look
                    raise refusals[0]
                manifest = view.manifest
                if found.build is not None and tools is not None:
                    manifest = _sign(deployment, view, found, tools)
                if found.write is not None:
                    found.write(manifest)
                audit.append(
                    view.db, who(), found.act, _details(found, refusals, serial, manifest), view.now
                )
                outcome = Outcome(
                    True, manifest, found.orphans, found.messages, refusals, False, found.result
                )
            return outcome, found.finish
        except IntegrityError as error:  # a serial or a place in the audit log that is taken
            if attempt + 1 == _TRIES:
                raise Overtaken(what) from error
        except DBAPIError as error:
            if attempt + 1 == _TRIES or getattr(error.orig, "sqlstate", None) not in _SERIAL:
                raise
            time.sleep(0.05 * (attempt + 1))
    raise AssertionError("unreachable")


_SERIAL = ("40001", "40P01")  # serialization failure, deadlock


def take_turn(db: Connection) -> None:
    """PostgreSQL: acts follow one another. SQLite's writers do in any case.

    It is the first statement, so that the transaction sees what was there once it had its turn.
    """
    if db.dialect.name == "postgresql":
        db.execute(text("LOCK TABLE audit IN EXCLUSIVE MODE"))


def _sign(deployment: Opened, view: View, found: Plan, tools: Tools) -> Manifest:
    """Builds, signs and stores the next manifest; never one that agents would not take."""
    assert found.build is not None
    days = deployment.settings.manifest_days
    issued = max(view.now, view.manifest.issued) if _behind(view) <= _SLACK_MS else view.now
    manifest = replace(
        found.build(tools),
        deployment=view.manifest.deployment,
        serial=view.manifest.serial + 1,
        issued=issued,
        expires=issued + days * DAY_MS,
    )
    manifest = renewing.renewed(deployment, view, manifest, tools.authority)
    if tools.signer.public not in view.manifest.signing_keys:
        raise Overtaken(found.what)  # the key was changed since it was read
    try:
        token = manifest.sign(tools.signer)  # refuses what agents would not take
    except ManifestError as error:
        raise Unusable(
            found.what,
            f"no agent would take the manifest: {error}",
            "check the clock, the CA and the signing key",
        ) from error
    changed = set(manifest.signing_keys) != set(view.manifest.signing_keys)
    manifests.add(view.db, manifest.serial, token, changed_signing_keys=changed, issued=issued)
    return manifest


def _behind(view: View) -> int:
    """Milliseconds that the clock stands before the newest manifest."""
    return view.manifest.issued - view.now


def _clock(found: Plan, view: View) -> Sequence[Refused]:
    if found.build is None or _behind(view) <= _SLACK_MS:
        return ()
    seconds = _behind(view) // 1000
    return (
        Refused(
            found.what,
            f"the clock stands {seconds} seconds before the time of the newest manifest",
            "set the clock, or sign with this time by --force",
        ),
    )


def _details(
    found: Plan, refusals: Sequence[Refused], serial: int, manifest: Manifest
) -> dict[str, Any]:
    details: dict[str, Any] = {"serial": [serial, manifest.serial], **found.details}
    details["forced"] = [refused.name for refused in refusals]
    if found.orphans:
        details["orphans"] = [orphan.agent.hex() for orphan in found.orphans[:_NAMED]]
        details["orphan_count"] = len(found.orphans)
    return details


def who() -> str:
    """The user of the operating system; not what the environment says."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"uid {uid}"
    sudo = os.environ.get("SUDO_USER")
    return f"{name} (sudo by {sudo})" if uid == 0 and sudo and sudo.isprintable() else name
