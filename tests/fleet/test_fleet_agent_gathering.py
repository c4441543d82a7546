# SPDX-License-Identifier: Apache-2.0
"""Gathering: real facts, and plug-ins that fail, hang and talk without end."""

import json
import sys
import threading
import time

import pytest

from upseal.fleet.agent import gathering
from upseal.fleet.agent.database import SpoolFull
from upseal.fleet.agent.gathering import Gatherer, sources
from upseal.fleet.agent.inventory import SOURCES, Source
from upseal.fleet.agent.settings import REPORT_MAX, Gather


def gatherer(found, timeout=30.0, take=None, client="web-1"):
    taken = []
    made = Gatherer(Gather(timeout=timeout), client, take or taken.extend, found)
    made.taken = taken
    return made


def facts(taken):
    return [json.loads(report) for report in taken]


def test_every_report_names_property_and_client():
    look = gatherer(dict(SOURCES))
    outcomes = look.look()
    assert {name for name, outcome in outcomes.items() if outcome.problem} == set()
    found = facts(look.taken)
    assert len(found) == sum(outcome.reports for outcome in outcomes.values()) > 20
    assert all(fact["client"] == "web-1" and isinstance(fact["property"], str) for fact in found)
    assert all(abs(fact["time"] - time.time()) < 600 for fact in found)
    assert {"process", "virtual_memory", "operating_system"} <= {f["property"] for f in found}
    assert not any("cmdline" in fact or "environ" in fact for fact in found)


def test_steady_things_are_told_again_only_when_they_change(monkeypatch):
    value = [1]
    look = gatherer({"s": Source(lambda: iter([{"property": "p", "v": value[0]}]), steady=True)})
    assert [look.look()["s"].reports for _ in range(3)] == [1, 0, 0]
    value[0] = 2
    assert look.look()["s"].reports == 1
    real = time.monotonic
    monkeypatch.setattr(gathering.time, "monotonic", lambda: real() + 2 * gathering.DAY)
    assert look.look()["s"].reports == 1, "once a day all the same"


def broken():
    yield {"property": "before"}
    raise RuntimeError("plaintext in the message")


def endless():
    while True:
        yield {"property": "again"}


def too_long():
    yield {"property": "long", "value": "x" * REPORT_MAX}
    yield {"property": "short"}


@pytest.mark.parametrize(
    ("look", "kept", "problem"),
    [
        (broken, ["before"], "failed: RuntimeError"),
        (too_long, ["short"], "a report was too long"),
        (lambda: ["no dict"], [], "failed: TypeError"),
        (lambda: None, [], "failed: TypeError"),
        (lambda: [{1: 2}], ["bad"], None),
        (lambda: [{"property": "p", "v": object}], ["p"], None),
        (lambda: [{"v": float("nan")}, {"v": 1}], ["bad"], "a report was no JSON"),
        (lambda: [{(1, 2): 3}, {"v": 1}], ["bad"], "a report was no JSON"),
        (lambda: 1 / 0, [], "failed: ZeroDivisionError"),
        (lambda: sys.exit(3), [], "failed: SystemExit"),
    ],
)
def test_a_source_that_fails_costs_no_other(look, kept, problem, caplog):
    one = gatherer({"bad": Source(look), "good": Source(lambda: [{"property": "fine"}])})
    outcomes = one.look()
    assert outcomes["bad"].problem == problem
    assert outcomes["good"] == (1, None)
    assert [fact["property"] for fact in facts(one.taken)] == [*kept, "fine"]
    assert "plaintext in the message" not in caplog.text


def test_a_source_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(gathering, "_FACTS_MAX", 2000)
    one = gatherer({"bad": Source(endless), "good": Source(lambda: [{"property": "fine"}])})
    outcomes = one.look()
    assert outcomes["bad"] == (2000, "failed: OverflowError")
    assert outcomes["good"] == (1, None)


def test_a_source_that_hangs_is_left_behind_and_not_started_twice():
    go, started = threading.Event(), []

    def hanging():
        started.append(1)
        go.wait(60)
        yield {"property": "late"}

    one = gatherer(
        {"bad": Source(hanging), "good": Source(lambda: [{"property": "fine"}])}, timeout=0.3
    )
    assert one.look()["bad"].problem == "took longer than 0.3 s"
    outcomes = one.look()
    assert outcomes["bad"].problem == "still at its last look"
    assert outcomes["good"] == (1, None)
    go.set()
    one._threads["bad"].join(30)
    assert [fact["property"] for fact in facts(one.taken)] == ["fine", "fine"], "too late"
    assert len(started) == 1
    go.clear()
    assert one.look()["bad"].problem == "took longer than 0.3 s"
    go.set()
    one._threads["bad"].join(30)


def test_a_full_spool_ends_a_look_and_no_more():
    def take(reports):
        raise SpoolFull("no room")

    one = gatherer({"a": Source(lambda: [{"property": "p"}])}, take=take)
    assert one.look()["a"].problem == "not taken: SpoolFull"


def test_it_looks_until_it_is_stopped():
    stop, looks = threading.Event(), []

    def look():
        looks.append(1)
        yield {"property": "p"}

    made = Gatherer(Gather(interval=0.01), "c", lambda reports: None, {"a": Source(look)})
    thread = threading.Thread(target=made.run, args=(stop,))
    thread.start()
    end = time.monotonic() + 30
    while len(looks) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert len(looks) >= 2
    looks.clear()
    Gatherer(Gather(interval=0), "c", lambda reports: None, {"a": Source(look)}).run(stop)
    assert not looks


@pytest.fixture
def plug_ins(tmp_path, monkeypatch):
    """A real distribution with entry points, on the path."""
    (tmp_path / "my_facts.py").write_text(
        "def mine():\n    yield {'property': 'mine', 'value': 1}\n"
        "def other():\n    return [{'value': 2, 'client': 'somebody else'}]\n"
    )
    folder = tmp_path / "my_facts-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: my-facts\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[upseal.gather]\nmine = my_facts:mine\nother = my_facts:other\n"
        "broken = no_such_module:look\ncpu = my_facts:mine\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_plug_ins_are_found_by_their_entry_points(plug_ins):
    found = sources(["mine", "other", "broken", "cpu"])
    one = gatherer(found)
    outcomes = one.look()
    assert outcomes["mine"] == (1, None)
    assert outcomes["broken"].problem == "failed: ModuleNotFoundError"
    assert found["cpu"] is SOURCES["cpu"], "a built-in is not replaced"
    seen = {fact["property"]: fact for fact in facts(one.taken)}
    assert seen["mine"]["value"] == 1
    assert seen["other"]["client"] == "web-1", "named after its source, and us"
    assert {"mine", "packages"} <= set(sources())
    assert set(sources(["cpu"])) == {"cpu"}
