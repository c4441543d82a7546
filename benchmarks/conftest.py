# SPDX-License-Identifier: Apache-2.0
"""How much the pytest-benchmark rows cover, and what stands in their JSON.

    pytest benchmarks --benchmark-enable --benchmark-only --benchmark-json=out.json

Without ``--benchmark-enable`` every row runs once, untimed: a check that all of them work.
"""

from __future__ import annotations

import machine
import peers
import pytest
import subjects
from subjects import CIPHERS, ENGINES, MIB, SIZES

KIB = 1 << 10


def pytest_addoption(parser):
    """How many rows."""
    parser.addoption(
        "--bench-scope",
        choices=("quick", "normal", "full"),
        default="normal",
        help="benchmark rows: quick, normal (all engines, ciphers, sizes), full (large ones too)",
    )


def pytest_generate_tests(metafunc):
    """Parameters are chosen by scope, since what is not run should not be listed."""
    scope = metafunc.config.getoption("--bench-scope")
    quick, full = scope == "quick", scope == "full"
    powers = [1 << i for i in range(machine.cores().bit_length())]
    choices = {
        "engine_name": [subjects.best()] if quick else list(ENGINES),
        "native_name": [n for n in ENGINES if n != "portable"][: 1 if quick else None],
        "cipher": CIPHERS[:1] if quick else CIPHERS,
        "size": [1024] if quick else SIZES,
        "count": [1000, 10_000] if full else [1000],
        "upload": [
            *([] if quick else [64 * KIB, MIB]),
            16 * MIB,
            *([] if quick else [128 * MIB]),
            *([1024 * MIB] if full else []),
        ],
        "file_size": [(1024 if full else 128) * MIB],
        "folder": ["memory"] if quick else ["memory", "disk"],
        "threads": [count for count in powers if count <= machine.cores()],
        "recipients": [1] if quick else [1, 4, 16],
    }
    for name, values in choices.items():
        if name in metafunc.fixturenames:
            ids = [_label(value) for value in values]
            metafunc.parametrize(name, values, ids=ids, scope="session")
    if "peer" in metafunc.fixturenames:
        found, missing = peers.load()
        able = [p for p in found if p.reports and not (quick and p.program)]
        skipped = [
            pytest.param(None, id=name, marks=pytest.mark.skip(reason=f"{name}: {why}"))
            for name, why in missing.items()
        ]
        here = [pytest.param(p, id=p.name) for p in able]
        metafunc.parametrize("peer", [*here, *skipped], scope="session")


def _label(value):
    if not isinstance(value, int) or value < KIB:
        return str(value)
    for unit, factor in (("GiB", 1 << 30), ("MiB", MIB), ("KiB", KIB)):
        if value % factor == 0:
            return f"{value // factor}{unit}"
    return str(value)


@pytest.fixture(scope="session")
def engine(engine_name):
    """Skips, visibly, where it cannot run."""
    return _or_skip(engine_name)


@pytest.fixture(scope="session")
def native(native_name):
    """The same for engines with a C core."""
    return _or_skip(native_name)


def _or_skip(name):
    found = subjects.engine(name)
    if isinstance(found, str):
        pytest.skip(f"{name}: {found}")
    return found


@pytest.fixture(scope="session")
def subject(engine, engine_name, cipher):
    """A sealer and an opener in an established session."""
    return subjects.pair(engine_name, cipher)


@pytest.fixture
def rows(benchmark):
    """Groups a row with its peers of the same size, and notes what one call dealt with."""

    def note(group, each, unit="report", **more):
        benchmark.group = group
        benchmark.extra_info.update(each=each, unit=unit, **more)
        return benchmark

    return note


def pytest_benchmark_update_machine_info(config, machine_info):
    """What all results carry; not the host's name."""
    machine_info.pop("node", None)
    machine_info["upseal"] = machine.facts()
