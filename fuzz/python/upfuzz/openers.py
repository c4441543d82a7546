# SPDX-License-Identifier: Apache-2.0
"""Targets: the header, what can be said of a blob without a key, envelopes and batches.

Engines, calls and the second implementation (tests/vectors/reference.py) are asked the same and
must answer the same: the bytes, or the class of the error.
"""

import base64
import io
import json
from functools import cache
from itertools import pairwise

import reference as ref

from upfuzz import ROOT, reseal, world
from upfuzz.harness import Target, attempt, check, same
from upseal import Opener, Sealer, explain
from upseal.core import header as headers
from upseal.engine import resolve
from upseal.engine.types import EngineError
from upseal.errors import OpenError


class Drip(io.RawIOBase):
    """Reads as a pipe does: no seeking, and a few bytes at a time."""

    def __init__(self, data, step=7):
        super().__init__()
        self._data, self._step = io.BytesIO(data), step

    def readable(self):
        return True

    def readinto(self, target):
        piece = self._data.read(min(len(target), self._step))
        target[: len(piece)] = piece
        return len(piece)


@cache
def engines():
    """All that are here."""
    found = [resolve("portable")]
    try:
        from upseal.engine.native import NativeEngine
    except ImportError:
        return found
    for backend in ("ippcp", "openssl"):
        try:
            found.append(NativeEngine(backend))
        except EngineError:
            continue
    return found


@cache
def openers():
    """One for each engine; one remembers no session."""
    made = [Opener(world.ours(), cache=4, engine=engine) for engine in engines()]
    return [*made, Opener(world.ours(), cache=0, engine=engines()[-1])]


def verdict(call):
    """What it gives, or the name of the error's class: only those of docs/format.md are caught."""
    found, error = attempt(call, OpenError)
    return type(error).__name__ if error is not None else found


def reference_verdict(call, data):
    """The same of the second implementation."""
    found, error = attempt(lambda: call(data, world.CONTEXT, world.reference_keys()), ref.OpenError)
    return type(error).__name__ if error is not None else found


# -- header ----------------------------------------------------------------------------------------


def run_header(data):
    found, error = attempt(lambda: headers.parse(data), OpenError)
    theirs, refused = attempt(lambda: ref.read_header(ref.Input(data)), ref.OpenError)
    same(type(error).__name__, type(refused).__name__)
    same(found, attempt(lambda: headers.parse(memoryview(data)), OpenError)[0])
    if error is not None:
        check(error.problem and 0 <= error.offset <= len(data), "no word of what is wrong where")
        headers.size(data)
        return
    same(data[: len(found.raw)], found.raw, theirs.unsigned + theirs.commitment)
    same(headers.encode(found.cipher, list(found.entries)) + found.commitment, found.raw)
    same(headers.size(data), len(found.raw))
    same([tuple(entry) for entry in found.entries], [tuple(entry) for entry in theirs.entries])


# -- explain ---------------------------------------------------------------------------------------


def run_explain(data):
    said = explain(data)
    same(said.size, len(data))
    same(said, explain(io.BytesIO(data)), explain(Drip(data, 1 + len(data) // 9)))
    json.dumps(said.as_dict())
    header, error = attempt(lambda: headers.parse(data), OpenError)
    same(said.header_size, None if header is None else len(header.raw))
    if error is not None:
        same((said.problem, said.offset), (error.problem, error.offset))
    elif said.problem is None:
        check(said.plaintext_size >= 0 and said.overhead > 0, "sizes that cannot be")
        # What nothing is wrong with in public opens, or fails behind a private key.
        if said.kind == "envelope":
            check(verdict(lambda: openers()[0].open(data)) != "Truncated", "explained as whole")


# -- envelopes -------------------------------------------------------------------------------------


@cache
def _another():
    return Sealer([world.private("x25519-a").public_key]).seal(b"another", world.CONTEXT)


def run_envelope(data):
    found = [verdict(lambda o=o: o.open(data, world.CONTEXT)) for o in openers()]
    expected = same(*found, reference_verdict(ref.open_envelope, data))
    for opener in openers():
        first, other, last = opener.open_many([data, _another(), data], world.CONTEXT)
        same(other, b"another")
        named = [r if isinstance(r, bytes) else type(r).__name__ for r in (first, last)]
        same(expected, *named)
        other_context = verdict(lambda o=opener: o.open(data, world.CONTEXT + b"!"))
        check(not isinstance(other_context, bytes), "it opens in another context")


# -- batches ---------------------------------------------------------------------------------------


def run_batch(data):
    found = [verdict(lambda o=o: list(o.open_batch(data, world.CONTEXT))) for o in openers()]
    expected = same(*found, reference_verdict(ref.open_batch, data))
    for opener in openers():
        out = bytearray(b"\xaa" * len(data))
        packed = verdict(lambda o=opener, out=out: o.open_packed(data, world.CONTEXT, out))
        if isinstance(packed, str):
            same(packed, expected)
            check(out.count(0) + out.count(0xAA) == len(out), "plaintext of what does not open")
        else:
            values, offsets = packed
            ends = offsets.tolist()
            same(expected, [bytes(values[a:b]) for a, b in pairwise(ends)])


# -- seeds -----------------------------------------------------------------------------------------


def _vectors(kind, most):
    """Vectors of that kind that we hold a key for, sealed again in the context of the targets."""
    known = {world.private(name).key_id.hex() for name in world.RECIPIENTS}
    keys = json.loads((ROOT / "tests/vectors/keys.json").read_text())
    for vector in json.loads((ROOT / "tests/vectors/valid.json").read_text())["vectors"]:
        blob = base64.b64decode(vector["blob"])
        held = any(keys[name]["key_id"] in known for name in vector["recipients"])
        if vector["kind"] == kind and len(blob) <= most and held:
            parts = reseal.take_apart(blob, bytes.fromhex(vector["context"]))
            parts.context = world.CONTEXT
            yield reseal.put_together(parts)


def _few(kind, most=2000, every=4):
    return list(_vectors(kind, most))[::every]


def _all_kinds():
    return [*_few("envelope", every=9), *_few("batch", every=9), *_few("upload", every=9)]


TARGETS = {
    target.name: target
    for target in (
        Target("header", run_header, _all_kinds, reseal.mutate, "blob.dict"),
        Target("explain", run_explain, _all_kinds, reseal.mutate, "blob.dict"),
        Target("envelope", run_envelope, lambda: _few("envelope"), reseal.mutate, "blob.dict"),
        Target("batch", run_batch, lambda: _few("batch", 6000), reseal.mutate, "blob.dict"),
    )
}
