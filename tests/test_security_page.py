# SPDX-License-Identifier: Apache-2.0
"""What docs/security.md claims has a test, and its numbers are those of the code."""

import ast
import inspect
import re
from functools import cache
from pathlib import Path

import pytest

from upseal import Limits
from upseal.core import bodies, header
from upseal.engine import sizes

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text()
CLAIMS = PAGE.split("## Claims and their tests")[1].split("\n## ")[0]
ROWS = [row for row in CLAIMS.splitlines() if row.startswith("| ")][1:]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@cache
def named_in(path):
    tree = ast.parse((ROOT / path).read_text())
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_claim_names_tests_that_exist(row):
    tests = row.split("|")[2]
    named = NAMED.findall(tests)
    assert named
    assert tests.count("`") == 2 * len(named), "something there is no path::test"
    for path, test in named:
        assert test in named_in(path), f"{path} has no {test}"


def test_there_are_claims():
    assert len(ROWS) > 30


@pytest.mark.parametrize(
    ("said", "value"),
    [
        (r"\| 2\^(\d+) and one hour by default", Limits().max_messages.bit_length() - 1),
        (r"\| (\d+) \| 18,918 bytes before any key is used", header.RECIPIENTS_MAX),
        (r"\| bytes of a batch, one subkey \| 2\^(\d+) records", bodies.BATCH_MAX.bit_length() - 1),
        (r"records, 2\^(\d+) bytes \|", bodies.BATCH_BYTES_MAX.bit_length() - 1),
        (r"reports of 2\^(\d+) bytes", sizes.RECORD_MAX.bit_length() - 1),
        (r"\| 2\^(\d+) chunks, 4 PiB", sizes.CHUNKS_MAX.bit_length() - 1),
    ],
)
def test_its_numbers_are_those_of_the_code(said, value):
    assert [int(found) for found in re.findall(said, PAGE)] == [value]


def test_an_hour_and_2_to_the_32_are_what_limits_allow():
    assert Limits().max_age == 3600
    assert Limits(max_messages=2**32)
    assert "2^32" in inspect.getsource(Limits)
    with pytest.raises(ValueError):
        Limits(max_messages=2**32 + 1)
