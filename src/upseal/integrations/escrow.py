# SPDX-License-Identifier: Apache-2.0
"""Escrow of a private key: any k of n people can recover it, fewer learn nothing of it.

The key is written as an encrypted PKCS#8 file, whose passphrase is 16 random bytes in hexadecimal.
These 16 bytes are shared by Shamir's scheme over GF(2^128) (pycryptodome's, which takes 16 bytes).
The file, the *safe*, is no secret: copies of it may lie anywhere. It also has a SHA-256 digest of
each share, so that a wrong one is named before anything is put together; a share is 16 random
bytes, of which its digest tells nothing that can be used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hmac import compare_digest

from upseal.core.keys import PrivateKey

try:
    from Crypto.Protocol.SecretSharing import Shamir
except ImportError as error:
    raise ImportError("escrow needs pycryptodome: pip install 'upseal[escrow]'") from error

__all__ = ["BadShares", "Safe", "Share", "escrow", "recover"]

SHARES_MAX = 100
SAFE_MAX = 1 << 16
_SECRET = 16
_SET = 8
_TEXT = re.compile(
    r"upseal-share ([0-9a-f]{16}) ([1-9][0-9]{0,2}) ((?:[0-9a-f]{4}-){7}[0-9a-f]{4}) ([0-9a-f]{8})"
)
_KIND = "upseal escrow 1"


class BadShares(ValueError):  # noqa: N818 - reads as what it is
    """These shares do not recover the key. ``wrong`` names those that are to blame, if any."""

    def __init__(self, message: str, wrong: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.wrong = tuple(wrong)


@dataclass(frozen=True, slots=True)
class Share:
    """What one person keeps."""

    set: bytes
    """8 bytes: which safe it belongs to."""
    index: int
    data: bytes

    def to_text(self) -> str:
        """One line, to be kept in a file or on paper; its end is a checksum against slips."""
        digits = self.data.hex()
        groups = "-".join(digits[i : i + 4] for i in range(0, len(digits), 4))
        return f"upseal-share {self.set.hex()} {self.index} {groups} {self._checksum()}"

    @classmethod
    def from_text(cls, text: str) -> Share:
        """Reads one; blanks and capitals as they come.

        Raises:
            ValueError: it is none, or was copied wrongly.
        """
        match = _TEXT.fullmatch(" ".join(text.lower().split()))
        if match is None:
            raise ValueError("this is no share: one line that begins with upseal-share")
        share = cls(
            bytes.fromhex(match[1]), int(match[2]), bytes.fromhex(match[3].replace("-", ""))
        )
        if share._checksum() != match[4]:
            raise ValueError("the share was copied wrongly: its checksum does not fit; compare it")
        return share

    def digest(self) -> bytes:
        """What a safe knows it by."""
        return hashlib.sha256(
            b"upseal escrow share" + self.set + self.index.to_bytes(2, "big") + self.data
        ).digest()

    def _checksum(self) -> str:
        return hashlib.sha256(b"checksum" + self.digest()).hexdigest()[:8]

    def __repr__(self) -> str:
        return f"<Share {self.index} of {self.set.hex()}>"


@dataclass(frozen=True, slots=True)
class Safe:
    """The encrypted key, and what its shares are known by."""

    set: bytes
    key_id: bytes
    threshold: int
    digests: tuple[bytes, ...]
    """Of each share, in order of their indices, from 1."""
    pem: bytes
    """PKCS#8, encrypted."""

    def to_bytes(self) -> bytes:
        """JSON."""
        return (
            json.dumps(
                {
                    "kind": _KIND,
                    "set": self.set.hex(),
                    "key_id": self.key_id.hex(),
                    "threshold": self.threshold,
                    "shares": [digest.hex() for digest in self.digests],
                    "private_key": self.pem.decode(),
                },
                indent=1,
            ).encode()
            + b"\n"
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Safe:
        """Reads one.

        Raises:
            ValueError: it is none.
        """
        if len(data) > SAFE_MAX:
            raise ValueError("this is far too long for an escrow file")
        try:
            found = json.loads(data)
            if found["kind"] != _KIND:
                raise ValueError("kind")
            safe = cls(
                bytes.fromhex(found["set"]),
                bytes.fromhex(found["key_id"]),
                found["threshold"],
                tuple(bytes.fromhex(digest) for digest in found["shares"]),
                found["private_key"].encode("ascii"),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ValueError("this is no escrow file of this version") from None
        if (
            type(safe.threshold) is not int
            or not 2 <= safe.threshold <= len(safe.digests) <= SHARES_MAX
            or len(safe.set) != _SET
            or any(len(digest) != 32 for digest in safe.digests)
        ):
            raise ValueError("this escrow file is damaged")
        return safe


def escrow(key: PrivateKey, *, threshold: int, shares: int) -> tuple[Safe, list[Share]]:
    """Puts a copy of a key into a safe.

    Args:
        key: to be recovered one day.
        threshold: how many shares recover it, from 2.
        shares: how many there are.

    Raises:
        ValueError: these numbers make no sense.
    """
    if not 2 <= threshold <= shares <= SHARES_MAX:
        raise ValueError(f"it takes 2 shares or more, of {SHARES_MAX} at most")
    secret, name = os.urandom(_SECRET), os.urandom(_SET)
    made = [Share(name, index, data) for index, data in Shamir.split(threshold, shares, secret)]
    digests = tuple(share.digest() for share in made)
    safe = Safe(name, key.key_id, threshold, digests, key.to_pem(secret.hex()))
    recover(safe, made[-threshold:])  # a key that cannot be recovered must be noticed now
    return safe, made


def recover(safe: Safe, shares: Iterable[Share]) -> PrivateKey:
    """The key, from a safe and enough of its shares. The same share twice counts once.

    Raises:
        BadShares: there are too few, or some are wrong, or of another safe.
    """
    given: dict[int, Share] = {}
    wrong = []
    for share in shares:
        if not _fits(safe, share):
            other = share.set != safe.set
            wrong.append(f"share {share.index}" + (" (of another safe)" if other else ""))
        else:
            given[share.index] = share
    if wrong:
        raise BadShares(f"not of this safe, or not as it was made: {', '.join(wrong)}", wrong)
    if len(given) < safe.threshold:
        raise BadShares(f"{len(given)} shares were given, and it takes {safe.threshold}")
    chosen = [(index, given[index].data) for index in sorted(given)[: safe.threshold]]
    try:
        key = PrivateKey.from_pem(safe.pem, Shamir.combine(chosen).hex())
    except (ValueError, TypeError) as error:
        raise BadShares("the encrypted key in the escrow file is damaged; take a copy") from error
    if key.key_id != safe.key_id:
        raise BadShares("the escrow file is damaged: another key is in it than it says")
    return key


def _fits(safe: Safe, share: Share) -> bool:
    if share.set != safe.set or not 1 <= share.index <= len(safe.digests):
        return False
    return compare_digest(share.digest(), safe.digests[share.index - 1])
