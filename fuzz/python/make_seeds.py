# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of all targets, or of those named, into fuzz/python/seeds.

What they are made of is fixed but for what is random in every sealing and in some signatures, so
they are made when a format gets something new, and else left as they are.
"""

import shutil
import sys

import upfuzz

MOST = 40
"""Of one target."""


def main(names):
    for name in names or upfuzz.TARGETS:
        target, folder = upfuzz.load(name), upfuzz.SEEDS / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for number, data in enumerate(list(target.seeds())[:MOST]):
            if len(data) > target.longest:
                raise ValueError(f"seed {number} of {name} has {len(data)} bytes")
            (folder / f"{number:02}").write_bytes(data)
        target.close()


if __name__ == "__main__":
    main(sys.argv[1:])
