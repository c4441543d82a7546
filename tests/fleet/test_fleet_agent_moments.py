# SPDX-License-Identifier: Apache-2.0
"""What changes while an agent decides, sends, forks, or cannot get a thread."""

import os
import subprocess
import sys
import threading
import time

import pytest
from fleet_agent_support import agent_of, eventually, parent_above, settings_for
from fleet_support import Site

from upseal.fleet.agent import parent as room
from upseal.fleet.agent.parent import Parent
from upseal.fleet.agent.workers import Workers
from upseal.fleet.policy import Clear, Level, Seal, Withhold, decide
from upseal.fleet.trust import Outcome, Trust


def test_level_and_state_are_of_one_manifest(tmp_path):
    site = Site()
    site.change(default_level=Level.OPTIONAL)
    site.enable()
    trust = site.trust(tmp_path / "trust.json")
    first = trust._believed
    site.disable()
    site.change(default_level=Level.REQUIRED)
    assert trust.offer([site.sign()], site.now) is Outcome.ACCEPTED
    second, looks = trust._believed, []

    class Between(Trust):
        """A newer manifest is accepted right after the first look."""

        @property
        def _believed(self):
            looks.append(None)
            return first if len(looks) == 1 else second

    trust.__class__ = Between
    parent = Parent(None, None, trust, None)
    for kind in (Seal, Withhold):  # what the first means, and the second; neither means clear
        believed = parent.believed()
        level = believed.manifest.level_for(b"a" * 16)
        decision = decide(level, believed.certificate, believed.parent)
        assert isinstance(decision, kind)
        assert not isinstance(decision, Clear)


@pytest.fixture
def clear(tmp_path):
    """An agent that sends in clear, its parent, and how to make it an agent that must not."""
    site = Site()  # encryption is off
    with parent_above(site) as parent:
        parent.adopt(site)
        with agent_of(site, tmp_path, parent.url, level="optional") as agent:
            eventually(lambda: agent.status()["actual"] == "clear")
            required = settings_for(agent.settings.directory, parent.url, level="required")
            yield agent, parent, lambda: agent.reload(required)


def nothing_was_sent(agent, parent):
    eventually(lambda: parent.beacons)
    eventually(lambda: agent.status()["units"]["sending"] == 0)
    assert parent.kinds == set()
    assert agent.spool.counters().depth == 1


def test_clear_text_does_not_go_again_once_it_must_not(clear, monkeypatch):
    agent, parent, require = clear
    # Its proof is three hours old, so the parent refuses it, and the agent's clock is corrected.
    monkeypatch.setattr(room, "now_ms", lambda: int(time.time() * 1000) - 3 * 3_600_000)
    asked = []

    def meanwhile(path):
        if path == "units" and not asked:
            asked.append(path)
            require()  # while the parent holds its answer back

    parent.raw = meanwhile
    agent.report(b"in clear, once")
    eventually(lambda: asked)
    nothing_was_sent(agent, parent)


def test_clear_text_that_waited_for_the_disk_is_decided_again(clear):
    agent, parent, require = clear
    deliveries = agent.sender._deliveries
    body = deliveries.body

    def slow(*args):
        made = body(*args)
        require()
        return made

    deliveries.body = slow
    agent.report(b"in clear, not yet")
    nothing_was_sent(agent, parent)


def test_work_is_done_where_no_thread_is_to_be_had(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", refuse)
    workers, done = Workers(2, "upseal-test"), []
    workers.submit(done.append, 1)
    assert done == [1]
    monkeypatch.setattr(threading.Thread, "start", start)
    workers.submit(done.append, 2)
    eventually(lambda: done == [1, 2])
    assert workers.stop(60)


_FORKED_WHILE_WAITING = """
import os, sys, threading, time, warnings
from pathlib import Path
from upseal.fleet.agent.onesender import OneSender

warnings.simplefilter("ignore")
path = Path(sys.argv[1])
first, second, third = (OneSender(path) for _ in range(3))
assert first.take()
got = []
opened = len(os.listdir("/proc/self/fd"))
waiting = threading.Thread(target=lambda: got.append(second.take()))
waiting.start()
while len(os.listdir("/proc/self/fd")) == opened:
    time.sleep(0.001)
read, write = os.pipe()
if not (child := os.fork()):
    os.close(write)
    os.read(read, 1)
    os._exit(0)
os.close(read)
first.release()
waiting.join()
assert got == [True]
second.release()
assert third.take(), "the child must not hold what its parent has let go"
os.close(write)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc here")
def test_a_child_forked_while_its_parent_waits_keeps_nobody_from_sending(tmp_path):
    command = [sys.executable, "-c", _FORKED_WHILE_WAITING, str(tmp_path / "lock")]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
