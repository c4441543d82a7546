# SPDX-License-Identifier: Apache-2.0
"""Fuzz targets for the Python parsers and openers: see fuzz/README.md.

`load(name)` gives one; nothing of the product is imported before, so that whoever measures coverage
can hook in first.
"""

import importlib
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
ROOT = HERE.parent.parent
SEEDS = HERE / "seeds"
DICTIONARIES = HERE / "dictionaries"

# `reference` and `generate` share no code with the product.
sys.path.append(str(ROOT / "tests" / "vectors"))

TARGETS = {
    "header": "openers",
    "explain": "openers",
    "envelope": "openers",
    "batch": "openers",
    "upload": "uploading",
    "seal": "sealing",
    "packed": "sealing",
    "keyfile": "keyfiles",
    "certificate": "keyfiles",
    "signing-key": "keyfiles",
    "readiness": "keyfiles",
    "jws": "claims",
    "manifest": "claims",
    "capabilities": "claims",
    "credential": "claims",
    "enrol": "joining",
    "enrolled": "joining",
    "token": "joining",
    "kept": "joining",
    "statement": "bodies",
    "units": "bodies",
    "receipt": "bodies",
    "announcement": "bodies",
    "ticket": "headers",
    "results": "headers",
    "words": "headers",
    "settings": "settings",
    "server": "server",
    "relay": "relay",
}
"""Each target, and the module here that has it."""


def folder():
    """A new folder to work in, in memory where that can be had."""
    shared = Path("/dev/shm")
    usual = shared if shared.is_dir() else None
    where = os.environ.get("UPFUZZ_WORK", usual)
    return Path(tempfile.mkdtemp(prefix="upseal-fuzz-", dir=where))


def load(name):
    """The `Target` of that name."""
    return importlib.import_module(f"upfuzz.{TARGETS[name]}").TARGETS[name]


def seeds(name):
    """The inputs to begin with, kept in the repository: file name and bytes."""
    return [(file.name, file.read_bytes()) for file in sorted((SEEDS / name).iterdir())]
