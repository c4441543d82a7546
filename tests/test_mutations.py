# SPDX-License-Identifier: Apache-2.0
"""Patches of tests/mutations fit the tree and name tests that are there; what runs them can fail.

Whether the tests find each of them out is for `scripts/mutations` to say: it takes minutes.
"""

import ast
import importlib.util
import sys
from functools import cache

import pytest
from mutations.patches import CTEST, FOLDER, Hunk, Patch, PatchError, every, patched, read
from support import ROOT

PATCHES = every()
ROOMS = {"core": 60, "engine": 30, "fleet": 100, "native": 30}


def machine():
    """scripts/mutations.py, as a module."""
    spec = importlib.util.spec_from_file_location("run_mutations", ROOT / "scripts/mutations.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def names_in(path):
    """Of one file: functions, classes, and functions of classes."""
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{one.name}" for one in node.body if hasattr(one, "name")}
    return found


def test_there_are_enough_of_them_in_every_room():
    rooms = [patch.name.partition("/")[0] for patch in PATCHES]
    assert set(rooms) == set(ROOMS)
    assert {room: rooms.count(room) for room in ROOMS if rooms.count(room) < ROOMS[room]} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_every_patch_fits_the_tree_in_one_place(room):
    for patch in PATCHES:
        if patch.name.startswith(f"{room}/"):
            for path, text in patched(patch, ROOT).items():
                assert text != (ROOT / path).read_text()


def test_every_patch_names_tests_that_are_there():
    for patch in PATCHES:
        for killer in patch.killers:
            path, _, test = killer.partition("::")
            known = {CTEST} if killer == CTEST else names_in(path)
            assert (test.partition("[")[0] or path) in known, (patch.name, killer)


def test_no_two_patches_are_the_same():
    def title(patch):
        return patch.name.partition("/")[0], patch.title

    for told in (title, lambda patch: (sorted(patch.changes.items()), patch.killers)):
        seen = [told(patch) for patch in PATCHES]
        assert [one for i, one in enumerate(seen) if one in seen[:i]] == []


def of(before, after):
    return Patch("core/x", "x", ("tests/test_x.py",), {"a.py": (Hunk(before, after),)})


def test_a_place_may_move_but_must_be_the_only_one(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("one\ntwo\nthree\n")
    take_two = of(("one", "two"), ("one",))
    assert patched(take_two, tmp_path) == {"a.py": "one\nthree\n"}
    file.write_text("zero\nzero\none\ntwo\nthree\n")
    assert patched(take_two, tmp_path) == {"a.py": "zero\nzero\none\nthree\n"}
    for wrong in ("one\ntwo\none\ntwo\n", "one\nthree\n", "one\n two\n"):
        file.write_text(wrong)
        with pytest.raises(PatchError, match="places"):
            patched(take_two, tmp_path)


GOOD = "Takes away: a check.\nKilled-by: ctest\n--- a/n.c\n+++ b/n.c\n@@ -1,2 +1 @@\n one\n-two\n"


@pytest.mark.parametrize(
    "wrong",
    [
        GOOD.replace("Takes away: a check.\n", ""),
        GOOD.replace("Killed-by: ctest\n", ""),
        GOOD.partition("---")[0],
        GOOD.replace("-two\n", ""),
        GOOD + "and more\n",
        GOOD.replace("-two", "?two"),
    ],
)
def test_a_patch_that_is_none_is_refused(tmp_path, monkeypatch, wrong):
    monkeypatch.setattr("mutations.patches.FOLDER", tmp_path)
    (tmp_path / "x.patch").write_text(GOOD)
    assert read(tmp_path / "x.patch").changes == {"n.c": (Hunk(("one", "two"), ("one",)),)}
    (tmp_path / "x.patch").write_text(wrong)
    with pytest.raises(PatchError):
        read(tmp_path / "x.patch")


def test_only_a_test_that_fails_for_the_patch_counts(tmp_path, monkeypatch):
    """A small tree of its own, with a check that one test sees and another does not."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take longer than the tests
    mutations = machine()
    origin = tmp_path / "origin"
    (origin / "src/upseal").mkdir(parents=True)
    (origin / "src/upseal/__init__.py").write_text("def low(n):\n    return n < 3\n")
    (origin / "tests/mutations").mkdir(parents=True)
    (origin / "tests/mutations/outcomes.py").write_bytes((FOLDER / "outcomes.py").read_bytes())
    (origin / "tests/test_low.py").write_text(
        "import upseal\n"
        "import pytest\n"
        "def test_sees(): assert not upseal.low(3)\n"
        "def test_blind(): assert upseal.low(2)\n"
        "@pytest.mark.skip\n"
        "def test_left_out(): assert not upseal.low(3)\n"
    )
    tree = mutations.Tree(tmp_path / "copy", sys.executable, of_c=False, origin=origin)

    def verdict(line, *tests):
        change = {"src/upseal/__init__.py": (Hunk(("    return n < 3",), (line,)),)}
        named = tuple(f"tests/test_low.py::{test}" for test in tests)
        run = mutations.Run([Patch("x/x", "x", named, change)], sys.executable, 1, sys.stdout)
        return run._judged(tree, run._patches[0])[0]

    assert verdict("    return n < 4", "test_sees") == "killed"
    assert verdict("    return n < 4", "test_sees", "test_blind") == "survived"
    assert verdict("    return m < 3", "test_sees") == "broken"  # a NameError finds nothing out
    assert verdict("    return n <", "test_sees") == "broken"
    assert verdict("    return n < 4", "test_left_out") == "broken"
    assert verdict("    return n < 4", "test_of_before") == "broken"
    assert tree.run(["tests/test_low.py::test_sees"]) == set()  # the patch is out again
