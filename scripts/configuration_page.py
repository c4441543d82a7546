# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of docs/configuration.md from the dataclasses that are the schema.

``python scripts/configuration_page.py`` writes them; with ``--check`` it only says whether they are
as they should be. What a setting does is its docstring in the source.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from upseal.fleet.admin import folder
from upseal.fleet.agent import settings as agent
from upseal.fleet.configuration import Setting, printable
from upseal.fleet.relay import settings as relay
from upseal.fleet.server import settings as server

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = "| setting | type | default | environment | |\n|---|---|---|---|---|"
KINDS = {"str": "text", "Path": "path", "Level": "text", "bool": "true or false"}
CLASSES: dict[str, dict[str, type[Any]]] = {
    "agent": {"": agent.Settings, **agent._SECTIONS},
    "relay": {"": relay.Settings, **relay._SECTIONS},
    "server": {"": server.Top, **server._SECTIONS},
}
SCHEMAS = {"agent": agent.schema, "relay": relay.schema, "server": server.schema}
_SMALL = 1 << 12


def docstrings(of: type[Any]) -> dict[str, str]:
    """What stands below each field in the source, on one line."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(of))).body
    assert isinstance(body, ast.ClassDef)
    out: dict[str, str] = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            out[field.target.id] = " ".join(str(below.value.value).split())
    return out


def tables(role: str) -> str:
    """All of one role's."""
    schema, out = SCHEMAS[role](), []
    for section, of in CLASSES[role].items():
        about = docstrings(of)
        if section:
            words = " ".join((inspect.getdoc(of) or "").split("\n\n")[0].split())
            out.append(f"\n### [{section}] of {role}\n\n{_marked(words)}\n")
        missing = [key for key in schema.parts[section] if key not in about]
        if missing:
            raise SystemExit(f"{of.__module__}.{of.__name__}: say below {missing[0]} what it does")
        out.append(HEAD)
        out += [_row(one, about[one.key]) for one in schema.parts[section].values()]
    return "\n".join(out)


def admin() -> str:
    """The table [admin], which `upseal admin` reads in the file alone."""
    about = docstrings(folder.Settings) | docstrings(server.Calendar)
    out = ["| setting | type | default | |", "|---|---|---|---|"]
    for field in dataclasses.fields(folder.Settings):
        if field.name not in folder._TOP:
            text, kind = _marked(about[field.name]), KINDS.get(str(field.type), "whole number")
            out.append(f"| `{field.name}` | {kind} | `{printable(field.default)}` | {text} |")
    return "\n".join(out)


def _row(one: Setting, about: str) -> str:
    none = "| None" in one.kind
    kind = one.kind.replace(" | None", "")
    kind = "list of texts" if kind.startswith("tuple") else KINDS.get(kind, kind)
    kind = {"int": "whole number", "float": "number"}.get(kind, kind)
    variable = f"`{one.variable}`" if one.variable else "the file alone"
    if one.secret:
        variable += f", or `{one.variable}_FILE`"
    return f"| `{one.name}` | {kind} | {_default(one, none)} | {variable} | {_marked(about)} |"


def _default(one: Setting, none: bool) -> str:
    if one.default is dataclasses.MISSING:
        return "none: must be there"
    if one.name == "name" and one.default:
        return "the host's name"
    if one.name == "directory":
        return "the file's folder"
    if none and one.default is None:
        return "not set"
    value = getattr(one.default, "value", one.default)
    text = f"`{printable(list(value) if isinstance(value, tuple) else value)}`"
    whole = isinstance(value, int) and not isinstance(value, bool)
    return f"{text} ({_size(value)})" if whole and value >= _SMALL and value % 1024 == 0 else text


def _size(value: int) -> str:
    units = ["KiB", "MiB", "GiB", "TiB"]
    value //= 1024
    while value >= 1024 and not value % 1024 and len(units) > 1:
        value //= 1024
        del units[0]
    return f"{value:,} {units[0]}"


def _marked(text: str) -> str:
    """Docstrings' marks as Markdown's."""
    text = re.sub(r"\bNone\b", "not set", text)
    return re.sub(r"``(.+?)``", r"`\1`", text).replace("|", "\\|")


def page(text: str) -> str:
    """The page, with tables as the source has it."""
    made = {role: tables(role) for role in CLASSES} | {"admin": admin()}
    for name, table in made.items():
        begin, end = f"<!-- {name}: written by", f"<!-- end of {name} -->"
        pattern = rf"({re.escape(begin)}[^\n]*\n).*?({re.escape(end)})"
        text, count = re.subn(
            pattern, lambda m, t=table: f"{m[1]}\n{t}\n\n{m[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            raise SystemExit(f"{PAGE.name} has no place for the tables of {name}")
    return text


def main(arguments: list[str]) -> int:
    """Writes, or checks."""
    before = PAGE.read_text("utf-8")
    after = page(before)
    if arguments == ["--check"]:
        if before != after:
            print(f"{PAGE}: run python scripts/configuration_page.py", file=sys.stderr)
        return int(before != after)
    PAGE.write_text(after, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
