# SPDX-License-Identifier: Apache-2.0
"""Escrow by shares: every k of them, k - 1, wrong ones, those of another safe; the command line."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace

import pytest
from Crypto.Protocol.SecretSharing import Shamir
from keys_support import ROOT, upseal

from upseal import PrivateKey, Sealer
from upseal.integrations.escrow import BadShares, Safe, Share, escrow, recover

KEY = PrivateKey.generate("p256")
SAFE, SHARES = escrow(KEY, threshold=3, shares=5)


@pytest.mark.parametrize("kind", ["x25519", "mlkem768-x25519", "rsa2048"])
def test_every_kind_of_key_comes_back(kind):
    key = PrivateKey.generate(kind)
    safe, shares = escrow(key, threshold=2, shares=2)
    assert recover(safe, reversed(shares)).to_pem() == key.to_pem()


def test_any_k_shares_recover_it_and_more_do_too():
    for count in (3, 4, 5):
        for chosen in itertools.permutations(SHARES, count) if count == 3 else (
            itertools.combinations(SHARES, count)
        ):  # fmt: skip
            if count > 3 or chosen[0].index < chosen[1].index:  # orders, half of them
                assert recover(SAFE, chosen).to_pem() == KEY.to_pem()


def test_fewer_do_not():
    for count in (0, 1, 2):
        for chosen in itertools.combinations(SHARES, count):
            with pytest.raises(BadShares, match=f"{count} shares were given, and it takes 3"):
                recover(SAFE, chosen)
    with pytest.raises(BadShares, match="2 shares were given"):
        recover(SAFE, [SHARES[0], SHARES[1], SHARES[0]])
    # and not because we look: without the third, Shamir gives another secret
    two = [(share.index, share.data) for share in SHARES[:2]]
    with pytest.raises(ValueError):
        PrivateKey.from_pem(SAFE.pem, Shamir.combine(two).hex())


def test_wrong_shares_are_named():
    for i, share in enumerate(SHARES):
        bad = replace(share, data=bytes([share.data[0] ^ 1]) + share.data[1:])
        given = [*SHARES[:i], bad, *SHARES[i + 1 :]]
        with pytest.raises(BadShares, match=f"share {i + 1}$") as caught:
            recover(SAFE, given)
        assert caught.value.wrong == (f"share {i + 1}",)
    moved = replace(SHARES[0], index=2)
    outside = replace(SHARES[0], index=6)
    with pytest.raises(BadShares, match=r"share 2, share 6$"):
        recover(SAFE, [moved, outside, *SHARES])


def test_shares_of_another_safe_of_the_same_key_are_refused():
    other, strangers = escrow(KEY, threshold=3, shares=5)
    with pytest.raises(BadShares, match=r"share 3 \(of another safe\)$"):
        recover(SAFE, [SHARES[0], SHARES[1], strangers[2]])
    assert recover(other, strangers[1:4]).key_id == KEY.key_id


def test_a_safe_that_was_changed_is_refused():
    safe = Safe.from_bytes(SAFE.to_bytes())
    assert safe == SAFE
    with pytest.raises(BadShares, match="damaged"):
        recover(replace(safe, key_id=bytes(8)), SHARES)
    place = safe.pem.index(b"\n") + 60
    damaged = safe.pem[:place] + (b"A" if safe.pem[place] != 65 else b"B") + safe.pem[place + 1 :]
    with pytest.raises(BadShares, match="damaged"):
        recover(replace(safe, pem=damaged), SHARES)
    whole = json.loads(SAFE.to_bytes())
    for change in (
        {"kind": "x"}, {"threshold": 1}, {"threshold": 6}, {"threshold": True}, {"set": "00"},
        {"shares": ["00"]}, {"shares": 3}, {"private_key": None}, {"key_id": "x"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="escrow file"):
            Safe.from_bytes(json.dumps({**whole, **change}).encode())
    for raw in (b"", b"[]", b"[" * 100_000, b"{}", bytes(70_000)):
        with pytest.raises(ValueError, match="escrow file"):
            Safe.from_bytes(raw)


def test_a_share_survives_paper_and_slips_are_seen():
    for share in SHARES:
        text = share.to_text()
        assert Share.from_text(text) == share
        assert Share.from_text(f"  {text.upper()} \n") == share
        for at in range(13, len(text)):
            for slip in "0f-9 ":
                if text[at] != slip:
                    with pytest.raises(ValueError, match="share"):
                        Share.from_text(text[:at] + slip + text[at + 1 :])
        assert share.data.hex() not in repr(share)


def test_the_safe_tells_no_share_and_no_key():
    raw = SAFE.to_bytes()
    assert b"ENCRYPTED PRIVATE KEY" in raw
    for share in SHARES:
        assert share.data.hex().encode() not in raw


@pytest.mark.parametrize(("k", "n"), [(1, 3), (4, 3), (2, 101), (0, 0)])
def test_numbers_that_make_no_sense(k, n):
    with pytest.raises(ValueError, match="it takes 2 shares or more"):
        escrow(KEY, threshold=k, shares=n)


def test_the_command_line(tmp_path):
    (tmp_path / "server.pem").write_bytes(KEY.to_pem())
    (tmp_path / "server.pem").chmod(0o600)
    out = tmp_path / "vault"
    split = ("keys", "escrow", "--shares", 3, "--threshold", 2, "-o", out)
    found = json.loads(upseal(*split, "--json", tmp_path / "server.pem").stdout)
    assert found["key_id"] == KEY.key_id.hex()
    assert [path.name for path in sorted(out.iterdir())] == [
        "safe.json", "share-1", "share-2", "share-3",
    ]  # fmt: skip
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in out.iterdir())
    assert b"exists" in upseal(*split, tmp_path / "server.pem", code=4).stderr
    bad = ("keys", "escrow", "--shares", 2, "--threshold", 3, "-o", tmp_path / "no")
    assert b"change --shares" in upseal(*bad, tmp_path / "server.pem", code=2).stderr
    assert not (tmp_path / "no").exists()

    back = ("keys", "recover", "-o", tmp_path / "back.pem", out / "safe.json")
    assert b"1 shares were given" in upseal(*back, out / "share-1", code=1).stderr
    assert not (tmp_path / "back.pem").exists()
    (tmp_path / "slip").write_text((out / "share-1").read_text().replace("-", " ", 1)[:-3])
    assert b"slip" in upseal(*back, tmp_path / "slip", out / "share-2", code=1).stderr
    upseal(*back, out / "share-3", out / "share-1")
    assert (tmp_path / "back.pem").stat().st_mode & 0o777 == 0o600
    sealed = Sealer([KEY.public_key]).seal(b"hello")
    assert upseal("open", "-i", tmp_path / "back.pem", input=sealed).stdout == b"hello"
    assert b"exists" in upseal(*back, out / "share-3", out / "share-1", code=4).stderr


def test_the_example_runs():
    done = subprocess.run(
        [sys.executable, ROOT / "examples/escrow/main.py"], capture_output=True, timeout=60,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "recovered by shares 2, 4, 5" in done.stdout
    assert "2 shares were given, and it takes 3" in done.stdout
