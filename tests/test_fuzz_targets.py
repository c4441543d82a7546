# SPDX-License-Identifier: Apache-2.0
"""Every fuzz target takes its seeds, and some hundred mutations of them, without a fuzzer."""

import random
import sys

import pytest
from support import ROOT

sys.path.append(str(ROOT / "fuzz" / "python"))

import upfuzz
from upfuzz import mutators

RUNS = {"upload": 60, "server": 60, "relay": 60, "keyfile": 100, "packed": 100, "seal": 100}


@pytest.fixture(scope="module")
def close():
    """Ends what targets have started."""
    begun = []
    yield begun.append
    for target in begun:
        target.close()


@pytest.mark.parametrize("name", upfuzz.TARGETS)
def test_seeds_and_mutations_of_them_find_nothing(name, close):
    target = upfuzz.load(name)
    close(target)
    kept = [data for _, data in upfuzz.seeds(name)]
    assert kept and all(len(data) <= target.longest for data in kept)
    for data in kept:
        target(data, traced=False)
    target(kept[0], traced=True)  # what is made once was made by the line above
    rnd = random.Random(f"seed of {name}")
    words = mutators.words_of(target.dictionary)
    inputs = set()

    def plain(piece):
        return mutators.blind(piece, rnd, words, target.longest)

    for _ in range(RUNS.get(name, 200)):
        data = rnd.choice(kept)
        for _ in range(1 + rnd.randrange(2)):
            data = plain(data) if target.mutate is None else target.mutate(data, rnd, plain)
        data = data[: target.longest]
        inputs.add(data)
        target(data, traced=False)
    assert len(inputs) > RUNS.get(name, 200) // 2
