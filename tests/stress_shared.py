# SPDX-License-Identifier: Apache-2.0
"""Many threads that share sealers, an opener and an engine, and do everything at once.

`test_stress_shared.py` runs this for a moment on each engine. ``scripts/tsan-python`` runs it for
longer, on a C core built with ThreadSanitizer: so nothing here needs pytest.
"""

import argparse
import contextlib
import io
import random
import struct
import sys
import tempfile
import threading
import time
from array import array
from collections import Counter, defaultdict, deque
from itertools import accumulate, pairwise
from pathlib import Path

from upseal import Limits, Opener, OpenError, Padding, PrivateKey, Sealer, open_file, seal_file
from upseal.core import header as headers

CONTEXT = b"stress"
SIZES = [0, 1, 11, 255, 1000, 5000]
FRONT = 300  # bytes of a blob that hold header, kind and nonce, for one X25519 recipient
LARGE = 9 << 20  # bytes of a batch: enough for the engine to start threads of its own
FILE = (3 << 20) + 77  # bytes of a file: several pieces


class Log:
    """What one thread sealed."""

    def __init__(self):
        self.calls = []
        """(sealer, the blobs of one call, messages)"""
        self.envelopes, self.batches, self.uploads = [], [], []
        """(blobs, or a blob, and what was sealed): to be opened again in the end"""
        self.refused = self.away = 0

    def sealed(self, sealer, blobs, messages):
        """Notes one call; of what is long, only what can tell it from others."""
        self.calls.append((sealer, [blob[:FRONT] for blob in blobs], messages))


class Stress:
    """The shared objects, and what a thread may do with them."""

    def __init__(self, engine, folder):
        self.mine, self.guest = PrivateKey.generate("x25519"), PrivateKey.generate("x25519")
        recipients = [self.mine.public_key]
        limits = [Limits(max_messages=7), Limits(max_messages=90), Limits(max_age=0.02), Limits()]
        ciphers = ["aes-256-gcm", "chacha20-poly1305", "chacha20-poly1305", "aes-256-gcm"]
        paddings = [None, Padding.PADME, None, Padding.PADME]
        self.sealers = [
            Sealer(recipients, *choice, engine=engine)
            for choice in zip(limits, paddings, ciphers, strict=True)
        ]
        self.theirs = Sealer([self.guest.public_key], Limits(max_messages=5), engine=engine)
        self.opener = Opener([self.mine], cache=3, engine=engine)
        self.engine, self.folder = engine, folder
        self.seen = deque(maxlen=100)  # (envelope, report) by whomever

    # -- what a thread does: a sealer, its random numbers, its log, its own buffer ------------

    def one(self, sealer, rng, log, own):
        report = rng.randbytes(rng.choice(SIZES))
        envelope = sealer.seal(report, CONTEXT)
        log.sealed(sealer, [envelope], 1)
        log.envelopes.append(([envelope], [report]))
        self.seen.append((envelope, report))
        assert self.opener.open(envelope, CONTEXT) == report

    def others(self, sealer, rng, log, own):
        """Opens what other threads sealed, of many sessions, and some of it forged."""
        seen = [self.seen[-1 - i] for i in range(min(len(self.seen), 12))]
        envelopes, reports = [e for e, _ in seen], [r for _, r in seen]
        forged = {i for i in range(len(seen)) if rng.random() < 0.2}
        for i in forged:
            damaged = bytearray(envelopes[i])
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            envelopes[i] = bytes(damaged)
        for i, opened in enumerate(self.opener.open_many(envelopes, CONTEXT)):
            assert isinstance(opened, OpenError) if i in forged else opened == reports[i]
        log.refused += len(forged)

    def many(self, sealer, rng, log, own):
        reports = some(rng)
        sealed = sealer.seal_many(reports, CONTEXT)
        log.sealed(sealer, sealed, len(reports))
        log.envelopes.append((sealed, reports))
        self.seen.extend(zip(sealed, reports, strict=True))
        assert self.opener.open_many(sealed, CONTEXT) == reports

    def many_packed(self, sealer, rng, log, own):
        reports = some(rng)
        values, offsets = sealer.seal_many_packed(*packed(reports), CONTEXT)
        sealed = unpacked(values, offsets)
        log.sealed(sealer, sealed, len(reports))
        log.envelopes.append((sealed, reports))
        values, offsets, errors = self.opener.open_many_packed(values, offsets, CONTEXT)
        assert (unpacked(values, offsets), errors) == (reports, {})

    def batch(self, sealer, rng, log, own):
        reports = some(rng)
        batch = sealer.seal_batch(reports, CONTEXT)
        log.sealed(sealer, [batch], len(reports))
        log.batches.append((batch, reports))
        assert list(self.opener.open_batch(batch, CONTEXT)) == reports

    def batch_packed(self, sealer, rng, log, own):
        reports = some(rng)
        batch = bytes(sealer.seal_packed(*packed(reports), CONTEXT, out=own))
        log.sealed(sealer, [batch], len(reports))
        log.batches.append((batch, reports))
        values, offsets = self.opener.open_packed(batch, CONTEXT, out=own)
        assert unpacked(values, offsets) == reports

    def large_batch(self, sealer, rng, log, own):
        """Split between threads by the engine."""
        values = rng.randbytes(LARGE // 9) * 9
        offsets = array("q", [len(values) * i // 9 for i in range(10)])
        batch = sealer.seal_packed(values, offsets, CONTEXT)
        opened, ends = self.opener.open_packed(batch, CONTEXT)
        assert (opened, ends) == (values, offsets)
        log.sealed(sealer, [batch], 9)

    def upload(self, sealer, rng, log, own):
        data = rng.randbytes(rng.choice([0, 16383, 16384, 300_000]))
        sealed = io.BytesIO()
        with sealer.writer(sealed, CONTEXT) as writer:
            for at in range(0, len(data), 50_001):
                writer.write(data[at : at + 50_001])
                writer.flush()
        log.sealed(sealer, [sealed.getvalue()], 1)
        log.uploads.append((sealed.getvalue(), data))
        sealed.seek(0)
        with self.opener.reader(sealed, CONTEXT) as reader:
            assert reader.read() == data
            reader.seek(len(data) // 2)
            target = bytearray(40_000)
            got = reader.readinto(target)
            assert target[:got] == data[len(data) // 2 :][:got]

    def file(self, sealer, rng, log, own):
        """By several threads from file to file, and by two from a file to memory."""
        plain, sealed, opened = (self.folder / f"{id(own)}.{name}" for name in "pso")
        data, memory = rng.randbytes(FILE // 7) * 7, io.BytesIO()
        plain.write_bytes(data)
        seal_file(plain, sealed, sealer, CONTEXT, threads=3)
        open_file(sealed, opened, self.opener, CONTEXT, threads=3)
        assert opened.read_bytes() == data
        seal_file(plain, memory, sealer, CONTEXT, threads=3)
        assert self.opener.reader(io.BytesIO(memory.getvalue()), CONTEXT).read() == data
        log.sealed(sealer, [sealed.read_bytes()], 1)
        log.sealed(sealer, [memory.getvalue()], 1)

    def of_guest(self, sealer, rng, log, own):
        """The guest's key may be away just now; what opens is right all the same."""
        report = rng.randbytes(20)
        envelope = self.theirs.seal(report, CONTEXT)
        log.sealed(self.theirs, [envelope], 1)
        log.envelopes.append(([envelope], [report]))
        try:
            assert self.opener.open(envelope, CONTEXT) == report
        except OpenError:
            log.away += 1

    def come_and_go(self, done):
        """The guest's key comes and goes, and with it his sessions."""
        while not done.is_set():
            self.opener.add_key(self.guest)
            time.sleep(0.001)
            self.opener.remove_key(self.guest.key_id)
            time.sleep(0.001)

    def work(self, number, rounds, log):
        """One thread: every kind of work, in an order of its own; the dear ones rarely."""
        rng, own = random.Random(number), bytearray()
        cheap = [self.one, self.others, self.many, self.many_packed, self.batch]
        cheap += [self.batch_packed, self.upload, self.of_guest]
        for turn in range(rounds):
            for todo in rng.sample(cheap, len(cheap)):
                todo(rng.choice(self.sealers), rng, log, own)
            if turn % 10 == number % 10:
                self.file(rng.choice(self.sealers), rng, log, own)
                self.large_batch(rng.choice(self.sealers), rng, log, own)

    # -- afterwards ---------------------------------------------------------------------------

    def check(self, logs):
        """Everything opens, no nonce came twice, and no session sealed more than its limit."""
        opener = Opener([self.mine, self.guest], engine=self.engine)
        used, sessions = Counter(), defaultdict(list)
        for log in logs:
            for sealer, blobs, messages in log.calls:
                header = headers.parse(blobs[0]).raw
                at = len(header) + 1
                sessions[header, sealer.limits.max_messages].append(messages)
                # The nonces of a batch are alike but for their last four bytes.
                size = 20 if blobs[0][at - 1] & 0x7F == 2 else 24
                used.update((header, blob[at - 1 : at + size]) for blob in blobs)
            for envelopes, reports in log.envelopes:
                assert opener.open_many(envelopes, CONTEXT) == reports
            for batch, reports in log.batches:
                assert list(opener.open_batch(batch, CONTEXT)) == reports
            for sealed, data in log.uploads:
                assert opener.reader(io.BytesIO(sealed), CONTEXT).read() == data
        assert max(used.values()) == 1
        for (_, limit), calls in sessions.items():
            # A call that is larger than the limit has a session alone.
            assert sum(calls) <= limit or len(calls) == 1, (calls, limit)
        assert len(self.opener._cache) <= 3
        assert {known.opened_by[1] for known in self.opener._cache.values()} <= {self.mine.key_id}
        return {
            "sealed": sum(used.values()),
            "sessions": len(sessions),
            "refused": sum(log.refused for log in logs),
            "without a key": sum(log.away for log in logs),
        }


def some(rng):
    """A few reports."""
    return [rng.randbytes(rng.choice(SIZES)) for _ in range(rng.randint(1, 12))]


def packed(reports):
    """Values and 32- or 64-bit offsets."""
    ends = list(accumulate(map(len, reports), initial=0))
    return b"".join(reports), memoryview(struct.pack(f"{len(ends)}q", *ends)).cast("q")


def unpacked(values, offsets):
    """The reports of a packed row."""
    return [bytes(values[a:b]) for a, b in pairwise(offsets)]


def run(engine, folder, threads=6, rounds=10):
    """Does it all; what was done, in numbers.

    Raises:
        AssertionError: a result was wrong; or whatever a thread raised.
    """
    stress, done, errors = Stress(engine, Path(folder)), threading.Event(), []
    logs = [Log() for _ in range(threads)]
    start = threading.Barrier(threads)

    def work(number):
        try:
            start.wait()
            stress.work(number, rounds, logs[number])
        except BaseException as error:
            errors.append(error)

    visitor = threading.Thread(target=stress.come_and_go, args=(done,))
    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in (visitor, *workers):
            thread.start()
        for thread in workers:
            thread.join()
    finally:
        done.set()
        visitor.join()
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]
    return stress.check(logs)


def first_use(threads):
    """Engines made for the first time in a process, by many threads in the same moment."""
    from upseal.engine import native

    start, made = threading.Barrier(threads), []

    def make():
        start.wait()
        made.append(native.NativeEngine())

    workers = [threading.Thread(target=make) for _ in range(threads)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    assert len({engine.backend for engine in made}) == 1 and len(made) == threads


def main():
    """On every backend of the C core."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    first_use(args.threads)
    from upseal.engine import native

    for name, version, works in native.backends():
        if not works:
            print(f"{name}: cannot run here, left out")
            continue
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            began = time.monotonic()
            did = run(native.NativeEngine(name), folder, args.threads, args.rounds)
            print(f"{name} ({version}): {did}, {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
