# SPDX-License-Identifier: Apache-2.0
"""Which engine runs, as the environment and the machine decide; and which room imports which."""

import ast

import pytest
from support import ROOT, engine, python

WHICH = """
from upseal import *
from upseal.engine import choose
key = PrivateKey.generate()
assert Opener([key]).open(Sealer([key.public_key]).seal(b"r")) == b"r"
engine, reason = choose()
print(engine.describe()["engine"], engine.describe()["backend"], "|", reason)
"""


def test_by_itself_the_native_engine_is_taken_where_it_is_built():
    engine("native[openssl]")
    done = python(WHICH)
    assert done.stdout.startswith("native "), done.stderr
    assert "built" in done.stdout


def test_the_environment_can_choose_the_engine_and_the_backend():
    done = python(WHICH, UPSEAL_ENGINE="portable")
    assert done.stdout.startswith("portable cryptography"), done.stderr
    assert "UPSEAL_ENGINE" in done.stdout
    for backend in ("ippcp", "openssl"):
        engine(f"native[{backend}]")
        done = python(WHICH, UPSEAL_BACKEND=backend)
        assert done.stdout.startswith(f"native {backend}"), done.stderr
    # Empty is as good as not set.
    assert python(WHICH, UPSEAL_ENGINE="", UPSEAL_BACKEND="").returncode == 0


@pytest.mark.parametrize(
    ("env", "error", "word"),
    [
        ({"UPSEAL_ENGINE": "fast"}, "ValueError", "'native' or 'portable'"),
        ({"UPSEAL_BACKEND": "fast"}, "EngineError", "'fast' is not usable here"),
        ({"UPSEAL_ENGINE": "native", "UPSEAL_BACKEND": "fast"}, "EngineError", "'fast'"),
    ],
)
def test_a_wrong_choice_is_a_clear_error_and_no_silent_change(env, error, word):
    if "UPSEAL_BACKEND" in env:
        engine("native[openssl]")  # skips where the C core is not built: then that is the error
    done = python(WHICH, **env)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert error in last
    assert word in last


# Stands for a portable-only install: the import of the C core fails.
WITHOUT_C = "import sys; sys.modules['upseal.engine._native'] = None\n" + WHICH


def test_without_the_c_core_the_portable_engine_is_taken_and_says_why():
    done = python(WITHOUT_C)
    assert done.stdout.startswith("portable"), done.stderr
    assert "native engine cannot run" in done.stdout


def test_without_the_c_core_asking_for_it_is_an_error():
    for env in ({"UPSEAL_ENGINE": "native"}, {"UPSEAL_BACKEND": "openssl"}):
        done = python(WITHOUT_C, **env)
        assert "EngineError" in done.stderr.strip().splitlines()[-1]


def test_the_portable_engine_gives_the_same_format_as_the_default():
    code = """
from upseal import *
key = PrivateKey.generate()
for a in (None, "portable"):
    for b in (None, "portable"):
        envelope = Sealer([key.public_key], engine=a).seal(b"r")
        assert Opener([key], engine=b).open(envelope) == b"r"
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_importing_upseal_opens_no_socket_and_starts_no_thread():
    code = """
import sys, threading
before = threading.active_count()
import upseal
assert threading.active_count() == before
assert "socket" not in sys.modules, "socket"
assert "asyncio" not in sys.modules, "asyncio"
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


# -- imports run one way: cli -> fleet, integrations -> core -> engine -> native --------


def imported(path):
    """Names of all modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


ALLOWED = {"core": {"core", "engine", "errors"}, "engine": {"engine"}}


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_from_rooms_below_it(room):
    files = sorted((ROOT / "src/upseal" / room).glob("**/*.py"))
    assert len(files) > 5
    for path in files:
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "upseal":
                assert len(parts) == 1 or parts[1] in ALLOWED[room], f"{path} imports {name}"
            if parts == ["upseal"]:
                pytest.fail(f"{path} imports the package's own public names")


def test_the_core_knows_no_network():
    for room in ALLOWED:
        for path in (ROOT / "src/upseal" / room).glob("**/*.py"):
            roots = {name.split(".")[0] for name in imported(path)}
            assert not roots & {"socket", "ssl", "http", "urllib", "asyncio", "selectors"}


def test_the_engine_sees_no_public_key():
    for path in (ROOT / "src/upseal/engine").glob("**/*.py"):
        for name in imported(path):
            assert "asymmetric" not in name
            assert "hpke" not in name


def test_no_file_of_the_core_is_longer_than_400_lines():
    for folder in ("src/upseal", "native"):
        for path in (ROOT / folder).glob("**/*.[pch]*"):
            if path.suffix in (".py", ".c", ".h") and not path.name.startswith("_native"):
                assert len(path.read_text().splitlines()) <= 400, path
