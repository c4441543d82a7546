# SPDX-License-Identifier: Apache-2.0
"""Target: the reader of uploads, in every way that one can be read, against two other openers.

Those are the second implementation and, for AES, `cryptography.cobblestone`.
"""

import base64
import io
import json
import zlib
from random import Random

import reference as ref
from cryptography.cobblestone import Cobblestone256Decryptor
from cryptography.exceptions import InvalidTag

from upfuzz import ROOT, reseal, world
from upfuzz.harness import Target, check, same
from upfuzz.openers import Drip, openers, reference_verdict, verdict


class Opaque(io.BytesIO):
    """A seekable file that is not memory to the reader, and reads short."""

    def readinto(self, target):
        return super().readinto(memoryview(target)[:5000])


def run_upload(data):
    expected = reference_verdict(ref.read_upload, data)
    same(expected if isinstance(expected, bytes) else None, _cobblestone(data, expected))
    chunks = _chunks(data)
    rnd = Random(zlib.crc32(data))
    opened = openers()[:-1]
    for opener in opened:
        _pipe(opener, data, expected, chunks, rnd)
        _whole(opener, io.BytesIO(data), expected, chunks, rnd)
    _whole(opened[rnd.randrange(len(opened))], Opaque(data), expected, chunks, rnd)
    for opener in opened:
        _seeking(opener, rnd.choice((io.BytesIO, Opaque))(data), expected, chunks, rnd)


def _chunks(data):
    """What each chunk holds, None where it is forged; None if not even the front opens."""
    try:
        source = ref.Input(data)
        header = ref.read_header(source)
        ref.read_kind(source, (3,))
        salt, commitment = source.take(24), source.take(32)
        key = ref.unlock(header, world.reference_keys())[2]
    except ref.OpenError:
        return None
    aead, base, right = ref.upload_aead(header.cipher, key, salt, world.CONTEXT)
    if commitment != right:
        return None
    found, left = [], source.rest()
    while left:
        piece, left = left[: ref.CHUNK + 16], left[ref.CHUNK + 16 :]
        try:
            found.append(ref.decrypt(aead, ref.chunk_nonce(base, len(found)), piece, None))
        except ref.OpenError:
            found.append(None)
    return found


def _good_front(chunks):
    """All that may be handed out before the first forged chunk."""
    out = b""
    for chunk in chunks or ():
        if chunk is None:
            break
        out += chunk
    return out


def _cobblestone(data, expected):
    """By `cryptography`: the plaintext, or None. Only AES; of the other cipher it says the same."""
    try:
        source = ref.Input(data)
        header = ref.read_header(source)
        kind = ref.read_kind(source, (3,))
        key = ref.unlock(header, world.reference_keys())[2]
    except ref.OpenError:
        return None
    if header.cipher != ref.AES:
        return expected if isinstance(expected, bytes) else None
    decryptor = Cobblestone256Decryptor(key, bytes([kind]) + world.CONTEXT)
    try:
        return bytes(decryptor.update(source.rest())) + bytes(decryptor.finalize())
    except (InvalidTag, ValueError):
        return None


def _pipe(opener, data, expected, chunks, rnd):
    """In order, from something that cannot seek."""
    out = bytearray()

    def elsewhere():
        with opener.reader(io.BytesIO(data), world.CONTEXT + b"!") as reader:
            out.extend(reader.read())
        return bytes(out)

    def in_context():
        source = Drip(data, rnd.choice((1 + len(data) // 50, 4096, 1 << 20)))
        with opener.reader(source, world.CONTEXT) as reader:
            while piece := reader.read(rnd.choice((1 + len(data) // 20, 16383, 16384, 1 << 18))):
                out.extend(piece)
            same(reader.size, len(out))
        return bytes(out)

    same(verdict(in_context), expected)
    good = _good_front(chunks)
    check(good.startswith(bytes(out)), "a pipe hands out what has not verified")
    out.clear()
    check(not isinstance(verdict(elsewhere), bytes), "it opens in another context")
    check(not out, "another context's plaintext")


def _whole(opener, file, expected, chunks, rnd):
    """From the front to the end of a seekable file. Its length is looked at first."""
    out = bytearray()

    def read():
        with opener.reader(file, world.CONTEXT) as reader:
            room = bytearray(rnd.choice((1000, 16384, 40000)))
            while True:
                if rnd.getrandbits(1):
                    piece = reader.read(rnd.choice((1000, 16384, 1 << 18, -1)))
                else:
                    piece = bytes(room[: reader.readinto(room)])
                if not piece:
                    break
                out.extend(piece)
            same(reader.size, reader.tell(), len(out))
        return bytes(out)

    found = verdict(read)
    if isinstance(expected, bytes) or isinstance(found, bytes) or chunks is None:
        same(found, expected)
    else:
        check(found in (expected, "Truncated"), f"{found}, not {expected}")
    check(_good_front(chunks).startswith(bytes(out)), "a file hands out what has not verified")


def _seeking(opener, file, expected, chunks, rnd):
    """Here and there."""
    plain = None if chunks is None else [c if c is not None else b"" for c in chunks]

    def read():
        with opener.reader(file, world.CONTEXT) as reader:
            for _ in range(6):
                at = reader.seek(rnd.randrange(reader.size + 2))
                piece = reader.read(rnd.choice((1, 50, 16384, 20000)))
                _check_piece(piece, at, plain)
                if rnd.getrandbits(1):
                    same(reader.seek(0, io.SEEK_END), reader.size)
                    same(reader.read(5), b"")
        return True

    found = verdict(read)
    check(found is True or not isinstance(expected, bytes), f"{found}, though it is genuine")


def _check_piece(piece, at, plain):
    check(plain is not None, "plaintext of what does not open")
    for number, chunk in enumerate(plain):
        start = number * ref.CHUNK
        first, last = max(at, start), min(at + len(piece), start + ref.CHUNK)
        if first < last:
            same(piece[first - at : last - at], chunk[first - start : last - start])


_LONG = ("upload-length-0-chacha", "upload-length-16384-aes", "upload-length-16385-chacha")


def _seeds():
    """Lengths round a chunk, both ciphers; short ones for every suite."""
    for vector in json.loads((ROOT / "tests/vectors/valid.json").read_text())["vectors"]:
        if vector["kind"] != "upload":
            continue
        parts = reseal.take_apart(
            base64.b64decode(vector["blob"]), bytes.fromhex(vector["context"])
        )
        short = len(vector["blob"]) < 1000 and parts is not None and parts.cipher == 1
        if parts is not None and (vector["name"] in _LONG or short):
            parts.context = world.CONTEXT
            yield reseal.put_together(parts)


TARGETS = {
    "upload": Target(
        "upload", run_upload, _seeds, reseal.mutate, "blob.dict", longest=1 << 16,
        memory=12 << 20,
    )
}  # fmt: skip
