# SPDX-License-Identifier: Apache-2.0
"""Settings files: what agents' and relays' have in common.

A settings file is TOML, each section a dataclass whose fields have defaults. A key that nobody
knows is an error, since a mistyped one would otherwise be a setting that silently does not hold.
"""

from __future__ import annotations

import json
import re
import socket
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlsplit

NAME_MAX = 128
LEVELS = ("debug", "info", "warning", "error")
"""Of logs."""
ANY = "any"
"""In ``parent_ids``: every relay of the manifest, and the server."""
SERVER = "server"
"""The server's name in its capabilities, where a relay has its id."""
SECRET = "secret"  # noqa: S105 - a name
"""In a field's metadata: it is not shown, and may stand in a file of its own."""
FILE_ONLY = "file_only"
"""In a field's metadata: others read it in the file as well, so it stands there alone."""
_FILE_MAX = 1 << 20
_Section = TypeVar("_Section")
_KINDS: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {"int": (int,), "float": (int, float), "bool": (bool,)}
)  # else it is text
_WORDS = MappingProxyType({"int": "a whole number", "float": "a number", "bool": "true or false"})


class SettingsError(ValueError):
    """A setting that cannot be meant; says which."""


def within(where: str, value: float, least: float, most: float) -> None:
    """Checks the bounds of a number.

    Raises:
        SettingsError: it is outside them.
    """
    if not least <= value <= most:
        raise SettingsError(f"{where} must be {least:,g} to {most:,g}, not {_number(value)}")


def _number(value: float) -> str:
    """For people. TOML's whole numbers have no end, and those of `float` do."""
    try:
        return f"{value:,g}"
    except OverflowError:
        return "a number with hundreds of digits"


def one_of(where: str, value: str, words: Sequence[str]) -> None:
    """Checks that a text is one of these.

    Raises:
        SettingsError: it is not.
    """
    if value not in words:
        raise SettingsError(f"{where} is {', '.join(words[:-1])} or {words[-1]}, not {value!r}")


# -- files ------------------------------------------------------------------------------


def read_table(path: Path) -> dict[str, Any]:
    """A settings file as TOML gives it. Without ``directory`` in it, the folder is the file's own.

    Raises:
        OSError: it cannot be read.
        SettingsError: it is too long, or not TOML.
    """
    table = read_toml(path)
    table.setdefault("directory", str(path.resolve().parent))
    return table


def read_toml(path: Path) -> dict[str, Any]:
    """What stands in a file, and nothing else.

    Raises:
        OSError: it cannot be read.
        SettingsError: it is too long, or not TOML.
    """
    with open(path, "rb") as file:
        data = file.read(_FILE_MAX + 1)
    if len(data) > _FILE_MAX:
        raise SettingsError(f"{path} is longer than any settings")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except RecursionError:
        raise SettingsError(f"{path} is not TOML: nested too deep") from None
    except ValueError as error:  # also of numbers with too many digits, and of what is no UTF-8
        raise SettingsError(f"{path} is not TOML: {error}") from error


def checked(
    table: Mapping[str, Any], of: type[Any], sections: Mapping[str, type[Any]]
) -> dict[str, Any]:
    """The arguments of a settings class: its sections made, every other value of the right type.

    Args:
        table: as TOML gives it.
        of: the dataclass of the whole; its field ``source`` is none of the file's.
        sections: the dataclass of each section.

    Raises:
        SettingsError: a key is unknown, missing or of the wrong type, or a section's bounds do not
            hold.
    """
    made = {
        name: section(**_values(_table_of(table[name], name), section, f"{name}."))
        for name, section in sections.items()
        if name in table
    }
    own = {name: value for name, value in table.items() if name not in sections}
    values = _values(own, of, "")
    if "parent" not in values:
        raise SettingsError('parent is missing; give parent = "https://..."')
    return {**values, **made}


def section(value: Any, of: type[_Section], name: str) -> _Section:
    """One section, as `checked` makes it.

    Raises:
        SettingsError: likewise.
    """
    return of(**_values(_table_of(value, name), of, f"{name}."))


def _table_of(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingsError(f"{name} must be a table: [{name}]")
    return value


def _values(table: Mapping[str, Any], of: type[Any], prefix: str) -> dict[str, Any]:
    types = {f.name: str(f.type) for f in fields(of) if f.name != "source"}
    for name in table:
        if name not in types:
            names = ", ".join(sorted(types))
            raise SettingsError(f"there is no setting {prefix}{name}; here are {names}")
    return {name: _value(value, types[name], prefix + name) for name, value in table.items()}


def _value(value: Any, wanted: str, where: str) -> Any:
    if wanted.startswith("tuple"):
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            return tuple(value)
        raise SettingsError(f"{where} must be a list of texts, not {_shown(value)}")
    kinds = _KINDS.get(wanted, (str,))
    # True is an int to Python, and to nobody else.
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise SettingsError(f"{where} must be {_WORDS.get(wanted, 'text')}, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """For people. Python refuses to write numbers of thousands of digits, which TOML may have."""
    try:
        return repr(value)
    except ValueError:
        return "a number with thousands of digits"


def quoted(text: str) -> str:
    """A TOML basic string: what JSON writes is one, names and addresses being printable."""
    return json.dumps(text, ensure_ascii=False)


def written(
    lines: Sequence[str], ca: str | None, certificate: str | None = None, key: str | None = None
) -> str:
    """A settings file of these lines, and of the files for TLS that were named while enrolling."""
    files = {"ca": ca, "certificate": certificate, "key": key}
    more = [f"{name} = {quoted(file)}" for name, file in files.items() if file is not None]
    return "\n".join([*lines, *(["", "[http]", *more] if more else [])]) + "\n"


# -- values -----------------------------------------------------------------------------


def host_name() -> str:
    """What a client is called unless somebody says otherwise."""
    return socket.gethostname() or "unnamed"


def checked_url(url: str) -> str:
    """A parent's address, without a slash at its end.

    Raises:
        SettingsError: it is none that an agent can speak to.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for what is no port
    except ValueError as error:
        raise SettingsError(f"parent is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"parent must be http://HOST:PORT or https://HOST:PORT, not {url!r}")
    if parts.query or parts.fragment or parts.username or parts.password:
        raise SettingsError("parent is an address alone: no user, query or fragment")
    return url.rstrip("/")


def checked_name(name: str) -> str:
    """A client's name.

    Raises:
        SettingsError: it is empty, too long, or would garble a table of names.
    """
    if not name or len(name) > NAME_MAX or not name.isprintable():
        raise SettingsError(f"name must be 1 to {NAME_MAX} printable characters")
    return name


def checked_parents(ids: Sequence[str] | None) -> None:
    """``parent_ids``: whose capabilities count.

    Raises:
        SettingsError: one is neither a relay's id nor ``server``, or ``any`` is not alone.
    """
    if ids is None or list(ids) == [ANY]:
        return
    if not ids:
        raise SettingsError('parent_ids is empty; leave it away, or name relays, "server" or "any"')
    for one in ids:
        if one != SERVER and not re.fullmatch("[0-9a-f]{32}", one):
            raise SettingsError(
                'parent_ids are ids of relays (32 hexadecimal digits) or "server"; "any" stands '
                f"alone: not {one!r}"
            )


def split_listen(listen: str) -> tuple[str, int]:
    """``host:port``, also ``[::1]:port``.

    Raises:
        SettingsError: it is not.
    """
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    number = port.isascii() and port.isdecimal() and len(port) <= 5
    if not host or not number or int(port) > 65535:
        raise SettingsError(f"listen must be HOST:PORT, not {listen!r}")
    return host, int(port)
