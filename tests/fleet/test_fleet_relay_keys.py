# SPDX-License-Identifier: Apache-2.0
"""A relay's own keys: made once, kept, deleted when they are retired."""

from __future__ import annotations

import stat
import threading

import pytest

from upseal import PrivateKey, Sealer, UnknownRecipient
from upseal.fleet.relay.keys import RelayKeys


def test_a_key_is_made_once_and_found_again(tmp_path):
    folder = tmp_path / "keys"
    keys = RelayKeys(folder)
    assert keys.opener is None
    assert keys.all() == []
    key = keys.make(1, "p256")
    assert key.public_key.name == "p256"
    assert keys.make(1, "p256") is key
    (path,) = folder.iterdir()
    assert path.name == f"1-{key.key_id.hex()}.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    again = RelayKeys(folder)
    assert again.get(1).key_id == key.key_id
    assert again.get(2) is None
    sealed = Sealer([key.public_key]).seal_batch([b"a"])
    assert list(again.opener.open_batch(sealed)) == [b"a"]


def test_a_generation_whose_kind_was_changed_has_a_key_of_each(tmp_path):
    keys = RelayKeys(tmp_path)
    first = keys.make(2, "x25519")
    second = keys.make(2, "mlkem768-x25519")
    assert second.public_key.name == "mlkem768-x25519"
    assert keys.make(2, "x25519") is first
    assert keys.get(2) is second
    assert keys.get(2, "p256") is None
    assert len(keys.opener.key_ids) == 2


def test_threads_make_one(tmp_path):
    keys = RelayKeys(tmp_path)
    made = []
    threads = [threading.Thread(target=lambda: made.append(keys.make(3, "rsa2048"))) for _ in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert made[0] is made[1]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_retired_key_is_gone_for_good(tmp_path):
    keys = RelayKeys(tmp_path)
    old, young, new = (keys.make(g, "x25519") for g in (1, 2, 4))
    sealed = {g: Sealer([k.public_key]).seal_batch([b"a"]) for g, k in ((1, old), (4, new))}
    keys.opener.open_batch(sealed[1])  # it remembers that session
    assert keys.retire(3) == [1, 2]
    assert keys.retire(3) == []
    assert [path.name for path in tmp_path.iterdir()] == [f"4-{new.key_id.hex()}.pem"]
    assert [g for g, _ in keys.all()] == [4]
    with pytest.raises(UnknownRecipient):
        keys.opener.open_batch(sealed[1])
    keys.opener.open_batch(sealed[4])
    assert keys.retire(9) == [4]
    with pytest.raises(UnknownRecipient):
        keys.opener.open_batch(sealed[4])
    keys.make(9, "x25519")
    assert len(keys.opener.key_ids) == 1


def test_two_keys_of_one_generation_both_open(tmp_path):
    pair = [PrivateKey.generate() for _ in range(2)]
    for key in pair:
        (tmp_path / f"5-{key.key_id.hex()}.pem").write_bytes(key.to_pem())
    keys = RelayKeys(tmp_path)
    for key in pair:
        sealed = Sealer([key.public_key]).seal_batch([b"a"])
        assert list(keys.opener.open_batch(sealed)) == [b"a"]
    assert keys.retire(6) == [5, 5]
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_cleared_and_strangers_stay(tmp_path):
    (tmp_path / ".1-00.pem.abc.part").write_bytes(b"half a key")
    (tmp_path / "notes.txt").write_text("mine")
    assert RelayKeys(tmp_path).all() == []
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path):
    key = PrivateKey.generate()
    path = tmp_path / f"1-{bytes(8).hex()}.pem"
    path.write_bytes(key.to_pem())
    with pytest.raises(ValueError, match="another key"):
        RelayKeys(tmp_path)
    path.write_bytes(b"no key")
    with pytest.raises(ValueError, match="no private key"):
        RelayKeys(tmp_path)


def test_mistakes(tmp_path):
    with pytest.raises(ValueError):
        RelayKeys(tmp_path).make(-1, "x25519")
    with pytest.raises(ValueError):
        RelayKeys(tmp_path).make(1, "rot13")
    assert not list(tmp_path.iterdir())
