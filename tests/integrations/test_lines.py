# SPDX-License-Identifier: Apache-2.0
"""``upseal lines``: every byte comes back once and in order, whatever happens."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from upseal import Opener, OpenError, PrivateKey, Sealer
from upseal.integrations.lines import Limits, LineOpener, LineSealer, open_lines
from upseal.integrations.lines.outputs import Files, State, StateFile, TextFile
from upseal.integrations.lines.reading import sealed_in
from upseal.integrations.lines.sealing import Sealing, Stop
from upseal.integrations.sealed_folder import SealedFolder

ROOT = Path(__file__).parent.parent.parent
UPSEAL = [sys.executable, "-m", "upseal", "lines"]
KEY = PrivateKey.generate("x25519")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    (folder / "private").write_bytes(KEY.to_pem())
    (folder / "public").write_bytes(KEY.public_key.to_pem())
    (folder / "other").write_bytes(PrivateKey.generate("x25519").to_pem())
    for name in ("private", "other"):
        (folder / name).chmod(0o600)
    return folder


def lines(*args, data=b"", code=0):
    done = subprocess.run(
        [*UPSEAL, *map(str, args)], input=data, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return done


def opened(path, context=b""):
    """All lines in a file or folder, and the opener that says what was odd."""
    opener = LineOpener(Opener([KEY]), context)
    found = []
    for _, sealed in sealed_in(str(path)):
        assert sealed is not None
        found += opener.add(sealed)
    found += opener.finish()
    return b"".join(b"".join(some.records) for some in found), opener


def whole_lines(path):
    """What is in a file that is being written."""
    if not path.exists():
        return b""
    look = path.with_name("look")
    look.write_bytes(path.read_bytes().rpartition(b"\n")[0])
    return opened(look)[0]


def numbered(start, count):
    return b"".join(b"line %d %s\n" % (n, b"x" * (n % 70)) for n in range(start, start + count))


def until(condition, process=None):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        assert process is None or process.poll() is None, process.stderr.read()
        time.sleep(0.02)


# -- bytes -----------------------------------------------------------------------------

SHAPES = {
    "plain": numbered(0, 3000),
    "crlf": b"a\r\nb\r\n\r\n",
    "no final newline": b"one\ntwo",
    "empty lines": b"\n\n\n",
    "empty": b"",
    "binary": random.Random(1).randbytes(200_000),
    "long line": b"y" * 100_000 + b"\nshort\n" + b"z" * 70_000,
    "nul and latin-1": b"\0\n\xff\xfe\n",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_byte_comes_back(tmp_path, shape):
    source, out = tmp_path / "in", tmp_path / "out"
    source.write_bytes(SHAPES[shape])
    sealing(source, TextFile(str(out)), None)
    assert opened(out)[0] == SHAPES[shape]
    for line in out.read_bytes().splitlines():
        assert base64.b64decode(line, validate=True)[:3] == b"USL"
        assert len(line) < 100_000  # the shortest limit of a shipper that takes more than 32 KiB
    for word in SHAPES[shape].split()[:50]:
        assert len(word) < 6 or word not in out.read_bytes()


def sealing(source, output, state, limits=None, context=b""):
    """One run over a file, to its end."""
    held = StateFile(str(state)) if state is not None else None
    try:
        with Stop() as stop:
            run = Sealing(Sealer([KEY.public_key]), context, limits or Limits(), output, held, stop)
            warned = []
            run.files([str(source)], follow=False, wait=5.0, warn=warned.append)
    finally:
        output.close()
        if held is not None:
            held.close()
    return run.counts, warned


def test_pipes_options_and_summary(keys, tmp_path):
    data = SHAPES["plain"] + b"tail"
    args = ("-r", keys / "public", "--context", "c", "--count", 100, "--json", "--padding")
    done = lines(*args, data=data)
    facts = json.loads(done.stderr)
    assert facts["lines"] == 3001 and facts["bytes"] == len(data) and facts["batches"] == 31
    back = lines("--open", "-i", keys / "private", "--context", "c", "--json", data=done.stdout)
    assert back.stdout == data
    assert json.loads(back.stderr)["missing"] == 0
    wrong = lines("--open", "-i", keys / "private", data=done.stdout, code=1)
    assert wrong.stdout == b""
    wrong = lines("--open", "-i", keys / "other", "--context", "c", data=done.stdout, code=3)
    assert wrong.stdout == b"" and b"none of the keys given" in wrong.stderr
    assert lines(*args[:-2], "-o", "/dev/full", data=data, code=4).stdout == b""


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), b"recipient"),
        (("-r", "p", "--follow", "x"), b"--state"),
        (("-r", "p", "--follow"), b"for files"),
        (("-r", "p", "-i", "k"), b"--open"),
        (("--open",), b"-i"),
        (("--open", "-i", "k", "--follow"), b"for sealing"),
        (("-r", "p", "--folder-max", "1"), b"--folder"),
        (("-r", "p", "--bytes", "99999999", "x"), b"8 MiB"),
    ],
)
def test_mistakes_are_said(capfd, args, says):
    from upseal.cli import main

    assert main(["lines", *args]) == 2
    assert says in capfd.readouterr().err.encode()


# -- what a shipper may do to them ---------------------------------------------------------


@pytest.fixture
def text(tmp_path):
    """Ten batches as lines, and their plaintext."""
    out = tmp_path / "out"
    (tmp_path / "in").write_bytes(numbered(0, 100))
    sealing(tmp_path / "in", TextFile(str(out)), None, Limits(count=10))
    found = out.read_bytes().splitlines(keepends=True)
    assert len(found) == 10
    return out, found


def test_a_cut_output_gives_what_is_whole_and_says_so(keys, text):
    out, found = text
    rng = random.Random(7)
    for _ in range(200):
        cut = rng.randrange(1, len(b"".join(found)))
        out.write_bytes(b"".join(found)[:cut])
        opener, got, bad = LineOpener(Opener([KEY])), b"", 0
        for _, sealed in sealed_in(str(out)):
            try:
                got += b"".join(b"".join(s.records) for s in opener.add(sealed or b""))
            except OpenError:
                bad += 1
        whole = sum(len(b"".join(found[: n + 1])) - 1 <= cut for n in range(10))
        assert got == numbered(0, whole * 10)
        torn = cut > len(b"".join(found[:whole]))
        assert bad == torn
    out.write_bytes(b"".join(found)[:-40])
    done = lines("--open", "-i", keys / "private", out, code=1)
    assert done.stdout == numbered(0, 90) and b"line 10" in done.stderr


def test_doubles_disorder_gaps_and_wrapping(keys, text):
    out, found = text
    wrapped = [json.dumps({"message": line.decode().strip()}).encode() + b"\n" for line in found]
    wrapped[3] = wrapped[3].replace(b"/", b"\\/")
    wrapped[4] = b"Nov 23 21:00:00 host app[1]: " + found[4]
    out.write_bytes(b"".join([*wrapped[:2], found[1], wrapped[4], wrapped[2], *wrapped[3:]]))
    done = lines("--open", "-i", keys / "private", "--json", out)
    assert done.stdout == numbered(0, 100)
    assert json.loads(done.stderr)["doubles"] == 2
    out.write_bytes(b"".join([*found[:4], b"a clear line\n", *found[6:]]))
    done = lines("--open", "-i", keys / "private", out, code=1)
    assert done.stdout == numbered(0, 40) + numbered(60, 40)
    assert b"batches 4 to 5" in done.stderr and b"1 lines hold nothing" in done.stderr


def test_two_machines_with_one_state_lose_nothing():
    first = LineSealer(Sealer([KEY.public_key]))
    second = LineSealer(Sealer([KEY.public_key]), stream=first.stream)
    opener = LineOpener(Opener([KEY]))
    got = [x for s in (first.seal(b"a\n"), second.seal(b"b\n")) for x in opener.add(s)]
    assert [x.records for x in got] == [[b"a\n"], [b"b\n"]]
    assert opener.problem_count == 1


def test_what_is_held_back_is_bounded(monkeypatch):
    from upseal.integrations import lines as room

    monkeypatch.setattr(room, "_HELD_MAX", 5000)
    sealer = LineSealer(Sealer([KEY.public_key]))
    batches = [sealer.seal(b"%d\n" % n) for n in range(60)]
    opener = LineOpener(Opener([KEY]))
    got = [x.sequence for b in [batches[0], *batches[2:]] for x in opener.add(b)]
    assert got[1] == 2 and opener.problem_count == 1
    assert [*got, *(x.sequence for x in opener.finish())] == [0, *range(2, 60)]


class Compared(int):
    """Counts how often its like are compared."""

    count = 0

    def __lt__(self, other):
        Compared.count += 1
        return int(self) < int(other)

    __gt__ = __lt__


def test_gaps_take_no_quadratic_work(monkeypatch):
    """Whoever has the public key can make a batch for every second number."""
    from upseal.integrations import lines as room

    size, fronts = 2000, []
    monkeypatch.setattr(room, "open_lines", lambda *_: fronts.pop())
    monkeypatch.setattr(room, "_HELD_MAX", size)
    monkeypatch.setattr(Compared, "count", 0)
    opener = LineOpener(Opener([KEY]))
    got = []
    for number in range(2 * size):
        fronts.append(room.Lines("5" * 32, Compared(2 * number), "", "", 0, [b"x\n"]))
        got += opener.add(b"%04d" % number)  # of 4 bytes: 500 are held
    got += opener.finish()
    assert [some.sequence for some in got] == list(range(0, 4 * size, 2))
    assert Compared.count < 50 * size


def test_streams_are_forgotten_but_not_those_that_wait(monkeypatch):
    from upseal.integrations import lines as room

    monkeypatch.setattr(room, "_STREAMS_MAX", 8)
    sealer, opener = Sealer([KEY.public_key]), LineOpener(Opener([KEY]))
    waits, talks = LineSealer(sealer), LineSealer(sealer)
    batches = [waits.seal(b"%d\n" % n) for n in range(3)]
    got = [some for n in (0, 2) for some in opener.add(batches[n])]
    for _ in range(100):
        list(opener.add(LineSealer(sealer).seal(b"x\n")))
        list(opener.add(talks.seal(b"y\n")))
    assert len(opener._streams) < 20
    got += opener.add(batches[1])
    assert [some.records for some in got] == [[b"0\n"], [b"1\n"], [b"2\n"]]
    list(opener.add(batches[1]))
    talks.sequence += 1
    list(opener.add(talks.seal(b"z\n")))
    list(opener.finish())
    assert (opener.doubles, opener.problem_count) == (1, 1)


def test_a_stream_has_a_name_of_ours():
    with pytest.raises(ValueError, match="32 hexadecimal"):
        LineSealer(Sealer([KEY.public_key]), stream="mine")


@pytest.mark.parametrize(
    "front",
    [b"", b"{}", b"[" * 100_000, b'"lines/1"', b"\xff", b"[1]"]
    + [
        json.dumps({"upseal": "lines/1", "source": "", "file": "", "offset": 0, **more}).encode()
        for more in (
            {"stream": 5, "sequence": 0},
            {"stream": "\x1b[2J" + "5" * 28, "sequence": 0},
            {"stream": "5" * 33, "sequence": 0},
            {"stream": "5" * 32, "sequence": -1},
            {"stream": "5" * 32, "sequence": 1 << 64},
            {"stream": "5" * 32, "sequence": True},
        )
    ],
)
def test_hostile_batches_are_open_errors(front):
    sealed = Sealer([KEY.public_key]).seal_batch([front, b"x"])
    with pytest.raises(OpenError):
        open_lines(sealed, Opener([KEY]))


# -- kills -------------------------------------------------------------------------------


def child(work, kill_at):
    """Runs ``work`` in a fork that kills itself at so many calls for the disk; the exit status."""
    pid = os.fork()
    if pid == 0:
        calls = 0
        real = {name: getattr(os, name) for name in ("write", "replace", "fsync")}

        def counted(name):
            def call(*args):
                nonlocal calls
                calls += 1
                if calls == kill_at:
                    if name == "write":
                        real["write"](args[0], args[1][: len(args[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return real[name](*args)

            return call

        code = 1
        try:
            for name in real:
                setattr(os, name, counted(name))
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("kind", ["text", "folder"])
def test_a_kill_at_any_call_loses_and_doubles_nothing(tmp_path, kind):
    for kill_at in range(1, 200):
        place = tmp_path / str(kill_at)
        place.mkdir()
        source, out, state = place / "app.log", place / "out", place / "state"
        source.write_bytes(numbered(0, 40))

        def work(source=source, out=out, state=state):
            target = TextFile(str(out)) if kind == "text" else Files(SealedFolder(out))
            sealing(source, target, state, Limits(count=10))

        status = child(work, kill_at)
        assert status in (0, -signal.SIGKILL)
        with source.open("ab") as file:
            file.write(numbered(40, 15))
        work()
        got, opener = opened(out)
        assert got == numbered(0, 55), kill_at
        assert (opener.doubles, opener.problem_count) == (0, 0), kill_at
        if status == 0:
            break
    assert kill_at > (8 if kind == "text" else 14)  # all the calls, and the last run was unharmed


def follow(keys, tmp_path, *args):
    command = [*UPSEAL, "-r", str(keys / "public"), "--follow", "--state", str(tmp_path / "state")]
    command += ["--seconds", "0.2", "--rotate-wait", "1", *map(str, args)]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def end(process):
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return said


@pytest.mark.parametrize("way", ["rename", "copytruncate"])
def test_rotation_and_kills_under_load(keys, tmp_path, way):
    log, out = tmp_path / "app.log", tmp_path / "out"
    total, each = 4000, 700
    rng = random.Random(way)

    def rotate():
        for n in range(20, 0, -1):
            old = tmp_path / f"app.log.{n}"
            if old.exists():
                old.rename(tmp_path / f"app.log.{n + 1}")
        if way == "rename":
            log.rename(tmp_path / "app.log.1")
            log.touch()
        else:
            shutil.copyfile(log, tmp_path / "app.log.1")
            os.truncate(log, 0)

    def write():
        for start in range(0, total, 20):
            if start % each == 0 and start:
                rotate()
            with log.open("ab") as file:
                data = numbered(start, 20)
                half = rng.randrange(len(data))
                file.write(data[:half])
                file.flush()
                file.write(data[half:])
            time.sleep(0.005)

    log.touch()
    process = follow(keys, tmp_path, "-o", out, "--json", log)
    until(lambda: (tmp_path / "state").exists(), process)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            time.sleep(rng.random() * 0.3)
            process.kill()
            process.communicate()
            process = follow(keys, tmp_path, "-o", out, "--json", log)
        writer.join()
        last = numbered(total - 1, 1)
        until(lambda: whole_lines(out).endswith(last), process)
        said = end(process)
    finally:
        process.kill()
        process.communicate()
        writer.join()
    got, opener = opened(out)
    assert b"lost" not in said, said
    assert got == numbered(0, total)
    assert (opener.doubles, opener.problem_count) == (0, 0)


def test_rotated_while_away(tmp_path):
    """Two rotations between two runs: the middle file was never seen under its name."""
    log, out, state = tmp_path / "app.log", tmp_path / "out", tmp_path / "state"
    (tmp_path / "app.log.1").write_bytes(b"from before our time\n")
    log.write_bytes(numbered(0, 10))
    sealing(log, TextFile(str(out)), state)
    with log.open("ab") as file:
        file.write(numbered(10, 5))
    (tmp_path / "app.log.1").rename(tmp_path / "app.log.3")
    log.rename(tmp_path / "app.log.2")
    (tmp_path / "app.log.1").write_bytes(numbered(15, 5))
    (tmp_path / "app.log.json").write_bytes(b"another log\n")
    log.write_bytes(numbered(20, 5))
    _, warned = sealing(log, TextFile(str(out)), state)
    assert opened(out)[0] == numbered(0, 25)
    assert warned == []


def test_logs_of_others_need_not_be_readable(tmp_path, monkeypatch):
    """``apport.log`` beside ``app.log``, of another user; a rotated one of ours is missed."""
    from upseal.integrations.lines import log_files

    log, out, state = tmp_path / "app.log", tmp_path / "out", tmp_path / "state"
    log.write_bytes(numbered(0, 10))
    (tmp_path / "apport.log").write_bytes(b"of another user\n")
    as_it_is = os.open

    def as_a_user(path, flags, *more):  # tests may run as root, who reads everything
        if os.fspath(path).endswith(("apport.log", "app.log.1")):
            raise PermissionError(13, "Permission denied", path)
        return as_it_is(path, flags, *more)

    monkeypatch.setattr(log_files.os, "open", as_a_user)
    sealing(log, TextFile(str(out)), state)
    log.rename(tmp_path / "app.log.2")
    log.write_bytes(numbered(10, 10))
    sealing(log, TextFile(str(out)), state)
    assert opened(out)[0] == numbered(0, 20)
    (tmp_path / "app.log.1").write_bytes(b"ours")
    with pytest.raises(PermissionError):
        sealing(log, TextFile(str(out)), state)


def test_truncated_without_a_copy_is_said(tmp_path):
    log, out, state = tmp_path / "app.log", tmp_path / "out", tmp_path / "state"
    log.write_bytes(numbered(0, 10))
    sealing(log, TextFile(str(out)), state)
    log.write_bytes(numbered(50, 100))  # longer than before, and another file all the same
    _, warned = sealing(log, TextFile(str(out)), state)
    assert opened(out)[0] == numbered(0, 10) + numbered(50, 100)
    assert len(warned) == 1 and "lost" in warned[0]


def test_the_output_may_be_rotated_and_torn(tmp_path):
    log, out, state = tmp_path / "app.log", tmp_path / "out", tmp_path / "state"
    log.write_bytes(numbered(0, 10))
    sealing(log, TextFile(str(out)), state)
    out.rename(tmp_path / "out.1")
    out.write_bytes(b"torn by somebody")
    with log.open("ab") as file:
        file.write(numbered(10, 10))
    sealing(log, TextFile(str(out)), state)
    first, second = out.read_bytes().splitlines()
    assert first == b"torn by somebody"
    (tmp_path / "out.2").write_bytes(second)
    assert opened(tmp_path / "out.1")[0] + opened(tmp_path / "out.2")[0] == numbered(0, 20)


def test_a_state_file_is_for_one_process_and_checked(keys, tmp_path):
    log, state = tmp_path / "app.log", tmp_path / "state"
    log.write_bytes(b"a\n")
    args = ("-r", keys / "public", "--state", state, "-o", tmp_path / "out", log)
    held = StateFile(str(state))
    assert b"another process" in lines(*args, code=4).stderr
    held.save(State("0" * 32, 1, [], 1.0, {}, [b"sealed"]))
    held.close()
    state.write_bytes(state.read_bytes()[:-1] + b"X")
    assert b"damaged" in lines(*args, code=1).stderr
    assert not (tmp_path / "out").exists() or (tmp_path / "out").read_bytes() == b""


# -- pipes --------------------------------------------------------------------------------


def test_sigterm_flushes_a_pipe(keys, tmp_path):
    out = tmp_path / "out"
    command = [*UPSEAL, "-r", str(keys / "public"), "--seconds", "1000", "-o", str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        process.stdin.write(b"one\ntwo\nhal")
        process.stdin.flush()

        def taken():
            waiting = fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4))
            return int.from_bytes(waiting, sys.byteorder) == 0

        until(taken, process)
        process.terminate()
        assert process.wait(60) == 143
    assert opened(out)[0] == b"one\ntwo\nhal"


def test_age_flushes_whole_lines(keys, tmp_path):
    out = tmp_path / "out"
    command = [*UPSEAL, "-r", str(keys / "public"), "--seconds", "0.1", "-o", str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        process.stdin.write(b"one\nhal")
        process.stdin.flush()
        until(lambda: out.exists() and out.read_bytes().endswith(b"\n"), process)
        assert whole_lines(out) == b"one\n"
        process.stdin.write(b"f\n")
        process.stdin.close()
        assert process.wait(60) == 0
    assert opened(out)[0] == b"one\nhalf\n"


def test_a_reader_that_stands_still_stops_the_writer(keys):
    """What is taken without being given out is bounded, whatever comes."""
    command = [*UPSEAL, "-r", str(keys / "public")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        os.set_blocking(process.stdin.fileno(), False)
        data, taken, still = numbered(0, 1000), 0, 0
        while still < 40:
            try:
                taken += os.write(process.stdin.fileno(), data)
                still = 0
            except BlockingIOError:
                still += taken > 0
                time.sleep(0.05)
            assert taken < 8 << 20
        process.kill()


def test_a_full_folder_makes_it_wait(tmp_path):
    folder = SealedFolder(tmp_path / "f", 1000)
    folder(b"x" * 900)
    assert not folder.has_room(200) and folder.has_room(50)
    with pytest.raises(OSError, match="holds 1000 bytes"):
        folder(b"y" * 200)
    assert [f.read_bytes() for f in folder.files()] == [b"x" * 900]
    folder.files()[0].unlink()
    folder(b"y" * 2000)


# -- a real shipper --------------------------------------------------------------------------


def test_rsyslog_carries_them(keys, tmp_path):
    rsyslogd = shutil.which("rsyslogd", path="/usr/sbin:/sbin:" + os.environ["PATH"])
    assert rsyslogd, "no rsyslogd: apt-get install rsyslog, or scripts/test-companions"
    log, spool, carried = tmp_path / "app.log", tmp_path / "spool", tmp_path / "carried"
    log.write_bytes(SHAPES["plain"] + SHAPES["binary"])
    lines("-r", keys / "public", "-o", spool, log)
    (tmp_path / "work").mkdir()
    (tmp_path / "rsyslog.conf").write_text(f"""
        global(maxMessageSize="128k" workDirectory="{tmp_path}/work")
        module(load="imfile" mode="polling" pollingInterval="1")
        input(type="imfile" file="{spool}" tag="sealed:" ruleset="out")
        ruleset(name="out") {{ action(type="omfile" file="{carried}") }}
        """)
    wanted = spool.read_bytes().count(b"\n")
    command = [rsyslogd, "-n", "-f", str(tmp_path / "rsyslog.conf"), "-i", str(tmp_path / "pid")]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            until(lambda: carried.exists() and carried.read_bytes().count(b"\n") == wanted, process)
        finally:
            process.terminate()
            process.communicate(timeout=60)
    assert carried.read_bytes() != spool.read_bytes()  # it writes time, host and tag before each
    done = lines("--open", "-i", keys / "private", carried)
    assert done.stdout == log.read_bytes()


def test_the_example():
    script = ROOT / "examples/lines/example.py"
    done = subprocess.run([sys.executable, script], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"the same bytes" in done.stdout
