# SPDX-License-Identifier: Apache-2.0
"""Target: settings files of agents, relays and servers."""

import atexit
import dataclasses
import math
import shutil
import tomllib
from enum import Enum
from functools import cache
from pathlib import Path

from upfuzz import folder
from upfuzz.harness import Target, attempt, check, same
from upseal.fleet.agent import settings as agents
from upseal.fleet.relay import settings as relays
from upseal.fleet.server import settings as servers
from upseal.fleet.settings import SettingsError

_VALUES = (
    "nan", "-nan", "inf", "-inf", "1e400", "0", "-1", "0.0", "-0.0", "1" + "0" * 400, "9" * 5000,
    "true", '""', '"x"', "[]", '["any"]', '["server", "any"]', "{}", "{a = 1}", "1979-05-27",
    "1979-05-27T07:32:00Z", "07:32:00", "0x" + "f" * 40, "0b1", "1_000", "'''\n'''", '"\\u0000"',
    '"http://[::1]:8440"', '"http://u:p@h"', '"https://h:99999"', '"ftp://h"', '"http://h?q"',
    '"[::1]:8441"', '"h:' + "9" * 5000 + '"', '"h:"', '"required"', '"10.0.0.0/8"', "[1]", "0.5",
    "[" * 2000, "{a=" * 500, "9223372036854775808", '"' + "ab" * 16 + '"', '"sqlite:///x"', '"/"',
)  # fmt: skip


@cache
def _folder():
    made = folder()
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def run_settings(data):
    where = _folder()
    path = where / servers.FILE
    path.write_bytes(data)
    for kind in (agents, relays):
        found, _ = attempt(lambda kind=kind: kind.Settings.load(path), SettingsError)
        if found is not None:
            _check_numbers(found)
            written = kind.toml_of(found)
            again = kind.Settings.parse(tomllib.loads(written))
            same((again.parent, again.name, again.fips), (found.parent, found.name, found.fips))
            same(kind.toml_of(again), written)
    found, _ = attempt(lambda: servers.read_settings(where), SettingsError)
    if found is not None:
        _check_numbers(found)
        same(len(found.deployment), 16)
        check(found.keys.parent == found.folder and str(found.uploads), "folders")


def _check_numbers(found):
    """Nothing that is a bound is not a number, or has no end."""
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        if dataclasses.is_dataclass(value):
            _check_numbers(value)
        elif isinstance(value, float):
            check(math.isfinite(value), f"{field.name} is {value}")
        else:
            check(isinstance(value, str | int | bytes | tuple | Path | Enum | None), field.name)


def mutate_settings(data, rnd, plain):
    lines = data.decode("utf-8", "replace").split("\n")
    at = rnd.randrange(len(lines))
    match rnd.randrange(6):
        case 0:
            return plain(data)
        case 1:
            lines.insert(at, rnd.choice(lines))
        case 2:
            del lines[at]
        case 3:
            lines.insert(at, rnd.choice(_NAMES) + " = " + rnd.choice(_VALUES))
        case _:
            name, found, _ = lines[at].partition(" = ")
            if found:
                lines[at] = f"{name} = {rnd.choice(_VALUES)}"
    return "\n".join(lines).encode()


def _names():
    for kind in (agents, relays, servers):
        for thing in vars(kind).values():
            if dataclasses.is_dataclass(thing):
                yield from (field.name for field in dataclasses.fields(thing))


_NAMES = sorted(set(_names()))


def _sections(kind):
    """Every setting that has a number or a text as default, as TOML."""
    for name, of in kind._SECTIONS.items():
        lines = [f"[{name}]"]
        for field in dataclasses.fields(of):
            value = field.default
            if isinstance(value, bool):
                lines.append(f"{field.name} = {str(value).lower()}")
            elif isinstance(value, int | float):
                lines.append(f"{field.name} = {value}")
            elif isinstance(value, str):
                lines.append(f'{field.name} = "{value}"')
        yield "\n".join(lines)


def _seeds():
    top = 'parent = "https://relay.example:8441"\nname = "host"\n'
    agent = top + 'level = "required"\nlisten = "127.0.0.1:9000"\n'
    yield (agent + "\n".join(_sections(agents))).encode()
    relay = top + 'parent_ids = ["any"]\ndecrypting = true\n'
    yield (relay + "\n".join(_sections(relays))).encode()
    limits = dataclasses.fields(servers.Limits)
    numbers = [
        f"{field.name} = {field.default}" for field in limits if type(field.default) in (int, float)
    ]
    server = [
        'name = "Example"', f'deployment = "{"ab" * 16}"', 'database = "sqlite:///server.db"',
        "fips = false", "[listen]", 'host = "127.0.0.1"', "port = 8450", "[server]", *numbers,
        "[rates]", "hop_requests = 500.0", 'exceptions = ["10.0.0.0/8"]', "[admin]",
        "warn_days = 21",
    ]  # fmt: skip
    yield "\n".join(server).encode()


TARGETS = {"settings": Target("settings", run_settings, _seeds, mutate_settings, "toml.dict")}
