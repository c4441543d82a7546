# SPDX-License-Identifier: Apache-2.0
"""The benchmark of uploads runs. How fast anything is, is not looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "fleet_uploads.py"
TINY = ("--size=1", "--turns=1", "--ways=passing relay", "--large=2", "--held=10", "--seconds=1")


@pytest.mark.slow
def test_it_runs_and_all_that_was_sent_is_stored(tmp_path):
    target, folder = tmp_path / "uploads.json", tmp_path / "work"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *TINY, f"--json={target}", f"--folder={folder}"],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert os.listdir(folder) == []
    found = json.loads(target.read_text())
    assert found["kind"] == "fleet-uploads"
    assert [(row["way"], row["kind"]) for row in found["rows"]] == [
        ("passing relay", kind) for kind in ("sealed", "clear", "plain")
    ]
    for turn in (*found["turns"], *found["large"]):
        assert set(turn["cpu"]) == set(turn["peak_mb"]) == {"agent", "relay", "server"}
        assert 0 <= turn["taking"] < turn["seconds"]
    assert {turn["size"] for turn in found["large"]} == {2 << 20}
    held = found["held"]
    assert held["open"] == 10
    assert set(held["answers"]) == {"POST 201", "PATCH 204", "DELETE 204"}
    assert "time:plain" in done.stdout
