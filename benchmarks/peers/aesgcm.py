# SPDX-License-Identifier: Apache-2.0
"""Loops over ``cryptography``'s AESGCM: the least that Python code with a shared key can do.

No recipients, no session, no format: the key is there from the start, and its schedule is paid
once for all reports. Whoever is faster than these loops is faster than any Python over AESGCM.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from itertools import count
from os import urandom
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from peers.base import Peer

PIECE = 1 << 20
NONCE, TAG = 12, 16


def random_nonces(aead: AESGCM, reports: Sequence[bytes]) -> list[bytes]:
    """As anybody would write it: a nonce from the kernel for each, in front of the message."""
    sealed = []
    for report in reports:
        nonce = urandom(12)
        sealed.append(nonce + aead.encrypt(nonce, report, None))
    return sealed


def open_random_nonces(aead: AESGCM, sealed: Sequence[bytes]) -> list[bytes]:
    """What opens those."""
    return [aead.decrypt(message[:12], message[12:], None) for message in sealed]


def counter_nonces(aead: AESGCM, reports: Sequence[bytes]) -> list[bytes]:
    """The strictest: no randomness, nothing joined, the fastest loop Python has."""
    encrypt = aead.encrypt
    return [encrypt(i.to_bytes(12, "big"), report, None) for i, report in enumerate(reports)]


def open_counter_nonces(aead: AESGCM, sealed: Sequence[bytes]) -> list[bytes]:
    """What opens those."""
    decrypt = aead.decrypt
    return [decrypt(i.to_bytes(12, "big"), message, None) for i, message in enumerate(sealed)]


def into_one_buffer(aead: AESGCM, reports: Sequence[bytes], out: memoryview) -> None:
    """Counter nonces and ``encrypt_into``: no object for each result, memory used again."""
    at = 0
    encrypt_into = aead.encrypt_into
    for i, report in enumerate(reports):
        end = at + len(report) + 16
        encrypt_into(i.to_bytes(12, "big"), report, None, out[at:end])
        at = end


class Loop(Peer):
    """One report, or a file in pieces of 1 MiB, under a key that is there."""

    name = "AESGCM loop"
    package = "cryptography"
    amortises = "key and key schedule: made once; no recipients, no format"
    reports = True
    files = True
    threads = 1

    def __init__(self) -> None:
        self._aead = AESGCM(AESGCM.generate_key(256))

    def seal(self, report: bytes) -> bytes:
        nonce = urandom(12)
        return nonce + self._aead.encrypt(nonce, report, None)

    def open(self, sealed: bytes) -> bytes:
        return self._aead.decrypt(sealed[:12], sealed[12:], None)

    def seal_file(self, source: Path, target: Path) -> None:
        self._pieces(source, target, PIECE, PIECE + TAG, self._aead.encrypt_into)

    def open_file(self, source: Path, target: Path) -> None:
        self._pieces(source, target, PIECE + TAG, PIECE, self._aead.decrypt_into)

    def _pieces(self, source: Path, target: Path, size: int, out_size: int, work) -> None:
        numbers, errors = count(), []

        def run() -> None:
            buffer, out = memoryview(bytearray(size)), memoryview(bytearray(out_size))
            try:
                while got := os.preadv(reading, [buffer], (number := next(numbers)) * size):
                    nonce = number.to_bytes(NONCE, "big")
                    length = work(nonce, buffer[:got], None, out[: got + out_size - size])
                    os.pwrite(writing, out[:length], number * out_size)
            except BaseException as error:
                errors.append(error)

        with source.open("rb") as read_from, target.open("wb") as write_to:
            reading, writing = read_from.fileno(), write_to.fileno()
            workers = [threading.Thread(target=run) for _ in range(self.threads - 1)]
            for worker in workers:
                worker.start()
            run()
            for worker in workers:
                worker.join()
        if errors:
            raise errors[0]


class TwoThreads(Loop):
    """The file loop in two threads; reports gain nothing from it."""

    name = "AESGCM loop, 2 threads"
    reports = False
    threads = 2


PEERS = [Loop, TwoThreads]
