# SPDX-License-Identifier: Apache-2.0
"""What the project says about itself is so."""

import re
import tomllib
from pathlib import Path

import pytest

import upseal
from upseal.fleet.agent import settings as agent
from upseal.fleet.relay import settings as relay
from upseal.fleet.server import settings as server

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def lines(path):
    return path.read_text().count("\n")


def test_version_is_that_of_the_distribution():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert upseal.__version__ == project["version"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_variables_exist(page):
    sources = [*ROOT.glob("src/**/*.py"), *ROOT.glob("native/*.py"), ROOT / "setup.py"]
    code = "\n".join(source.read_text() for source in sources)
    header = (ROOT / "native/upseal.h").read_text()
    settings = setting_variables()
    for name in set(re.findall(r"\bUPSEAL_[A-Z]\w*", page.read_text())):
        known = name in settings or re.search(rf'"{name}"', code) or name in header
        assert known, f"{page.name}: {name}"


def setting_variables():
    """Whose names follow from the settings, and what they begin with."""
    schemas = agent.schema(), relay.schema(), server.schema()
    settings = [one for schema in schemas for one in schema.settings.values() if one.variable]
    secret = {f"{one.variable}_FILE" for one in settings if one.secret}
    return {one.variable for one in settings} | secret | {schema.prefix for schema in schemas}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_in_pages_exist():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for page in PAGES:
        named = re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", page.read_text(), flags=re.M)
        assert set(named) <= targets, page.name


def test_files_stay_short():
    assert lines(ROOT / "setup.py") <= 40
    kinds = ("src/**/*.py", "native/*.[ch]", "native/*.py", "native/tests/*.[ch]")
    long = {
        str(path.relative_to(ROOT)): lines(path)
        for kind in kinds
        for path in ROOT.glob(kind)
        if path.name != "_native.c" and lines(path) > 400
    }
    assert not long


def test_every_source_names_its_licence():
    kinds = ("src/**/*.py", "native/**/*.[ch]", "native/*.py", "scripts/*", "tests/*.py")
    missing = [
        str(path.relative_to(ROOT))
        for kind in kinds
        for path in ROOT.glob(kind)
        if path.is_file() and "SPDX-License-Identifier: Apache-2.0" not in path.read_text()[:400]
    ]
    assert not missing
