# SPDX-License-Identifier: Apache-2.0
"""Every block of code in README.md and docs/ does what its page says (docs_runner.py says how)."""

import re
import tomllib

import docs_place
import docs_runner
import pytest
from docs_runner import ELSEWHERE, ROOT, Failed, Unexplained

PAGES = {page.relative_to(ROOT).as_posix(): page for page in docs_runner.pages()}
SLOW = {
    "docs/administration.md",
    "docs/backup.md",
    "docs/guides/keys.md",
    "docs/guides/recovery.md",
}
"""Whole fleets beside that of the tutorial: with the long tests."""
FENCE = "`" * 3


def has_something_to_run(page):
    try:
        return any(block.reason is None for block in docs_runner.blocks(page))
    except Unexplained:
        return True  # its test says what is wrong


@pytest.fixture
def place_to_be():
    if not docs_place.can_be_made():
        pytest.skip("needs `unshare`, and to be root or to be allowed user namespaces")


@pytest.mark.usefixtures("place_to_be")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, page in PAGES.items()
        if has_something_to_run(page)
    ],
)
def test_page(name, tmp_path):
    todo = [block for block in docs_runner.blocks(PAGES[name]) if block.reason is None]
    assert docs_runner.run_page(PAGES[name], tmp_path) == len(todo)


@pytest.mark.usefixtures("place_to_be")
def test_the_first_example_with_the_other_engine(tmp_path):
    assert docs_runner.run_page(PAGES["README.md"], tmp_path, "python", UPSEAL_ENGINE="portable")


# ---- reasons ------------------------------------------------------------------------


def reasons():
    return [
        (block.where, block.reason)
        for page in docs_runner.pages()
        for block in docs_runner.blocks(page)
        if block.reason is not None
    ]


def test_what_a_reason_names_is_there():
    for where, reason in reasons():
        for name in re.findall(r"\b(?:tests|scripts|examples|docs)/[\w./-]*\w", reason):
            assert (ROOT / name).exists(), f"{where}: {name}"


def test_reasons_that_stand_elsewhere_are_of_blocks_that_are_there():
    for page, entries in tomllib.loads(ELSEWHERE.read_text()).items():
        texts = [block.text.lstrip() for block in docs_runner.blocks(PAGES[page])]
        for entry in entries:
            begins = entry["begins"].strip()
            assert any(text.startswith(begins) for text in texts), f"{page}: {begins}"


def test_the_list_counts_them(capsys):
    docs_runner.main()
    *lines, count = capsys.readouterr().out.splitlines()
    assert len(lines) == len(reasons())
    assert count.endswith(f"are run, {len(lines)} are not")


# ---- the checks see what is wrong ----------------------------------------------------


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Makes a page with one block, and runs it."""
    monkeypatch.setattr(docs_runner, "ROOT", tmp_path)
    (tmp_path / "native").symlink_to(ROOT / "native")

    def run(text, language="sh", before=""):
        made = tmp_path / "page.md"
        made.write_text(f"# Page\n\n{before}\n\n{FENCE}{language}\n{text}\n{FENCE}\n")
        (tmp_path / "run").mkdir()
        return docs_runner.run_page(made, tmp_path / "run")

    return run


WRONG = [
    ("sh", "upseal keygen --no-such-option", "exit code 2"),
    ("sh", "false | true", "exit code 1"),
    ("console", "$ upseal explain /etc/hosts", "exit code 1"),
    ("console", "$ echo one\ntwo", "not printed: two"),
    ("console", "$ printf 'b\\na\\n'\na\nb", "not printed: b"),
    ("console", "$ true\nupseal: refused", "exit code 0"),
    ("python", "import upseal\nupseal.no_such_name", "no_such_name"),
    ("toml", "# agent.toml\nparent = 'http://x'\n[spool]\nmax = 1", "max"),
    ("toml", "[server]\nthreds = 1", "threds"),
    ("toml", "a = 1", "of which settings"),
    ("json", "{", "Expecting"),
    ("ini", "no section", "section"),
    ("c", '#include "upseal.h"\nint main(void) { return upseal_no_such(); }', "upseal_no_such"),
    ("c", "int main(void) { return 3; }", "exit code 3"),
]


@pytest.mark.usefixtures("place_to_be")
@pytest.mark.parametrize(("language", "text", "word"), WRONG)
def test_what_is_wrong_fails_and_says_where(page, language, text, word):
    with pytest.raises(Failed, match=re.escape(word)) as caught:
        page(text, language)
    assert str(caught.value).startswith("page.md:5: ")


@pytest.mark.usefixtures("place_to_be")
def test_what_never_comes_about_fails(page, monkeypatch):
    until = docs_place.Place.until
    monkeypatch.setattr(docs_place.Place, "until", lambda self, command: until(self, command, 0.5))
    with pytest.raises(Failed, match="never came about"):
        page("true", before="<!-- until: false -->")


@pytest.mark.parametrize(
    ("language", "before", "word"),
    [
        ("haproxy", "", "nobody runs a block of 'haproxy'"),
        ("", "", "which language"),
        ("sh", "<!-- not run: -->", "why is it not run"),
        ("sh", "<!-- until: true -->\n\nWords.", "stands before no block"),
    ],
)
def test_a_block_without_a_run_or_a_reason_fails(page, language, before, word):
    with pytest.raises(Unexplained, match=re.escape(word)):
        page("upseal seal", language, before)


def test_a_comment_at_the_end_is_of_no_block(tmp_path, monkeypatch):
    monkeypatch.setattr(docs_runner, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text("<!-- not run: needs a release -->\n")
    with pytest.raises(Unexplained, match="before no block"):
        docs_runner.blocks(tmp_path / "page.md")


@pytest.mark.parametrize(
    ("shown", "said", "ok"),
    [
        (
            "key 02679d6bec905aa4 of 2026-11-23 11:45Z",
            "key 9ff60465ccb1450c of 2027-01-02 03:04Z",
            1,
        ),
        ("ready: 2 of 2", "ready: 1 of 2", 0),
        ("1,015 made, 0 lost", "7 made, 0 lost", 1),
        ("1,015 made, 0 lost", "7 made, 1 lost", 0),
        ("web-1  sealed ... hosts", "web-1  sealed  120 B  hosts", 1),
        ("a wide   table", "a   wide table", 1),
    ],
)
def test_what_may_differ_and_what_not(shown, said, ok):
    assert (docs_runner.missing([shown], said) is None) == bool(ok)


@pytest.mark.usefixtures("place_to_be")
def test_a_place_is_of_its_own_and_leaves_nothing(tmp_path):
    place = docs_place.Place(tmp_path)
    try:
        code, said = place.shell(
            "echo 1 > /var/lib/upseal-test && sleep 999 & python -c 'import socket as s; "
            's.create_server(("127.0.0.1", 8450))\' && ls /proc | grep -c "^[0-9]"'
        )
        assert code == 0 and int(said.splitlines()[-1]) < 9, said
    finally:
        place.close()
    assert not (docs_place.Path("/var/lib/upseal-test")).exists()
    assert not list((tmp_path / "place").iterdir())
