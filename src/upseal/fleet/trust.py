# SPDX-License-Identifier: Apache-2.0
"""What an agent or relay believes: the newest manifest it verified, and whose word counts next.

It begins with what a token says: the fingerprint of the key that signs, and the least serial. From
then on it follows signed manifests, upwards only, over restarts too, since what is believed is on
the disk before anybody acts on it. Whatever else is offered changes nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Self

from upseal.core.forks import renew_in_children
from upseal.fleet import jws
from upseal.fleet.chain import Chain, Link
from upseal.fleet.files import FileLock, make_private_directory, read_private, write_private
from upseal.fleet.files import write_new_private as write_new
from upseal.fleet.identity import VerifyKey
from upseal.fleet.jws import JwsError
from upseal.fleet.manifest import MANIFEST_MAX, Manifest, ManifestError, check_certificates
from upseal.fleet.policy import Absent, Certificate
from upseal.fleet.trust_file import ALARMS_MAX, Alarm, Kept, TrustError

__all__ = ["Alarm", "Outcome", "Trust", "TrustError"]

TOKENS_MAX = 300
"""Manifests looked at in one offer: a whole chain fits."""
_FILE_MAX = 512 << 20


class Outcome(Enum):
    """What became of an offer."""

    ACCEPTED = "accepted"
    """There is a newer manifest."""
    SAME = "same"
    """It is the one that is believed already."""
    OLDER = "older"
    """Genuine, but older than what was seen: rolled back, or only late."""
    FORGED = "forged"
    """Not signed by a key that counts."""
    CONTRADICTION = "contradiction"
    """Genuine, with the serial of the one believed and other words: an alarm."""
    INVALID = "invalid"
    """Signed, but no manifest: its form, or a certificate in it, is wrong."""
    FOREIGN = "foreign"
    """Another deployment's."""


@dataclass(frozen=True, slots=True)
class _Believed:
    """All that counts, at one moment. Replaced as a whole, so that a reader needs no lock."""

    manifest: Manifest | None
    chain: Chain
    alarms: tuple[Alarm, ...]
    mark: tuple[int, ...]
    """Which file on the disk it is."""


class Trust:
    """Safe for threads, and for several processes with the same file. Made by `start` or `load`."""

    def __init__(self, path: Path, kept: Kept, mark: tuple[int, ...]) -> None:
        """Not for callers: `start` and `load`."""
        self.path = path
        self.deployment = kept.deployment
        self.fingerprint = kept.fingerprint
        """Of the first pinned key."""
        self.least_serial = kept.least_serial
        self._believed = _believed(kept, mark)
        self._lock = threading.Lock()
        self._file_lock = FileLock(path.with_name(path.name + ".lock"))
        renew_in_children(self)

    def after_fork(self) -> None:
        """For the child of a fork: a lock of its own."""
        self._lock = threading.Lock()
        self._file_lock.after_fork()

    @classmethod
    def start(
        cls, path: str | os.PathLike[str], fingerprint: bytes, deployment: bytes, least_serial: int
    ) -> Self:
        """Begins to trust, and writes that down.

        Args:
            path: a new file.
            fingerprint: 32 bytes: SHA-256 of the first signing key's DER SubjectPublicKeyInfo.
            deployment: 16 bytes.
            least_serial: no manifest below it will ever count.

        Raises:
            ValueError: a length or number is wrong.
            FileExistsError: there is such a file. What it believes is not thrown away.
            OSError: it cannot be written.
        """
        kept = Kept(deployment, fingerprint, least_serial)
        kept.check()
        target = Path(path)
        make_private_directory(target.parent)
        if not write_new(target, kept.encode()):
            raise FileExistsError(17, "trust was begun there before", str(target))
        return cls(target, kept, _mark(target))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Goes on where it stopped.

        Raises:
            TrustError: the file is damaged. What was believed is not guessed at.
            OSError: it cannot be read.
        """
        target = Path(path)
        return cls(target, *_read(target))

    # -- what is believed ------------------------------------------------------------

    @property
    def manifest(self) -> Manifest | None:
        """The newest verified one."""
        return self._believed.manifest

    @property
    def alarms(self) -> list[Alarm]:
        """Contradictions seen, oldest first."""
        return list(self._believed.alarms)

    @property
    def token(self) -> str | None:
        """The newest verified manifest as it was signed."""
        newest = self._believed.chain.newest
        return None if newest is None else newest.token

    @property
    def etag(self) -> str | None:
        """Of what `since` gives."""
        return self._believed.chain.etag

    def since(self, serial: int) -> list[str]:
        """As ``GET /v1/manifest?since=SERIAL`` gives it, oldest first."""
        return self._believed.chain.since(serial)

    def stale(self, now_ms: int) -> bool:
        """Whether the manifest is past its expiry. It counts all the same."""
        manifest = self._believed.manifest
        return manifest is not None and now_ms >= manifest.expires

    def certificate(self, now_ms: int) -> Certificate | Absent:
        """What `decide` takes.

        A manifest past its expiry still counts: whoever can hold back new ones must not be able
        to turn encryption off by waiting.
        """
        return self.counting(now_ms)[1]

    def counting(self, now_ms: int) -> tuple[Manifest | None, Certificate | Absent]:
        """The newest verified manifest and its certificate, of one moment.

        The level of one manifest and the state of the next one may together mean clear text, where
        neither of them does.
        """
        manifest = self._believed.manifest
        return manifest, self._usable(manifest, now_ms)

    @staticmethod
    def _usable(manifest: Manifest | None, now_ms: int) -> Certificate | Absent:
        if manifest is None:
            return Absent.NEVER_SEEN
        usable = manifest.usable()
        if isinstance(usable, Absent) or now_ms < manifest.expires:
            return usable
        return Certificate(usable.recipients, stale=True)

    def pinned(self) -> dict[str, VerifyKey]:
        """Keys that may sign the next manifest, by id in hex; none before the first one came."""
        manifest = self._believed.manifest
        return {} if manifest is None else manifest.signers()

    # -- what is offered -------------------------------------------------------------

    def offer(self, tokens: Sequence[str | bytes], now_ms: int) -> Outcome:
        """Looks at manifests, oldest first, and believes what it must.

        Args:
            tokens: from anywhere.
            now_ms: for the time of an alarm; nothing is decided by the clock.

        Returns:
            ACCEPTED if any was newer, else CONTRADICTION if there was one, else what became of the
            last. SAME for an empty offer.

        Raises:
            OSError: it cannot be written down; then nothing has changed.
        """
        with self._turn():
            before = self._believed
            now, outcomes = before, [Outcome.SAME]
            for token in tokens[:TOKENS_MAX]:
                outcome, now = self._look(token, now, now_ms)
                outcomes.append(outcome)
            if before.manifest is None and now.manifest is not None:
                now.chain.put_before(_leading(tokens[:TOKENS_MAX], self.deployment))
            if now is not before:
                self._write(now)
            for outcome in (Outcome.ACCEPTED, Outcome.CONTRADICTION):
                if outcome in outcomes:
                    return outcome
            return outcomes[-1]

    def refresh(self) -> None:
        """Takes over what another process has written down since.

        Raises:
            TrustError: the file is damaged.
            OSError: it cannot be read.
        """
        with self._lock:
            self._refresh()

    def _look(
        self, token: str | bytes, believed: _Believed, now_ms: int
    ) -> tuple[Outcome, _Believed]:
        """What one token is, and what is believed after it."""
        text = token.decode("latin-1") if isinstance(token, bytes) else token
        newest = believed.chain.newest
        if newest is not None and text == newest.token:
            return Outcome.SAME, believed
        try:
            key = self._signer(text, believed.manifest)
            claims = jws.verify(text, key, jws.MANIFEST, limit=MANIFEST_MAX)
        except JwsError:
            return Outcome.FORGED, believed
        if claims.get("deployment") != self.deployment.hex():
            return Outcome.FOREIGN, believed
        try:
            manifest = Manifest.from_claims(claims)
            if manifest.serial < self._floor(believed):
                return Outcome.OLDER, believed
            if newest is not None and manifest.serial == newest.serial:
                return self._same_serial(text, newest, believed, now_ms)
            if key not in manifest.signing_keys:
                raise ManifestError("it does not name the key that signed it")
            check_certificates(manifest)
        except ManifestError:
            return Outcome.INVALID, believed
        chain = believed.chain.copy()
        chain.add(manifest.serial, text, manifest.signing_keys)
        return Outcome.ACCEPTED, _Believed(manifest, chain, believed.alarms, believed.mark)

    def _signer(self, token: str, manifest: Manifest | None) -> VerifyKey:
        """The pinned key that the token says it is signed by."""
        if manifest is not None:
            key = manifest.signers().get(jws.header(token, limit=MANIFEST_MAX)["kid"])
            if key is None:
                raise JwsError("signed by none of the pinned keys")
            return key
        key = jws.key_in(token, limit=MANIFEST_MAX)
        if key.fingerprint != self.fingerprint:
            raise JwsError("signed by another key than the pinned one")
        return key

    def _floor(self, believed: _Believed) -> int:
        newest = believed.chain.newest
        return self.least_serial if newest is None else max(self.least_serial, newest.serial)

    @staticmethod
    def _same_serial(
        token: str, newest: Link, believed: _Believed, now_ms: int
    ) -> tuple[Outcome, _Believed]:
        # ECDSA has many signatures for the same words, and anybody can make a second from the first
        # one. So the words are compared: only the signing key's owner can bring about an alarm.
        words = jws.signed_part(token)
        if words == jws.signed_part(newest.token):
            return Outcome.SAME, believed
        alarm = Alarm.contradiction(newest.serial, words, now_ms)
        known = {(one.serial, one.digest) for one in believed.alarms}
        if (alarm.serial, alarm.digest) in known or len(known) >= ALARMS_MAX:
            return Outcome.CONTRADICTION, believed
        alarms = (*believed.alarms, alarm)
        return Outcome.CONTRADICTION, _Believed(
            believed.manifest, believed.chain, alarms, believed.mark
        )

    # -- the file --------------------------------------------------------------------

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One offer at a time, over all processes, on top of what the last one wrote down."""
        with self._lock, self._file_lock:
            if not self._refresh():
                self._write(self._believed)
            yield

    def _refresh(self) -> bool:
        """Takes over the file, unless what this process has seen is newer: then False."""
        try:
            if _mark(self.path) == self._believed.mark:
                return True
            kept, mark = _read(self.path)
            if (kept.deployment, kept.fingerprint) != (self.deployment, self.fingerprint):
                raise TrustError(f"{self.path} was replaced by that of another deployment")
            found = _believed(kept, mark)
        except FileNotFoundError:
            return False
        mine, theirs = self._believed.chain.newest, found.chain.newest
        if mine is not None and (theirs is None or theirs.serial < mine.serial):
            return False  # somebody put an old file there: what was seen stays seen
        self._believed = found
        return True

    def _write(self, believed: _Believed) -> None:
        kept = Kept(
            self.deployment, self.fingerprint, self.least_serial,
            believed.chain.newest, believed.chain.links, believed.alarms,
        )  # fmt: skip
        write_private(self.path, kept.encode())
        self._believed = _Believed(
            believed.manifest, believed.chain, believed.alarms, _mark(self.path)
        )


def _read(path: Path) -> tuple[Kept, tuple[int, ...]]:
    mark = _mark(path)  # before: a file that is replaced meanwhile is read once more
    return Kept.decode(read_private(path, _FILE_MAX), str(path)), mark


def _mark(path: Path) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns, status.st_size


def _believed(kept: Kept, mark: tuple[int, ...]) -> _Believed:
    """What a file says, verified again: a damaged one is found out here.

    Raises:
        TrustError: it does not verify.
    """
    chain = Chain()
    if kept.newest is None:
        return _Believed(None, chain, kept.alarms, mark)
    try:
        key = jws.key_in(kept.newest.token, limit=MANIFEST_MAX)
        manifest = Manifest.open(kept.newest.token, key)
    except ValueError as error:
        raise TrustError(f"the manifest in it does not verify: {error}") from None
    if (
        manifest.deployment != kept.deployment
        or manifest.serial != kept.newest.serial
        or manifest.serial < kept.least_serial
        or key not in manifest.signing_keys
    ):
        raise TrustError("the manifest in it is another one")
    chain.restore(kept.links, kept.newest, manifest.signing_keys)
    return _Believed(manifest, chain, kept.alarms, mark)


def _leading(tokens: Sequence[str | bytes], deployment: bytes) -> Iterator[Link]:
    """What a relay that joined late hands on to agents that know an older key than it does.

    It cannot verify them, and believes nothing in them: they are only handed on, and agents do
    verify them. So it is enough here that each is signed by the key it brings along.
    """
    for token in tokens:
        text = token.decode("latin-1") if isinstance(token, bytes) else token
        try:
            claims = jws.verify(
                text, jws.key_in(text, limit=MANIFEST_MAX), jws.MANIFEST, limit=MANIFEST_MAX
            )
        except JwsError:
            continue
        serial = claims.get("serial")
        if claims.get("deployment") == deployment.hex() and type(serial) is int and serial > 0:
            yield Link(serial, text)
