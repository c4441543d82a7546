# SPDX-License-Identifier: Apache-2.0
"""The site of docs/: what fails its build, and that the reference and the figures are whole."""

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import upseal
import upseal.fleet.agent

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def build(folder):
    """As scripts/docs-site does."""
    options = ["-q", "-W", "--keep-going", "-n", "-b", "html"]
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ".", "out"],
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.fixture
def small(tmp_path):
    """A site of a few lines with the settings of ours."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in ("conf.py", "benchmarks.html"):
        shutil.copy(DOCS / name, folder)
    shutil.copytree(DOCS / "_static", folder / "_static")
    (folder / "index.md").write_text("# Index\n\n[there](other.md#part)\n")
    (folder / "other.md").write_text("# Other\n\n## Part\n")
    return folder


def test_a_sound_site_is_built_and_no_page_is_lost(small):
    done = build(small)
    assert done.returncode == 0, done.stderr
    assert 'href="other.html"' in (small / "out/index.html").read_text()  # in the contents


def test_what_is_wrong_fails_the_build(small):
    (small / "index.md").write_text(
        "# Index\n\n[a](nowhere.md) [b](other.md#nothing) [c](#gone)\n"
        "![d](img/no.svg) [e](../no.py)\n\n"
        "```{eval-rst}\n.. autoclass:: upseal.NoSuchName\n\n:class:`upseal.Seeler`\n```\n"
    )
    done = build(small)
    assert done.returncode != 0
    for word in ("nowhere", "nothing", "gone", "no.svg", "no.py", "NoSuchName", "upseal.Seeler"):
        assert word in done.stderr, f"{word}: {done.stderr}"


def test_the_site_loads_nothing_from_elsewhere(small):
    assert build(small).returncode == 0
    for page in [*(small / "out").rglob("*.html"), *(small / "out").rglob("*.css")]:
        found = re.findall(
            r'(?:src|href)="(?:https?:)?//[^"]+\.(?:js|css|woff2?)|@import|url\(["\']?(?:https?:)?//',
            page.read_text(),
        )
        assert not found, page


def test_all_public_names_are_in_the_reference():
    library, fleet = (
        (DOCS / "reference" / name).read_text() for name in ("library.md", "fleet.md")
    )
    for name in upseal.__all__:
        assert re.search(rf":: upseal\.{name}$", library, flags=re.M), name
    for name in upseal.fleet.agent.__all__:
        assert re.search(rf":: upseal\.fleet\.agent\.{name}$", fleet, flags=re.M), name


def test_all_neighbours_are_in_the_reference_and_in_their_list():
    folder = ROOT / "src/upseal/integrations"
    reference = (DOCS / "reference/integrations.md").read_text()
    pages = {page.stem for page in (DOCS / "integrations").glob("*.md")} - {"index"}
    listed = (DOCS / "integrations/index.md").read_text()
    for page in pages:
        assert f"({page}.md)" in listed, page
        for module in (folder / f"{page}.py", folder / page):
            if module.exists():
                assert re.search(rf":: upseal\.integrations\.{page}[.\n]", reference), page


def test_figures_of_the_comparison_are_those_measured():
    """None is typed by hand: each stands in the page of benchmarks, beside the same name."""
    measured = re.findall(
        r"<title>(.*?)</title>", (DOCS / "benchmarks.html").read_text(), flags=re.S
    )
    measured = [html.unescape(line) for line in measured]
    names = {
        "upseal, in a batch": ("upseal seal_batch", "upseal open_batch"),
        "upseal": ("upseal seal", "upseal open"),
        "upseal, a session for each": ("upseal, fresh session",) * 2,
    }
    rows = re.findall(
        r"^\| ([\w ,()]+) \| ([\d.]+ \S+) \| ([\d.]+ \S+) \|",
        (DOCS / "comparison.md").read_text(),
        flags=re.M,
    )
    assert len(rows) == 14
    for name, *figures in rows:
        for one, figure in zip(names.get(name, (name,) * 2), figures, strict=True):
            said = re.compile(rf"{re.escape(one)}: {re.escape(figure)}\b")
            assert any(map(said.match, measured)), (name, figure)


def test_pictures_are_those_of_the_benchmarks():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/docs_pictures.py", "--check"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_pictures_say_in_words_what_they_show(page):
    for words, name in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text()):
        assert len(words) > 10, name
        assert (page.parent / name).exists(), name
        if name.endswith(".svg"):
            svg = (page.parent / name).read_text()
            assert "<title" in svg and ("prefers-color-scheme: dark" in svg or "flame" in name)
