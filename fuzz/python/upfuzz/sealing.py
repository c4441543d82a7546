# SPDX-License-Identifier: Apache-2.0
"""Targets: sealing, where every engine and the second implementation must give the same bytes, and
the packed calls, which take offsets from outside."""

from array import array
from functools import cache
from itertools import pairwise

import generate as gen
import reference as ref

from upfuzz import world
from upfuzz.harness import Target, attempt, check, same
from upfuzz.openers import engines, openers
from upseal import Opener, Padding, Sealer
from upseal.engine.records import Listed, pack, split
from upseal.engine.sizes import CHUNK
from upseal.errors import OpenError


class _Input:
    """Bytes taken as whatever is asked for; zeros behind their end."""

    def __init__(self, data):
        self._data, self._at = data, 0

    def take(self, size):
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece.ljust(size, b"\0")

    def number(self, size=1):
        return int.from_bytes(self.take(size), "big")

    def rest(self):
        return self._data[self._at :]


def _records(data):
    """Reports of lengths that the input says."""
    given = _Input(data)
    count = 1 + given.number() % 12
    lengths = [given.number(2) % (200 if given.number() % 8 else 5000) for _ in range(count)]
    rest = given.rest() or b"x"
    whole = rest * (sum(lengths) // len(rest) + 1)
    reports, at = [], 0
    for length in lengths:
        reports.append(whole[at : at + length])
        at += length
    return reports


def run_seal(data):
    given = _Input(data)
    flags, key, nonce = given.number(), given.take(32), given.take(24)
    context = given.take(given.number() % 64)
    cipher, padded = 1 + (flags & 1), bool(flags & 2)
    reports = _records(given.rest())
    _envelopes(cipher, padded, key, nonce, context, reports)
    _batches(cipher, padded, key, nonce, context, reports)
    _chunks(cipher, key, nonce, reports)
    if flags & 12 == 4:
        _through(flags, context, reports)


def _envelopes(cipher, padded, key, nonce, context, reports):
    aad, prefix = bytes([0x81 if padded else 1]) + context, b"prefix"
    plains = [ref.pad(report) if padded else report for report in reports]
    by_reference = [
        prefix + ref.record_nonce(nonce, i)
        + gen.seal_report(cipher, key, ref.record_nonce(nonce, i), plain, aad)
        for i, plain in enumerate(plains)
    ]  # fmt: skip
    for engine in engines():
        own = engine.record_key(cipher, key)
        for given in (Listed(reports), pack(reports)):
            groups = engine.seal_envelopes(own, nonce, prefix, aad, given, padded)
            same([e for group in groups for e in split(group)], by_reference)
        same(engine.sealing(own, prefix, padded)(nonce, aad, reports[0]), by_reference[0])
        for given in (Listed(by_reference), pack(by_reference)):
            opened = engine.open_envelopes(own, prefix, aad, given, padded)
            pairs = [(split(group), status) for group, status in opened]
            same([r for group, _ in pairs for r in group], reports)
            check(not any(b"".join(status for _, status in pairs)), "genuine, and refused")


def _batches(cipher, padded, key, nonce, context, reports):
    kind, total = 0x82 if padded else 2, len(reports)
    aad = bytes([kind]) + bytes(4) + total.to_bytes(4, "big") + context
    plains = [ref.pad(report) if padded else report for report in reports]
    sealed = [
        gen.seal_report(cipher, key, ref.record_nonce(nonce, i), plain,
                        ref.record_aad(kind, i, total, context))
        for i, plain in enumerate(plains)
    ]  # fmt: skip
    table = b"".join(len(record).to_bytes(4, "big") for record in sealed)
    for engine in engines():
        own = engine.record_key(cipher, key)
        for given in (Listed(reports), pack(reports)):
            made = engine.seal_batch(own, nonce, b"head", aad, given, padded)
            same(bytes(made), b"head" + table + b"".join(sealed))
        ends = engine.sealed_ends(memoryview(table), padded)
        records = memoryview(b"".join(sealed))
        same(split(engine.open_batch(own, nonce, aad, ends, records, padded)), reports)


def _chunks(cipher, key, nonce, reports):
    data = b"".join(reports) * 3
    material = key + nonce[:12]
    pieces = [data[at : at + CHUNK] for at in range(0, len(data) + 1, CHUNK)]
    aead = (ref.AESGCM if cipher == ref.AES else ref.ChaCha20Poly1305)(key)
    sealed = b"".join(
        aead.encrypt(ref.chunk_nonce(nonce[:12], k), piece, None) for k, piece in enumerate(pieces)
    )
    for engine in engines():
        own, out = engine.chunk_key(cipher, material), bytearray(len(sealed))
        engine.seal_chunks(own, 0, True, memoryview(data), memoryview(out))
        same(bytes(out), sealed)
        for private in (False, True):
            back = bytearray(len(data))
            view = memoryview(back)
            same(engine.open_chunks(own, 0, True, memoryview(sealed), view, private), True)
            same(bytes(back), data)


def _through(flags, context, reports):
    """By the calls that users have: what each engine seals, every opener opens."""
    cipher = "aes-256-gcm" if flags & 1 else "chacha20-poly1305"
    recipients = [world.private("x25519-a").public_key]
    for engine in engines():
        padding = Padding.PADME if flags & 2 else None
        sealer = Sealer(recipients, cipher=cipher, padding=padding, engine=engine)
        sealed, batch = sealer.seal_many(reports, context), sealer.seal_batch(reports, context)
        for opener in openers():
            same(opener.open_many(sealed, context), reports)
            same(list(opener.open_batch(batch, context)), reports)
        keys = world.reference_keys()
        same(ref.open_batch(batch, context, keys), reports)
        same(ref.open_envelope(sealed[-1], context, keys), reports[-1])


# -- offsets from outside --------------------------------------------------------------------------


@cache
def _pairs():
    """For each engine one that seals and one that opens."""
    key = world.private("x25519-a")
    recipients, cipher = [key.public_key], "aes-256-gcm"
    return [
        (Sealer(recipients, cipher=cipher, engine=engine), Opener([key], engine=engine))
        for engine in engines()
    ]


def run_packed(data):
    """`values` and `offsets` of a caller: refused, or the same as with separate reports."""
    given = _Input(data)
    flags, count = given.number(), given.number() % 24
    width = 8 if flags & 1 else 4
    table = given.take(width * count)
    if flags & 2:  # near each other and rising, so that they are often right
        steps = array("q", [0])
        for byte in table:
            steps.append(steps[-1] + byte % 40)
        table = array("q" if width == 8 else "i", steps).tobytes()
    offsets = memoryview(table).cast("q" if width == 8 else "i")
    values = given.rest()
    verdicts = []
    for sealer, opener in _pairs():
        sealed, wrong = attempt(lambda s=sealer: s.seal_many_packed(values, offsets), ValueError)
        batch, refused = attempt(lambda s=sealer: s.seal_packed(values, offsets), ValueError)
        opened, bad = attempt(lambda o=opener: o.open_many_packed(values, offsets), ValueError)
        verdicts.append((wrong is None, refused is None, bad is None))
        if wrong is None:
            reports = [bytes(values[a:b]) for a, b in pairwise(offsets)]
            back, ends, errors = opener.open_many_packed(*sealed)
            same((bytes(back), ends.tolist()[-1], errors), (b"".join(reports), len(back), {}))
        if batch is not None:
            same(list(opener.open_batch(batch)), reports)
        if opened is not None:
            check(all(isinstance(error, OpenError) for error in opened[2].values()), "an error")
            same(bytes(opened[0]), b"")
    same(*verdicts)


def _seal_seeds():
    for flags in range(4):
        head = bytes([flags | 4]) + bytes(range(32)) + bytes(range(24)) + b"\x03abc"
        yield head + b"\x02\x00\x05\x01\x00\x80\x01\x01\x00\x01hello world"
    yield bytes(57) + b"\x00\x01\x14\x00\x00x"
    yield b"\x03" + b"\xff" * 56 + b"\x00\x27" + b"\x13\x88\x00" * 9 + b"\x80\x00"


def _packed_seeds():
    rising = array("q", [0, 5, 5, 11]).tobytes()
    yield b"\x01\x04" + rising + b"hello world"
    yield b"\x00\x04" + array("i", [0, 5, 5, 11]).tobytes() + b"hello world"
    yield b"\x03\x02" + bytes(range(16)) + b"x" * 200
    yield b"\x01\x02" + array("q", [2**62, 2**63 - 1]).tobytes() + b"abc"
    yield b"\x01\x03" + array("q", [5, 3, 8]).tobytes() + b"hello world"


TARGETS = {
    "seal": Target("seal", run_seal, _seal_seeds, longest=4096, memory=12 << 20),
    "packed": Target("packed", run_packed, _packed_seeds, longest=4096, memory=12 << 20),
}
