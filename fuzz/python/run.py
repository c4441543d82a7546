# SPDX-License-Identifier: Apache-2.0
"""Runs one target.

    python fuzz/python/run.py                        the names of all targets
    python fuzz/python/run.py TARGET SECONDS         fuzzes it
    python fuzz/python/run.py TARGET FILE ...        runs these inputs, a finding's say

With atheris (https://github.com/google/atheris) libFuzzer leads the way by the coverage of the
product's Python; without it the same mutations are tried without looking at coverage. Inputs that
reached something new are kept in build/fuzz/python/corpus, findings in build/fuzz/crashes.
"""

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("UPSEAL_DEBUG", "1")  # what must not be logged is an error, not left out

import upfuzz
from upfuzz import ROOT, SEEDS

# What coverage is measured of.
INSTRUMENTED = ["upseal"]
BUILD = Path(os.environ.get("UPFUZZ_BUILD", ROOT / "build" / "fuzz"))

try:
    import atheris
except ImportError:
    atheris = None


def load(name):
    """The target, and what the imports bring along measured."""
    if atheris is None:
        return upfuzz.load(name)
    with atheris.instrument_imports(include=INSTRUMENTED):
        return upfuzz.load(name)


def mutator(target, mutators):
    """What libFuzzer calls for a new input: the structure-aware mutator, or its own."""
    words = mutators.words_of(target.dictionary)

    def mutate(data, max_size, seed):
        rnd = random.Random(seed)
        data = bytes(data)

        def plain(piece):
            if rnd.randrange(8) and piece:
                return bytes(atheris.Mutate(bytes(piece), max(len(piece) + 64, 64)))
            return mutators.blind(piece, rnd, words, max_size)

        made = plain(data) if target.mutate is None else target.mutate(data, rnd, plain)
        return bytes(made[:max_size])

    return mutate


def fuzz(target, seconds):
    """By libFuzzer. Does not come back."""
    from upfuzz import mutators

    corpus = BUILD / "python" / "corpus" / target.name
    crashes = BUILD / "crashes"
    for folder in (corpus, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0], f"-max_total_time={seconds}", f"-max_len={target.longest}", "-timeout=60",
        "-rss_limit_mb=3072", "-print_final_stats=1",
        "-keep_seed=1", f"-artifact_prefix={crashes}/python-{target.name}-",
    ]  # fmt: skip
    if target.dictionary is not None:
        arguments.append(f"-dict={upfuzz.DICTIONARIES / target.dictionary}")
    arguments += [str(corpus), str(SEEDS / target.name)]
    run_kept(target, upfuzz.seeds(target.name)[0][1], traced=False)  # makes what is made once
    atheris.Setup(arguments, target, custom_mutator=mutator(target, mutators))
    atheris.Fuzz()


def fuzz_blind(target, seconds, runs=None, seed=None):
    """Without coverage: random mutations of the seeds. How many were run, and the last input."""
    from upfuzz import mutators

    rnd = random.Random(seed)
    words = mutators.words_of(target.dictionary)
    pool = [data for _, data in upfuzz.seeds(target.name)]
    run_kept(target, pool[0], traced=False)
    end, count = time.monotonic() + seconds, 0

    def plain(piece):
        return mutators.blind(piece, rnd, words, target.longest)

    while time.monotonic() < end and (runs is None or count < runs):
        data = rnd.choice(pool)
        for _ in range(1 + rnd.randrange(3)):
            data = plain(data) if target.mutate is None else target.mutate(data, rnd, plain)
        data = data[: target.longest]
        count += 1
        run_kept(target, data)
    return count


def run_kept(target, data, *, traced=None):
    """Runs one input; a finding is written down, and how to see it again is said."""
    try:
        target(data, traced=traced)
    except BaseException:
        keep(target, data)
        raise


def keep(target, data):
    """Writes a finding down, and says how to see it again."""
    crashes = BUILD / "crashes"
    crashes.mkdir(parents=True, exist_ok=True)
    path = crashes / f"python-{target.name}-crash-{hashlib.sha1(data).hexdigest()}"
    path.write_bytes(data)
    print(f"to repeat: {Path(sys.executable)} fuzz/python/run.py {target.name} {path}")


def main(arguments):
    if not arguments:
        print(*upfuzz.TARGETS, sep="\n")
        return
    if "UPFUZZ_WORK" not in os.environ:
        # In a process of its own: libFuzzer ends without leaving time to clear anything away.
        work = upfuzz.folder()
        try:
            environment = {**os.environ, "UPFUZZ_WORK": str(work)}
            raise SystemExit(subprocess.call([sys.executable, *sys.argv], env=environment))
        finally:
            shutil.rmtree(work, ignore_errors=True)
    name, *rest = arguments
    if rest and all(os.path.exists(file) for file in rest):
        target = upfuzz.load(name)
        for file in rest:
            target(Path(file).read_bytes(), traced=False)
            target(Path(file).read_bytes(), traced=True)
            print(f"{file}: nothing is wrong")
        target.close()
        return
    target, seconds = load(name), int(rest[0]) if rest else 60
    if atheris is not None:
        fuzz(target, seconds)
    begun = time.monotonic()
    count = fuzz_blind(target, seconds)
    target.close()
    print(f"Done {count} runs in {time.monotonic() - begun:.0f} second(s), without coverage")


if __name__ == "__main__":
    main(sys.argv[1:])
