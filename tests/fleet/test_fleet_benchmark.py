# SPDX-License-Identifier: Apache-2.0
"""The fleet's benchmark runs, and its counts add up. How fast anything is, is not looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "fleet.py"
WAYS = {"direct", "passing relay", "decrypting relay"}
TINY = (
    "--agents=2", "--reports=10", "--seconds=1", "--unit=5", "--size=100", "--turns=1",
    "--flush=0", "--watchers=3", "--real=0", "--poll=0.1",
)  # fmt: skip


def run(tmp_path, *options, seconds):
    target = tmp_path / "fleet.json"
    folder = tmp_path / "work"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *options, f"--json={target}", f"--folder={folder}"],
        capture_output=True, text=True, timeout=seconds,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert os.listdir(folder) == []  # the deployment is gone
    return json.loads(target.read_text()), done.stdout


def check(found):
    assert found["kind"] == "fleet"
    assert found["machine"]["versions"]["upseal"]
    turns = found["turns"] + found["first"]
    assert found["made"] == found["receipted"] == found["stored"] > 0
    assert found["made"] == sum(turn["made"] for turn in turns)
    assert all(turn["made"] == turn["receipted"] for turn in turns)
    for turn in turns:
        relay = {"relay"} if turn["way"] != "direct" else set()
        assert set(turn["cpu"]) == set(turn["peak_mb"]) == {"agents", "server"} | relay
        assert turn["seconds"] > 0
    for rows in (found["rows"], found["first"]):
        assert {row["way"] for row in rows} == WAYS
    rotation = found["rotation"]
    assert set(rotation["ways"]) == WAYS
    assert sum(way["clients"] for way in rotation["ways"].values()) == rotation["watchers"]
    assert rotation["last"] == max(way["last"] for way in rotation["ways"].values())


@pytest.mark.slow
def test_it_runs_and_what_was_made_is_stored(tmp_path):
    found, words = run(tmp_path, *TINY, seconds=120)
    check(found)
    assert [turn["made"] for turn in found["first"]] == [10] * 3  # each agent one unit
    assert {(turn["way"], turn["sealed"]) for turn in found["turns"]} == {
        (way, sealed) for way in WAYS for sealed in (True, False)
    }
    assert [turn["made"] for turn in found["turns"]] == [10] * 6
    assert f"made {found['made']:,}, receipted {found['made']:,}" in words


def test_what_it_cannot_do_is_refused():
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *TINY, "--watchers=2"], capture_output=True, timeout=60
    )
    assert done.returncode == 2
    assert not done.stdout


@pytest.mark.slow
def test_a_quick_run(tmp_path):
    found, words = run(tmp_path, "--quick", seconds=300)
    check(found)
    flushed = found["flush"]["turns"]
    assert [turn["sealed"] for turn in flushed] == [True, False]
    assert {turn["reports"] for turn in flushed} == {found["settings"]["flush"]}
    assert len(found["rotation"]["real"]) == found["settings"]["real"]
    assert "real agents" in words
