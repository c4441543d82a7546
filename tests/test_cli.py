# SPDX-License-Identifier: Apache-2.0
"""The real command line, as a process: keys, pipes, files, exit codes."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import time

import pytest

from upseal.cli import main, stopping
from upseal.cli.progress import Progress

UPSEAL = [sys.executable, "-m", "upseal"]


def upseal(*args, data=b"", code=0, env=None, cwd=None):
    done = subprocess.run(
        [*UPSEAL, *map(str, args)],
        input=data,
        capture_output=True,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        timeout=60,
    )
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    if code not in (0, 141):
        assert done.stderr.startswith(b"upseal: ")
        assert done.stderr.count(b"\n") == 1
    return done


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for kind in ("x25519", "p256", "mlkem768-x25519", "rsa2048"):
        upseal("keygen", "-t", kind, "-o", folder / f"{kind}.pem")
    return folder


@pytest.fixture
def sealed(keys, tmp_path):
    """An upload of 100 kB, and what it holds."""
    plain = os.urandom(100_000)
    path = tmp_path / "sealed"
    path.write_bytes(upseal("seal", "-r", keys / "x25519.pub.pem", data=plain).stdout)
    return path, plain


# -- keygen ---------------------------------------------------------------------


def test_keygen_writes_both_files_quietly_and_privately(tmp_path):
    done = upseal("keygen", "-o", tmp_path / "a.pem")
    assert done.stdout == done.stderr == b""
    assert stat.S_IMODE((tmp_path / "a.pem").stat().st_mode) == 0o600
    assert b"BEGIN PUBLIC KEY" in (tmp_path / "a.pub.pem").read_bytes()
    assert upseal("keygen", "-y", tmp_path / "a.pem").stdout == (
        (tmp_path / "a.pub.pem").read_bytes()
    )


@pytest.mark.parametrize("name", ["a.pem", "a.pub.pem"])
def test_keygen_never_writes_over_a_file(tmp_path, name):
    (tmp_path / name).write_text("mine")
    upseal("keygen", "-o", tmp_path / "a.pem", code=4)
    assert (tmp_path / name).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_keygen_does_not_follow_a_dangling_link(tmp_path):
    (tmp_path / "a.pem").symlink_to(tmp_path / "elsewhere")
    upseal("keygen", "-o", tmp_path / "a.pem", code=4)
    assert not (tmp_path / "elsewhere").exists()


def test_keygen_leaves_nothing_if_the_public_key_cannot_be_written(tmp_path):
    upseal("keygen", "-o", tmp_path / "a.pem", "--public", tmp_path / "no/such", code=4)
    assert not list(tmp_path.iterdir())


def test_keygen_to_standard_output(tmp_path):
    done = upseal("keygen", "-t", "p256", "--public", tmp_path / "p")
    assert done.stdout.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert upseal("keygen", "--from", "-", data=done.stdout).stdout == (
        (tmp_path / "p").read_bytes()
    )


def test_keygen_json(tmp_path):
    out = tmp_path / "k.pem"
    facts = json.loads(upseal("keygen", "-t", "rsa2048", "--json", "-o", out).stdout)
    assert facts.keys() == {"key_id", "suite", "private", "public"}
    assert facts["suite"] == "rsa2048"
    assert facts["private"] == str(out)
    assert facts["public"] == str(tmp_path / "k.pub.pem")
    again = json.loads(upseal("keygen", "-y", out, "--json").stdout)
    assert again["key_id"] == facts["key_id"]
    upseal("keygen", "--json", code=2)


def test_keygen_warns_of_a_file_that_others_can_read(tmp_path):
    with open(tmp_path / "k", "wb") as file:
        os.fchmod(file.fileno(), 0o644)
        done = subprocess.run(
            [*UPSEAL, "keygen"], stdout=file, stderr=subprocess.PIPE, check=True, timeout=60
        )
    assert b"others can read" in done.stderr


# -- round trips ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["x25519", "p256", "mlkem768-x25519", "rsa2048"])
@pytest.mark.parametrize("how", [[], ["--report"], ["--report", "--padding"]])
def test_round_trip_through_pipes(keys, kind, how):
    plain = os.urandom(40_000)
    done = upseal("seal", *how, "-r", keys / f"{kind}.pub.pem", data=plain)
    assert done.stderr == b""
    opened = upseal("open", "-i", keys / f"{kind}.pem", data=done.stdout)
    assert opened.stdout == plain
    assert opened.stderr == b""


@pytest.mark.parametrize("size", [0, 1, 16384, 3_000_000])
@pytest.mark.parametrize("cipher", ["aes-256-gcm", "chacha20-poly1305"])
def test_round_trip_through_files(keys, tmp_path, size, cipher):
    plain, out, again = tmp_path / "plain", tmp_path / "sealed", tmp_path / "again"
    plain.write_bytes(os.urandom(size))
    args = ("--cipher", cipher, "--threads", 2, "--context", "näme")
    upseal("seal", "-r", keys / "x25519.pub.pem", *args, "-o", out, plain)
    hexed = "näme".encode().hex()
    upseal("open", "-i", keys / "x25519.pem", "--context-hex", hexed, "-o", again, out)
    assert again.read_bytes() == plain.read_bytes()
    upseal("open", "-i", keys / "x25519.pem", "-o", again, out, code=1)
    assert again.read_bytes() == plain.read_bytes(), "what stood there stays"


def test_redirected_files_at_both_ends(keys, tmp_path):
    plain = os.urandom(2_000_000)
    (tmp_path / "plain").write_bytes(plain)
    with open(tmp_path / "plain", "rb") as a, open(tmp_path / "sealed", "wb") as b:
        args = [*UPSEAL, "seal", "-r", str(keys / "p256.pub.pem")]
        subprocess.run(args, stdin=a, stdout=b, check=True, timeout=60)
    with open(tmp_path / "sealed", "rb") as a, open(tmp_path / "again", "ab") as b:
        args = [*UPSEAL, "open", "-i", str(keys / "p256.pem")]
        subprocess.run(args, stdin=a, stdout=b, check=True, timeout=60)
    assert (tmp_path / "again").read_bytes() == plain


def test_a_pipe_that_does_not_block_is_waited_for(keys):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    args = [*UPSEAL, "seal", "-r", str(keys / "x25519.pub.pem")]
    with subprocess.Popen(args, stdin=reading, stdout=subprocess.PIPE) as child:
        os.close(reading)
        for part in (b"first ", b"second"):
            os.write(writing, part)
            time.sleep(0.6)
        os.close(writing)
        sealed = child.stdout.read()
    assert child.returncode == 0
    assert upseal("open", "-i", keys / "x25519.pem", data=sealed).stdout == b"first second"


def test_several_recipients_and_identities(keys):
    plain = b"for both"
    args = ("-r", keys / "x25519.pub.pem", "-r", keys / "rsa2048.pub.pem")
    sealed = upseal("seal", *args, data=plain).stdout
    for kind in ("x25519", "rsa2048"):
        done = upseal("open", "-i", keys / "p256.pem", "-i", keys / f"{kind}.pem", data=sealed)
        assert done.stdout == plain
    done = upseal("open", "-i", keys / "p256.pem", data=sealed, code=3)
    assert b"x25519 " in done.stderr
    assert b"rsa " in done.stderr


@pytest.mark.parametrize(
    ("text", "whose"),
    [
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGkz ada@host\n", "OpenSSH"),
        ("ecdsa-sha2-nistp256 AAAAE2VjZHNh ada@host\n", "OpenSSH"),
        ("age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kudkk4svqwr6x9t\n", "age"),
        ("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDMEZ\n", "OpenPGP"),
    ],
)
def test_keys_of_other_programs_are_named(tmp_path, text, whose):
    path = tmp_path / "ada.pub"
    path.write_text(text)
    said = upseal("seal", "-r", path, data=b"x", code=1).stderr.decode()
    assert f"is a key of {whose}, which upseal cannot seal to" in said
    assert "upseal keygen" in said


def test_mixed_recipients_need_a_word(keys):
    args = ("-r", keys / "x25519.pub.pem", "-r", keys / "mlkem768-x25519.pub.pem")
    assert b"--allow-mixed" in upseal("seal", *args, data=b"x", code=2).stderr
    sealed = upseal("seal", *args, "--allow-mixed", data=b"x").stdout
    assert upseal("open", "-i", keys / "mlkem768-x25519.pem", data=sealed).stdout == b"x"


def test_batch_of_lines(keys):
    lines = b"one\n\nthree\nfour"
    sealed = upseal("seal", "--batch", "--padding", "-r", keys / "p256.pub.pem", data=lines).stdout
    done = upseal("open", "-i", keys / "p256.pem", data=sealed)
    assert done.stdout == lines + b"\n"
    assert done.stderr == b""
    done = upseal("open", "--json", "-i", keys / "p256.pem", data=sealed)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [base64.b64decode(r["data"]) for r in records] == [b"one", b"", b"three", b"four"]
    assert [r["index"] for r in records] == [0, 1, 2, 3]
    assert [r["size"] for r in records] == [3, 0, 5, 4]


def test_batch_of_nul_separated_records(keys):
    data = b"a\nb\0c\0"
    sealed = upseal("seal", "--batch", "-0", "-r", keys / "p256.pub.pem", data=data).stdout
    assert upseal("open", "-0", "-i", keys / "p256.pem", data=sealed).stdout == data
    done = upseal("open", "-i", keys / "p256.pem", data=sealed)
    assert done.stdout == b"a\nb\nc\n"
    assert b"newline in it" in done.stderr


def test_empty_batch(keys):
    upseal("seal", "--batch", "-r", keys / "p256.pub.pem", data=b"", code=1)


def test_report_too_long(keys, tmp_path):
    with open(tmp_path / "long", "wb") as file:
        file.truncate((16 << 20) + 1)
    args = ("--report", "-r", keys / "x25519.pub.pem", "-o", tmp_path / "out", tmp_path / "long")
    assert b"16 MiB" in upseal("seal", *args, code=1).stderr
    assert not (tmp_path / "out").exists()


def test_summaries(keys, tmp_path):
    out, again = tmp_path / "out", tmp_path / "again"
    done = upseal("seal", "--json", "-r", keys / "x25519.pub.pem", "-o", out, data=b"abc")
    facts = json.loads(done.stdout)
    assert facts["kind"] == "upload"
    assert facts["plaintext_size"] == 3
    assert facts["size"] == out.stat().st_size
    assert facts["recipients"][0]["suite"] == "x25519"
    assert facts["output"] == str(out)
    facts = json.loads(upseal("open", "--json", "-i", keys / "x25519.pem", "-o", again, out).stdout)
    assert facts == {"kind": "upload", "plaintext_size": 3, "output": str(again)}
    done = upseal("seal", "--json", "--batch", "-r", keys / "x25519.pub.pem", data=b"ab\nc")
    facts = json.loads(done.stderr)
    assert (facts["kind"], facts["count"], facts["plaintext_size"]) == ("batch", 2, 3)
    assert facts["size"] == len(done.stdout)
    done = upseal("open", "--json", "-i", keys / "x25519.pem", out)
    assert done.stdout == b"abc"
    assert json.loads(done.stderr)["output"] is None


# -- what goes wrong -----------------------------------------------------------------


def test_damaged_upload_leaves_no_file(keys, sealed, tmp_path):
    path, plain = sealed
    blob = bytearray(path.read_bytes())
    blob[-5] ^= 1
    path.write_bytes(blob)
    before = set(tmp_path.iterdir())
    done = upseal("open", "-i", keys / "x25519.pem", "-o", tmp_path / "out", path, code=1)
    assert set(tmp_path.iterdir()) == before
    assert b"cannot open" in done.stderr
    done = upseal("open", "-i", keys / "x25519.pem", data=bytes(blob), code=1)
    assert plain.startswith(done.stdout), "only what verified"
    assert b"throw away" in done.stderr


@pytest.mark.parametrize("how", ["--report", "--batch"])
def test_damaged_records_leave_no_file(keys, tmp_path, how):
    blob = bytearray(upseal("seal", how, "-r", keys / "x25519.pub.pem", data=b"a\nb").stdout)
    blob[-1] ^= 1
    out = tmp_path / "out"
    assert not upseal("open", "-i", keys / "x25519.pem", data=bytes(blob), code=1).stdout
    upseal("open", "-i", keys / "x25519.pem", "-o", out, data=bytes(blob), code=1)
    assert not list(tmp_path.iterdir())
    out.write_bytes(b"old")
    upseal("open", "-i", keys / "x25519.pem", "-o", out, data=bytes(blob[:-1]), code=1)
    assert out.read_bytes() == b"old"


@pytest.mark.parametrize("data", [b"", b"US", b"hello, world", b"USL\x02"])
def test_what_is_no_sealed_data(keys, data):
    upseal("open", "-i", keys / "x25519.pem", data=data, code=1)


def test_usage_errors(keys, tmp_path, capsys):
    public = keys / "x25519.pub.pem"
    plain = tmp_path / "plain"
    plain.write_bytes(b"x")
    for args in (
        (),
        ("nonsense",),
        ("seal",),
        ("open",),
        ("seal", "-r", public, "--padding"),
        ("seal", "-r", public, "--null"),
        ("seal", "-r", public, "--threads", "0"),
        ("seal", "-r", public, "--cipher", "rot13"),
        ("seal", "-r", public, "--context-hex", "xy"),
        ("seal", "-r", public, "--report", "--batch"),
        ("seal", "-r", public, "-r", public),
        ("seal", "-r", "-"),
        ("seal", "-r", public, "-o", plain, plain),
        ("keygen", "-t", "rsa1024"),
        ("keygen", "--passphrase", "secret"),
        ("--json", "bench"),
        ("demo", "--reports", "0"),
        ("bench", "--seconds", "0"),
    ):
        assert main([str(arg) for arg in args]) == 2, args
        assert re.fullmatch("upseal: .*\n", capsys.readouterr().err), args
    assert plain.read_bytes() == b"x"


def test_key_files_that_are_none(keys, tmp_path):
    bad = tmp_path / "bad"
    bad.write_bytes(b"nothing")
    upseal("seal", "-r", bad, code=1)
    upseal("open", "-i", bad, code=1, data=b"x")
    done = upseal("seal", "-r", keys / "x25519.pem", code=1)
    assert b"--from" in done.stderr
    assert b"public key" in upseal("open", "-i", keys / "x25519.pub.pem", code=1).stderr
    bad.write_bytes(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    upseal("seal", "-r", bad, code=1)
    with open(bad, "wb") as file:
        file.truncate(2 << 20)
    upseal("seal", "-r", bad, code=1)


def test_input_and_output_errors(keys, tmp_path):
    public, private = keys / "x25519.pub.pem", keys / "x25519.pem"
    upseal("seal", "-r", tmp_path / "none", code=4)
    upseal("seal", "-r", tmp_path, code=4)
    upseal("seal", "-r", public, tmp_path / "none", code=4)
    upseal("seal", "-r", public, tmp_path, code=4)
    upseal("seal", "-r", public, "-o", tmp_path / "no/such", data=b"x", code=4)
    upseal("seal", "-r", public, "-o", tmp_path, data=b"x", code=4)
    upseal("open", "-i", private, tmp_path / "none", code=4)
    upseal("explain", tmp_path / "none", code=4)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_full_disk(keys):
    for args in (["seal", "-r", str(keys / "x25519.pub.pem")], ["keygen"], ["--version"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [*UPSEAL, *args], input=b"x", stdout=full, stderr=subprocess.PIPE, timeout=60
            )
        assert done.returncode == 4, args
        assert done.stderr.count(b"\n") == 1


def test_closed_standard_streams(keys):
    command = " ".join([*UPSEAL, "seal", "-r", str(keys / "x25519.pub.pem")])
    for closing in ("<&-", ">&-"):
        done = subprocess.run(
            f"{command} {closing}", shell=True, stdin=subprocess.DEVNULL, capture_output=True
        )
        assert done.returncode == 4, done.stderr
        assert b"Traceback" not in done.stderr


def test_engines_that_cannot_run(keys):
    for env in ({"UPSEAL_ENGINE": "steam"}, {"UPSEAL_BACKEND": "steam"}):
        upseal("seal", "-r", keys / "x25519.pub.pem", data=b"x", code=5, env=env)
        assert upseal("--version", code=5, env=env).stdout.startswith(b"upseal 0.1.0")


def test_engines_open_each_other(keys):
    portable = {"UPSEAL_ENGINE": "portable"}
    public, private = keys / "x25519.pub.pem", keys / "x25519.pem"
    sealed = upseal("seal", "-r", public, data=b"hello" * 9999, env=portable).stdout
    assert upseal("open", "-i", private, data=sealed).stdout == b"hello" * 9999
    sealed = upseal("seal", "--batch", "-r", public, data=b"a\nb").stdout
    assert upseal("open", "-i", private, data=sealed, env=portable).stdout == b"a\nb\n"


def test_closed_pipe_is_quiet(keys, tmp_path):
    with open(tmp_path / "zeros", "wb") as file:
        file.truncate(50 << 20)
    args = [*UPSEAL, "seal", "-r", str(keys / "x25519.pub.pem"), str(tmp_path / "zeros")]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.read(10)
        child.stdout.close()
        said = child.stderr.read()
    assert child.returncode == 141
    assert said == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal(keys, tmp_path, number):
    args = [*UPSEAL, "seal", "-r", str(keys / "x25519.pub.pem"), "-o", str(tmp_path / "out")]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(args, **pipes) as child:
        child.stdin.write(os.urandom(1 << 20))
        child.stdin.flush()
        deadline = time.monotonic() + 20
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [p.suffix for p in tmp_path.iterdir()] == [".part"]
        child.send_signal(number)
        said = child.stderr.read()
        child.wait(20)
    assert child.returncode == 128 + number
    assert said == b""
    assert not list(tmp_path.iterdir())


def test_a_signal_ends_worker_threads_as_well(keys, tmp_path):
    """They get none themselves; without this the rest of a large file would be sealed first."""
    with pytest.raises(stopping.Stopped), stopping.caught():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    with pytest.raises(stopping.Stopped):
        Progress("")(1, 2)
    with stopping.caught():
        Progress("")(1, 2)


def test_debug_shows_the_traceback():
    done = subprocess.run(
        [*UPSEAL, "explain", "/none"],
        capture_output=True,
        env={**os.environ, "UPSEAL_DEBUG": "1"},
        timeout=60,
    )
    assert b"Traceback" in done.stderr


# -- terminals --------------------------------------------------------------------------


def in_terminal(args, *, stdin=True, send=b"", until=None, tmp=None):
    """Runs with a terminal for stdout, stderr, and perhaps stdin; what it showed, and its code."""
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            if not stdin:
                os.dup2(os.open(tmp, os.O_RDONLY), 0)
            os.execv(sys.executable, [*UPSEAL, *map(str, args)])
        finally:
            os._exit(99)
    shown = b""
    sent = 0
    while True:
        try:
            more = os.read(terminal, 4096)
        except OSError:
            break
        if not more:
            break
        shown += more
        if until is not None and shown.count(until) > sent:
            sent += 1
            time.sleep(0.1)
            os.write(terminal, send)
    os.close(terminal)
    return shown, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_sealed_data_is_not_shown_on_a_terminal(keys, tmp_path):
    plain = tmp_path / "plain"
    plain.write_bytes(b"x")
    shown, code = in_terminal(["seal", "-r", keys / "x25519.pub.pem", plain])
    assert code == 2
    assert b"terminal" in shown
    shown, code = in_terminal(["seal", "-o", "-", "-r", keys / "x25519.pub.pem", plain])
    assert code == 0
    assert b"USL" in shown


def test_sealed_data_is_not_read_from_a_terminal(keys):
    for args in (["open", "-i", keys / "x25519.pem"], ["explain"]):
        shown, code = in_terminal(args)
        assert code == 2
        assert b"terminal" in shown


def test_open_shows_text_but_no_control_characters(keys, tmp_path):
    sealed = tmp_path / "sealed"
    public, private = keys / "x25519.pub.pem", keys / "x25519.pem"
    for data, code in ((b"plain text\n", 0), (b"\x1b]0;title\x07", 2), (b"a\0b", 2)):
        sealed.write_bytes(upseal("seal", "-r", public, data=data).stdout)
        shown, got = in_terminal(["open", "-i", private, sealed])
        assert got == code
        assert data.strip() in shown if code == 0 else data not in shown
    shown, got = in_terminal(["open", "-o", "-", "-i", private, sealed])
    assert got == 0
    assert b"a\0b" in shown


# -- passphrases ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["x25519", "mlkem768-x25519"])
def test_passphrase_from_file_and_environment(tmp_path, kind):
    secret, key = tmp_path / "secret", tmp_path / "k.pem"
    secret.write_bytes(b"correct horse\n")
    upseal("keygen", "-t", kind, "-o", key, "--passphrase-file", secret)
    assert b"ENCRYPTED" in key.read_bytes()
    sealed = upseal("seal", "-r", tmp_path / "k.pub.pem", data=b"x").stdout
    done = upseal("open", "-i", key, "--passphrase-file", secret, data=sealed)
    assert done.stdout == b"x"
    env = {"UPSEAL_PASSPHRASE": "correct horse"}
    assert upseal("open", "-i", key, data=sealed, env=env).stdout == b"x"
    done = upseal("open", "-i", key, data=sealed, env={"UPSEAL_PASSPHRASE": "wrong"}, code=1)
    assert b"passphrase" in done.stderr
    assert b"wrong" not in done.stderr


def test_passphrase_in_the_environment_is_not_forgotten(tmp_path):
    env = {"UPSEAL_PASSPHRASE": "s"}
    done = upseal("keygen", "-o", tmp_path / "a", env=env)
    assert b"--passphrase" in done.stderr
    upseal("keygen", "--passphrase", "-o", tmp_path / "b", env=env)
    assert b"ENCRYPTED" in (tmp_path / "b").read_bytes()
    secret = tmp_path / "empty"
    secret.write_bytes(b"\n")
    upseal("keygen", "--passphrase-file", secret, code=2)


def test_passphrase_at_the_terminal(tmp_path):
    key = tmp_path / "k.pem"
    args = ["keygen", "--passphrase", "-o", key]
    shown, code = in_terminal(args, send=b"geheim\n", until=b": ")
    assert code == 0, shown
    assert b"geheim" not in shown
    plain = tmp_path / "plain"
    plain.write_bytes(b"text")
    upseal("seal", "-r", tmp_path / "k.pub.pem", "-o", tmp_path / "sealed", plain)
    args = ["open", "-i", key, tmp_path / "sealed"]
    shown, code = in_terminal(args, send=b"geheim\n", until=b": ")
    assert code == 0, shown
    assert shown.endswith(b"text")


def test_no_terminal_to_ask_at(tmp_path):
    env = {"UPSEAL_PASSPHRASE": "s"}
    upseal("keygen", "--passphrase", "-o", tmp_path / "k", env=env)
    done = subprocess.run(
        [*UPSEAL, "keygen", "-y", str(tmp_path / "k")],
        capture_output=True,
        start_new_session=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert b"UPSEAL_PASSPHRASE" in done.stderr


def test_identity_that_others_can_read(keys, tmp_path):
    key = tmp_path / "k.pem"
    key.write_bytes((keys / "x25519.pem").read_bytes())
    key.chmod(0o644)
    assert b"others can read" in upseal("keygen", "-y", key).stderr
    key.chmod(0o600)
    assert upseal("keygen", "-y", key).stderr == b""


# -- explain ----------------------------------------------------------------------------


def test_explain(keys, sealed):
    path, plain = sealed
    words = upseal("explain", path).stdout.decode()
    assert "upload" in words
    assert "x25519" in words
    facts = json.loads(upseal("explain", "--json", path).stdout)
    assert facts["plaintext_size"] == len(plain)
    assert facts["problem"] is None
    assert facts == json.loads(upseal("explain", "--json", data=path.read_bytes()).stdout)
    batch = upseal("seal", "--batch", "-r", keys / "p256.pub.pem", data=b"a\nb").stdout
    assert "reports    2" in upseal("explain", data=batch).stdout.decode()


def test_explain_names_the_first_problem(sealed):
    path, _ = sealed
    blob = bytearray(path.read_bytes())
    blob[4] = 9
    done = subprocess.run([*UPSEAL, "explain"], input=blob, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert b"cipher 9" in done.stdout
    assert done.stderr == b""
    done = subprocess.run(
        [*UPSEAL, "explain", "--json"], input=path.read_bytes()[:50], capture_output=True
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["offset"] == 50


def test_explain_of_a_slow_pipe(sealed):
    path, plain = sealed
    blob = path.read_bytes()
    with subprocess.Popen(
        [*UPSEAL, "explain", "--json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as child:
        child.stdin.write(blob[:3])
        time.sleep(0.6)
        child.stdin.write(blob[3:])
        child.stdin.close()
        facts = json.loads(child.stdout.read())
    assert facts["problem"] is None
    assert facts["plaintext_size"] == len(plain)
