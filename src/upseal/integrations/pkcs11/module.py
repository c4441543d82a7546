# SPDX-License-Identifier: Apache-2.0
"""A PKCS#11 library in this process: loaded once, one caller at a time, again after a fork.

python-pkcs11 calls C_Initialize without arguments, which promises the library that no two threads
are in it at once. So there is a lock round everything.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pkcs11 as p11
from pkcs11 import _pkcs11
from pkcs11.exceptions import (
    NoSuchKey,
    NoSuchToken,
    PinExpired,
    PinIncorrect,
    PinInvalid,
    PinLenRange,
    PinLocked,
    PKCS11Error,
    UserAlreadyLoggedIn,
)

from upseal.core.forks import renew_in_children
from upseal.errors import KeyUnavailable
from upseal.integrations.pkcs11.uri import KeyUri

_PATIENCE = 30.0
"""Seconds to wait for a library that is busy, or hangs."""
_RENEW = 5.0
"""Seconds from one initialization to the next: keys in other tokens have to log in again."""
_BAD_PIN = (PinIncorrect, PinInvalid, PinLenRange, PinLocked, PinExpired)
_modules: dict[str, Module] = {}
_modules_lock = threading.Lock()


@dataclass(eq=False, slots=True)
class Session:
    """With a token, logged in."""

    opened: Any
    """python-pkcs11's."""
    generation: int
    """Of the module: void once that has another."""
    lost: bool = False


def module_of(path: str) -> Module:
    """The library at that path: one for the process."""
    path = os.path.realpath(path)
    with _modules_lock:
        found = _modules.get(path)
        if found is None:
            found = _modules[path] = Module(path)
        return found


class Module:
    """A library, and the sessions with its tokens."""

    def __init__(self, path: str) -> None:
        """Loads nothing yet."""
        self._path = path
        self._lock = threading.Lock()
        self._lib: Any = None
        self._left: list[Any] = []
        """Of processes above this one: were they freed here, they would finalize the library."""
        self._inherited = False
        self._generation = 0
        self._renew_after = 0.0
        self._sessions: dict[tuple[str | None, ...], Session] = {}
        self._refused: dict[tuple[str | None, ...], str] = {}
        """PINs that a token has refused: a few more times, and it locks."""
        renew_in_children(self)

    def after_fork(self) -> None:
        """For the child of a fork: it must initialize the library for itself."""
        self._lock = threading.Lock()
        self._inherited = self._lib is not None
        self._generation += 1

    @contextmanager
    def held(self) -> Iterator[None]:
        """For one caller alone.

        Raises:
            KeyUnavailable: the library cannot be loaded, or another caller does not come back.
        """
        lock = self._lock
        if not lock.acquire(timeout=_PATIENCE):
            raise KeyUnavailable(f"{self._path} has not answered for {_PATIENCE:.0f} seconds")
        try:
            try:
                self._load()
            except PKCS11Error as error:
                raise KeyUnavailable(
                    f"the PKCS#11 library {self._path} cannot be used: {said(error)}; "
                    "check module-path and what the library needs (its settings, its daemon)"
                ) from error
            yield
        finally:
            lock.release()

    def current(self, session: Session) -> bool:
        """Whether nothing has happened to that session that we know of."""
        return session.generation == self._generation and not session.lost

    def session(self, uri: KeyUri, pin: str | None, *, instead_of: Session | None) -> Session:
        """A session with the token of that URI, logged in; shared by all keys in it.

        Args:
            uri: names the token.
            pin: where the URI has no ``pin-source``.
            instead_of: one that has failed.

        Raises:
            PKCS11Error: the token is not there, or does not answer.
            KeyUnavailable: the PIN is wrong.
        """
        where = (uri.token, uri.serial, uri.manufacturer, uri.model)
        there = self._sessions.get(where)
        if there is not None and there is not instead_of and self.current(there):
            return there
        if there is not None:
            del self._sessions[where]
            there.lost = True
            if there.generation == self._generation:
                with suppress(PKCS11Error):
                    there.opened.close()  # this logs out: all keys in this token come here again
        found = self._sessions[where] = Session(self._open(uri, pin, where), self._generation)
        return found

    def renew(self) -> bool:
        """Finalizes the library and initializes it again: all sessions are void.

        Returns:
            False: that was done a moment ago, and is not done now.

        Raises:
            PKCS11Error: it failed.
        """
        now = time.monotonic()
        if now < self._renew_after:
            return False
        self._renew_after = now + _RENEW
        self._initialize_again()
        return True

    def _initialize_again(self) -> None:
        self._generation += 1
        self._sessions.clear()
        with suppress(PKCS11Error):
            self._lib.finalize()
        self._lib.initialize()

    def _load(self) -> None:
        if self._lib is None:
            self._lib = p11.lib(self._path)
            self._renew_after = time.monotonic() + _RENEW
        elif self._inherited:
            self._sessions.clear()
            try:
                # C_Initialize and nothing before it: PKCS#11 v2.40, 6.7.2 "Applications and
                # processes". C_Finalize might take the parent's connections down.
                fresh = _pkcs11.lib(self._path)
            except PKCS11Error:  # a library that does not notice forks
                self._initialize_again()
            else:
                self._left.append(self._lib)
                self._lib = fresh
            self._inherited = False
        elif not self._lib.initialized:  # somebody else has finalized it
            self._generation += 1
            self._sessions.clear()
            self._lib.initialize()

    def _open(self, uri: KeyUri, pin: str | None, where: tuple[str | None, ...]) -> Any:
        tokens = [token for token in self._tokens() if _is(token, uri)]
        if not tokens:
            raise NoSuchToken("no token of that name")
        if len(tokens) > 1:
            raise PKCS11Error("several tokens are of that name; add serial= to the URI")
        try:
            secret = uri.read_pin() if uri.pin_source is not None else pin
        except (OSError, ValueError) as error:
            raise KeyUnavailable(f"no PIN for the token: {error}") from error
        if secret is not None and self._refused.get(where) == secret:
            raise KeyUnavailable("the token has refused this PIN; it is not tried again")
        try:
            return tokens[0].open(user_pin=secret)
        except UserAlreadyLoggedIn:  # somebody else in this process
            return tokens[0].open()
        except _BAD_PIN as error:
            if secret is not None:
                self._refused[where] = secret
            raise KeyUnavailable(
                f"the token refuses the PIN ({said(error)}); put the right one into pin-source"
            ) from error

    def _tokens(self) -> list[Any]:
        """As `lib.get_tokens`, which stumbles over one that is not ready."""
        found = []
        for slot in self._lib.get_slots(token_present=True):
            with suppress(PKCS11Error):
                found.append(slot.get_token())
        return found


def _is(token: Any, uri: KeyUri) -> bool:
    """Whether the URI means this token."""
    facts = {
        uri.token: token.label,
        uri.serial: token.serial.decode("utf-8", "replace"),
        uri.manufacturer: token.manufacturer_id,
        uri.model: token.model,
    }
    return all(wanted is None or wanted == found.strip() for wanted, found in facts.items())


def said(error: Exception) -> str:
    """A token's error, in words."""
    if isinstance(error, NoSuchToken):
        return "there is no such token; is it plugged in, and its service running?"
    if isinstance(error, NoSuchKey):
        return "there is no such private key in the token, or it needs a PIN"
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
