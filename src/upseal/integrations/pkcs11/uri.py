# SPDX-License-Identifier: Apache-2.0
"""``pkcs11:`` URIs (RFC 7512) that name a private key in a token."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

MODULE = "UPSEAL_PKCS11_MODULE"
_PATH = ("token", "manufacturer", "serial", "model", "object", "id", "type")
_TOKEN = ("token", "manufacturer", "model", "serial")
_PIN_MAX = 4096


@dataclass(frozen=True, slots=True)
class KeyUri:
    """What an URI says. What it leaves out is not asked for."""

    text: str
    module: str
    """The path of the PKCS#11 library."""
    token: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    serial: str | None = None
    label: str | None = None
    """CKA_LABEL: the URI's ``object``."""
    id: bytes | None = None
    """CKA_ID."""
    pin_source: str | None = None
    """The path of a file."""

    def read_pin(self) -> str | None:
        """The PIN in the file, without the end of its line; None if the URI names none.

        Raises:
            OSError: it cannot be read.
            ValueError: it is empty, or no PIN.
        """
        if self.pin_source is None:
            return None
        with open(self.pin_source, "rb") as file:
            pin = file.read(_PIN_MAX).split(b"\n", 1)[0].removesuffix(b"\r")
        if not pin:
            raise ValueError(f"there is no PIN in the first line of {self.pin_source}")
        return pin.decode("utf-8")


def parse(text: str) -> KeyUri:
    """Reads one.

    Raises:
        ValueError: it is none of a private key, or it has what we do not take: a PIN inside, or
            attributes that we would have to ignore.
    """
    if not text.startswith("pkcs11:"):
        raise ValueError("a PKCS#11 URI begins with pkcs11:")
    path, _, query = text.removeprefix("pkcs11:").partition("?")
    where = _attributes(path, ";")
    how = _attributes(query, "&")
    if unknown := [name for name in where if name not in _PATH]:
        raise ValueError(
            f"{unknown[0]!r} is not taken in a PKCS#11 URI; name the key by {', '.join(_PATH)}"
        )
    if where.get("type", b"private") != b"private":
        raise ValueError("the URI's type must be private: it names a private key")
    if not ({"token", "serial"} & where.keys() and {"object", "id"} & where.keys()):
        raise ValueError("a PKCS#11 URI must name the token (token, serial) and key (object, id)")
    if "pin-value" in how:
        raise ValueError(
            "a PIN inside the URI would stand in settings, jobs and lists of processes; "
            "put it into a file (chmod 600) and write pin-source=file:/path"
        )
    for name in how:
        if name not in ("pin-source", "module-path", "module-name"):
            raise ValueError(f"{name!r} is not taken in a PKCS#11 URI")
    if "module-name" in how:
        raise ValueError("module-name is not taken in a PKCS#11 URI; give module-path=/the/file.so")
    module = how.get("module-path", b"").decode() or os.environ.get(MODULE, "")
    if not module.startswith("/"):
        raise ValueError(
            f"name the PKCS#11 library by its whole path: module-path=/... or {MODULE}"
        )
    words = {name: where[name].decode() for name in _TOKEN if name in where}
    return KeyUri(
        text=text,
        module=module,
        label=where["object"].decode() if "object" in where else None,
        id=where.get("id"),
        pin_source=_pin_file(how["pin-source"].decode()) if "pin-source" in how else None,
        **words,
    )


def _attributes(text: str, separator: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for piece in text.split(separator) if text else ():
        name, equals, value = piece.partition("=")
        if not equals or not name or name in found:
            raise ValueError(f"a PKCS#11 URI has name=value, each once, and not {piece!r}")
        found[name] = unquote_to_bytes(value)
    return found


def _pin_file(source: str) -> str:
    name = source.removeprefix("file:")
    if name.startswith("//"):  # file:///path
        name = name[2:]
    if not name.startswith("/"):
        raise ValueError("pin-source must be file:/path; commands are not run")
    return name
