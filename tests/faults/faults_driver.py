# SPDX-License-Identifier: Apache-2.0
"""Runs a scenario once for every fault: started by `run`, with the shim preloaded.

Each run is a child that is forked when everything is imported, so it costs little. It works on a
copy of a folder, with the fault; a second child, without, looks at what is on the disk and finishes
the work. What the first one acknowledged, sealed and raised stands in a file of events.
"""

import argparse
import collections
import contextlib
import hashlib
import importlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from faults_shim import KILLED, KINDS, ONCE, ONWARD, Shim

HERE = Path(__file__).parent
PATIENCE = 60
"""Seconds until a child counts as hanging: far more than any of them takes."""
TRIES = 4
_NO_CRASH = ("SHORT", "EINTR", "KILL")


class Fault(NamedTuple):
    """One of them. ``onward``: the kinds that it holds for from that call on."""

    kind: str
    number: int
    error: str
    onward: tuple = ()
    crash: bool = False
    """The process ends at the first error, as if it were killed."""

    def __str__(self):
        words = f"{self.kind} {self.number} {self.error}"
        return words + (" onward" if self.onward else "") + (" crash" if self.crash else "")


_NO_FAULT = Fault("open", 0, "EIO")


class Scenario:
    """One piece of work on a folder.

    ``prepare`` makes the folder, without faults. ``work`` does something with it, in a child with a
    fault, and says by ``run.ack`` what it has promised to somebody. ``recover`` is the next
    process: it checks every promise, finishes the work, and looks that nothing is left over.
    """

    errors = (OSError,)
    """What may be raised. Anything else is not a clear error."""
    odd = ()
    """Names of errors that say of the disk what is not so."""
    nameless = ()
    """Kinds of calls whose errors need not name a file."""

    def prepare(self, folder):
        """Makes what is there before."""

    def work(self, folder, run):
        raise NotImplementedError

    def recover(self, folder, run):
        raise NotImplementedError


class Gave(Exception):
    """A scenario found something wrong."""


class Run:
    """One run, as its child sees it."""

    def __init__(self, folder, events, fault=None, shim=None):
        self.folder, self.fault, self._shim = folder, fault, shim
        self._events = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.before = []
        """In `recover`: what the first child said."""

    def say(self, what, **facts):
        os.write(self._events, json.dumps({"what": what, **facts}).encode() + b"\n")

    def passes(self):
        """The fault is over: for who waits for somebody else's thread to meet it."""
        self._shim.disarm()

    def quiet(self):
        """No faults in what the scenario itself does meanwhile."""
        return self._shim.quiet()

    def ack(self, what, **facts):
        """Something that was promised: whoever asks again must find it."""
        self.say("ack", name=what, **facts)

    def acked(self, what):
        """All promises of this name."""
        return [e for e in self.before if e["what"] == "ack" and e["name"] == what]

    def may_leave(self):
        """Whether something may be left over: what would have taken it away could not."""
        return self.fault.kind == "gone" or self.fault.error == "KILL"

    def step(self, work, *errors):
        """What ``work`` gives, tried until the fault has passed; an error ends a run that crashes.

        A fault that lasts is over after it was met twice: the disk has room again.
        """
        scenario = self.scenario
        for tries in range(TRIES):
            try:
                return work() if tries or not self._python else self._without_memory(work)
            except Gave:
                raise
            except (*scenario.errors, *errors, *self._python) as error:
                self.say("error", type=type(error).__name__, text=str(error))
                self._look_at(error)
                if self.fault.crash:
                    self.say("crash")
                    os._exit(0)
                if tries:
                    self._shim.disarm()
        raise Gave("it does not go on after a fault has passed")

    @property
    def _python(self):
        """What is raised where an allocation of Python's fails: libraries make anything of it."""
        return (BaseException,) if self.fault.kind == "python" else ()

    def _without_memory(self, work):
        """Does it with one of Python's allocations failing: that number of each step."""
        import _testcapi

        number = self.fault.number
        _testcapi.set_nomemory(number, number + 1)
        try:
            return work()
        finally:
            _testcapi.remove_mem_hooks()

    def _look_at(self, error):
        """Whether it says what it is about: a path, for what is wrong with a file."""
        fault = self.fault
        if fault.kind in ("random", "alloc", "python", *self.scenario.nameless):
            return
        words = " ".join(str(e) for e in (error, error.__cause__, error.__context__) if e)
        if str(self.folder) not in words:
            self.say("nameless", type=type(error).__name__, text=str(error))


# -- every use of a key is written down ----------------------------------------------------------


def watch_sealing(run):
    """Notes key, nonce and a digest of what was sealed, of all that this process seals."""
    from upseal.engine import resolve

    engine = type(resolve(None))
    materials = {}
    of_session, of_batch, of_upload = engine.session_key, engine.batch_key, engine.upload_key

    def marked(key, *parts):
        digest = hashlib.sha256()
        for part in parts:
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        materials[id(key)] = (key, digest.hexdigest()[:24])  # with it, no other gets its id
        return key

    def mark(key):
        return materials[id(key)][1]

    def new_session(self, cipher, keys):
        return marked(of_session(self, cipher, keys), bytes([cipher]), bytes(keys[:96]))

    def new_batch_key(self, session):
        return marked(of_batch(self, session), mark(session).encode(), b"batch")

    def new_upload_key(self, session, info):
        key, commitment = of_upload(self, session, info)
        return marked(key, mark(session).encode(), info), commitment

    def note(key, nonce, *parts):
        digest = hashlib.sha256()
        for part in parts:
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        run.say("seal", key=mark(key), nonce=nonce, digest=digest.hexdigest()[:24])

    sealing, chunks = engine.sealing, engine.seal_chunks
    envelopes, batch = engine.seal_envelopes, engine.seal_batch

    def new_sealing(self, key, prefix, padded):
        seal = sealing(self, key, prefix, padded)

        def one(nonce, aad, report):
            note(key, nonce.hex(), aad, report)
            return seal(nonce, aad, report)

        return one

    def new_envelopes(self, key, nonce, prefix, aad, reports, padded):
        for i, report in enumerate(_listed(reports)):
            note(key, _nth(nonce, i), aad, report)
        return envelopes(self, key, nonce, prefix, aad, reports, padded)

    def new_batch(self, key, nonce, head, aad, reports, padded, out=None):
        for i, report in enumerate(_listed(reports)):
            note(key, _nth(nonce, i), aad, i.to_bytes(4, "big"), report)
        return batch(self, key, nonce, head, aad, reports, padded, out)

    def new_chunks(self, key, first, last, data, out):
        view, at = memoryview(data), first
        pieces = [view[i : i + 16384] for i in range(0, len(view) + last, 16384)]
        for piece in pieces:
            end = last and len(piece) < 16384
            note(key, str(at), bytes([end]), piece)
            at += 1
        return chunks(self, key, first, last, data, out)

    engine.session_key, engine.batch_key = new_session, new_batch_key
    engine.upload_key = new_upload_key
    engine.sealing, engine.seal_chunks = new_sealing, new_chunks
    engine.seal_envelopes, engine.seal_batch = new_envelopes, new_batch


def _listed(reports):
    from upseal.engine.records import Listed, split

    return list(map(bytes, reports.reports)) if isinstance(reports, Listed) else split(reports)


def _nth(nonce, index):
    """docs/format.md, "Batch"."""
    return (int.from_bytes(nonce, "big") ^ index).to_bytes(len(nonce), "big").hex()


def used_twice(events):
    """Nonces under which two different things were sealed."""
    seen, found = {}, []
    for event in events:
        if event["what"] == "seal":
            which = event["key"], event["nonce"]
            if seen.setdefault(which, event["digest"]) != event["digest"]:
                found.append(which)
    return found


# -- children ----------------------------------------------------------------------------------


def in_child(events, work):
    """Forks; what went wrong in the child, or None. What it prints goes nowhere."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(PATIENCE)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 2)
            work()
            code = 0
        except BaseException as error:
            with contextlib.suppress(Exception):
                line = {"what": "failed", "text": _words(error)}
                with open(events, "ab", buffering=0) as file:
                    file.write(json.dumps(line).encode() + b"\n")
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "it hangs" if number == signal.SIGALRM else f"it died of signal {number}"
    code = os.WEXITSTATUS(status)
    return {0: None, KILLED: None, 1: "failed"}.get(code, f"it ended with status {code}")


def _words(error):
    return "".join(traceback.format_exception(error))[-3000:]


def read_events(path):
    try:
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    except FileNotFoundError:
        return []


class Driver:
    """One scenario, in a process that has the shim."""

    def __init__(self, scenario, folder):
        from upseal.engine import resolve

        self.scenario, self.home = scenario, Path(folder)
        resolve(None)  # so that the native core is there to be found
        self.shim = Shim()
        self.base = self.home / "base"
        self.folder = self.home / "work"
        self.events = self.home / "events"
        self.problems, self.seen = [], collections.Counter()
        self.nameless = collections.Counter()
        self.errors, self.odd = collections.Counter(), collections.Counter()
        self.injected = collections.Counter()

    def prepare(self):
        self.base.mkdir()
        problem = in_child(self.events, lambda: self.scenario.prepare(self.base))
        if problem:
            raise RuntimeError(f"{problem}: {read_events(self.events)}")

    def counted(self):
        """Calls of each kind, where nothing fails."""
        found = collections.Counter()
        kinds = [-1, *(["alloc"] if self.shim.core else [])]
        for kind in kinds:
            self._fresh()
            told = self.home / "calls"

            def work(kind=kind, told=told):
                run = self._run(_NO_FAULT)
                self.shim.watch(self.folder)
                self.shim.count(kind)
                self.scenario.work(self.folder, run)
                self.shim.disarm()
                told.write_text(json.dumps(self.shim.calls()))

            problem = in_child(self.events, work)
            if problem:
                raise RuntimeError(f"{problem} without a fault: {read_events(self.events)}")
            calls = json.loads(told.read_text())
            if kind == "alloc":
                found["alloc"] = calls["alloc"]
            else:
                found.update(calls)
            before = read_events(self.events)
            recovered = in_child(
                self.events, lambda before=before: self._recover(_NO_FAULT, before)
            )
            if recovered:
                raise RuntimeError(f"{recovered} after no fault: {read_events(self.events)}")
        return {kind: found[kind] for kind in KINDS}

    def plan(self, calls):
        """All faults there are."""
        faults = []
        for kind in KINDS:
            for number in range(1, calls[kind] + 1):
                once = [Fault(kind, number, error) for error in ONCE[kind]]
                onward = [
                    Fault(kind, number, error, kinds) for error, kinds in ONWARD.get(kind, ())
                ]
                both = once + onward
                faults += both
                faults += [f._replace(crash=True) for f in both if f.error not in _NO_CRASH]
        return faults

    def one(self, fault):
        """Runs it with one fault; what is wrong, or None."""
        self._fresh()
        problem = in_child(self.events, lambda: self._work(fault))
        before = read_events(self.events)
        self._tally(fault, before)
        if problem in (None, "failed"):
            # What is wrong with the folder says more than what ended the process.
            recovered = in_child(self.events, lambda: self._recover(fault, before))
            problem = problem or recovered
        after = read_events(self.events)
        texts = [e["text"] for e in after if e["what"] == "failed"]
        if texts:
            problem = "\n".join([problem or "a thread failed", *texts])
        if not problem and used_twice(after):
            problem = f"a nonce was used twice: {used_twice(after)}"
        if problem:
            self.problems.append(f"{fault}: {problem}")
        return problem

    def _fresh(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.base, self.folder)
        self.events.unlink(missing_ok=True)

    def _run(self, fault):
        run = Run(self.folder, self.events, fault, self.shim)
        run.scenario = self.scenario
        threading.excepthook = lambda given: run.say("failed", text=_words(given.exc_value))
        watch_sealing(run)
        return run

    def _work(self, fault):
        run = self._run(fault)
        self.shim.watch(self.folder)
        if fault.kind != "python":
            self.shim.arm(fault)
        try:
            self.scenario.work(self.folder, run)
        finally:
            self.shim.disarm()
            run.say("hits", number=self.shim.hits)

    def _recover(self, fault, before):
        run = self._run(fault)
        run.before = before
        self.scenario.recover(self.folder, run)

    def _tally(self, fault, events):
        met = fault.error == "KILL" and all(e["what"] != "hits" for e in events)
        met = met or any(e["what"] == "error" or e.get("number", 0) > 0 for e in events)
        if met:
            self.injected[f"{fault.kind} {fault.error}{' onward' if fault.onward else ''}"] += 1
        for event in events:
            if event["what"] == "error":
                self.errors[event["type"]] += 1
                if event["type"] in self.scenario.odd and not fault.onward:
                    self.odd[f"{fault}: {event['type']}: {event['text']}"] += 1
            if event["what"] == "nameless":
                self.nameless[f"{fault.kind}: {event['type']}: {event['text']}"] += 1


def chosen(faults, most, seed):
    """All of them, or so many, spread evenly over what there is of each kind and error."""
    if not most or most >= len(faults):
        return faults
    pick = random.Random(seed)
    pick.shuffle(faults)
    faults.sort(key=lambda fault: (fault.kind, fault.error, bool(fault.onward), fault.crash))
    start = pick.random()
    return [faults[int((i + start) * len(faults) / most)] for i in range(most)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", help="module:class, or module:class:[its arguments]")
    parser.add_argument("--most", type=int, default=0, help="a sample; 0 for all of them")
    parser.add_argument("--enough", type=int, default=20, help="problems, after which it ends")
    parser.add_argument("--python", type=int, help="Python's own allocations, up to that one")
    parser.add_argument("--kinds", help="of calls, with commas; all of them if it is left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one fault, as a list in JSON")
    parser.add_argument("--folder")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    module, name, *rest = args.scenario.split(":", 2)
    kind = getattr(importlib.import_module(module), name)
    scenario = kind(*json.loads(rest[0] if rest else "[]"))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        driver = Driver(scenario, os.path.realpath(folder))
        driver.prepare()
        if args.python:
            faults, calls = [Fault("python", n, "ENOMEM") for n in range(args.python)], {}
            faults = chosen(faults, args.most, args.seed)
        elif args.only:
            kind, number, error, onward, crash = json.loads(args.only)
            faults = [Fault(kind, number, error, tuple(onward), crash)]
            calls = {}
        else:
            calls = driver.counted()
            kinds = args.kinds.split(",") if args.kinds else KINDS
            faults = [fault for fault in driver.plan(calls) if fault.kind in kinds]
            faults = chosen(faults, args.most, args.seed)
        done = 0
        for fault in faults:
            driver.one(fault)
            done += 1
            if len(driver.problems) >= args.enough:
                break
    report = {
        "scenario": args.scenario, "calls": calls, "runs": done,
        "injected": sum(driver.injected.values()), "kinds": dict(driver.injected),
        "errors": dict(driver.errors), "odd": dict(driver.odd),
        "nameless": dict(driver.nameless.most_common(40)),
        "problems": driver.problems, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    print(json.dumps(report))


def run(shim, scenario, folder, *, most=0, seed=0, only=None, kinds=None, enough=20, python=0):
    """The report of a scenario, run in a process of its own."""
    paths = [str(HERE), str(HERE.parent), str(HERE.parent / "fleet")]
    env = {
        **os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    command = [sys.executable, str(HERE / "faults_driver.py"), scenario, "--folder", str(folder)]
    command += ["--most", str(most), "--seed", str(seed)]
    command += ["--enough", str(enough), *(["--kinds", kinds] if kinds else [])]
    command += ["--python", str(python)] if python else []
    command += ["--only", json.dumps(only)] if only else []
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, f"the driver of {scenario} failed"
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
