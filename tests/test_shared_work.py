# SPDX-License-Identifier: Apache-2.0
"""Threads of one call, and buffers that somebody changes while it runs."""

import io
import os
import threading
import time
from array import array

import pytest

from upseal import Opener, PrivateKey, seal_file
from upseal.engine.records import Listed, packed
from upseal.engine.threads import wait_for

KEY = PrivateKey.generate()


def test_an_interrupt_waits_for_the_threads_that_still_write(monkeypatch):
    done = []
    threads = [threading.Thread(target=lambda: (time.sleep(0.2), done.append(1))) for _ in "ab"]
    joins = iter([KeyboardInterrupt()])
    join = threading.Thread.join

    def interrupted(self, timeout=None):
        for error in joins:
            raise error
        join(self, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    for thread in threads:
        thread.start()
    with pytest.raises(KeyboardInterrupt):
        wait_for(threads)
    assert done == [1, 1]


def test_shares_are_waited_for_if_one_of_them_raises(engine):
    if engine.name != "native":
        pytest.skip("only the C core is given shares")
    done = []

    def work(first, space):
        if not first:
            raise KeyboardInterrupt
        time.sleep(0.2)
        done.append(first)
        return 0

    with pytest.raises(KeyboardInterrupt):
        engine._run(work, [(0,), (1,), (2,)], True)
    assert sorted(done) == [1, 2]


@pytest.mark.parametrize("code", ["i", "q"])
def test_offsets_are_copied_before_c_sees_them(code):
    offsets = array(code, [0, 3, 5])
    reports = packed(b"abcde", offsets)
    offsets[1], offsets[2] = 1 << 30, 1 << 30
    assert reports.offsets.tolist() == [0, 3, 5]


def test_a_report_that_grows_meanwhile_is_refused_and_not_cut():
    report = bytearray(b"short")
    listed = Listed([report])
    report += b", and not so short"
    with pytest.raises(ValueError, match="changed its size"):
        listed.read(0, 1, io.BytesIO())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_forked_by_progress_does_not_seal_on(tmp_path):
    (tmp_path / "plain").write_bytes(bytes(3 << 20))
    parent, children = os.getpid(), []

    def progress(done, total):
        if os.getpid() == parent and not children:
            children.append(os.fork())

    try:
        seal_file(
            tmp_path / "plain", tmp_path / "sealed", [KEY.public_key], threads=1, progress=progress
        )
    except RuntimeError:
        os._exit(7 if os.getpid() != parent else 1)
    finally:
        if os.getpid() != parent:
            os._exit(8)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7
    with open(tmp_path / "sealed", "rb") as sealed:
        assert Opener([KEY]).reader(sealed).read() == bytes(3 << 20)
