# SPDX-License-Identifier: Apache-2.0
"""What the blocks of code in README.md and docs/ are, and how each is run.

A page is one session, from its first block to its last, in a place of its own (docs_place.py),
where `tests/docs_setup/PAGE.sh` and `PAGE.py`, if there are any, have been run first. By language:

- ``python`` runs; ``sh`` runs as a whole and must succeed
- ``console``: the commands behind ``$``; each line shown below one must be printed, in this order
  (more may be, ``...`` is anything, ids, dates and times are any). If what is shown begins with
  ``upseal: ``, the command must fail, else succeed
- ``toml`` is taken by the settings that it is for, ``json`` is parsed, ``ini`` too
- ``c`` is compiled against native/upseal.h and run
- no language, or ``text``, is a picture: not a command

A comment right before a block changes that; a code host and the site show none of them:

- ``<!-- not run: REASON -->``
- ``<!-- until: COMMAND -->``: first waits until that succeeds, as a person would
- ``<!-- in background -->``: for what runs until it is stopped
- ``<!-- in an empty folder -->``: for what does not go on with what stands before (``sh``)

``python tests/docs_runner.py`` lists all blocks that are not run, with the reasons.
"""

import configparser
import json
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from docs_place import ROOT, Failed, Place
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, RawFencedCodeBlockLexer

SETUP = Path(__file__).parent / "docs_setup"
ELSEWHERE = Path(__file__).parent / "docs_elsewhere.toml"
PICTURES = {"", "text"}
_FENCES = RawFencedCodeBlockLexer(re.compile(r"(?P<language>[^\n]*)\n"))
_COMMENTS = DirectiveInHTMLCommentLexer(r"not run|until|in background|in an empty folder")
_VARIES = (
    r"\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d)?Z?)?",
    r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,64}\b",
    r"\b\d+ (?:s|ms|min|h) ago\b",
    r"\b[a-z0-9]{5}(?:-[a-z0-9]{5}){4}\b",
    r"\b\d+(?:,\d{3})*(?= (?:made|stored|reports))",
    r"\.\.\.",
)
"""What is another one each time: times, ids, ages, passwords, counts; and what was left out."""
_VARYING = re.compile("|".join(f"({kind})" for kind in _VARIES))


class Unexplained(AssertionError):
    """A block is neither run nor has it a reason."""


@dataclass
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    text: str
    comments: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """As compilers say it."""
        return f"{self.page}:{self.line}"

    @property
    def reason(self) -> str | None:
        """Why it is not run; None: it is."""
        return self.comments.get("not run")


# ---- pages to blocks -----------------------------------------------------------------


def pages() -> list[Path]:
    """All pages, README.md first."""
    built = ROOT / "docs" / "_build"
    found = sorted(page for page in (ROOT / "docs").rglob("*.md") if built not in page.parents)
    return [ROOT / "README.md", *found]


def _elsewhere() -> dict[str, list[dict[str, str]]]:
    """Reasons that stand beside the pages: for those that are kept free of comments."""
    return tomllib.loads(ELSEWHERE.read_text())


def _parse(document: Document) -> Iterator[Region]:
    """A region for each block, with the comments right before it."""
    page = Path(document.path).relative_to(ROOT).as_posix()
    others = _elsewhere().get(page, [])
    comments: list[Region] = []
    for region in sorted([*_FENCES(document), *_COMMENTS(document)], key=lambda r: r.start):
        words = region.lexemes
        line = document.text.count("\n", 0, region.start) + 1
        between = document.text[comments[-1].end : region.start] if comments else ""
        if between.strip(" \n->"):
            raise Unexplained(f"{page}:{line}: a comment above stands before no block")
        if "directive" in words:
            comments.append(region)
            continue
        block = Block(page, line, words["language"].strip(), str(words["source"]))
        for comment in comments:
            block.comments[comment.lexemes["directive"]] = comment.lexemes["arguments"].strip()
        comments = []
        for other in others:
            if block.text.lstrip().startswith(other["begins"].strip()):
                block.comments["not run"] = other["reason"]
        _check(block)
        if not block.language.startswith("{"):  # Sphinx's own: the build of the site looks at them
            yield Region(region.start, region.end, block, _evaluate)
    if comments:
        raise Unexplained(f"{page}: a comment stands before no block")


def _check(block: Block) -> None:
    """A block must be of a kind that is known here.

    Raises:
        Unexplained: otherwise.
    """
    if block.reason is not None:
        if len(block.reason) < 10:
            raise Unexplained(f"{block.where}: why is it not run? Say so in a sentence")
    elif block.language in PICTURES:
        if re.search(r"^(\$ |upseal [a-z]|import |from \w+ import)", block.text, flags=re.M):
            raise Unexplained(
                f"{block.where}: this looks like a command or code: say which language"
            )
    elif block.language not in _RUN and not block.language.startswith("{"):
        known = ", ".join(sorted(_RUN))
        raise Unexplained(
            f"{block.where}: nobody runs a block of {block.language!r} (but: {known}); "
            "write `<!-- not run: REASON -->` before it"
        )


SYBIL = Sybil(parsers=[_parse], patterns=["*.md"])


def blocks(page: Path) -> list[Block]:
    """All blocks of a page that are neither pictures nor Sphinx's own."""
    found = [example.parsed for example in SYBIL.parse(page).examples()]
    return [block for block in found if block.language not in PICTURES]


def run_page(page: Path, folder: Path, only: str = "", **env: str) -> int:
    """Runs all blocks of a page, or those of one language, in order; how many that were.

    Raises:
        Failed: a block does not do what the page says; names the line.
        Unexplained: as above.
    """
    document = SYBIL.parse(page)
    done = 0
    document.namespace.update(folder=folder, env=env)
    try:
        for example in document.examples():
            if only in ("", example.parsed.language):
                example.evaluate()
                done += example.parsed.reason is None and example.parsed.language not in PICTURES
    finally:
        if place := document.namespace.pop("place", None):
            place.close()
    return done


# ---- running one ---------------------------------------------------------------------


def _evaluate(example: Example) -> None:
    block: Block = example.parsed
    if block.reason is not None or block.language in PICTURES:
        return
    try:
        if "until" in block.comments:
            _place(example).until(block.comments["until"])
        _RUN[block.language](example, block)
    except Failed as error:
        raise Failed(f"{block.where}: {error}") from None


def _place(example: Example) -> Place:
    """The page's place, made and set up at its first block."""
    space = example.namespace
    if "place" not in space:
        space["place"] = place = Place(space["folder"], **space["env"])
        name = SETUP / example.parsed.page.removeprefix("docs/").removesuffix(".md").replace(
            "/", "-"
        )
        if (script := name.with_suffix(".sh")).exists():
            code, said = place.shell(f"set -e\n. {script}\nset +e")
            if code:
                raise Failed(f"{script.name}: exit code {code}\n{said}")
        if (script := name.with_suffix(".py")).exists():
            place.python(script.read_text(), str(script), 0)
    place = space["place"]
    assert isinstance(place, Place)
    return place


def _python(example: Example, block: Block) -> None:
    _place(example).python(block.text, block.page, block.line)


def _sh(example: Example, block: Block) -> None:
    text = f"set -eo pipefail\n{block.text}\nset +eo pipefail"
    if "in an empty folder" in block.comments:
        text = f'( cd "$(mktemp -d)"\n{text}\n)'
    code, said = _place(example).shell(text)
    if code:
        raise Failed(f"exit code {code}\n{block.text}\n{said}")


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a ``console`` block, each with the lines shown below it."""
    command, shown, goes_on = "", [], False
    for line in text.splitlines():
        if goes_on:
            command += "\n" + line
        elif line.startswith("$ "):
            if command:
                yield command, shown
            command, shown = line[2:], []
        elif line.strip():
            shown.append(line)
        goes_on = (goes_on or line.startswith("$ ")) and line.endswith("\\")
    if command:
        yield command, shown


def missing(shown: list[str], said: str) -> str | None:
    """The first line that was not said behind those before it; None: all were."""
    text, at = " ".join(said.split()), 0
    for line in shown:
        words, pattern, done = " ".join(line.split()), "", 0
        for piece in _VARYING.finditer(words):
            kind = _VARIES[(piece.lastindex or 0) - 1]
            pattern += re.escape(words[done : piece.start()])
            pattern += ".*?" if piece[0] == "..." else kind
            done = piece.end()
        pattern += re.escape(words[done:])
        found = re.compile(pattern).search(text, at)
        if not found:
            return line
        at = found.end()
    return None


def _console(example: Example, block: Block) -> None:
    place = _place(example)
    for command, shown in commands(block.text):
        fails = bool(shown) and shown[0].startswith("upseal: ")
        if "in background" in block.comments:
            log = place.folder / f"background.{block.line}"
            log.touch()
            place.shell(f"{command} >{shlex.quote(str(log))} 2>&1 &")
            end = time.monotonic() + 60
            while (line := missing(shown, log.read_text())) and time.monotonic() < end:
                time.sleep(0.1)
            said = log.read_text()
        else:
            code, said = place.shell(command)
            if bool(code) != fails:
                raise Failed(f"exit code {code}\n$ {command}\n{said}")
            line = missing(shown, said)
        if line:
            raise Failed(f"not printed: {line}\n$ {command}\n{said}")


def _toml(example: Example, block: Block) -> None:
    """By the settings that its first words name."""
    from upseal.fleet.agent import settings as agent
    from upseal.fleet.relay import settings as relay
    from upseal.fleet.server import settings as server
    from upseal.fleet.settings import SettingsError

    try:
        table = tomllib.loads(block.text)
        named = re.search(r"(agent|relay|deployment)\.toml", block.text)
        role = named[1] if named else "deployment" if "server" in table else None
        if role == "agent":
            agent.Settings.parse(table)
        elif role == "relay":
            relay.Settings.parse(table)
        elif role == "deployment":
            given = {"deployment": "0" * 32, "name": "Example", **table}
            server.settings_of(ROOT / "deployment.toml", given)
        else:
            raise Failed("of which settings? Name the file in a comment")
    except (tomllib.TOMLDecodeError, SettingsError) as error:
        raise Failed(str(error)) from None


def _json(example: Example, block: Block) -> None:
    try:
        json.loads(block.text)
    except json.JSONDecodeError as error:
        raise Failed(str(error)) from None


def _ini(example: Example, block: Block) -> None:
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(block.text)
    except configparser.Error as error:
        raise Failed(str(error)) from None


_LEFT_OUT = {"aead_ippcp.c", "_native.c"}
"""A backend that needs a library of its own, and what the build makes."""


def _c(example: Example, block: Block) -> None:
    """Compiled with every warning an error, linked with the C core on OpenSSL, and run."""
    place = _place(example)
    source = place.folder / f"block{block.line}.c"
    source.write_text(block.text)
    native = ROOT / "native"
    parts = [part for part in sorted(native.glob("*.c")) if part.name not in _LEFT_OUT]
    program = source.with_suffix("")
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-D_GNU_SOURCE", f"-I{native}"]
    done = subprocess.run(
        ["cc", *flags, str(source), *map(str, parts), "-o", str(program), "-lcrypto", "-pthread"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failed(done.stderr)
    code, said = place.shell(str(program))
    if code:
        raise Failed(f"exit code {code}\n{said}")


_RUN = {
    "python": _python, "sh": _sh, "console": _console, "toml": _toml, "json": _json, "ini": _ini,
    "c": _c,
}  # fmt: skip


def main() -> None:
    """Lists what is not run, and counts."""
    run = 0
    left: list[Block] = []
    for page in pages():
        for block in blocks(page):
            run += block.reason is None
            left += [block] if block.reason is not None else []
    for block in left:
        print(f"{block.where} ({block.language}): {block.reason}")
    print(f"{run} blocks are run, {len(left)} are not")


if __name__ == "__main__":
    sys.exit(main())
