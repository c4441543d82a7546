# SPDX-License-Identifier: Apache-2.0
"""Writes requirements/, the locks of all that development and CI install; pip alone reads them.

``lock.py`` resolves with uv what pyproject.toml asks for and keeps the versions that still fit;
``lock.py --upgrade`` takes the newest. ``lock.py --check`` needs no network: it says what in
the locks does not fit pyproject.toml, and when they have grown old. Users of the distribution
never see these files: they get the ranges of pyproject.toml.
"""

import argparse
import datetime
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SETUP_GROUPS = ("test", "lint")
# Extras of hundreds of MB have a lock of their own: only `make analytics` installs them.
APART = {"analytics": ("spark", "ray")}
# These come as source alone. Building is setuptools', which requirements/setup.txt pins.
SOURCE_ONLY = ("pyspark",)
OLD = datetime.timedelta(days=90)
HEADER = """\
# SPDX-License-Identifier: Apache-2.0
# Written by `make lock` on {day} for the requirements {digest} of pyproject.toml.
--only-binary :all:
{source}--require-hashes
"""


class Pin(NamedTuple):
    """One entry of a lock: a requirement and the hashes of its files."""

    requirement: Requirement
    hashes: frozenset[str]


def normal(requirement: str) -> str:
    """The requirement in one spelling; ValueError where it is none."""
    try:
        return str(Requirement(requirement))
    except InvalidRequirement as error:
        raise ValueError(f"{requirement!r}: {error}") from error


def extra(project: dict[str, Any], name: str) -> list[str]:
    """What an extra asks for, extras of our own followed."""
    wanted = []
    for line in project["project"]["optional-dependencies"][name]:
        requirement = Requirement(line)
        if requirement.name == project["project"]["name"]:
            wanted += [one for other in sorted(requirement.extras) for one in extra(project, other)]
        else:
            wanted.append(line)
    return wanted


def group(project: dict[str, Any], name: str) -> list[str]:
    """What a dependency group asks for, included groups followed."""
    wanted = []
    for line in project["dependency-groups"][name]:
        wanted += [line] if isinstance(line, str) else group(project, line["include-group"])
    return wanted


def wanted(project: dict[str, Any]) -> dict[str, list[str]]:
    """For each lock, the requirements of pyproject.toml that it answers.

    ``core`` is what building and running the core takes, ``setup`` what `make setup` installs.
    Each further group has a lock of its own, but those that only gather others.
    """
    core = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    setup = list(core)
    apart = {name: [one for of in APART[name] for one in extra(project, of)] for name in APART}
    own = {one for names in APART.values() for one in names}
    for name in project["project"]["optional-dependencies"].keys() - own - {"all"}:
        setup += extra(project, name)
    for name in SETUP_GROUPS:
        setup += group(project, name)
    locks = {"pip": ["pip"], "setup": setup, "core": core, **apart}
    for name, lines in project["dependency-groups"].items():
        if name not in SETUP_GROUPS and any(isinstance(line, str) for line in lines):
            locks[name] = group(project, name)
    return {name: sorted({normal(line) for line in lines}) for name, lines in locks.items()}


def digest(requirements: list[str]) -> str:
    """What stands in a lock's header, so that it is seen when a requirement changed or went."""
    return hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:16]


def pins(text: str) -> list[Pin]:
    """The entries of a lock."""
    entries = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        line = line.partition("#")[0].strip() if not line.startswith("--") else ""
        if line:
            requirement, *hashes = line.split(" --hash=")
            entries.append(Pin(Requirement(requirement.strip()), frozenset(map(str.strip, hashes))))
    return entries


def entry_faults(pin: Pin) -> list[str]:
    """What is wrong with one entry by itself."""
    found = []
    operators = [one.operator for one in pin.requirement.specifier]
    if operators != ["=="] or "*" in str(pin.requirement.specifier) or pin.requirement.url:
        found.append(f"{pin.requirement} is not one version")
    if not pin.hashes:
        found.append(f"{pin.requirement} has no hash")
    found += [
        f"{pin.requirement}: {value!r} is no SHA-256"
        for value in sorted(pin.hashes)
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", value)
    ]
    return found


def lock_faults(requirements: list[str], text: str) -> list[str]:
    """What in a lock does not answer these requirements."""
    found = []
    for option in "--require-hashes", "--only-binary :all:":
        if option not in text.splitlines():
            found.append(f"does not say {option}")
    if "://" in text or re.search(r"^\s*(-i|-f|--[a-z-]*(index|links|host)\S*)\b", text, re.M):
        found.append("names an address; where packages come from is for whoever installs to say")
    if f"requirements {digest(requirements)} " not in text:
        found.append("was written for other requirements")
    entries = pins(text)
    for pin in entries:
        found += entry_faults(pin)
    for line in requirements:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        versions = [
            one.version
            for pin in entries
            if canonicalize_name(pin.requirement.name) == name
            for one in pin.requirement.specifier
        ]
        if not versions:
            found.append(f"{line} is missing")
        for version in versions:
            if not requirement.specifier.contains(version, prereleases=True):
                found.append(f"{line} is not met by {version}")
    return found


def faults(root: Path) -> list[str]:
    """All that is wrong with the locks below ``root``, a line each."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    locks = wanted(project)
    found = []
    chosen: dict[tuple[str, str], dict[str, str]] = {}
    for name, requirements in locks.items():
        path = root / f"requirements/{name}.txt"
        if not path.exists():
            found.append(f"{path.name}: is missing")
            continue
        text = path.read_text()
        found += [f"{path.name}: {fault}" for fault in lock_faults(requirements, text)]
        for pin in pins(text):
            key = canonicalize_name(pin.requirement.name), str(pin.requirement.marker or "")
            chosen.setdefault(key, {})[name] = str(pin.requirement.specifier)
    for path in sorted((root / "requirements").glob("*.txt")):
        if path.stem not in locks:
            found.append(f"{path.name}: pyproject.toml has no such group")
    for (package, _), versions in sorted(chosen.items()):
        if len(set(versions.values())) > 1:
            found.append(f"{package}: the locks disagree: {versions}")
    return found


def written(root: Path) -> datetime.date:
    """The day the oldest lock was written."""
    texts = [path.read_text() for path in (root / "requirements").glob("*.txt")]
    days = [found[1] for text in texts if (found := re.search(r" on (\d{4}-\d\d-\d\d) ", text))]
    return datetime.date.fromisoformat(min(days))


def environment() -> dict[str, str]:
    """The environment, with what it and pip's files say about the index put in uv's words."""
    env = {**os.environ, "UV_NO_CONFIG": "1", "UV_NO_PROGRESS": "1"}
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings = dict(re.findall(r"^(?:global|:env:|install)\.([a-z-]+)='(.*)'$", said, flags=re.M))
    for ours, theirs in ("index-url", "UV_DEFAULT_INDEX"), ("cert", "SSL_CERT_FILE"):
        if ours in settings:
            env.setdefault(theirs, settings[ours])
    return env


def compile_with_uv(requirements: list[str], output: Path, *options: str) -> str:
    """What uv writes for these requirements, for every platform and Python from 3.11 on."""
    command = [
        *(
            sys.executable,
            "-m",
            "uv",
            "pip",
            "compile",
            "-",
            "--quiet",
            "--output-file",
            str(output),
        ),
        *("--universal", "--python-version", "3.11", "--only-binary", ":all:", "--no-header"),
        *(option for name in SOURCE_ONLY for option in ("--no-binary", name)),
        *("--no-emit-index-url", "--no-emit-find-links", "--annotation-style", "line", *options),
    ]
    lines = "\n".join(requirements)
    subprocess.run(command, input=lines, text=True, check=True, env=environment())  # noqa: S603
    return output.read_text()


def write(upgrade: bool) -> None:
    """Writes all locks, from one resolution: what two of them name has one version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    locks = wanted(project)
    before = {path.stem: path.read_text() for path in (ROOT / "requirements").glob("*.txt")}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    with tempfile.TemporaryDirectory() as scratch:
        together = Path(scratch) / "together.txt"
        if not upgrade:  # uv keeps the versions that it finds where it writes
            kept = {str(pin.requirement) for text in before.values() for pin in pins(text)}
            together.write_text("\n".join(sorted(kept)))
        compile_with_uv(sorted(set().union(*locks.values())), together)
        for name, requirements in locks.items():
            made = compile_with_uv(
                requirements,
                Path(scratch) / f"{name}.txt",
                *("--generate-hashes", "--constraints", str(together)),
            )
            made = re.sub(r"(# via .*)", lambda found: _named(found[1]), made)
            day, old = today, before.get(name, "")
            if not upgrade and digest(requirements) in old and pins(old) == pins(made):
                day = old.partition(" on ")[2][:10]
            path = ROOT / f"requirements/{name}.txt"
            names = {canonicalize_name(pin.requirement.name) for pin in pins(made)}
            source = "".join(f"--no-binary {one}\n" for one in SOURCE_ONLY if one in names)
            header = HEADER.format(day=day, digest=digest(requirements), source=source)
            path.write_text(header + made.lstrip())
    for name in before.keys() - locks.keys():
        (ROOT / f"requirements/{name}.txt").unlink()


def _named(comment: str) -> str:
    """The comment of uv on where an entry comes from, with no path of this machine in it."""
    sources = [one.strip() for one in comment.removeprefix("# via").split(",")]
    packages = [one for one in sources if not one.startswith(("-c ", "-r "))]
    return "# via " + ", ".join(packages or ["pyproject.toml"])


def main() -> None:
    """What is in the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    parser.add_argument("--check", action="store_true", help="only say what does not fit")
    asked = parser.parse_args()
    if not asked.check:
        write(asked.upgrade)
    found = faults(ROOT)
    print(*(f"requirements: {fault}" for fault in found), sep="\n", end="\n" if found else "")
    if found:
        sys.exit("`make lock` writes the locks anew")
    age = datetime.datetime.now(datetime.UTC).date() - written(ROOT)
    if age > OLD:
        print(f"hint: the locks are {age.days} days old; `make lock UPGRADE=1` renews them")


if __name__ == "__main__":
    main()
