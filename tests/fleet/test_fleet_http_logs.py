# SPDX-License-Identifier: Apache-2.0
"""Logs that say what happened and nothing that should not be said; metrics beside them."""

import enum
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from upseal.fleet.http import logs
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.problems import Problem

LOG = logging.getLogger("upseal.test")


class Colour(enum.Enum):
    DEEP_RED = 1


@pytest.fixture
def lines(monkeypatch):
    """What was logged, as JSON. Not strict, as in production; a test may change that."""
    monkeypatch.setenv("UPSEAL_DEBUG", "0")
    yield from _setup(json=True)


@pytest.fixture
def text():
    yield from _setup(json=False)


def _setup(json):
    stream = io.StringIO()
    root, ours = logging.getLogger(), logging.getLogger("upseal")
    before = ours.level
    handler = logs.setup(json=json, level="debug", stream=stream)
    yield stream
    root.removeHandler(handler)
    ours.setLevel(before)


def written(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_object_on_one_line(lines):
    logs.event(
        LOG,
        "unit stored",
        agent="1f2e\n",
        count=3,
        share=0.5,
        colour=Colour.DEEP_RED,
        path=Path("/a/b"),
        missing=None,
        many=[1, "two", (3,)],
        counts={"sealed": 2},
        endless=float("inf"),
    )
    (line,) = written(lines)
    stamp = line.pop("t")
    assert stamp.endswith("Z") and "T" in stamp and len(stamp) == 24
    assert line == {
        "level": "info",
        "event": "unit stored",
        "agent": "1f2e\n",
        "count": 3,
        "share": 0.5,
        "colour": "deep-red",
        "path": "/a/b",
        "missing": None,
        "many": [1, "two", [3]],
        "counts": {"sealed": 2},
        "endless": "inf",
    }


REFUSED = [
    ("data", b"plain"),
    ("data", bytearray(b"plain")),
    ("data", memoryview(b"plain")),
    ("data", [1, [b"plain"]]),
    ("data", {"inner": b"plain"}),
    ("data", {"token": "x"}),
    ("data", object()),
    ("key", "x"),
    ("secret", 7),
    ("token", "x"),
    ("enrolment_token", "x"),
    ("Passphrase", "x"),
    ("plaintext", "x"),
    ("keys", ["x"]),
    ("credential", "x"),
    ("text", "-----BEGIN PRIVATE KEY-----"),
    ("text", "bearer upseal-token-1.abcdef"),
    ("text", "Upseal eyJhbGciOi"),
    ("text", "eyJhbGciOiJFZERTQSJ9.eyJhIjoxfQ.c2lnbmF0dXJlc2lnbmF0dXJl"),
    ("number", 1 << 200),
    ("event", "x"),
    ("level_", b""),
    ("t", 1),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_could_be_a_secret_is_refused_under_test(name, value):
    with pytest.raises(ValueError):
        logs.event(LOG, "something", **{name: value})


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_and_dropped_in_production(lines, name, value):
    logs.event(LOG, "something", **{name: value}, other=1)
    (line,) = written(lines)
    assert line["event"] == "something" and line["other"] == 1
    assert "(dropped)" in line.values()
    assert "plain" not in line.values() and "BEGIN" not in lines.getvalue()


def test_refusing_does_not_wait_for_the_level(text):
    logging.getLogger("upseal").setLevel(logging.ERROR)
    with pytest.raises(ValueError):
        logs.event(LOG, "quiet", level=logging.DEBUG, token="x")


def test_names_that_only_resemble_secrets_pass(text):
    logs.event(LOG, "ok", key_id="ab", keys=3, token_expires=5, tokens=2, monkey="x")
    assert "key_id=ab  keys=3" in text.getvalue()


def boom(secret):
    raise ValueError(f"cannot parse {secret}")


def test_an_exception_says_where_and_not_what(lines):
    try:
        try:
            boom("hunter2")
        except ValueError as error:
            raise KeyError("hunter2") from error
    except KeyError as error:
        logs.event(LOG, "failed", level=logging.ERROR, exc=error, cause=error)
        LOG.exception("by hand")
    ours, by_hand = written(lines)
    assert "hunter2" not in lines.getvalue()
    assert ours["cause"] == "KeyError"
    for line in (ours, by_hand):
        assert line["trace"][0] == "builtins.ValueError" and "builtins.KeyError" in line["trace"]
        assert any(frame.endswith(" boom") for frame in line["trace"])


def test_errors_of_the_system_and_problems_are_named(lines):
    logs.event(LOG, "failed", error=FileNotFoundError(2, "No such file", "/a"), why=Problem("full"))
    (line,) = written(lines)
    assert line["error"] == "FileNotFoundError: [Errno 2] No such file: '/a'"
    assert line["why"] == "Problem: full"


def test_other_peoples_loggers_are_heard_without_their_bytes(lines):
    other = logging.getLogger("someone.else")
    other.warning("got %s, %d and %r", b"plain", 7, ValueError("plain"))
    other.warning(b"plain")
    other.warning("token is upseal-token-1.abc")
    other.info("chatter")
    first, second, third = written(lines)
    assert first["logger"] == "someone.else"
    assert first["event"] == "got <5 bytes>, 7 and 'ValueError'"
    assert second["event"] == "<5 bytes>" and third["event"] == "(withheld)"


def test_a_line_for_people(text):
    logs.event(LOG, "unit stored", agent="1f", note="two words", evil="\x1b[2J\nforged")
    (line,) = text.getvalue().splitlines()
    assert ' info    unit stored  agent=1f  note="two words"  evil=' in line
    assert "\x1b" not in line


def test_long_values_are_cut(lines):
    logs.event(LOG, "long", text="x" * 100_000, many=list(range(100_000)))
    assert len(lines.getvalue()) < 2500


def test_setup_twice_writes_once(lines):
    logs.setup(json=True, level="debug", stream=lines)
    try:
        logs.event(LOG, "once")
        assert len(written(lines)) == 1
    finally:
        logging.getLogger().handlers[:] = [
            h for h in logging.getLogger().handlers if getattr(h, "stream", None) is not lines
        ]
    with pytest.raises(ValueError):
        logs.setup(level="loud")


def test_a_closed_stderr_ends_nothing():
    code = (
        "import os, logging\n"
        "from upseal.fleet.http import logs\n"
        "logs.setup(json=True)\n"
        "os.close(2)\n"
        "logs.event(logging.getLogger('upseal.x'), 'gone')\n"
        "os.write(1, b'alive')\n"
    )
    # Unbuffered: else Python itself ends with 120, for it cannot flush the stderr that is gone.
    done = subprocess.run(
        [sys.executable, "-u", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, b"alive")


# -- metrics ----------------------------------------------------------------------------


def test_metrics_have_the_names_of_prometheus():
    ours, other = Metrics("relay"), Metrics("relay")
    ours.counter("bodies", "Bodies taken", ("kind",)).labels("sealed").inc(3)
    ours.counter("bodies", "Bodies taken", ("kind",)).labels("sealed").inc()
    ours.gauge("queue_bytes", "Bytes queued", function=lambda: 17)
    ours.histogram("commit_seconds", "Time of a commit").observe(0.003)
    shown = ours.render().decode()
    assert 'upseal_relay_bodies_total{kind="sealed"} 4.0' in shown
    assert "upseal_relay_queue_bytes 17.0" in shown
    assert 'upseal_relay_commit_seconds_bucket{le="0.005"} 1.0' in shown
    assert "process_cpu_seconds_total" in shown
    assert b"upseal_relay_bodies" not in other.render()


def test_metrics_refuse_what_does_not_fit(tmp_path):
    ours = Metrics("agent")
    ours.counter("sent", "Units sent")
    with pytest.raises(ValueError):
        ours.gauge("sent", "Units sent")
    with pytest.raises(ValueError):
        ours.gauge("x", "X", ("label",), function=lambda: 1)
    with pytest.raises(ValueError):
        Metrics("two words")
    ours.write(tmp_path / "upseal.prom")
    assert b"upseal_agent_sent_total 0.0" in (tmp_path / "upseal.prom").read_bytes()
    assert os.listdir(tmp_path) == ["upseal.prom"]
