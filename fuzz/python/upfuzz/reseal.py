# SPDX-License-Identifier: Apache-2.0
"""A blob taken apart under the keys of the targets, changed, and sealed again.

What comes out has the commitment and the tags that belong to it, so the change reaches what stands
behind them. By the second implementation: it shares no code with what is fuzzed.
"""

from dataclasses import dataclass, field

import generate as gen
import reference as ref

from upfuzz import world

KINDS = (1, 2, 3, 0x81, 0x82)


@dataclass
class Parts:
    """Of an envelope, a batch or an upload, in clear."""

    entries: list
    secret: bytes
    cipher: int
    kind: int
    nonce: bytes
    """Or the salt of an upload."""
    plains: list
    """Of records with their padding, or of chunks."""
    context: bytes
    magic: bytes = b"USL\x01"
    recipients: int | None = None
    """How many the header says there are."""
    total: int | None = None
    """How many records a batch says there are."""
    lengths: list | None = None
    """Of records, as the table has them."""
    places: list | None = None
    """The place that each record or chunk is sealed for."""
    order: list | None = None
    """In which sealed records or chunks stand there."""
    commitment: bytes | None = None
    """Of the header, where it is not the one that belongs to it; and the same of an upload."""
    upload_commitment: bytes | None = None
    tail: bytes = b""
    cut: int | None = None
    spoilt: list = field(default_factory=list)
    """Offsets of bits that are turned at last."""


def take_apart(blob, context=world.CONTEXT):
    """The parts, or None where it does not open."""
    data = ref.Input(blob)
    try:
        header = ref.read_header(data)
        entries = [s.to_bytes(2, "big") + k + len(w).to_bytes(2, "big") + w
                   for s, k, w in header.entries]  # fmt: skip
        secret = _secret(header)
        kind = ref.read_kind(data, KINDS)
        fields = (entries, secret, header.cipher, kind)
        if kind & 0x7F == 1:
            padded = _open_padded(blob, kind, secret, header, data.rest(), context)
            return Parts(*fields, data.take(24), [padded], context)
        if kind & 0x7F == 2:
            return _batch(fields, header, data, context)
        return _upload(fields, header, data, context)
    except (ref.OpenError, ValueError, KeyError):
        return None


def _secret(header):
    keys = {(key.suite, key.key_id): key for key in world.reference_keys()}
    for suite, key_id, wrapped in header.entries:
        if (suite, key_id) in keys:
            try:
                secret = keys[suite, key_id].unwrap(wrapped)
            except Exception:
                raise ref.OpenError from None
            if len(secret) == 32:
                return secret
    raise ref.OpenError


def _open_padded(blob, kind, secret, header, body, context):
    if len(body) < 40:
        raise ref.Truncated
    key = ref.session_keys(secret, header.unsigned)[0]
    aead, nonce = ref.report_aead(header.cipher, key, body[:24])
    return ref.decrypt(aead, nonce, body[24:], ref.envelope_aad(kind, context))


def _batch(fields, header, data, context):
    nonce, total = data.take(24), data.number(4)
    if not 1 <= total <= 4096:
        raise ref.OpenError
    lengths = [data.number(4) for _ in range(total)]
    key = ref.session_keys(fields[1], header.unsigned)[1]
    plains = []
    for i, length in enumerate(lengths):
        aead, own = ref.report_aead(header.cipher, key, ref.record_nonce(nonce, i))
        aad = ref.record_aad(fields[3], i, total, context)
        plains.append(ref.decrypt(aead, own, data.take(length), aad))
    return Parts(*fields, nonce, plains, context)


def _upload(fields, header, data, context):
    salt, _ = data.take(24), data.take(32)
    key = ref.session_keys(fields[1], header.unsigned)[2]
    aead, base, _ = ref.upload_aead(header.cipher, key, salt, context)
    plains, left = [], data.rest()
    while left:
        piece, left = left[: ref.CHUNK + 16], left[ref.CHUNK + 16 :]
        plains.append(ref.decrypt(aead, ref.chunk_nonce(base, len(plains)), piece, None))
    return Parts(*fields, salt, plains, context)


def put_together(parts):
    """The blob that these parts make."""
    p = parts
    session = gen.Session(p.entries, p.secret, p.cipher, p.magic, p.recipients)
    if p.commitment is not None:
        session.header = session.unsigned + p.commitment
    places = p.places or list(range(len(p.plains)))
    kind = p.kind & 0x7F
    if kind == 2:
        total = len(p.plains) if p.total is None else p.total
        sealed = [
            gen.seal_report(session.cipher, session.batch_key, ref.record_nonce(p.nonce, i), plain,
                            ref.record_aad(p.kind, i, total, p.context))
            for i, plain in zip(places, p.plains, strict=False)
        ]  # fmt: skip
        sealed = [sealed[i] for i in p.order or range(len(sealed)) if i < len(sealed)]
        blob = gen.batch(session, p.nonce, sealed, p.kind, count=p.total, lengths=p.lengths)
    elif kind == 3:
        aead, base, commitment = ref.upload_aead(p.cipher, session.upload_key, p.nonce, p.context)
        sealed = [
            aead.encrypt(ref.chunk_nonce(base, i), plain, None)
            for i, plain in zip(places, p.plains, strict=False)
        ]
        sealed = [sealed[i] for i in p.order or range(len(sealed)) if i < len(sealed)]
        front = p.nonce + (p.upload_commitment or commitment)
        blob = session.header + bytes([p.kind]) + front + b"".join(sealed)
    else:
        blob = gen.envelope(session, p.nonce, p.plains[0] if p.plains else b"", p.context, p.kind)
    blob = bytearray(blob + p.tail)
    for at in p.spoilt:
        blob[at % len(blob)] ^= 1
    return bytes(blob if p.cut is None else blob[: p.cut % (len(blob) + 1)])


def mutate(data, rnd, plain, context=world.CONTEXT):
    """A blob with one to three things about it changed, and sealed again."""
    parts = take_apart(data, context)
    if parts is None or not rnd.randrange(6):
        return plain(data)
    for _ in range(rnd.choice((1, 1, 2, 3))):
        rnd.choice(_CHANGES)(parts, rnd, plain)
    return put_together(parts)


# -- changes ---------------------------------------------------------------------------------------


def _text(p, rnd, plain):
    """What is sealed."""
    if p.plains:
        at = rnd.randrange(len(p.plains))
        p.plains[at] = plain(p.plains[at])[: 2 * ref.CHUNK]


def _padding(p, rnd, plain):
    """Padding of every kind, right and wrong."""
    if not p.plains:
        return
    at = rnd.randrange(len(p.plains))
    report = p.plains[at].rstrip(b"\0").removesuffix(b"\x80")
    p.plains[at] = rnd.choice(
        (
            ref.pad(report), ref.pad(report) + b"\0", ref.pad(report)[:-1], report + b"\x80",
            report, bytes(len(report)), b"\x80", b"", ref.pad(report + b"\x80\0"),
            b"\x80" + bytes(max(0, len(report) - 1)), ref.pad(report).replace(b"\x80", b"\x81"),
        )
    )  # fmt: skip
    if rnd.randrange(2) and p.kind & 0x7F != 3:
        p.kind |= 0x80


def _records(p, rnd, plain):
    """More of them, fewer, others."""
    match rnd.randrange(6):
        case 0:
            p.plains = p.plains[: rnd.randrange(len(p.plains) + 1)]
        case 1 if p.plains:
            p.plains.insert(rnd.randrange(len(p.plains) + 1), rnd.choice(p.plains))
        case 2:
            p.plains.append(rnd.randbytes(rnd.choice((0, 1, 15, 16, 17, 255, 300))))
        case 3 if p.kind == 3:
            p.plains.append(bytes(rnd.choice((0, 1, ref.CHUNK - 1, ref.CHUNK, ref.CHUNK + 1))))
        case 4 if p.kind == 3 and p.plains:
            p.plains[-1] = p.plains[-1].ljust(ref.CHUNK, b"x")
        case _:
            p.plains = [b"x"] * rnd.choice((2, 7, 8, 9, 33))


def _places(p, rnd, plain):
    """Sealed for another place than the one where they stand."""
    count = len(p.plains)
    if count:
        p.places = list(range(count))
        if rnd.getrandbits(1):
            p.places[rnd.randrange(count)] = rnd.choice((0, count, 2**20 - 1, 2**20))
        else:
            p.order = sorted(range(count), key=lambda _: rnd.random())


def _table(p, rnd, plain):
    """What a batch says of itself."""
    lengths = [len(text) + 16 for text in p.plains]
    if rnd.getrandbits(1) and lengths:
        at, to = rnd.randrange(len(lengths)), rnd.randrange(len(lengths))
        by = rnd.choice((1, -1, 16, -16, 2**24, 2**32 - 1))
        lengths[at] = (lengths[at] + by) % 2**32
        if rnd.getrandbits(1):
            lengths[to] = (lengths[to] - by) % 2**32
        p.lengths = lengths
    else:
        p.total = rnd.choice((0, 1, len(lengths) + 1, max(0, len(lengths) - 1), 2**20, 2**20 + 1,
                              2**31, 2**32 - 1))  # fmt: skip


def _kind(p, rnd, plain):
    p.kind = rnd.choice((*KINDS, *KINDS, 0, 0x83, 0x80, 0xFF))
    if p.kind in (1, 0x81) and not p.plains:
        p.plains = [b""]


def _cipher(p, rnd, plain):
    p.cipher = rnd.choice((1, 2, 1, 2, 0, 3, 255))


def _nonce(p, rnd, plain):
    p.nonce = rnd.choice((rnd.randbytes(24), bytes(24), b"\xff" * 24))


def _context(p, rnd, plain):
    p.context = rnd.choice((b"", b"other", p.context + b"\0", p.context[:-1]))


def _entries(p, rnd, plain):
    """Recipients: another order, doubles, strangers, other lengths."""
    entries = p.entries
    at = rnd.randrange(len(entries)) if entries else 0
    match rnd.randrange(9):
        case 0 if entries:
            del entries[at]
        case 1 if entries:
            entries.insert(rnd.randrange(len(entries) + 1), entries[at])
        case 2:
            entries.sort(key=lambda _: rnd.random())
        case 3 if entries:
            entry = entries[at]
            entries[at] = entry[:2] + rnd.randbytes(8) + entry[10:]
        case 4 if entries:
            entries[at] = rnd.choice((b"\0\x10", b"\0\x20", b"\x64\x7a", b"\xff\x01", b"\0\0"))
            entries[at] += rnd.randbytes(8) + b"\x01\x00" + rnd.randbytes(256)
        case 5 if entries:
            entry = bytearray(entries[at])
            length = int.from_bytes(entry[10:12], "big") + rnd.choice((-1, 1, 256, 65000))
            entry[10:12] = (length % 65536).to_bytes(2, "big")
            entries[at] = bytes(entry)
        case 6:
            p.recipients = rnd.choice((0, 1, len(entries) + 1, 16, 17, 255))
        case 7 if entries:
            spoilt = bytearray(entries[at])
            spoilt[rnd.randrange(12, max(13, len(spoilt))) % len(spoilt)] ^= 1 << rnd.randrange(8)
            entries[at] = bytes(spoilt)
        case _:
            name = rnd.choice((*world.RECIPIENTS, "x25519-b", "x25519-r01", "x25519-r02"))
            wrapped = _wrapped(p, rnd, name)
            if wrapped not in entries and len(entries) < 16:
                entries.insert(rnd.randrange(len(entries) + 1), wrapped)


def _wrapped(p, rnd, name):
    key = world.private(name).public_key
    secret = rnd.choice((p.secret, p.secret, p.secret, bytes(31), bytes(33), b"", bytes(32)))
    wrapped = key.wrap(secret)
    return key.suite.to_bytes(2, "big") + key.key_id + len(wrapped).to_bytes(2, "big") + wrapped


def _commitment(p, rnd, plain):
    wrong = rnd.choice((bytes(32), rnd.randbytes(32)))
    if p.kind == 3 and rnd.getrandbits(1):
        p.upload_commitment = wrong
    else:
        p.commitment = wrong


def _ends(p, rnd, plain):
    if rnd.getrandbits(1):
        p.tail = rnd.choice((b"\0", bytes(15), bytes(16), b"USL\x01"))
    else:
        p.cut = rnd.randrange(1 << 16)


def _spoil(p, rnd, plain):
    p.spoilt = [rnd.randrange(1 << 16)]


def _magic(p, rnd, plain):
    p.magic = rnd.choice((b"USL\0", b"USL\x02", b"USK\x01", b"usl\x01"))


_CHANGES = (
    _text, _text, _text, _padding, _padding, _records, _records, _places, _table, _kind, _kind,
    _cipher, _nonce, _context, _entries, _entries, _commitment, _ends, _spoil, _magic,
)  # fmt: skip
