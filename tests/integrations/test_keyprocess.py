# SPDX-License-Identifier: Apache-2.0
"""``upseal keys serve``: a real process, real sockets, users that the kernel tells apart."""

import ctypes
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
from keys_support import ROOT, Process, Tokens, again, upseal

from upseal import KeyOpener, KeyUnavailable, Opener, OpenError, PrivateKey, Sealer
from upseal.fleet.readiness import BadChallenge, answer_challenge, make_challenge
from upseal.integrations.keyprocess import KeyProcess, wire
from upseal.integrations.keys import HeldKey, LazyKey, kept_elsewhere, open_key, open_keys

SECRET = bytes(range(32))
KINDS = ("x25519", "p256", "mlkem768-x25519", "rsa2048")
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
NOBODY = 65534


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return Tokens(tmp_path_factory.mktemp("softhsm"))


@pytest.fixture(scope="module")
def keys():
    return [PrivateKey.generate(kind) for kind in KINDS]


@pytest.fixture(scope="module")
def files(keys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for key in keys:
        (folder / key.public_key.name).write_bytes(key.to_pem())
        (folder / key.public_key.name).chmod(0o600)
    return [folder / kind for kind in KINDS]


@pytest.fixture(scope="module")
def process(files, tmp_path_factory):
    with Process(tmp_path_factory.mktemp("process"), *files) as running:
        yield running


# -- what it is for -------------------------------------------------------------------------


def test_it_unwraps_and_proves_with_every_kind_of_key(process, keys):
    held = KeyProcess(process.address).keys()
    assert [one.public_key for one in held] == [key.public_key for key in keys]
    for one in held:
        assert isinstance(one, KeyOpener)
        assert isinstance(one, HeldKey)
        sealer, opener = Sealer([one.public_key]), Opener([one])
        assert list(opener.open_batch(sealer.seal_batch([b"a", b"b"]))) == [b"a", b"b"]
        challenge, answer = make_challenge(one.public_key)
        assert answer_challenge(one, challenge) == answer
        with pytest.raises(BadChallenge):
            answer_challenge(one, challenge[:-1] + bytes([challenge[-1] ^ 1]))


def test_what_does_not_open_is_an_open_error(process, keys):
    for one in open_keys(process.address):
        wrapped = one.public_key.wrap(SECRET)
        assert one.unwrap(wrapped) == SECRET
        for bad in (b"x", wrapped[:-1], bytes(len(wrapped)), bytes(5000)):
            with pytest.raises(ValueError, match="this key"):
                one.unwrap(bad)
        envelope = bytearray(Sealer([one.public_key]).seal(b"report"))
        envelope[envelope.index(one.key_id) + 20] ^= 1
        with pytest.raises(OpenError):
            Opener([one]).open(bytes(envelope))


def test_what_is_no_session_secret_is_not_given_out(process):
    """It would be wiped as one, and Python has one object for all bytes of length 1."""
    for one in open_keys(process.address):
        for other in (b"", b"\5", bytes(31), bytes(33)):
            with pytest.raises(ValueError, match="this key"):
                one.unwrap(one.public_key.wrap(other))


def test_a_challenge_is_no_secret_and_a_secret_no_challenge(process):
    for one in open_keys(process.address):
        challenge, _ = make_challenge(one.public_key)
        with pytest.raises(ValueError, match="this key"):
            one.unwrap(challenge)
        with pytest.raises(BadChallenge):
            one.answer_challenge(one.public_key.wrap(SECRET))


def test_many_threads_and_forked_children_at_once(process):
    one = open_key(f"{process.address}#{open_keys(process.address)[0].key_id.hex()}")
    wrapped = [one.public_key.wrap(bytes([i]) * 32) for i in range(12)]
    found = [[] for _ in wrapped]

    def work(i):
        for _ in range(20):
            found[i].append(one.unwrap(wrapped[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[bytes([i]) * 32] * 20 for i in range(12)]
    program = """
import os, sys
from upseal.integrations.keys import open_key
key = open_key(sys.argv[1])
wrapped = key.public_key.wrap(b"s" * 32)
children = []
for _ in range(3):
    child = os.fork()
    if not child:
        good = all(key.unwrap(wrapped) == b"s" * 32 for _ in range(50))
        os._exit(0 if good else 1)
    children.append(child)
good = all(key.unwrap(wrapped) == b"s" * 32 for _ in range(50))
sys.exit(any(os.waitpid(child, 0)[1] for child in children) or not good)
"""
    reference = f"{process.address}#{one.key_id.hex()}"
    subprocess.run([sys.executable, "-c", program, reference], check=True, timeout=60)


def test_references(process, keys, files):
    assert open_key(str(files[0])).key_id == keys[0].key_id
    with pytest.raises(ValueError, match="names 4 keys; add # and one of"):
        open_key(process.address)
    with pytest.raises(ValueError, match="has no key 0123456789abcdef"):
        open_key(process.address + "#0123456789abcdef")
    with pytest.raises(ValueError, match="no key id"):
        open_key(process.address + "#nothing")
    with pytest.raises(ValueError, match="whole path"):
        open_key("unix:relative.sock")
    lazy = kept_elsewhere(f"{process.address}\n".encode() + keys[1].public_key.to_pem())
    assert lazy.unwrap(keys[1].public_key.wrap(SECRET)) == SECRET
    with pytest.raises(ValueError, match="no reference"):
        kept_elsewhere(b"/a/file.pem\n" + keys[1].public_key.to_pem())
    stranger = LazyKey(process.address, PrivateKey.generate().public_key)
    with pytest.raises(KeyUnavailable, match="does not have the key"):
        stranger.unwrap(b"x")


# -- away, and back -------------------------------------------------------------------------


def test_a_process_that_is_killed_is_no_open_error_and_comes_back(files, tmp_path):
    with Process(tmp_path, files[0]) as process:
        one = open_key(process.address)
        new = Sealer([one.public_key]).seal(b"new")
        assert process.stop(kill=True) == -signal.SIGKILL
    opener = Opener([one])
    with pytest.raises(KeyUnavailable, match="does not answer"):
        opener.open(new)
    with pytest.raises(KeyUnavailable):
        opener.open_many([new, new])
    with Process(tmp_path, files[0]):  # over what the killed one has left; the connection is new
        assert opener.open(new) == b"new"


def test_who_stops_it_waits_for_nobody_and_leaves_nothing(files, tmp_path):
    with Process(tmp_path, files[0]) as process:
        one = open_key(process.address)
        assert one.unwrap(one.public_key.wrap(SECRET)) == SECRET
        assert process.stop() == 0
        assert not process.path.exists()


def test_a_signal_that_comes_to_another_thread_ends_it_all_the_same(files, tmp_path):
    with Process(tmp_path, files[0]) as process, KeyProcess(process.address) as held:
        held.status()  # a connection, and so a thread
        pid = process.process.pid
        others = [int(tid) for tid in os.listdir(f"/proc/{pid}/task") if int(tid) != pid]
        assert ctypes.CDLL(None).tgkill(pid, others[0], signal.SIGTERM) == 0
        assert process.process.wait(20) == 0


def test_keys_are_loaded_again_and_bad_ones_change_nothing(tmp_path):
    first, second = PrivateKey.generate(), PrivateKey.generate("p256")
    file = tmp_path / "key.pem"
    file.write_bytes(first.to_pem())
    file.chmod(0o600)
    with Process(tmp_path, file) as process:
        held = open_key(process.address)
        file.write_bytes(b"no key")
        process.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 20
        while "the old ones stay" not in process.log():
            assert time.monotonic() < end
            time.sleep(0.02)
        assert held.unwrap(first.public_key.wrap(SECRET)) == SECRET
        file.write_bytes(second.to_pem())
        process.process.send_signal(signal.SIGHUP)
        while KeyProcess(process.address).status()["reloads"] == 0:
            assert time.monotonic() < end
            time.sleep(0.02)
        with pytest.raises(KeyUnavailable, match="does not have this key any more"):
            held.unwrap(first.public_key.wrap(SECRET))
        assert open_key(process.address).public_key == second.public_key


def test_an_impostor_without_the_private_key_is_found_out(tmp_path):
    """Somebody else's process at the same path: it names a key, and does not have it."""
    key, path = PrivateKey.generate().public_key, tmp_path / "keys.sock"

    def serve(listener):
        sock, _ = listener.accept()
        with sock:
            for payload in (wire.join_keys([key.to_pem()]), bytes(32)):
                wire.receive(sock, wire.REQUEST_MAX, 10, 10)
                wire.send(sock, bytes([wire.Code.DONE]) + payload, 10)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with (
            KeyProcess(f"unix:{path}") as process,
            pytest.raises(KeyUnavailable, match="does not have the private key"),
        ):
            process.keys()
        thread.join()


def test_a_process_that_hangs_is_waited_for_by_one_at_a_time_and_not_after_another(tmp_path):
    """Else each thread of a server would wait its own time after all others'."""
    path = tmp_path / "keys.sock"
    lazy = LazyKey(f"unix:{path}", PrivateKey.generate().public_key)
    together, errors = threading.Barrier(5), []

    def unwrap():
        together.wait()
        with pytest.raises(KeyUnavailable, match="does not answer") as caught:
            lazy.unwrap(b"")
        errors.append(caught.value)

    threads = [threading.Thread(target=unwrap) for _ in range(4)]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        for thread in threads:
            thread.start()
        together.wait()
        sock, _ = listener.accept()
        with sock:
            wire.receive(sock, wire.REQUEST_MAX, 10, 10)
            time.sleep(0.3)  # the others stand behind the one that asks
        for thread in threads:
            thread.join()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert len(errors) == 4


def test_a_token_behind_the_process_that_is_unplugged(tokens, tmp_path):
    with Process(tmp_path, tokens.uri()) as process:
        held = open_key(process.address)
        wrapped = held.public_key.wrap(SECRET)
        assert held.unwrap(wrapped) == SECRET
        with tokens.unplugged(), pytest.raises(KeyUnavailable, match="no such token"):
            held.unwrap(wrapped)
        assert again(lambda: held.unwrap(wrapped), KeyUnavailable) == SECRET


# -- who may --------------------------------------------------------------------------------


def test_another_user_is_refused_by_what_the_kernel_says(files, tmp_path):
    other = str(NOBODY if os.geteuid() != NOBODY else NOBODY - 1)
    with Process(tmp_path, files[0], options=("--allow-user", other)) as process:
        with pytest.raises(KeyUnavailable, match="does not let this user"):
            KeyProcess(process.address).keys()
        assert "denied: pid" in process.log()
    assert str(os.getpid()) in process.log()


@ROOT_ONLY
@pytest.mark.parametrize("group", [False, True])
def test_the_user_or_group_that_is_allowed_gets_in(files, tmp_path, group):
    tmp_path.chmod(0o711)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    option = ("--allow-group", "54321") if group else ("--allow-user", str(NOBODY))
    with Process(tmp_path, files[0], options=option) as process:
        wrapped = open_key(str(files[0])).public_key.wrap(SECRET)
        key_id = open_key(str(files[0])).key_id

        def ask(uid, groups):
            child = os.fork()
            if not child:
                code = 9
                try:
                    os.setgroups(groups)
                    os.setgid(NOBODY)
                    os.setuid(uid)
                    found = KeyProcess(process.address).ask(wire.UNWRAP, (0x20, key_id), wrapped)
                    code = 0 if found == SECRET else 8
                except KeyUnavailable:
                    code = 3
                finally:
                    os._exit(code)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        assert ask(NOBODY, [54321] if group else []) == 0
        assert ask(NOBODY, []) == (3 if group else 0)
        assert ask(1234, [54321]) == (0 if group else 3)
        with pytest.raises(KeyUnavailable):
            KeyProcess(process.address).keys()  # root is asked like everybody
        facts = os.stat(process.path)
        assert facts.st_mode & 0o777 == (0o660 if group else 0o666)


def test_it_does_not_run_as_its_own_client_or_for_nobody(files, tmp_path):
    me, path = str(os.geteuid()), tmp_path / "s"
    serve = ("keys", "serve", "--socket", path, "-i", files[0])
    assert b"--same-user" in upseal(*serve, "--allow-user", me, code=2).stderr
    assert b"nobody may use the keys" in upseal(*serve, code=2).stderr
    assert b"no user 'nobody-here'" in upseal(*serve, "--allow-user", "nobody-here", code=2).stderr
    path.write_text("a file")
    assert b"is no socket" in upseal(*serve, "--same-user", code=4).stderr
    assert path.read_text() == "a file"
    serve = ("keys", "serve", "--socket", tmp_path / "t", "-i", "unix:/x")
    done = upseal(*serve, "--same-user", code=2)
    assert b"keeps keys itself" in done.stderr


def test_two_do_not_listen_at_one_path(files, process):
    done = upseal("keys", "serve", "--socket", process.path, "-i", files[0], "--same-user", code=4)
    assert b"another process listens" in done.stderr
    assert len(open_keys(process.address)) == 4


def test_what_it_keeps_is_not_dumped_and_the_socket_is_its_users_alone(process):
    with open(f"/proc/{process.process.pid}/limits") as file:
        (line,) = [line for line in file if line.startswith("Max core file size")]
    assert line.split()[4:6] == ["0", "0"]
    if os.geteuid() == 0:
        with open(f"/proc/{process.process.pid}/status") as file:
            (locked,) = [line.split()[1] for line in file if line.startswith("VmLck:")]
        assert int(locked) > 1000
    else:  # what is not dumpable belongs to root in /proc, whoever runs it
        assert os.stat(f"/proc/{process.process.pid}/environ").st_uid == 0
    assert os.stat(process.path).st_mode & 0o777 == 0o600


# -- hostile clients, and too many ----------------------------------------------------------


def talk(path, raw):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        sock.sendall(raw)
        sock.shutdown(socket.SHUT_WR)
        out = b""
        while piece := sock.recv(65536):
            out += piece
    return out


def test_malformed_requests_end_their_connection_and_nothing_else(process):
    frame = struct.Struct(">I")
    malformed = frame.pack(1) + bytes([wire.Code.MALFORMED])
    for raw in (
        frame.pack(0), frame.pack(1 << 31) + b"x", frame.pack(wire.REQUEST_MAX + 1),
        frame.pack(2) + b"\x02L", frame.pack(2) + b"\x01X", frame.pack(3) + b"\x01Lx",
        frame.pack(4) + b"\x01U\x00\x20", b"GET / HTTP/1.0\r\n\r\n",
    ):  # fmt: skip
        assert talk(process.path, raw) == malformed, raw
    for raw in (b"", b"\0\0", frame.pack(100) + b"\x01U"):  # cut off
        assert talk(process.path, raw) == b""
    status = KeyProcess(process.address).status()
    assert status["malformed"] >= 8
    for _ in range(50):
        assert talk(process.path, frame.pack(0)) == malformed
    assert KeyProcess(process.address).status()["malformed"] >= 58
    assert process.log().count("malformed") < 40, "any local user could fill the log"
    assert len(open_keys(process.address)) == 4


def test_a_user_gets_so_many_unwraps_a_second_and_half_of_the_connections(files, tmp_path):
    options = ("--same-user", "--rate", "3", "--connections", "4")
    with Process(tmp_path, files[0], options=options) as process:
        key = open_key(process.address)
        wrapped = key.public_key.wrap(SECRET)
        with pytest.raises(KeyUnavailable, match=r"no room for more unwraps.*again in \d+ ms"):
            for _ in range(100):
                assert key.unwrap(wrapped) == SECRET
        assert again(lambda: key.unwrap(wrapped), KeyUnavailable) == SECRET
        assert KeyProcess(process.address).status()["busy"] >= 1
    with Process(tmp_path, files[0], options=options) as process:
        socks = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for sock in socks:
            sock.connect(str(process.path))
        # Not always the third: whoever looked whether it listens may not have been let go yet.
        refused, _, _ = select.select(socks, [], [], 20)
        assert wire.receive(refused[0], 100, 20, 20)[0] == wire.Code.BUSY
        for sock in socks:
            sock.close()
        assert again(lambda: open_key(process.address), KeyUnavailable).suite == 0x20


def test_a_connection_that_there_is_no_room_for_is_not_kept(tmp_path):
    path = tmp_path / "keys.sock"

    def serve(listener):
        for _ in range(2):  # two questions, two connections
            sock, _ = listener.accept()
            with sock:
                wire.send(sock, bytes([wire.Code.BUSY]), 10)
                wire.receive(sock, wire.REQUEST_MAX, 10, 10)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with KeyProcess(f"unix:{path}") as process:
            for _ in range(2):
                with pytest.raises(KeyUnavailable, match="no room for more connections"):
                    process.status()
                assert not process._idle
        thread.join()


def test_it_never_gives_the_key(process, keys):
    """Whatever is asked for: no answer has anything of a private key in it."""
    answers = b""
    for what in range(256):
        body = bytes([1, what])
        answers += talk(process.path, struct.pack(">I", len(body)) + body)
        body += struct.pack(">H8s", int(keys[0].suite), keys[0].key_id) + b"x" * 80
        answers += talk(process.path, struct.pack(">I", len(body)) + body)
    assert keys[0].public_key.to_pem() in answers  # it has answered
    raw = keys[0].parts[0].private_bytes_raw()
    assert raw not in answers
    assert b"PRIVATE" not in answers


# -- systemd, status, the command line ------------------------------------------------------


def test_systemd_gives_the_socket_and_is_told(files, tmp_path):
    path, notify = tmp_path / "keys.sock", tmp_path / "notify"
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
    ):
        listener.bind(str(path))
        listener.listen()
        told.bind(str(notify))
        told.settimeout(20)
        as_systemd = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ.update("
            "LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); "
            "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
        )
        serve = ["-m", "upseal", "keys", "serve", "--same-user", "-i", str(files[0])]
        process = subprocess.Popen(
            [sys.executable, "-c", as_systemd, str(listener.fileno()), *serve],
            pass_fds=[listener.fileno()], env={**os.environ, "NOTIFY_SOCKET": str(notify)},
        )  # fmt: skip
        try:
            assert told.recv(100) == b"READY=1"
            assert open_key(f"unix:{path}").unwrap(
                open_key(str(files[0])).public_key.wrap(SECRET)
            ) == SECRET  # fmt: skip
        finally:
            process.terminate()
            assert process.wait(20) == 0
        assert told.recv(100) == b"STOPPING=1"
        assert path.exists()  # systemd's


def test_status_and_open_from_the_command_line(process, keys, tmp_path):
    found = json.loads(upseal("keys", "status", "--socket", process.path, "--json").stdout)
    assert [key["key_id"] for key in found["keys"]] == [key.key_id.hex() for key in keys]
    assert found["pid"] == process.process.pid
    assert b"unwrapped: " in upseal("keys", "status", "--socket", process.path).stdout
    sealed = Sealer([keys[2].public_key]).seal(b"hello")
    assert upseal("open", "-i", process.address, input=sealed).stdout == b"hello"
    one = f"{process.address}#{keys[2].key_id.hex()}"
    assert upseal("open", "-i", one, input=sealed).stdout == b"hello"
    done = upseal("open", "-i", f"unix:{tmp_path}/nobody.sock", input=sealed, code=4)
    assert b"is `upseal keys serve` running" in done.stderr
    assert upseal("keys", code=2).stderr


def test_the_example_runs():
    done = subprocess.run(
        [sys.executable, ROOT / "examples/keyprocess/main.py"], capture_output=True, timeout=60,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "opened by the key process: disk 41%" in done.stdout
