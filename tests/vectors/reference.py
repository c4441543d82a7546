"""A second implementation of the upseal opener, written from docs/format.md alone.

It shows that the page is enough, and it is what the vectors are checked with. It shares no code
with the product, wants to be read beside the page, and is neither fast nor hardened: it keeps the
whole blob in memory and makes no attempt to wipe secrets. Do not use it for anything else.
"""

import hashlib
import hmac
import os
import re
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes, hpke, serialization
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

P256, X25519, HYBRID, RSA = 0x0010, 0x0020, 0x647A, 0xFF01
WRAPPED_LENGTH = {P256: (113, 113), X25519: (80, 80), HYBRID: (1168, 1168), RSA: (256, 512)}
AES, CHACHA = 1, 2
ENVELOPE, BATCH, UPLOAD, PADDED = 0x01, 0x02, 0x03, 0x80
KINDS = (0x01, 0x02, 0x03, 0x81, 0x82)
TAG, CHUNK = 16, 16384
MAX_RECIPIENTS, MAX_PLAINTEXT, MAX_COUNT, MAX_BATCH = 16, 2**24, 2**20, 2**30
MAX_CHUNKS = 2**38
HPKE_INFO = b"upseal/v1 session"


class OpenError(Exception):
    """Damaged, forged, or another context."""


class UnknownRecipient(OpenError):
    pass


class UnsupportedFormat(OpenError):
    pass


class Truncated(OpenError):
    pass


# ---- primitives ----------------------------------------------------------------------------------


def hkdf_expand(prk, info, length):
    """HKDF-Expand (RFC 5869) with SHA-512; there is no Extract step anywhere in the format."""
    out = block = b""
    counter = 0
    while len(out) < length:
        counter += 1
        block = hmac.digest(prk, block + info + bytes([counter]), "sha512")
        out += block
    return out[:length]


def xor(a, b):
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def xaes_subkey(key, nonce12):
    """The subkey of c2sp.org/XAES-256-GCM."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # single blocks only
    top = int.from_bytes(encryptor.update(bytes(16)), "big")
    k1 = ((top << 1) & (2**128 - 1)) ^ (0x87 if top >> 127 else 0)
    k1 = k1.to_bytes(16, "big")
    first = encryptor.update(xor(b"\x00\x01\x58\x00" + nonce12, k1))
    return first + encryptor.update(xor(b"\x00\x02\x58\x00" + nonce12, k1))


def hchacha20(key, nonce16):
    """HChaCha20 (draft-irtf-cfrg-xchacha): 20 rounds, no final addition, words 0-3 and 12-15."""
    x = list(struct.unpack("<16I", b"expand 32-byte k" + key + nonce16))

    def quarter(a, b, c, d):
        for p, q, r, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[p] = (x[p] + x[q]) & 0xFFFFFFFF
            x[r] ^= x[p]
            x[r] = (x[r] << bits | x[r] >> (32 - bits)) & 0xFFFFFFFF

    for _ in range(10):
        for column in range(4):
            quarter(column, column + 4, column + 8, column + 12)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return struct.pack("<8I", *x[:4], *x[12:])


def report_aead(cipher, key, nonce24):
    """The AEAD and its 12-byte nonce, for one 24-byte nonce: XAES-256-GCM or XChaCha20-Poly1305."""
    if cipher == AES:
        return AESGCM(xaes_subkey(key, nonce24[:12])), nonce24[12:]
    return ChaCha20Poly1305(hchacha20(key, nonce24[:16])), bytes(4) + nonce24[16:]


def record_nonce(nonce, index):
    return nonce[:20] + xor(nonce[20:], struct.pack(">I", index))


def envelope_aad(kind, context):
    return bytes([kind]) + context


def record_aad(kind, index, count, context):
    return struct.pack(">BII", kind, index, count) + context


def upload_aead(cipher, upload_key, salt, context):
    """The chunks' AEAD, their base nonce, and the upload's commitment."""
    name = b"AEAD_AES_256_GCM" if cipher == AES else b"AEAD_CHACHA20_POLY1305"
    info = b"c2sp.org/chunked-encryption@v1+" + name + b"\x00" + salt + bytes([UPLOAD]) + context
    okm = hkdf_expand(upload_key, info, 76)
    aead = AESGCM(okm[:32]) if cipher == AES else ChaCha20Poly1305(okm[:32])
    return aead, okm[32:44], okm[44:]


def chunk_nonce(base_nonce, k):
    return xor(base_nonce, k.to_bytes(12, "big"))


def padme(length):
    if length < 2:
        return length
    e = length.bit_length() - 1
    s = e.bit_length()
    mask = (1 << (e - s)) - 1
    return (length + mask) & ~mask


def pad(report):
    return (report + b"\x80").ljust(padme(len(report) + 1), b"\x00")


def unpad(padded):
    report = padded.rstrip(b"\x00")
    if not report.endswith(b"\x80") or len(padded) != padme(len(report)):
        raise OpenError("bad padding")
    return report[:-1]


# ---- keys ----------------------------------------------------------------------------------------


def hpke_suite(suite_id):
    kems = {P256: hpke.KEM.P256, X25519: hpke.KEM.X25519, HYBRID: hpke.KEM.MLKEM768_X25519}
    return hpke.Suite(kems[suite_id], hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


OAEP = rsa_padding.OAEP(rsa_padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


def spki(public):
    return public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


class Key:
    """A recipient's private key, from its PEM (two blocks for the hybrid: ML-KEM-768, X25519)."""

    def __init__(self, suite_id, private_pem):
        blocks = re.findall(r"-----BEGIN [^-]*-----.*?-----END [^-]*-----\n", private_pem, re.S)
        parts = [serialization.load_pem_private_key(b.encode(), None) for b in blocks]
        publics = [part.public_key() for part in parts]
        if suite_id == HYBRID:
            self.private = hpke.MLKEM768X25519PrivateKey(*parts)
            self.public = hpke.MLKEM768X25519PublicKey(*publics)
        else:
            (self.private,), (self.public,) = parts, publics
        self.suite = suite_id
        self.key_id = hashlib.sha256(b"".join(map(spki, publics))).digest()[:8]

    def unwrap(self, wrapped):
        if self.suite == RSA:
            return self.private.decrypt(wrapped, OAEP)
        return hpke_suite(self.suite).decrypt(wrapped, self.private, info=HPKE_INFO)


# ---- the header ----------------------------------------------------------------------------------


@dataclass
class Header:
    cipher: int
    entries: list  # of (suite, key id, wrapped)
    unsigned: bytes  # everything before the commitment
    commitment: bytes


class Input:
    """The blob, read from left to right."""

    def __init__(self, blob):
        self.blob, self.at = blob, 0

    def take(self, length):
        if len(self.blob) - self.at < length:
            raise Truncated
        self.at += length
        return self.blob[self.at - length : self.at]

    def number(self, length):
        return int.from_bytes(self.take(length), "big")

    def rest(self):
        return self.blob[self.at :]


def read_header(data):
    if data.blob[:3] != b"USL"[: len(data.blob)]:
        raise UnsupportedFormat("not an upseal blob")
    data.take(3)
    if data.number(1) != 1:
        raise UnsupportedFormat("version")
    cipher = data.number(1)
    if cipher not in (AES, CHACHA):
        raise UnsupportedFormat("cipher")
    count = data.number(1)
    if not 1 <= count <= MAX_RECIPIENTS:
        raise OpenError("number of recipients")
    entries = {}
    for _ in range(count):
        suite = data.number(2)
        if suite not in WRAPPED_LENGTH:
            raise UnsupportedFormat("suite")
        key_id, length = data.take(8), data.number(2)
        least, most = WRAPPED_LENGTH[suite]
        if not least <= length <= most:
            raise OpenError("length of a wrapped secret")
        if (suite, key_id) in entries:
            raise OpenError("duplicate recipient")
        entries[suite, key_id] = data.take(length)
    unsigned = data.blob[: data.at]
    return Header(cipher, [(*k, w) for k, w in entries.items()], unsigned, data.take(32))


def session_keys(secret, unsigned):
    """report_key, batch_key, upload_key, commitment."""
    okm = hkdf_expand(secret, b"upseal/v1 keys" + hashlib.sha512(unsigned).digest(), 128)
    return okm[:32], okm[32:64], okm[64:96], okm[96:]


def unlock(header, keys):
    """The session keys, by the first entry that is ours; only the commitment can fail."""
    ours = {(key.suite, key.key_id): key for key in keys}
    for suite, key_id, wrapped in header.entries:  # noqa: B007
        if (suite, key_id) in ours:
            break
    else:
        raise UnknownRecipient
    try:
        secret = ours[suite, key_id].unwrap(wrapped)
    except Exception:  # whatever it was: from here on it must look like a wrong secret
        secret = b""
    if len(secret) != 32:
        secret = os.urandom(32)
    *session, commitment = session_keys(secret, header.unsigned)
    if not hmac.compare_digest(commitment, header.commitment):
        raise OpenError("commitment")
    return session


def read_kind(data, wanted):
    kind = data.number(1)
    if kind not in KINDS:
        raise UnsupportedFormat("kind")
    if kind not in wanted:
        raise OpenError("this kind is opened by another call")
    return kind


def decrypt(aead, nonce, sealed, aad):
    try:
        return aead.decrypt(nonce, sealed, aad)
    except Exception:
        raise OpenError("tag") from None


# ---- the three kinds -----------------------------------------------------------------------------


def open_envelope(blob, context, keys):
    data = Input(blob)
    header = read_header(data)
    kind = read_kind(data, (ENVELOPE, ENVELOPE | PADDED))
    body = data.rest()
    if len(body) < 24 + TAG + (kind >> 7):
        raise Truncated
    if len(body) > 24 + MAX_PLAINTEXT + TAG:
        raise OpenError("too long")
    report_key, _, _ = unlock(header, keys)
    aead, nonce = report_aead(header.cipher, report_key, body[:24])
    report = decrypt(aead, nonce, body[24:], envelope_aad(kind, context))
    return unpad(report) if kind & PADDED else report


def open_batch(blob, context, keys):
    data = Input(blob)
    header = read_header(data)
    kind = read_kind(data, (BATCH, BATCH | PADDED))
    base_nonce, count = data.take(24), data.number(4)
    if not 1 <= count <= MAX_COUNT:
        raise OpenError("number of records")
    table = data.take(4 * count)
    lengths = struct.unpack(f">{count}I", table)
    least = TAG + (kind >> 7)
    if not all(least <= length <= MAX_PLAINTEXT + TAG for length in lengths):
        raise OpenError("length of a record")
    if sum(lengths) - TAG * count > MAX_BATCH:
        raise OpenError("too much in one batch")
    records = [data.take(length) for length in lengths]
    if data.rest():
        raise OpenError("trailing bytes")
    _, batch_key, _ = unlock(header, keys)
    reports = []
    for i, record in enumerate(records):
        aead, nonce = report_aead(header.cipher, batch_key, record_nonce(base_nonce, i))
        report = decrypt(aead, nonce, record, record_aad(kind, i, count, context))
        reports.append(unpad(report) if kind & PADDED else report)
    return reports


def read_upload(blob, context, keys):
    data = Input(blob)
    header = read_header(data)
    read_kind(data, (UPLOAD,))
    salt, commitment = data.take(24), data.take(32)
    _, _, upload_key = unlock(header, keys)
    aead, base_nonce, expected = upload_aead(header.cipher, upload_key, salt, context)
    if not hmac.compare_digest(commitment, expected):
        raise OpenError("upload commitment")
    out, left, k = [], data.rest(), 0
    while len(left) >= CHUNK + TAG:
        out.append(decrypt(aead, chunk_nonce(base_nonce, k), left[: CHUNK + TAG], None))
        left, k = left[CHUNK + TAG :], k + 1
    if len(left) < TAG:
        raise Truncated
    if k >= MAX_CHUNKS:
        raise OpenError("too many chunks")
    out.append(decrypt(aead, chunk_nonce(base_nonce, k), left, None))
    return b"".join(out)


CALLS = {"open": open_envelope, "open_batch": open_batch, "reader": read_upload}
