# SPDX-License-Identifier: Apache-2.0
"""Settings by file, environment and flags: a flag overrides the environment, that the file.

The schema is the dataclasses of `settings`; names follow from it. ``max_bytes`` of ``[queue]`` in
``relay.toml`` is ``queue.max_bytes`` to ``--set``, and ``UPSEAL_RELAY_QUEUE__MAX_BYTES`` to the
environment. A variable with a role's prefix that nobody knows is an error, as a key of the file is.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from upseal.fleet.settings import FILE_ONLY, SECRET, SettingsError

CREDENTIALS = "CREDENTIALS_DIRECTORY"
"""Where systemd puts what a unit's LoadCredential names."""
DEFAULT, FILE = "default", "file"
HIDDEN = "(not shown)"
_SECRET_MAX = 1 << 16
_KUBERNETES = re.compile(r"_(SERVICE_(HOST|PORT.*)|PORT(_.*)?)$")


class Flag(NamedTuple):
    """A setting that the command line gives."""

    setting: str
    text: str
    option: str
    """Where it stood: ``--set``, ``--listen``."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One of a role's."""

    name: str
    """With its section: ``queue.max_bytes``."""
    kind: str
    """As the dataclass says it: ``int``, ``str | None``, ``tuple[str, ...]``."""
    default: Any
    """`dataclasses.MISSING`: there is none."""
    variable: str | None
    """None: it stands in the file alone."""
    secret: bool = False

    @property
    def key(self) -> str:
        """Without its section."""
        return self.name.rpartition(".")[2]

    def shown(self, value: Any) -> Any:
        """For people and logs: of a secret, only what is none. A plain file name is none."""
        hidden = self.secret and isinstance(value, str) and ("@" in value or "?" in value)
        return HIDDEN if hidden else value


@dataclass(frozen=True)
class Schema:
    """All settings of one role.

    Args:
        role: ``agent``, ``relay`` or ``server``.
        settings: by name.
        loose: sections that others check; what stands in them is passed on.
    """

    role: str
    settings: Mapping[str, Setting]
    loose: frozenset[str] = frozenset()

    @property
    def prefix(self) -> str:
        """Of the variables."""
        return f"UPSEAL_{self.role.upper()}_"

    @property
    def parts(self) -> Mapping[str, Mapping[str, Setting]]:
        """By section; "" for those that stand in none."""
        out: dict[str, dict[str, Setting]] = {}
        for one in self.settings.values():
            out.setdefault(one.name.rpartition(".")[0], {})[one.key] = one
        return out

    def credential(self, one: Setting) -> str:
        """The name of a secret among systemd's credentials."""
        return f"upseal.{self.role}.{one.name}"


def schema_of(
    role: str,
    top: type[Any],
    sections: Mapping[str, type[Any]],
    *,
    loose: Iterable[str] = (),
) -> Schema:
    """The schema that dataclasses are.

    Args:
        role: who reads them.
        top: of what stands in no section; its fields that are sections, and ``source``, are left
            out.
        sections: the dataclass of each.
        loose: names of sections that others check.
    """
    found: dict[str, Setting] = {}
    for section, of in {"": top, **sections}.items():
        for field in fields(of):
            if not section and (field.name in sections or field.name == "source"):
                continue
            name = f"{section}.{field.name}" if section else field.name
            made = field.default_factory
            default = field.default if made is MISSING else made()
            by_rule = f"UPSEAL_{role}_{name.replace('.', '__')}".upper()
            variable = None if field.metadata.get(FILE_ONLY) else by_rule
            secret = bool(field.metadata.get(SECRET))
            found[name] = Setting(name, str(field.type), default, variable, secret)
    return Schema(role, MappingProxyType(found), frozenset(loose))


@dataclass(frozen=True)
class Layers:
    """What counts, and where it comes from.

    Args:
        schema: whose settings.
        table: as TOML would give it, had it all stood in the file.
        origins: by name, of all that is no default: ``file``, a variable, an option, a credential.
    """

    schema: Schema
    table: dict[str, Any]
    origins: Mapping[str, str]

    def effective(self) -> dict[str, dict[str, Any]]:
        """Every setting with its value and where that comes from; secrets are not shown."""
        out = {}
        for name, one in self.schema.settings.items():
            value = self._value(one)
            if isinstance(value, tuple):
                value = list(value)
            elif value is not None and not isinstance(value, bool | int | float | list):
                value = str(getattr(value, "value", value))
            shown = one.shown(value)
            out[name] = {"value": shown, "from": self.origins.get(name, DEFAULT)}
        return out

    def _value(self, one: Setting) -> Any:
        section, _, key = one.name.rpartition(".")
        table = self.table.get(section, {}) if section else self.table
        return table.get(key, None if one.default is MISSING else one.default)

    def blamed(self, error: SettingsError) -> SettingsError:
        """The same error, with the variable or option that the value came from."""
        text = str(error)
        foreign = {name: origin for name, origin in self.origins.items() if origin != FILE}
        for name, origin in foreign.items():
            if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", text):
                return SettingsError(f"{text} (it comes from {origin})")
        for name, origin in foreign.items():
            if re.search(rf"(?<![\w.]){re.escape(name.rpartition('.')[2])}(?![\w.])", text):
                return SettingsError(f"{text} (it comes from {origin})")
        return error


def layered(
    schema: Schema,
    table: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    flags: Iterable[Flag] = (),
) -> Layers:
    """Puts environment and flags over what the file says.

    A variable that is empty counts as not set. Types and names of the file's own values are checked
    by whoever makes settings of them.

    Args:
        schema: whose settings.
        table: the file's.
        environment: None for the process's own.
        flags: in the order they were given; the last one counts.

    Raises:
        SettingsError: a variable or flag is unknown, or its text is not of the setting's type; or a
            secret's file cannot be read.
    """
    env = os.environ if environment is None else environment
    out = {name: dict(v) if isinstance(v, Mapping) else v for name, v in table.items()}
    origins = {name: FILE for name in schema.settings if _stands(out, name)}

    def put(one: Setting, value: Any, origin: str) -> None:
        section, _, key = one.name.rpartition(".")
        into = out.setdefault(section, {}) if section else out
        if not isinstance(into, dict):
            raise SettingsError(f"{section} must be a table: [{section}]")
        if value is None:
            into.pop(key, None)
        else:
            into[key] = value
        origins[one.name] = origin

    for one, text, origin in _variables(schema, env):
        put(one, _parsed(one, text, origin), origin)
    for flag in flags:
        found = schema.settings.get(flag.setting)
        if found is None:
            hint = _near(flag.setting, schema.settings)
            raise SettingsError(f"{flag.option}: there is no setting {flag.setting}{hint}")
        if found.variable is None:
            raise SettingsError(f"{flag.option}: {found.name} stands in the file alone")
        none = not flag.text and found.kind.endswith("| None")
        put(found, None if none else _parsed(found, flag.text, flag.option), flag.option)
    return Layers(schema, out, MappingProxyType(origins))


def secret(schema: Schema, name: str, environment: Mapping[str, str] | None = None) -> str | None:
    """What environment or credentials say of one setting, for who reads the file by other means.

    Raises:
        SettingsError: it is given twice, or its file cannot be read.
    """
    env = os.environ if environment is None else environment
    found = _secret_of(schema, schema.settings[name], env)
    return None if found is None else found[0]


def _stands(table: Mapping[str, Any], name: str) -> bool:
    section, _, key = name.rpartition(".")
    if not section:
        return key in table
    inside = table.get(section)
    return isinstance(inside, Mapping) and key in inside


def _variables(schema: Schema, env: Mapping[str, str]) -> Iterable[tuple[Setting, str, str]]:
    known = {one.variable: one for one in schema.settings.values() if one.variable is not None}
    files = {f"{name}_FILE" for name, one in known.items() if one.secret}
    for name in sorted(env):
        if name.startswith(schema.prefix) and name not in known and name not in files:
            raise SettingsError(_unknown(name, known))
    for name, one in known.items():
        if one.secret:
            found = _secret_of(schema, one, env)
            if found is not None:
                yield one, *found
        elif env.get(name):
            yield one, env[name], name


def _unknown(name: str, known: Iterable[str]) -> str:
    hint = _near(name, known)
    if _KUBERNETES.search(name):
        hint += "; if Kubernetes made it, set enableServiceLinks: false"
    return f"there is no setting for the variable {name}{hint}"


def _near(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches  # slow to import, and seldom needed

    near = get_close_matches(name, list(known), 1, 0.75)
    return f"; {near[0]} is one" if near else "; `--show-config` lists those there are"


def _secret_of(schema: Schema, one: Setting, env: Mapping[str, str]) -> tuple[str, str] | None:
    """The text and where it stood: the variable, the file that a second one names, a credential."""
    assert one.variable is not None
    plain, file = env.get(one.variable), env.get(f"{one.variable}_FILE")
    if plain and file:
        raise SettingsError(f"{one.variable} and {one.variable}_FILE are both set; leave one away")
    if plain:
        return plain, one.variable
    if file:
        return _read(Path(file), f"{one.variable}_FILE"), f"{one.variable}_FILE"
    if folder := env.get(CREDENTIALS):
        path = Path(folder) / schema.credential(one)
        if path.exists():
            where = f"the credential {schema.credential(one)}"
            return _read(path, where), where
    return None


def _read(path: Path, where: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(_SECRET_MAX + 1)
        text = data.decode("utf-8").strip()
    except OSError as error:
        raise SettingsError(f"{where}: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise SettingsError(f"{where}: {path} is not UTF-8") from None
    if len(data) > _SECRET_MAX or not text:
        raise SettingsError(f"{where}: {path} is {'empty' if not text else 'too long'}")
    return text


def _parsed(one: Setting, text: str, origin: str) -> Any:
    """A text as the setting's type. Numbers, booleans and lists are written as in TOML."""
    if one.kind.startswith("tuple"):
        if not text.lstrip().startswith("["):
            return [part.strip() for part in text.split(",") if part.strip()]
        value = _toml(text)
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            return value
        raise SettingsError(
            f'{one.name} must be a list: a,b or ["a", "b"], not {text!r} ({origin})'
        )
    if one.kind not in _WORDS:
        return text
    value = _toml(text)
    if one.kind == "float" and type(value) is int:
        return float(value) if abs(value) < 1 << 1000 else value
    if type(value).__name__ != one.kind:
        raise SettingsError(f"{one.name} must be {_WORDS[one.kind]}, not {text!r} ({origin})")
    return value


_WORDS = MappingProxyType({"int": "a whole number", "float": "a number", "bool": "true or false"})


def _toml(text: str) -> Any:
    """A value as TOML writes it; None if it is none, or more than one."""
    try:
        found = tomllib.loads(f"value = {text.strip()}")
    except (ValueError, RecursionError):
        return None
    return found["value"] if len(found) == 1 else None


def printable(value: Any) -> str:
    """A value as TOML writes it; nothing for what is not set."""
    return "" if value is None else json.dumps(value, ensure_ascii=False)
