# SPDX-License-Identifier: Apache-2.0
"""Every call for a file, for random bytes or for memory made to fail, in turn.

A sample here; all of them by ``-m slow``. What a scenario does and what must hold stand in
faults_core.py, faults_agent.py, faults_relay.py and faults_server.py, beside what runs them.
"""

import json
import os
import re

import faults_driver
import faults_shim
import pytest

SCENARIOS = {
    "faults_core:SealFile:[1]": 40,
    "faults_core:SealFile:[2]": 25,
    "faults_core:OpenFile:[1]": 25,
    "faults_core:OpenFile:[2]": 20,
    'faults_core:OpenFile:[1,"object"]': 20,
    'faults_core:OpenFile:[2,"object"]': 20,
    "faults_core:Writer": 25,
    "faults_core:Reports": 20,
    "faults_core:KeyFiles": 50,
    "faults_agent:Spooling": 50,
    "faults_agent:Spooling:[false]": 25,
    "faults_agent:Waiting:[false]": 40,
    "faults_agent:Waiting:[true]": 30,
    "faults_agent:Believing": 40,
    "faults_relay:Queueing": 50,
    "faults_relay:Shelving": 50,
    "faults_server:Reporting": 20,
    "faults_server:Filing": 20,
}
"""Each with how many faults a sample of them has, about."""


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    built = faults_shim.build(tmp_path_factory.mktemp("shim"))
    if built is None:
        pytest.skip("no C compiler, or a C library without the names that the shim needs")
    return built


def check(report):
    assert not report["problems"], "\n\n".join(report["problems"])
    assert not report["nameless"], json.dumps(report["nameless"], indent=1)
    assert not report["odd"], json.dumps(report["odd"], indent=1)
    assert report["injected"] > 0


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_sample_of_faults(shim, scenario, tmp_path):
    seed = int(os.environ.get("FAULTS_SEED", "1"))
    check(faults_driver.run(shim, scenario, tmp_path, most=SCENARIOS[scenario], seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_fault(shim, scenario, tmp_path):
    report = faults_driver.run(shim, scenario, tmp_path)
    print(json.dumps(report, indent=1))
    check(report)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario", ["faults_core:Reports", "faults_core:SealFile:[1]", "faults_agent:Spooling"]
)
def test_allocations_of_pythons_own(shim, scenario, tmp_path):
    """Whatever libraries make of it: nothing is lost, and no nonce used twice."""
    pytest.importorskip("_testcapi", reason="this Python cannot make its allocations fail")
    report = faults_driver.run(shim, scenario, tmp_path, python=1500)
    assert not report["problems"], "\n\n".join(report["problems"])
    assert report["injected"] > 0


BROKEN = {
    "NamedBeforeWhole": ("write", "nobody has written"),
    "ShortIgnored": ("write", "cannot be opened"),
    "ErrorIgnored": ("write", "cannot be opened"),
    "LeftBehind": ("write", "left over"),
    "SaltKept": ("write", "a nonce was used twice"),
    "UnclearError": ("write,sync", "KeyError"),
    "SpoolPromisesEarly": ("write", "reports are lost"),
    "QueuePromisesEarly": ("write", "a body is lost"),
    "UnreadIsLost": ("read", "a body is lost"),
}
"""What is done wrong, and among which faults and by which words that is found."""


@pytest.mark.parametrize("broken", BROKEN)
def test_the_checks_find_what_is_done_wrong(shim, broken, tmp_path):
    kinds, words = BROKEN[broken]
    report = faults_driver.run(
        shim, f"faults_broken:{broken}", tmp_path, most=100, kinds=kinds, enough=1
    )
    assert any(re.search(words, problem) for problem in report["problems"]), report
