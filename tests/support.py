# SPDX-License-Identifier: Apache-2.0
"""Tools for the tests: vectors, keys, engines, and files that behave badly."""

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from upseal import Opener, OpenError, PrivateKey, Sealer
from upseal.engine.records import Listed, split
from upseal.engine.sizes import CHUNK
from upseal.engine.types import EngineError

VECTORS = Path(__file__).parent / "vectors"
ROOT = VECTORS.parent.parent
sys.path.insert(0, str(VECTORS))  # `generate` and `reference` share no code with the product

ENGINES = ["native[ippcp]", "native[openssl]", "portable"]
SUITES = ["x25519", "p256", "mlkem768-x25519", "rsa2048", "rsa3072", "rsa4096"]
__all__ = ["Opener", "Sealer"]


@cache
def _engine(name):
    if name == "portable":
        from upseal.engine.portable import PortableEngine

        return PortableEngine()
    try:
        from upseal.engine.native import NativeEngine
    except ImportError as error:
        return f"the C core is not built: {error}"
    try:
        return NativeEngine(name.removeprefix("native[").removesuffix("]"))
    except EngineError as error:
        return str(error)


def engine(name):
    """The engine of that name; skips the test where there is none."""
    found = _engine(name)
    if isinstance(found, str):
        pytest.skip(found)
    return found


@cache
def load(name):
    return json.loads((VECTORS / f"{name}.json").read_text())


@cache
def key(name):
    """A private key of keys.json."""
    return PrivateKey.from_pem(load("keys")[name]["private_pem"].encode())


def valid(**wanted):
    """Valid vectors with these fields."""
    return [v for v in load("valid")["vectors"] if all(v[k] == w for k, w in wanted.items())]


def vector(name):
    (found,) = valid(name=name)
    return found


def blob(vector):
    return base64.b64decode(vector["blob"])


def context(vector):
    return bytes.fromhex(vector["context"])


def pattern(length):
    """Byte i is (i * 7 + 13) mod 251."""
    unit = bytes((i * 7 + 13) % 251 for i in range(251))
    return (unit * (length // 251 + 1))[:length]


def plaintext(vector):
    """What must come out: a report, a list of them, or an upload's bytes."""
    if vector["kind"] == "upload":
        data = pattern(vector["plaintext"]["length"])
        assert hashlib.sha256(data).hexdigest() == vector["plaintext"]["sha256"]
        return data
    reports = [bytes.fromhex(r) for r in vector["reports"]]
    return reports[0] if vector["kind"] == "envelope" else reports


def open_any(opener, kind, data, context=b"", wrap=io.BytesIO):
    """Opens by the call that the kind of vector (or a hostile vector's `call`) names."""
    if kind in ("envelope", "open"):
        return opener.open(data, context)
    if kind in ("batch", "open_batch"):
        return list(opener.open_batch(data, context))
    got, error = drain(opener, data, context, wrap)
    if error:
        raise error
    return got


def drain(opener, data, context=b"", wrap=io.BytesIO, step=CHUNK):
    """All that a reader hands out, and the OpenError that ended it (None at a good end)."""
    out = b""
    try:
        with opener.reader(wrap(data), context) as reader:
            while piece := reader.read(step):
                out += piece
    except OpenError as error:
        return out, error
    return out, None


def seal_all(engine, key, nonce, prefix, aad, reports, padded):
    """Envelopes by Engine.seal_envelopes, which gives them group by group."""
    groups = engine.seal_envelopes(key, nonce, prefix, aad, Listed(reports), padded)
    return [envelope for group in groups for envelope in split(group)]


def open_all(engine, key, prefix, aad, envelopes, padded):
    """What Engine.open_envelopes gives for each: the report and its status."""
    groups = engine.open_envelopes(key, prefix, aad, Listed(envelopes), padded)
    return [
        pair for reports, results in groups for pair in zip(split(reports), results, strict=True)
    ]


class Pipe(io.RawIOBase):
    """Reads from memory as a pipe does: no seeking, and at most ``step`` bytes at a time."""

    def __init__(self, data, step=1 << 30):
        super().__init__()
        self._data, self._step = io.BytesIO(data), step

    def readable(self):
        return True

    def readinto(self, target):
        piece = self._data.read(min(len(target), self._step))
        target[: len(piece)] = piece
        return len(piece)


class CountingKey:
    """A key object that is not a PrivateKey, as an HSM's would be; it counts its work."""

    def __init__(self, key):
        self.suite, self.key_id, self._key, self.unwrapped = int(key.suite), key.key_id, key, 0

    def unwrap(self, wrapped):
        self.unwrapped += 1
        return self._key.unwrap(wrapped)


def upload(sealer, data, context=b"", step=None):
    """A sealed upload, written at most ``step`` bytes at a time."""
    out = io.BytesIO()
    with sealer.writer(out, context) as writer:
        for at in range(0, len(data), step or len(data) or 1):
            writer.write(data[at : at + (step or len(data))])
    return out.getvalue()


def python(code, *args, **env):
    """Runs code in a Python of its own; returns the finished process."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("UPSEAL_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, args)],
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def wait_for_children(pids, seconds=20):
    """Exit codes of forked children; None for one that hangs (which is then killed)."""
    codes, end = {}, time.monotonic() + seconds
    while len(codes) < len(pids) and time.monotonic() < end:
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    for pid in pids:
        if pid not in codes:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
    return [codes.get(pid) for pid in pids]
