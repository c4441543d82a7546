# SPDX-License-Identifier: Apache-2.0
"""One Sealer and one Opener, shared by threads and carried into other processes."""

import multiprocessing
import os
import random
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress

import pytest
from support import Opener, Sealer, drain, engine, key, pattern, upload, wait_for_children

from upseal import Limits, OpenError
from upseal.core import header as headers

fork_only = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def nonces(envelopes):
    """(header, nonce) of each: what must never come twice."""
    found = []
    for envelope in envelopes:
        size = len(headers.parse(envelope).raw)
        found.append((envelope[:size], envelope[size + 1 : size + 25]))
    return found


@pytest.mark.parametrize("limit", [1, 7, 1 << 20])
def test_threads_share_a_sealer_and_an_opener(engine, key, limit):
    sealer = Sealer([key.public_key], Limits(max_messages=limit), engine=engine)
    opener = Opener([key], cache=5, engine=engine)
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        made = []
        for i in range(60 if limit > 1 else 20):
            report = b"%d %d " % (number, i) + bytes(i * 11)
            envelope = sealer.seal(report, b"c")
            made.append(envelope)
            assert opener.open(envelope, b"c") == report
            if i % 10 == 0:
                reports = [report, b"", pattern(3000)]
                many = sealer.seal_many(reports)
                made += many
                assert opener.open_many(many) == reports
                assert list(opener.open_batch(sealer.seal_batch(reports))) == reports
                assert drain(opener, upload(sealer, report)) == (report, None)
        return made

    with ThreadPoolExecutor(8) as pool:
        made = [e for result in pool.map(work, range(8)) for e in result]
    seen = nonces(made)
    assert len(set(seen)) == len(seen)
    uses = [h for h, _ in seen]
    assert max(map(uses.count, set(uses))) <= max(limit, 3)  # 3: one call of seal_many
    assert len(opener._cache) <= 5


def test_threads_open_good_and_forged_side_by_side(engine, key):
    sealer = Sealer([key.public_key], Limits(max_messages=3), engine=engine)
    opener = Opener([key], cache=4, engine=engine)
    made = [sealer.seal(b"%d" % i) for i in range(60)]

    def work(seed):
        rng = random.Random(seed)
        for _ in range(150):
            i = rng.randrange(60)
            data = bytearray(made[i])
            if rng.random() < 0.3:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                with pytest.raises(OpenError):
                    opener.open(bytes(data))
            else:
                assert opener.open(bytes(data)) == b"%d" % i

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


def test_keys_may_come_and_go_while_others_open(engine):
    mine, guest = key("x25519-a"), key("x25519-b")
    opener = Opener([mine], engine=engine)
    own = [Sealer([mine.public_key], engine=engine).seal(b"r") for _ in range(5)]
    theirs = Sealer([guest.public_key], engine=engine).seal(b"guest")
    done = threading.Event()

    def come_and_go():
        while not done.is_set():
            opener.add_key(guest)
            opener.remove_key(guest.key_id)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for i in range(300):
            assert opener.open(own[i % 5]) == b"r"
            with suppress(OpenError):  # he may be away just now
                assert opener.open(theirs) == b"guest"
    finally:
        done.set()
        thread.join()
    # The guest is gone: no session of his was left in the cache by a race.
    with pytest.raises(OpenError):
        opener.open(theirs)
    assert {known.opened_by[1] for known in opener._cache.values()} == {mine.key_id}


@fork_only
def test_forked_children_and_their_parent_never_use_a_nonce_twice(engine, key):
    sealer = Sealer([key.public_key], engine=engine)
    sealer.seal(b"a session is there already")
    pipes, pids = [], []
    for number in range(4):
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                out = [sealer.seal(b"%d %d" % (number, i)) for i in range(50)]
                out += sealer.seal_many([b"%d many" % number] * 20)
                with open(writing, "wb") as pipe:
                    pipe.write(b"".join(len(e).to_bytes(4, "big") + e for e in out))
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        pipes.append(reading)
        pids.append(pid)
    made = [sealer.seal(b"parent") for _ in range(50)] + sealer.seal_many([b"parent many"] * 20)
    for reading in pipes:
        with open(reading, "rb") as pipe:
            while length := pipe.read(4):
                made.append(pipe.read(int.from_bytes(length, "big")))
    assert wait_for_children(pids) == [0] * 4
    seen = nonces(made)
    assert len(seen) == 5 * 70
    assert len(set(seen)) == len(seen)
    # A child begins a session of its own: neither limits nor traces are shared with its parent.
    assert len({h for h, _ in seen}) == 5
    opened = Opener([key], engine=engine).open_many(made)
    assert not [r for r in opened if isinstance(r, OpenError)]


@fork_only
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("name", ["native[openssl]", "portable"])
def test_a_child_forked_while_another_thread_seals_does_not_hang(name):
    # A lock that the other thread holds at that moment is held in the child for ever.
    recipient = key("x25519-a")
    sealer = Sealer([recipient.public_key], Limits(max_messages=1), engine=engine(name))
    opener = Opener([recipient], cache=1, engine=engine(name))
    made = [sealer.seal(b"r") for _ in range(3)]
    done, pids = threading.Event(), []

    def busy():
        while not done.is_set():
            sealer.seal(b"busy")
            for envelope in made:
                opener.open(envelope)

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(15):
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    fresh = sealer.seal(b"child")
                    code = 0 if opener.open(fresh) == b"child" else 2
                finally:
                    os._exit(code)
            pids.append(pid)
        codes = wait_for_children(pids, 4)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 15


def seal_in_worker(pem, number):
    """Runs in another process; a Sealer is made there, as spawn needs it."""
    from upseal import PublicKey

    sealer = Sealer([PublicKey.from_pem(pem)])
    return [sealer.seal(b"%d %d" % (number, i)) for i in range(20)]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_seal_for_one_opener(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    recipient = key("x25519-a")
    pem = recipient.public_key.to_pem()
    how = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=how) as pool:
        results = list(pool.map(seal_in_worker, [pem] * 4, range(4)))
    made = [e for result in results for e in result]
    assert len(set(nonces(made))) == len(made)
    want = [b"%d %d" % (n, i) for n in range(4) for i in range(20)]
    assert Opener([recipient]).open_many(made) == want
