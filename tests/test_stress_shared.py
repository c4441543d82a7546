# SPDX-License-Identifier: Apache-2.0
"""Everything at once, by threads that share it: `stress_shared` says what, and what must hold."""

import os
import threading
import time

import pytest
from stress_shared import run
from support import wait_for_children


def test_everything_at_once(engine, tmp_path):
    did = run(engine, tmp_path)
    assert did["sealed"] > 1000
    assert did["sessions"] > 50
    assert did["refused"] > 0


def backends():
    return pytest.importorskip("upseal.engine.backends", reason="the C core is not built")


def test_a_backend_is_tested_once_by_one_thread(monkeypatch):
    # Its test also makes the library ready, which upseal.h wants done before anything else of it.
    module, asked, inside = backends(), [], threading.Semaphore(1)

    class Lib:
        UPSEAL_OK = 0

        def upseal_backend_test(self, index):
            assert inside.acquire(blocking=False), "two threads at once"
            time.sleep(0.05)
            asked.append(index)
            inside.release()
            return 0

    monkeypatch.setattr(module, "lib", Lib())
    module._answers.cache_clear()
    found, threads = [], []
    try:
        for _ in range(6):
            threads.append(threading.Thread(target=lambda: found.append(module.works(0))))
            threads[-1].start()
        for thread in threads:
            thread.join()
    finally:
        module._answers.cache_clear()
    assert (asked, found) == ([0], [True] * 6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_while_a_backend_is_tested_does_not_wait_for_ever():
    module = backends()
    with module._asking:
        pid = os.fork()
        if not pid:
            os._exit(0 if module.works(0) in (True, False) else 1)
    assert wait_for_children([pid], 10) == [0]


def test_a_key_that_ends_after_the_work_spaces_leaves_them_alone():
    """Garbage, and all there is when the interpreter ends, ends in any order."""
    keys = pytest.importorskip("upseal.engine.keys", reason="the C core is not built")
    from upseal.engine.memory import Workspace

    gone, there = Workspace(0), Workspace(0)
    gone.alive.clear()
    idle = [gone, there]
    keys._scrubber(idle)()
    assert idle == [there]
