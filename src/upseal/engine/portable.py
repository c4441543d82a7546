# SPDX-License-Identifier: Apache-2.0
"""The engine without C of ours: ``cryptography`` for AES-256-GCM, PyNaCl for XChaCha20-Poly1305.

A product, not only a test: this is what runs where no compiler was at hand.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from typing import Protocol

import cryptography
import nacl
from cryptography.exceptions import InternalError, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from upseal.engine import fips
from upseal.engine.buffers import Buffer, as_bytes, placed
from upseal.engine.padding import pad, padded_len, unpad
from upseal.engine.records import Listed, Packed, Reports, check_offsets, pack, sealed_ends, split
from upseal.engine.sizes import AES_256_GCM, CHUNK, CHUNKS_MAX, NONCE, RECORD_MAX, SEALED_CHUNK, TAG
from upseal.engine.types import KeyMemory, SealOne

_SHA512 = SHA512()
_KNOWN_NONCE, _KNOWN_AAD = b"ABCDEFGHIJKLMNOPQRSTUVWX", b"c2sp.org/XAES-256-GCM"
_KNOWN = bytes.fromhex("986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d")


class _RecordKey(Protocol):
    def seal(self, nonce: bytes, aad: bytes, plaintext: bytes) -> bytes: ...

    def open(self, nonce: bytes, aad: bytes, sealed: bytes) -> bytes | None: ...


class XAES256GCM:
    """c2sp.org/XAES-256-GCM; remembers the last subkey, since records share the nonce's front."""

    def __init__(self, key: bytes) -> None:
        self._block = Cipher(algorithms.AES256(key), modes.ECB())  # noqa: S305 - one block each
        # Making an encryptor costs 13 times what using it does. Whole blocks leave nothing in it,
        # but one serves one thread at a time: those not in use wait here.
        block = self._block.encryptor()
        self._idle = [block]
        (l_top, l_low) = struct.unpack(">QQ", block.update(bytes(16)))
        doubled = (l_top << 64 | l_low) << 1
        k1 = (doubled & ((1 << 128) - 1)) ^ (0x87 * (doubled >> 128))
        labels = (int.from_bytes(bytes((0, i)) + b"X\0" + bytes(12), "big") for i in (1, 2))
        first, second = (label ^ k1 for label in labels)
        self._masks = first << 128 | second
        self._last: tuple[bytes, AESGCM] = (b"", AESGCM(key))

    def _subkey(self, front: bytes) -> AESGCM:
        known, aead = self._last
        if known != front:
            number = int.from_bytes(front, "big")
            blocks = ((number << 128 | number) ^ self._masks).to_bytes(32, "big")
            try:
                block = self._idle.pop()
            except IndexError:
                block = self._block.encryptor()
            aead = AESGCM(block.update(blocks))
            self._idle.append(block)
            self._last = (front, aead)
        return aead

    def seal(self, nonce: bytes, aad: bytes, plaintext: bytes) -> bytes:
        """``ciphertext | tag``."""
        return self._subkey(nonce[:12]).encrypt(nonce[12:], plaintext, aad)

    def open(self, nonce: bytes, aad: bytes, sealed: bytes) -> bytes | None:
        """The plaintext, or None for a forgery."""
        try:
            return self._subkey(nonce[:12]).decrypt(nonce[12:], sealed, aad)
        except InvalidTag:
            return None


class XChaCha20Poly1305:
    """libsodium's XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03)."""

    def __init__(self, key: bytes) -> None:
        from nacl.bindings import (  # only where this cipher is used: loading libsodium takes time
            crypto_aead_xchacha20poly1305_ietf_decrypt as decrypt,
        )
        from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as encrypt
        from nacl.exceptions import CryptoError

        self._key, self._encrypt, self._decrypt, self._error = key, encrypt, decrypt, CryptoError

    def seal(self, nonce: bytes, aad: bytes, plaintext: bytes) -> bytes:
        """``ciphertext | tag``."""
        return self._encrypt(plaintext, aad, nonce, self._key)

    def open(self, nonce: bytes, aad: bytes, sealed: bytes) -> bytes | None:
        """The plaintext, or None for a forgery."""
        try:
            return self._decrypt(sealed, aad, nonce, self._key)
        except self._error:
            return None


class _SessionKey:
    """The keys of a session: for records it is the first of them."""

    def __init__(self, engine: PortableEngine, cipher: int, keys: bytes) -> None:
        report = engine.record_key(cipher, keys[:32])
        self.seal, self.open = report.seal, report.open
        self.cipher, self.batch, self.upload = cipher, keys[32:64], keys[64:96]


class _ChunkKey:
    def __init__(self, aead: AESGCM | ChaCha20Poly1305, base_nonce: bytes) -> None:
        self.aead, self.base = aead, int.from_bytes(base_nonce, "big")

    def nonce(self, index: int) -> bytes:
        return (self.base ^ index).to_bytes(12, "big")


class PortableEngine:
    """See `upseal.engine.types.Engine`."""

    name = "portable"

    def __init__(self) -> None:
        """Raises `EngineError` where FIPS mode is on and ``cryptography`` has no FIPS provider."""
        if fips.mode() is not None:
            self._check_provider()

    @staticmethod
    def _check_provider() -> None:
        name = fips.cryptographys_openssl()
        try:  # c2sp.org/XAES-256-GCM, the second test vector
            made = XAES256GCM(b"\3" * 32).seal(_KNOWN_NONCE, _KNOWN_AAD, b"XAES-256-GCM")
        except (InternalError, UnsupportedAlgorithm) as error:
            raise fips.refusal(f"{name} cannot do AES-256-GCM") from error
        if made != _KNOWN:
            raise fips.refusal(f"{name} fails its known-answer test")

    def describe(self) -> dict[str, str]:
        """See Engine."""
        version = f"cryptography {cryptography.__version__}, PyNaCl {nacl.__version__}"
        return {"engine": self.name, "backend": "cryptography", "version": version}

    # -- keys --------------------------------------------------------------------

    def record_key(self, cipher: int, material: Buffer) -> _RecordKey:
        """See Engine."""
        key = as_bytes(material, "a key")
        if cipher == AES_256_GCM:
            return XAES256GCM(key)
        if fips.mode() is not None:
            raise fips.refusal("XChaCha20-Poly1305 is not for it")
        return XChaCha20Poly1305(key)

    def chunk_key(self, cipher: int, material: Buffer) -> _ChunkKey:
        """See Engine."""
        aead = AESGCM if cipher == AES_256_GCM else ChaCha20Poly1305
        return _ChunkKey(aead(material[:32]), material[32:])

    def session_key(self, cipher: int, keys: Buffer) -> _SessionKey:
        """See Engine."""
        return _SessionKey(self, cipher, as_bytes(keys, "the keys of a session"))

    def batch_key(self, session: _SessionKey) -> _RecordKey:
        """See Engine."""
        return self.record_key(session.cipher, session.batch)

    def upload_key(self, session: _SessionKey, info: bytes) -> tuple[_ChunkKey, bytes]:
        """See Engine."""
        derived = self.expand(session.upload, info, 76)
        key = self.chunk_key(session.cipher, memoryview(derived)[:44])
        commitment = bytes(memoryview(derived)[44:])
        self.wipe(derived)
        return key, commitment

    def expand(self, secret: Buffer, info: bytes, length: int) -> bytearray:
        """See Engine."""
        out = bytearray(length)
        HKDFExpand(_SHA512, length, info).derive_into(secret, out)
        return out

    def wipe(self, secret: bytes | bytearray) -> None:
        """See Engine."""
        if isinstance(secret, bytearray):
            secret[:] = bytes(len(secret))

    def key_memory(self) -> KeyMemory:
        """See Engine."""
        return KeyMemory(0, 0, 0)

    def measure(self, reports: Reports, padded: bool) -> int:
        """See Engine."""
        total = 0
        for start, end in pairwise(reports.offsets):
            length = padded_len(end - start) if padded else end - start
            if end < start or length > RECORD_MAX:
                raise ValueError("offsets fall, leave the values, or bound a report over 16 MiB")
            total += length + TAG
        return total

    # -- records ---------------------------------------------------------------

    def sealing(self, key: _RecordKey, prefix: bytes, padded: bool) -> SealOne:
        """See Engine."""

        def seal(nonce: bytes, aad: bytes, report: bytes) -> bytes:
            return prefix + nonce + key.seal(nonce, aad, _prepared(report, padded))

        return seal

    def open_envelope(
        self, key: _RecordKey, prefix_len: int, aad: bytes, envelope: bytes, padded: bool
    ) -> bytes | None:
        """See Engine."""
        front = prefix_len + NONCE
        if not 0 <= len(envelope) - front - TAG <= RECORD_MAX:
            return None
        report = key.open(envelope[prefix_len:front], aad, envelope[front:])
        return unpad(report) if padded and report is not None else report

    def seal_envelopes(
        self,
        key: _RecordKey,
        nonce: bytes,
        prefix: bytes,
        aad: bytes,
        reports: Reports,
        padded: bool,
    ) -> Iterator[Packed]:
        """See Engine."""
        seal = self.sealing(key, prefix, padded)
        yield pack([seal(_xor(nonce, i), aad, r) for i, r in enumerate(_each(reports))])

    def open_envelopes(
        self, key: _RecordKey, prefix: bytes, aad: bytes, envelopes: Reports, padded: bool
    ) -> Iterator[tuple[Packed, bytes]]:
        """See Engine."""
        opened, results, size = [], bytearray(), len(prefix)
        for envelope in _each(envelopes):
            ours = envelope.startswith(prefix)
            report = self.open_envelope(key, size, aad, envelope, padded) if ours else None
            opened.append(report or b"")
            results.append(0 if report is not None else 255 if ours else 1)
        yield pack(opened), bytes(results)

    def seal_batch(
        self,
        key: _RecordKey,
        nonce: bytes,
        head: bytes,
        aad: bytes,
        reports: Reports,
        padded: bool,
        out: bytearray | None = None,
    ) -> bytes | memoryview:
        """See Engine."""
        kind, rest = aad[:1], aad[5:]
        sealed = [
            key.seal(_xor(nonce, i), kind + i.to_bytes(4, "big") + rest, _prepared(report, padded))
            for i, report in enumerate(_each(reports))
        ]
        table = struct.pack(f">{len(sealed)}I", *map(len, sealed))
        return placed(b"".join((head, table, *sealed)), out)

    def sealed_ends(self, table: memoryview, padded: bool) -> memoryview | None:
        """See Engine."""
        return sealed_ends(table, padded)

    def open_batch(
        self,
        key: _RecordKey,
        nonce: bytes,
        aad: bytes,
        ends: memoryview,
        records: memoryview,
        padded: bool,
        out: bytearray | None = None,
    ) -> Packed | None:
        """See Engine."""
        kind, rest = aad[:1], aad[5:]
        reports = []
        for i, (start, end) in enumerate(pairwise(ends)):
            sealed = bytes(records[start:end])
            report = key.open(_xor(nonce, i), kind + i.to_bytes(4, "big") + rest, sealed)
            if padded and report is not None:
                report = unpad(report)
            if report is None:
                return None
            reports.append(report)
        opened = pack(reports)
        return Packed(memoryview(placed(opened.values, out)), opened.offsets)

    # -- chunks ----------------------------------------------------------------

    def seal_chunks(
        self, key: _ChunkKey, first: int, last: bool, data: memoryview, out: memoryview
    ) -> None:
        """See Engine."""
        whole, rest = divmod(len(data), CHUNK)
        _check_chunks(first, whole, rest, last)
        for i in range(whole + last):
            at = i * SEALED_CHUNK
            piece = data[i * CHUNK : (i + 1) * CHUNK]
            key.aead.encrypt_into(
                key.nonce(first + i), piece, None, out[at : at + len(piece) + TAG]
            )

    def open_chunks(
        self,
        key: _ChunkKey,
        first: int,
        last: bool,
        data: memoryview,
        out: memoryview,
        private: bool = False,
    ) -> bool:
        """See Engine."""
        whole, rest = divmod(len(data), SEALED_CHUNK)
        _check_chunks(first, whole, rest, last)
        if last and rest < TAG:
            raise ValueError("the last chunk is shorter than a tag")
        try:
            for i in range(whole + last):
                piece = data[i * SEALED_CHUNK : (i + 1) * SEALED_CHUNK]
                target = out[i * CHUNK : i * CHUNK + len(piece) - TAG]
                if private:
                    key.aead.decrypt_into(key.nonce(first + i), piece, None, target)
                else:  # copied there only once its tag has been checked
                    target[:] = key.aead.decrypt(key.nonce(first + i), piece, None)
        except InvalidTag:
            out[:] = bytes(len(out))
            return False
        return True

    def room(self, size: int) -> _Room:
        """See Engine."""
        return _Room(size)


class _Room:
    """See `upseal.engine.types.Room`: of BytesIO, which gives out what it holds uncopied."""

    def __init__(self, size: int) -> None:
        self._file = BytesIO(bytes(size))
        self.view = self._file.getbuffer()

    def take(self, size: int) -> bytes:
        """See there."""
        self.view.release()
        made = self._file.getvalue()
        return made if size == len(made) else made[:size]


def _check_chunks(first: int, whole: int, rest: int, last: bool) -> None:
    if rest and not last:
        raise ValueError("only the last chunk may be short")
    if first + whole + last > CHUNKS_MAX:
        raise ValueError("an upload has at most 2^38 chunks")


def _prepared(report: bytes, padded: bool) -> bytes:
    if (padded_len(len(report)) if padded else len(report)) > RECORD_MAX:
        raise ValueError("a report is longer than 16 MiB")
    return pad(report) if padded else report


def _xor(nonce: bytes, index: int) -> bytes:
    return nonce[:20] + (int.from_bytes(nonce[20:], "big") ^ index).to_bytes(4, "big")


def _each(records: Reports) -> list[bytes]:
    if isinstance(records, Listed):
        return [as_bytes(report, "a report") for report in records.reports]
    check_offsets(records)
    return split(records)
