# SPDX-License-Identifier: Apache-2.0
"""A plugin of pytest that writes down how each test went: a line of JSON for each phase."""

import json
import os

import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    said = {
        "test": report.nodeid,
        "phase": report.when,
        "outcome": report.outcome,
        "error": None if call.excinfo is None else call.excinfo.typename,
    }
    with open(os.environ["UPSEAL_OUTCOMES"], "a", encoding="utf-8") as file:
        file.write(json.dumps(said) + "\n")
