# SPDX-License-Identifier: Apache-2.0
"""``upseal doctor`` of the machine alone: each line can go wrong, and none takes others with it."""

import ctypes
import json
import os
import resource
import subprocess
import sys

import pytest
import support

from upseal.cli import main
from upseal.cli.doctor.lines import State, fail, ok, run

ALWAYS = {"version", "engine", "cpu", "random", "key-memory", "core-dumps", "fips"}


def doctor(*arguments, before=None, code=None, **environment):
    """In a process of its own: the exit code, and the lines by check."""
    command = ["-m", "upseal"] if code is None else ["-c", code]
    done = subprocess.run(
        [sys.executable, *command, "doctor", "--json", *map(str, arguments)],
        env=_clean(environment),
        preexec_fn=before, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    found = {}
    for line in json.loads(done.stdout)["lines"]:
        found.setdefault(line["check"], []).append(line)
    return done.returncode, found


def _clean(more):
    return {k: v for k, v in os.environ.items() if not k.startswith("UPSEAL_")} | more


def one(found, check):
    (line,) = found[check]
    return line


def test_all_is_well():
    support.engine("native[openssl]")
    code, found = doctor()
    assert set(found) >= {*ALWAYS, "backends"}
    assert {
        line["state"] for check in ("engine", "backends", "random") for line in found[check]
    } == {"ok"}
    assert code in (0, 8)
    assert (code == 0) == all(line["state"] == "ok" for lines in found.values() for line in lines)


def test_the_shape_of_json(capsys):
    main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"version", "counts", "lines"}
    assert set(found["counts"]) == {"ok", "unknown", "warn", "fail"}
    assert sum(found["counts"].values()) == len(found["lines"])
    for line in found["lines"]:
        assert set(line) == {"check", "state", "what", "do"}
        assert line["state"] in found["counts"] and line["what"]
        assert line["do"] is None or line["do"]
        assert line["state"] in ("ok", "unknown") or line["do"], line


def test_people_are_told_what_to_do_next(capsys, monkeypatch):
    monkeypatch.setenv("UPSEAL_ENGINE", "portable")
    assert main(["doctor"]) in (1, 8)
    text = capsys.readouterr().out.splitlines()
    place = next(i for i, line in enumerate(text) if line.startswith("warn") and " engine " in line)
    assert text[place + 1].strip() == "-> unset UPSEAL_ENGINE"


# -- each of them gone wrong ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "state", "do"),
    [
        ({"UPSEAL_ENGINE": "portable"}, "warn", "unset UPSEAL_ENGINE"),
        ({"UPSEAL_BACKEND": "openssl"}, "warn", "unset UPSEAL_BACKEND"),
        ({"UPSEAL_ENGINE": "fast"}, "fail", "unset"),
        ({"UPSEAL_BACKEND": "fast"}, "fail", "unset"),
    ],
)
def test_an_engine_that_is_forced(environment, state, do):
    support.engine("native[openssl]")
    code, found = doctor(**environment)
    line = one(found, "engine")
    assert line["state"] == state and line["do"].startswith(do)
    assert code == (8 if state == "warn" else 1)
    assert one(found, "cpu")["what"]  # whatever became of the engine


def test_an_installation_without_the_c_core():
    code = (
        "import sys; sys.modules['upseal.engine._native'] = None\n"
        "from upseal.cli import main; sys.exit(main())"
    )
    exit_code, found = doctor(code=code)
    assert exit_code == 8
    assert one(found, "engine")["state"] == "warn" and "pip install" in one(found, "engine")["do"]
    assert one(found, "backends")["state"] == "unknown"
    assert one(found, "key-memory")["state"] == "warn"
    assert set(found) >= ALWAYS


def test_an_installation_without_the_fleets_packages(tmp_path):
    code = (
        "import sys\nfor name in ('sqlalchemy', 'starlette', 'urllib3'): sys.modules[name] = None\n"
        "from upseal.cli import main; sys.exit(main())"
    )
    for role in ("agent", "relay", "server"):
        exit_code, found = doctor(f"--{role}", tmp_path, code=code)
        assert exit_code in (1, 8)
        assert set(found) >= ALWAYS
        told = [line for lines in found.values() for line in lines if line["state"] == "unknown"]
        assert any("upseal[fleet]" in (line["do"] or "") for line in told), (role, told)


def test_keys_that_cannot_be_locked():
    support.engine("native[openssl]")

    def none():
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
        if hasattr(resource, "prlimit"):  # root may lock all the same
            _without_capabilities()

    line = one(doctor(before=none)[1], "key-memory")
    assert line["state"] == "warn" and "LimitMEMLOCK" in line["do"]


def _without_capabilities():
    """As a user that is not root: CAP_IPC_LOCK is what lets root lock without a limit."""
    libc = ctypes.CDLL(None)
    cap_ipc_lock, drop = 14, 24
    libc.prctl(drop, cap_ipc_lock, 0, 0, 0)
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        data = (ctypes.c_uint32 * 6)()
        assert libc.capget(header, data) == 0
        for word in range(3):
            data[word] &= ~(1 << cap_ipc_lock)
        assert libc.capset(header, data) == 0


def test_core_dumps_that_would_be_written():
    limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if limit == 0:
        pytest.skip("core dumps cannot be allowed here")
    done = doctor(before=lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, limit)))
    line = one(done[1], "core-dumps")
    assert line["state"] == "warn" and "1.0 MiB" in line["what"]
    done = doctor(before=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, limit)))
    assert one(done[1], "core-dumps")["state"] == "ok"


# -- checks that fail themselves ------------------------------------------------------------


def test_a_check_that_raises_is_a_line_and_the_next_one_is_run():
    def broken():
        yield ok("a", "so far")
        raise RuntimeError("of something else")

    def forbidden():
        raise PermissionError(13, "Permission denied", "/key.pem")

    def missing():
        import upseal.no_such_room

        yield ok("c", str(upseal.no_such_room))

    found = list(
        run([("a", broken), ("b", forbidden), ("c", missing), ("d", lambda: [fail("d", "w", "x")])])
    )
    assert [(line.check, line.state) for line in found] == [
        ("a", State.OK), ("a", State.UNKNOWN), ("b", State.UNKNOWN), ("c", State.UNKNOWN),
        ("d", State.FAIL),
    ]  # fmt: skip
    assert "RuntimeError: of something else" in found[1].what
    assert "root" in found[2].do and "upseal[fleet]" in found[3].do


@pytest.mark.parametrize(
    "arguments", [["--timeout", "0"], ["--timeout", "x"], ["--agent", "a", "--relay", "b"]]
)
def test_wrong_usage(arguments, capsys):
    assert main(["doctor", *arguments]) == 2
    assert "upseal doctor --help" in capsys.readouterr().err


def test_names_of_files_cannot_play_tricks_with_a_terminal(tmp_path, capsys):
    main(["doctor", "--agent", str(tmp_path / "a\x1b[2J\nfail  x")])
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert not any(line.startswith("fail  x") for line in text.splitlines())
