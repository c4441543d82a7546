# SPDX-License-Identifier: Apache-2.0
"""How keys reach workers: what a job may carry, and what a worker makes of it."""

import os
import pickle
import socket
import sys

import pytest
from workers_support import forms, key_file

from upseal import Opener, PrivateKey, Sealer
from upseal.errors import KeyUnavailable
from upseal.integrations import worker_keys


@pytest.fixture
def key_and_reference(tmp_path):
    return key_file(tmp_path)


@pytest.mark.parametrize(
    "reference",
    [
        "file:/etc/upseal/server.pem",
        "file:/etc/upseal/server.pem?passphrase-file=/etc/upseal/passphrase",
        "env:UPSEAL_KEY",
        "unix:/run/upseal/keys.sock",
        "pkcs11:token=vault;object=server?pin-source=file:/etc/pin",
        "our.keys:find",
    ],
)
def test_references_are_taken_as_they_are(reference):
    assert worker_keys.references(reference) == (reference,)
    assert worker_keys.references([reference, "env:OTHER"]) == (reference, "env:OTHER")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("/etc/upseal/server.pem", "write file: before it"),
        ("file:server.pem", "whole path"),
        ("unix:keys.sock", "whole path"),
        ("env:UPSEAL KEY", "not a key reference"),
        ("http://keys/", "not a key reference"),
        ("pkcs11:object=server?pin-value=1234", "pin-source"),
        ("", "not a key reference"),
        ([], "no key is named"),
    ],
)
def test_what_is_no_reference_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        worker_keys.references(wrong)


def test_a_key_is_refused_and_never_repeated():
    key = PrivateKey.generate()
    pem = key.to_pem()
    for given in (key, [key], pem, pem.decode(), [pem.decode()], bytearray(pem), [memoryview(pem)]):
        with pytest.raises(TypeError) as caught:
            worker_keys.references(given)
        assert "give a reference" in str(caught.value)
        assert not any(form in str(caught.value).encode() for form in forms(key))
    with pytest.raises(TypeError, match="public_key"):
        worker_keys.public_pems(key)
    with pytest.raises(TypeError, match="public_key"):
        worker_keys.public_pems([key.public_key, key])
    assert worker_keys.public_pems(key.public_key) == (key.public_key.to_pem(),)


def test_one_opener_for_a_process_however_often_it_is_asked(key_and_reference):
    key, reference = key_and_reference
    opener = worker_keys.opener((reference,))
    assert worker_keys.opener((reference,)) is opener
    sealer = Sealer([key.public_key])
    for _ in range(3):
        assert worker_keys.opener((reference,)).open(sealer.seal(b"x")) == b"x"
    assert opener.sessions.opened == 1


def test_a_child_of_a_fork_gets_openers_of_its_own(key_and_reference):
    reference = (key_and_reference[1],)
    opener = worker_keys.opener(reference)
    child = os.fork()
    if not child:
        os._exit(0 if worker_keys.opener(reference) is not opener else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_replaced_key_file_is_read_again_and_sessions_that_stay_are_known(tmp_path):
    old, reference = key_file(tmp_path)
    kept, other = key_file(tmp_path, "kept.pem")
    found = (reference, other)
    opener = worker_keys.opener(found)
    report = Sealer([kept.public_key]).seal(b"x")
    assert opener.open(report) == b"x"
    fresh = PrivateKey.generate()
    replacement = tmp_path / "new"
    replacement.write_bytes(fresh.to_pem())
    replacement.chmod(0o600)
    replacement.rename(tmp_path / "server.pem")
    assert worker_keys.opener(found) is opener
    assert set(opener.key_ids) == {fresh.key_id, kept.key_id}
    assert old.key_id not in opener.key_ids
    assert opener.open(report) == b"x"
    assert opener.sessions.opened == 1


@pytest.mark.parametrize(
    ("mode", "fine"),
    [(0o600, True), (0o400, True), (0o604, False), (0o602, False), (0o620, False), (0o644, False)],
)
def test_a_key_that_others_may_read_is_refused(tmp_path, key_and_reference, mode, fine):
    key, reference = key_and_reference
    (tmp_path / "server.pem").chmod(mode)
    if fine:
        assert worker_keys.opener((reference,)).key_ids == (key.key_id,)
        return
    with pytest.raises(KeyUnavailable) as caught:
        worker_keys.opener((reference,))
    for part in (reference.removeprefix("file:"), socket.gethostname(), f"{mode:04o}", "chmod 600"):
        assert part in str(caught.value)


@pytest.mark.parametrize("wrong", ["missing", "folder", "fifo", "other", "public"])
def test_what_is_no_key_is_said_with_the_name_of_the_worker(tmp_path, wrong):
    path = tmp_path / wrong
    if wrong == "folder":
        path.mkdir(mode=0o700)
    elif wrong == "fifo":
        os.mkfifo(path, 0o600)
    elif wrong != "missing":
        public = PrivateKey.generate().public_key.to_pem()
        path.write_bytes(public if wrong == "public" else b"nothing")
        path.chmod(0o600)
    with pytest.raises(KeyUnavailable, match=f"{wrong} cannot be used by the worker on"):
        worker_keys.opener((f"file:{path}",))


def test_encrypted_keys_take_a_passphrase_of_the_worker(tmp_path, monkeypatch):
    key = PrivateKey.generate()
    path, passphrase = tmp_path / "server.pem", tmp_path / "passphrase"
    path.write_bytes(key.to_pem(b"correct horse"))
    passphrase.write_bytes(b"correct horse\n")
    path.chmod(0o600)
    passphrase.chmod(0o600)
    monkeypatch.delenv("UPSEAL_PASSPHRASE", raising=False)
    with pytest.raises(KeyUnavailable, match="UPSEAL_PASSPHRASE"):
        worker_keys.opener((f"file:{path}",))
    named = f"file:{path}?passphrase-file={passphrase}"
    assert worker_keys.opener((named,)).key_ids == (key.key_id,)
    monkeypatch.setenv("UPSEAL_PASSPHRASE", "wrong horse")
    with pytest.raises(KeyUnavailable):
        worker_keys.opener((f"file:{path}",))
    monkeypatch.setenv("UPSEAL_PASSPHRASE", "correct horse")
    assert worker_keys.opener((f"file:{path}",)).key_ids == (key.key_id,)


def test_a_key_in_the_environment_or_from_a_function(tmp_path, monkeypatch):
    key, other = PrivateKey.generate(), PrivateKey.generate("p256")
    with pytest.raises(KeyUnavailable, match=r"OUR_KEY.*not set"):
        worker_keys.opener(("env:OUR_KEY",))
    monkeypatch.setenv("OUR_KEY", key.to_pem().decode())
    assert worker_keys.opener(("env:OUR_KEY",)).key_ids == (key.key_id,)
    (tmp_path / "ourkeys.py").write_text(
        "from support import key\nfind = lambda: [key('p256-a')]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = worker_keys.opener(("ourkeys:find", "env:OUR_KEY"))
    assert len(found.key_ids) == 2
    assert found.key_ids[1] == key.key_id
    sys.modules["ourkeys"].none = lambda: 7
    with pytest.raises(TypeError, match="ourkeys:none gave int"):
        worker_keys.opener(("ourkeys:none",))
    assert other.key_id not in found.key_ids


def test_no_opener_or_private_key_can_be_pickled_into_a_job():
    key = PrivateKey.generate()
    for thing in (key, Opener([key])):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            pickle.dumps(thing)
