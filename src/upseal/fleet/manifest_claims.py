# SPDX-License-Identifier: Apache-2.0
"""Reading JSON claims strictly: each member once, of its type, within its bounds, and no others."""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeVar

from upseal.fleet.encoding import from_hex
from upseal.fleet.identity import VerifyKey
from upseal.fleet.policy import Level

_E = TypeVar("_E", bound=Enum)


class ManifestError(ValueError):
    """Not a manifest that anybody should believe."""


class Reader:
    """Takes members out of a JSON object, one by one.

    Raises:
        ManifestError: it is none; as all its methods do where something is not as it must be.
    """

    def __init__(self, claims: Any, what: str) -> None:
        self._what = what
        if not isinstance(claims, dict):
            raise ManifestError(f"{what}: not an object")
        self._claims = claims
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether there is such a member."""
        return name in self._claims

    def value(self, name: str) -> Any:
        """Whatever it is."""
        if name not in self._claims:
            raise self.error(name, "missing")
        self._read.add(name)
        return self._claims[name]

    def text(self, name: str, longest: int) -> str:
        """A string of at most that many characters."""
        return self._text(name, self.value(name), longest)

    def optional_text(self, name: str, longest: int) -> str | None:
        """A string or null."""
        value = self.value(name)
        return None if value is None else self._text(name, value, longest)

    def number(self, name: str, end: int) -> int:
        """A whole number from 0 to below ``end``."""
        value = self.value(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < end:
            raise self.error(name, f"not a whole number from 0 to {end - 1}")
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.value(name)
        if not isinstance(value, bool):
            raise self.error(name, "neither true nor false")
        return value

    def hex(self, name: str, size: int) -> bytes:
        """Bytes in lower-case hex."""
        try:
            return from_hex(self.value(name), size)
        except ValueError as error:
            raise self.error(name, str(error)) from None

    def one_of(self, name: str, kind: type[_E]) -> _E:
        """A member of an enumeration, by its value."""
        value = self.value(name)
        for member in kind:
            if member.value == value:
                return member
        raise self.error(name, "none of its values")

    def level(self, value: Any) -> Level:
        """A level, by its name."""
        for level in Level:
            if level.value == value:
                return level
        raise self.error("a level", "none of its values")

    def key(self, name: str) -> VerifyKey:
        """A public key that verifies, as JWK."""
        return self._key(name, self.value(name))

    def keys(self, name: str, most: int) -> tuple[VerifyKey, ...]:
        """Several of them."""
        return tuple(self._key(name, value) for value in self.items(name, most))

    def texts(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """Several strings."""
        return tuple(self._text(name, value, longest) for value in self.items(name, most))

    def items(self, name: str, most: int) -> list[Any]:
        """A list of at most that many."""
        value = self.value(name)
        if not isinstance(value, list) or len(value) > most:
            raise self.error(name, f"not a list of at most {most}")
        return value

    def mapping(self, name: str, most: int) -> dict[str, Any]:
        """An object of at most that many members."""
        value = self.value(name)
        if not isinstance(value, dict) or len(value) > most:
            raise self.error(name, f"not an object of at most {most} members")
        return value

    def finish(self) -> None:
        """To be called when everything was read: what is left is not understood."""
        if len(self._read) != len(self._claims):
            raise ManifestError(f"{self._what}: members that are not understood")

    def error(self, name: str, why: str) -> ManifestError:
        """For a member."""
        return ManifestError(f"{self._what}: {name}: {why}")

    def _text(self, name: str, value: Any, longest: int) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= longest:
            raise self.error(name, f"not a text of 1 to {longest} characters")
        return value

    def _key(self, name: str, value: Any) -> VerifyKey:
        try:
            return VerifyKey.from_jwk(value)
        except ValueError as error:
            raise self.error(name, str(error)) from None
