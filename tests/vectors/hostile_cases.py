"""The hostile vectors: each is a valid one that is wrong in exactly one way.

Where a part of the blob is bound by a later part, the later part is made again: a header that was
changed gets the keys and the commitment that belong to the changed header, a body that was changed
is sealed again. So an opener that leaves out one check lets at least one of these pass.
"""

# A case is to take one or two lines, so the formatter stays away:
# fmt: off

import base64
import struct

import generate as g
import reference as ref
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding

OPEN, UNKNOWN = "OpenError", "UnknownRecipient"
UNSUPPORTED, TRUNCATED = "UnsupportedFormat", "Truncated"
CALL = {"envelope": "open", "batch": "open_batch", "upload": "reader"}


def flip(data, at, bits=1):
    data = bytearray(data)
    data[at] ^= bits
    return bytes(data)


class Base:
    """A valid vector, in pieces that can be put together again in other ways."""

    def __init__(self, vector):
        self.vector, self.name, self.cipher = vector, vector["name"], vector["cipher"]
        self.blob = base64.b64decode(vector["blob"])
        self.header = bytes.fromhex(vector["header"])
        self.context = bytes.fromhex(vector["context"])
        self.body = self.blob[len(self.header) :]
        self.secret, at = bytes.fromhex(vector["session_secret"]), 6
        self.entries = []
        for _ in range(self.header[5]):
            end = at + 12 + int.from_bytes(self.header[at + 10 : at + 12], "big")
            self.entries.append(self.header[at:end])
            at = end
        self.s = g.Session(self.entries, self.secret, self.cipher)
        assert self.s.header == self.header
        self.nonce, self.salt = (bytes.fromhex(vector.get(k, "")) for k in ("nonce", "salt"))
        reports = [bytes.fromhex(r) for r in vector.get("reports", [])]
        self.plaintexts = [ref.pad(r) for r in reports] if vector["padded"] else reports

    def session(self, entries=None, **changes):
        """The same secret under another header, with everything derived from that header."""
        changes.setdefault("cipher", self.cipher)
        return g.Session(self.entries if entries is None else entries, self.secret, **changes)


class Cases:
    def __init__(self, recipients, valid):
        self.recipients, self.vectors = recipients, []
        self.base = lambda name: Base(valid[name])

    def add(self, base, name, error, comment, blob, *, call=None, keys=None, context=None):
        self.vectors.append({
            "name": name, "comment": comment, "base": base and base.name,
            "call": call or CALL[base.vector["kind"]],
            "keys": list(keys or base.vector["recipients"][:1]),
            "context": (base.context if context is None else context).hex(),
            "blob": base64.b64encode(blob).decode(), "error": error,
        })


# ---- the header ----------------------------------------------------------------------------------


def header(c):
    b = c.base("envelope-worked-example")
    (plain,), (entry,) = b.plaintexts, b.entries
    x25519 = c.recipients["x25519-a"]

    def add(name, error, comment, s, **more):
        c.add(b, f"header-{name}", error, comment, g.envelope(s, b.nonce, plain, b.context), **more)

    def cut(name, length, comment, error=TRUNCATED):
        c.add(b, f"header-{name}", error, comment, b.blob[:length])

    cut("empty", 0, "no bytes at all")
    cut("cut-in-magic", 2, "ends inside the magic")
    cut("cut-before-version", 3, "ends after the magic")
    cut("cut-before-cipher", 4, "ends before the cipher")
    cut("cut-before-recipients", 5, "ends before the number of recipients")
    cut("cut-before-entries", 6, "ends before the first entry")
    cut("cut-in-suite", 7, "ends inside the suite")
    cut("cut-in-key-id", 12, "ends inside the key id")
    cut("cut-in-length", 17, "ends inside the length of the wrapped secret")
    cut("cut-before-wrapped", 18, "ends before the wrapped secret")
    cut("cut-in-wrapped", 97, "one byte of the wrapped secret is missing")
    cut("cut-before-commitment", 98, "ends before the commitment")
    cut("cut-in-commitment", 129, "one byte of the commitment is missing")
    cut("cut-before-kind", 130, "a whole header and nothing after it")
    two = c.base("envelope-2-recipients-aes")
    c.add(two, "header-cut-before-second-entry", TRUNCATED, "ends before the second of two entries",
          two.blob[:98])

    c.add(b, "header-one-wrong-byte", UNSUPPORTED, "one byte, and it is not the magic's first",
          b"V")
    c.add(b, "header-two-wrong-bytes", UNSUPPORTED, "two bytes, the second wrong", b"UX")
    add("magic-lower-case", UNSUPPORTED, "magic usl", b.session(magic=b"usl\x01"))
    add("magic-third-byte", UNSUPPORTED, "magic USM", b.session(magic=b"USM\x01"))
    add("magic-pem", UNSUPPORTED, "magic ---", b.session(magic=b"---\x01"))
    add("leading-byte", UNSUPPORTED, "a zero byte before the magic", b.session(magic=b"\0USL\x01"))
    add("version-0", UNSUPPORTED, "version 0", b.session(magic=b"USL\x00"))
    add("version-2", UNSUPPORTED, "version 2", b.session(magic=b"USL\x02"))
    c.add(b, "header-version-2-alone", UNSUPPORTED, "version 2 and nothing after it", b"USL\x02")
    for cipher in (0, 3, 255):
        s = b.session(cipher=cipher)
        s.cipher = 1  # for the body, which no opener gets to
        add(f"cipher-{cipher}", UNSUPPORTED, f"cipher {cipher}", s)

    many = [c.recipients.entry(f"x25519-r{i:02}", b.secret) for i in range(1, 18)]
    add("recipients-0", OPEN, "no recipients", b.session([]))
    add("recipients-17", OPEN, "17 recipients", b.session(many), keys=["x25519-r01"])
    add("recipients-255", OPEN, "says 255 recipients and has one", b.session(count=255))

    def entry_with(suite=ref.X25519, key_id=x25519.key_id, wrapped=entry[12:], length=None):
        return g.make_entry(suite, key_id, wrapped, length)

    for suite in (0x0000, 0x0011, 0x0021, 0x2000, 0xFF00, 0xFFFF):
        add(f"suite-{suite:04x}", UNSUPPORTED, "a suite that does not exist",
            b.session([entry_with(suite=suite)]))
    add("second-suite-unknown", UNSUPPORTED, "our entry, then one of a suite that does not exist",
        b.session([entry, entry_with(0x0012)]))
    for name, wrapped in {"79": entry[12:-1], "81": entry[12:] + b"\0", "0": b""}.items():
        add(f"x25519-length-{name}", OPEN, f"wrapped secret of {name} bytes, length field agreeing",
            b.session([entry_with(wrapped=wrapped)]))
    for name, length in {"less": 79, "more": 81, "most": 65535}.items():
        add(f"x25519-length-field-{name}", OPEN, f"80 bytes wrapped, length field {length}",
            b.session([entry_with(length=length)]))
    add("duplicate-entry", OPEN, "the same entry twice", b.session([entry, entry]))
    add("duplicate-key-id", OPEN, "two entries for one key, wrapping different bytes",
        b.session([entry, entry_with(wrapped=flip(entry[12:], 79))]))
    add("x25519-as-p256-id", UNKNOWN, "our key id, but under suite P-256",
        b.session([entry_with(ref.P256, wrapped=c.recipients.wrap("p256-a", b.secret))]))
    add("key-id-bit", UNKNOWN, "one bit of the key id flipped, the rest made for it",
        b.session([entry_with(key_id=flip(x25519.key_id, 7))]))
    add("entry-replaced", UNKNOWN, "wrapped to another recipient",
        b.session([c.recipients.entry("x25519-b", b.secret)]))
    add("entry-for-other-key", OPEN, "our key id on a secret that was wrapped to another key",
        b.session([entry_with(wrapped=c.recipients.wrap("x25519-b", b.secret))]))
    c.add(b, "header-unknown-key", UNKNOWN, "a good envelope for somebody else", b.blob,
          keys=["x25519-b"])
    c.add(b, "header-unknown-suite-key", UNKNOWN, "good, the opener holds other suites", b.blob,
          keys=["p256-a", "rsa2048-a", "mlkem768-x25519-a"])

    for place, at in {"first": 0, "last": 31}.items():
        c.add(b, f"header-commitment-{place}-byte", OPEN, f"{place} byte of the commitment flipped",
              flip(b.blob, len(b.header) - 32 + at))
    s = b.session()
    s.header = s.unsigned + bytes(32)
    add("commitment-zeros", OPEN, "commitment all zeros", s)
    s.header = s.unsigned + ref.session_keys(b.secret, s.unsigned + s.commitment)[3]
    add("commitment-of-whole-header", OPEN, "commitment that counts itself as part of the header",
        s)
    strange = c.base("envelope-context-short")
    c.add(b, "header-of-another-session", OPEN, "the header of another session, same recipient",
          strange.header + b.body)
    s = b.session()
    s.header = s.unsigned + strange.s.commitment
    add("commitment-of-another-session", OPEN, "the commitment of another session", s)
    c.add(b, "header-cipher-bit-only", OPEN, "cipher 1 changed to 2, nothing made again",
          flip(b.blob, 4, 3))
    c.add(two, "header-recipient-dropped", OPEN, "one of two entries taken out, nothing made again",
          b"USL\x01\x01\x01" + two.entries[0] + two.s.commitment + two.body)
    c.add(two, "header-recipients-swapped", OPEN, "two entries swapped, nothing made again",
          b"USL\x01\x01\x02" + two.entries[1] + two.entries[0] + two.s.commitment + two.body)


# ---- the wrapped secret --------------------------------------------------------------------------


def wrapped(c):
    def add(key, name, comment, wrapped, base=None, secret=None):
        b = c.base(base or f"envelope-{key[:-2]}-aes")
        ours = c.recipients[key]
        entry = g.make_entry(ours.suite, ours.key_id, wrapped)
        s = g.Session([entry], b.secret if secret is None else secret, b.cipher)
        c.add(b, f"wrapped-{name}", OPEN, comment,
              g.envelope(s, b.nonce, b.plaintexts[0], b.context))

    def good(key):
        b = c.base(f"envelope-{key}-aes")
        return b.secret, b.entries[0][12:]

    def flipped(key, name, at, what):
        add(f"{key}-a", f"{key}-{name}", f"{what}: one bit flipped", flip(good(key)[1], at))

    flipped("x25519", "enc", 5, "the ephemeral key")
    flipped("x25519", "ciphertext", 40, "the ciphertext")
    flipped("x25519", "tag", 79, "the tag")
    add("x25519-a", "x25519-zero-enc", "ephemeral key all zeros: the shared secret would be zero",
        bytes(32) + good("x25519")[1][32:])
    flipped("p256", "ciphertext", 66, "the ciphertext")
    flipped("p256", "point", 30, "the ephemeral point, which now is on no curve")
    add("p256-a", "p256-compressed-marker", "point marked 02 and 65 bytes long",
        b"\x02" + good("p256")[1][1:])
    add("p256-a", "p256-zero-point", "point all zeros", bytes(65) + good("p256")[1][65:])
    flipped("mlkem768-x25519", "mlkem", 10, "the ML-KEM ciphertext")
    flipped("mlkem768-x25519", "x25519", 1100, "the X25519 part")
    flipped("mlkem768-x25519", "tag", 1167, "the tag")
    flipped("rsa2048", "bit", 100, "the RSA ciphertext")
    add("rsa2048-a", "rsa-all-ones", "a number above the modulus", b"\xff" * 256)
    add("rsa2048-a", "rsa-zero", "the number 0", bytes(256))
    add("rsa2048-a", "rsa-longer-than-modulus", "384 bytes for a 2048-bit key",
        good("rsa2048")[1].rjust(384, b"\0"))

    # RSA-OAEP carries any length, so here only the length of the secret itself is wrong. The keys
    # are derived from the secret as it is: an opener that does not look at its length opens these.
    for length in (0, 16, 31, 33, 64):
        secret = g.derived("short and long secrets", str(length), 32) * 2
        secret = secret[:length]
        add("rsa2048-a", f"rsa-secret-of-{length}", f"a session secret of {length} bytes",
            c.recipients.wrap("rsa2048-a", secret), secret=secret)

    def other_way(key, name, comment, make):
        made = c.recipients.wrap(f"{key}-a", good(key)[0], name, make)
        add(f"{key}-a", f"{key}-{name}", comment, made)

    def hpke_with(info=ref.HPKE_INFO, kem=hpke.KEM.X25519, kdf=hpke.KDF.HKDF_SHA256,
                  aead=hpke.AEAD.AES_256_GCM):
        return lambda key, secret: hpke.Suite(kem, kdf, aead).encrypt(secret, key.public, info=info)

    def oaep(mgf1=hashes.SHA256, digest=hashes.SHA256, label=None):
        way = rsa_padding.OAEP(rsa_padding.MGF1(mgf1()), digest(), label)
        return lambda key, secret: key.public.encrypt(secret, way)

    other_way("x25519", "no-info", "HPKE with an empty info", hpke_with(info=b""))
    other_way("x25519", "readiness-info", "HPKE with info for another use",
              hpke_with(info=b"upseal/v1 readiness"))
    other_way("x25519", "chacha", "HPKE with ChaCha20-Poly1305",
              hpke_with(aead=hpke.AEAD.CHACHA20_POLY1305))
    other_way("x25519", "sha512", "HPKE with HKDF-SHA512", hpke_with(kdf=hpke.KDF.HKDF_SHA512))
    other_way("rsa2048", "sha1", "OAEP with SHA-1", oaep(hashes.SHA1, hashes.SHA1))
    other_way("rsa2048", "mgf1-sha1", "OAEP with SHA-256 and MGF1-SHA-1", oaep(hashes.SHA1))
    other_way("rsa2048", "label", "OAEP with a label", oaep(label=ref.HPKE_INFO))
    other_way("rsa2048", "pkcs1v15", "PKCS #1 v1.5 instead of OAEP",
              lambda key, secret: key.public.encrypt(secret, rsa_padding.PKCS1v15()))

    for length in (255, 513):
        b = c.base("envelope-rsa2048-aes")
        ours = c.recipients["rsa2048-a"]
        s = b.session([g.make_entry(ref.RSA, ours.key_id,
                                    b.entries[0][12:].rjust(length, b"\0")[-length:])])
        c.add(b, f"wrapped-rsa-length-{length}", OPEN, f"RSA: {length} bytes",
              g.envelope(s, b.nonce, b.plaintexts[0], b.context))
    for suite, length in {"p256": 112, "mlkem768-x25519": 1169}.items():
        b = c.base(f"envelope-{suite}-aes")
        s = b.session([g.make_entry(c.recipients[f"{suite}-a"].suite,
                                    c.recipients[f"{suite}-a"].key_id,
                                    b.entries[0][12:].ljust(length, b"\0")[:length])])
        c.add(b, f"wrapped-{suite}-length-{length}", OPEN, f"{suite}: {length} bytes",
              g.envelope(s, b.nonce, b.plaintexts[0], b.context))


# ---- kinds and envelopes -------------------------------------------------------------------------


def envelopes(c):
    b, chacha = c.base("envelope-worked-example"), c.base("envelope-x25519-chacha")
    (plain,), s, at = b.plaintexts, b.s, len(b.header)
    bt, up = c.base("batch-x25519-aes"), c.base("upload-x25519-aes")

    for kind in (0x00, 0x04, 0x80, 0x83, 0x84, 0xFF):
        c.add(b, f"kind-{kind:02x}", UNSUPPORTED, "a kind that does not exist, sealed as such",
              g.envelope(s, b.nonce, plain, b.context, kind))
    for base, calls in ((b, ("open_batch", "reader")), (bt, ("open", "reader")),
                        (up, ("open", "open_batch"))):
        for call in calls:
            kind = base.vector["kind"]
            c.add(base, f"kind-{kind}-by-{call}", OPEN, f"a good {kind}, given to {call}",
                  base.blob, call=call)
    padded = c.base("envelope-padded-9-aes")
    c.add(padded, "kind-padded-envelope-by-open_batch", OPEN,
          "a good padded envelope, given to open_batch",
          padded.blob, call="open_batch")
    c.add(b, "kind-04-to-open_batch", UNSUPPORTED, "kind 04, given to open_batch",
          g.envelope(s, b.nonce, plain, b.context, 4), call="open_batch")

    for name, length in {"nonce": 0, "nonce-short": 23, "ciphertext": 24, "tag": 39}.items():
        c.add(b, f"envelope-cut-{name}", TRUNCATED, f"{length} bytes after the kind",
              b.blob[: at + 1 + length])
    c.add(b, "envelope-cut-by-one", OPEN, "last byte missing: the tag fails", b.blob[:-1])
    c.add(b, "envelope-trailing-byte", OPEN, "one byte more", b.blob + b"\0")
    for name, where in {"nonce-first": at + 1, "nonce-last": at + 24, "ciphertext": at + 25,
                        "tag-first": -16, "tag-last": -1}.items():
        c.add(b, f"envelope-{name}-bit", OPEN, "one bit flipped", flip(b.blob, where))
        c.add(chacha, f"envelope-{name}-bit-chacha", OPEN, "one bit flipped",
              flip(chacha.blob, where if where < 0 else where - at + len(chacha.header)))
    c.add(b, "envelope-tag-top-bit", OPEN, "top bit of the tag's last byte", flip(b.blob, -1, 0x80))
    c.add(b, "envelope-tag-zeros", OPEN, "tag all zeros", b.blob[:-16] + bytes(16))

    for name, context in {"missing": b"", "longer": b.context + b"\0", "shorter": b.context[:-1],
                          "other": b"Demo", "with-kind": b"\x01" + b.context}.items():
        c.add(b, f"envelope-context-{name}", OPEN, "a good envelope, opened with another context",
              b.blob,
              context=context)
    empty = c.base("envelope-empty-aes")
    c.add(empty, "envelope-context-given", OPEN, "sealed without a context, opened with one",
          empty.blob,
          context=b"demo")

    def sealed(name, comment, **more):
        c.add(b, f"envelope-{name}", OPEN, comment,
              g.envelope(s, b.nonce, plain, b.context, **more))

    sealed("without-kind-in-aad", "AAD is the context alone", aad=b.context)
    sealed("without-aad", "no AAD at all", aad=b"")
    sealed("aad-of-padded", "kind 01, sealed with the AAD of kind 81", aad=b"\x81" + b.context)
    sealed("under-batch-key", "sealed under batch_key", key=s.batch_key)
    sealed("under-upload-key", "sealed under upload_key", key=s.upload_key)
    sealed("under-secret", "sealed under the session secret itself", key=s.secret)
    sealed("wrong-cipher", "header says cipher 1, sealed with XChaCha20-Poly1305", cipher=2)
    c.add(chacha, "envelope-wrong-cipher-chacha", OPEN,
          "header says cipher 2, sealed with XAES-256-GCM",
          g.envelope(chacha.s, chacha.nonce, chacha.plaintexts[0], chacha.context, cipher=1))
    plain_gcm = ref.AESGCM(s.report_key).encrypt(b.nonce[:12], plain, b"\x01" + b.context)
    c.add(b, "envelope-plain-gcm", OPEN, "AES-256-GCM with half of the nonce, no XAES",
          s.header + b"\x01" + b.nonce + plain_gcm)
    c.add(b, "envelope-of-another-session", OPEN, "header of this session, body of another",
          s.header + empty.body)
    only = c.base("batch-1-aes")
    c.add(only, "envelope-from-batch", OPEN, "a batch's record dressed up as an envelope",
          only.header + b"\x01" + only.nonce + only.body[33:], call="open")

    c.add(padded, "padded-kind-changed", OPEN, "kind 81 changed to 01",
          flip(padded.blob, len(padded.header), 0x80))
    c.add(padded, "padded-aad-of-unpadded", OPEN, "kind 81, sealed with the AAD of kind 01",
          g.envelope(padded.s, padded.nonce, padded.plaintexts[0], padded.context, 0x81,
                     aad=b"\x01" + padded.context))
    report = bytes.fromhex(padded.vector["reports"][0])  # 9 bytes: padded to 10, and then comes 12
    for name, comment, plaintext in (
        ("empty", "nothing but a tag: even an empty report pads to one byte", b""),
        ("zeros", "all zeros, no marker", bytes(10)),
        ("one-zero", "one zero byte, no marker", bytes(1)),
        ("no-marker", "the report alone, no marker", report + b"\x01"),
        ("marker-81", "marker 81", report + b"\x81"),
        ("marker-00", "zeros where the marker should be", report + b"\0"),
        ("after-marker", "a byte that is not zero after the marker", report[:7] + b"\x80\0\x01"),
        ("one-more", "one zero more than Padmé says: 11 is no Padmé length", report + b"\x80\0"),
        ("one-step-more", "padded to the next Padmé length, 12", report + b"\x80\0\0"),
        ("not-padded-up", "8 bytes and a marker, left at 9", report[:8] + b"\x80"),
        ("far-too-long", "padded to 1024", (report + b"\x80").ljust(1024, b"\0")),
        ("two-for-empty", "an empty report padded to 2, not 1", b"\x80\0"),
    ):
        error = TRUNCATED if name == "empty" else OPEN
        c.add(padded, f"padded-{name}", error, comment,
              g.envelope(padded.s, padded.nonce, plaintext, padded.context, 0x81))


# ---- batches -------------------------------------------------------------------------------------


def batches(c):
    b, chacha, one = c.base("batch-2"), c.base("batch-5-chacha"), c.base("batch-1-aes")
    ones, padded = c.base("batch-nonce-ones-aes"), c.base("batch-padded-aes")
    at = len(b.header) + 1

    def add(name, error, comment, blob, base=b, **more):
        c.add(base, f"batch-{name}", error, comment, blob, **more)

    def made(base=b, plaintexts=None, kind=2, **more):
        plaintexts = base.plaintexts if plaintexts is None else plaintexts
        return g.records(base.s, base.nonce, plaintexts, base.context, kind, **more)

    good = made()
    assert g.batch(b.s, b.nonce, good) == b.blob
    for name, length in {"nonce": 23, "count": 27, "table": 28, "in-table": 35, "records": 36,
                         "last-byte": len(b.body) - 2}.items():
        add(f"cut-{name}", TRUNCATED, f"{length} bytes after the kind", b.blob[: at + length])
    add("trailing-byte", OPEN, "one byte after the last record", b.blob + b"\0")
    add("count-0", OPEN, "count 0, no records", g.batch(b.s, b.nonce, []))
    add("count-0-with-records", OPEN, "count 0, but table and records are there",
        g.batch(b.s, b.nonce, good, count=0))
    add("count-over-limit", OPEN, "count 2^20 + 1", g.batch(b.s, b.nonce, good, count=2**20 + 1))
    add("count-most", OPEN, "count 2^32 - 1", g.batch(b.s, b.nonce, good, count=2**32 - 1))
    add("count-at-limit", TRUNCATED, "count 2^20, which is allowed, with a table of two",
        g.batch(b.s, b.nonce, good, count=2**20))
    for name, length in {"15": 15, "0": 0, "over-limit": 2**24 + 17, "most": 2**32 - 1}.items():
        add(f"length-{name}", OPEN, f"the table gives the second record {length} bytes",
            g.batch(b.s, b.nonce, good, lengths=[len(good[0]), length]))
    add("length-at-limit", TRUNCATED,
        "a record of 2^24 bytes and tag, which is allowed, but is not there",
        g.batch(b.s, b.nonce, good, lengths=[len(good[0]), 2**24 + 16]))
    add("sum-over-limit", OPEN, "65 records of 2^24 bytes: more than 2^30 in all",
        g.batch(b.s, b.nonce, [], count=65, lengths=[2**24 + 16] * 65))
    add("sum-over-limit-by-one", OPEN, "64 records of 2^24 bytes and one of a byte",
        g.batch(b.s, b.nonce, [], count=65, lengths=[2**24 + 16] * 64 + [17]))
    add("sum-at-limit", TRUNCATED,
        "64 records of 2^24 bytes and an empty one: 2^30, which is allowed, not there",
        g.batch(b.s, b.nonce, [], count=65, lengths=[2**24 + 16] * 64 + [16]))
    add("length-one-more", TRUNCATED, "last length says one more",
        g.batch(b.s, b.nonce, good, lengths=[len(good[0]), len(good[1]) + 1]))
    add("length-one-less", OPEN, "last length says one less",
        g.batch(b.s, b.nonce, good, lengths=[len(good[0]), len(good[1]) - 1]))
    add("boundary-moved", OPEN, "first length one more, second one less",
        g.batch(b.s, b.nonce, good, lengths=[len(good[0]) + 1, len(good[1]) - 1]))

    add("swapped", OPEN, "two records of one length swapped", g.batch(b.s, b.nonce, good[::-1]))
    add("record-twice", OPEN, "the first record in both places",
        g.batch(b.s, b.nonce, [good[0]] * 2))
    add("last-dropped", OPEN, "last record dropped, count and table put right",
        g.batch(b.s, b.nonce, good[:1]))
    add("first-dropped", OPEN, "first record dropped, count and table put right",
        g.batch(b.s, b.nonce, good[1:]))
    add("record-added", OPEN, "a third record, sealed for place 2 of 3, after two of 2",
        g.batch(b.s, b.nonce, good + made(plaintexts=[b"", b"", b"six"])[2:]))
    add("record-of-another-batch", OPEN, "second record taken from another batch of the session",
        g.batch(b.s, b.nonce,
                [good[0], g.records(b.s, flip(b.nonce, 0), b.plaintexts, b.context)[1]]))
    for i in range(2):
        add(f"tag-bit-{i}", OPEN, f"tag of record {i}: one bit flipped",
            g.batch(b.s, b.nonce, [flip(r, -1) if i == k else r for k, r in enumerate(good)]))
    add("ciphertext-bit", OPEN, "last record's ciphertext: one bit flipped",
        g.batch(b.s, b.nonce, [good[0], flip(good[1], 0)]))
    five = made(chacha)
    add("tag-bit-chacha", OPEN, "tag of an empty last record: one bit flipped",
        g.batch(chacha.s, chacha.nonce, [*five[:4], flip(five[4], 15)]), chacha)
    add("nonce-bit", OPEN, "one bit of N flipped", flip(b.blob, at))
    add("nonce-last-bit", OPEN, "last bit of N flipped: records would change places",
        flip(b.blob, at + 23))

    add("nonce-added", OPEN, "nonces N + i, not N XOR i",
        g.batch(ones.s, ones.nonce, made(ones, nonces=lambda n, i: (
        (int.from_bytes(n, "big") + i) % 2**192).to_bytes(24, "big"))), ones)
    add("nonce-little-endian", OPEN, "index little-endian in the nonce", g.batch(b.s, b.nonce, made(
        nonces=lambda n, i: n[:20] + ref.xor(n[20:], struct.pack("<I", i)))))
    add("nonce-same", OPEN, "N itself for every record",
        g.batch(b.s, b.nonce, made(nonces=lambda n, i: n)))
    add("nonce-from-1", OPEN, "nonces counted from 1",
        g.batch(b.s, b.nonce, made(nonces=lambda n, i: ref.record_nonce(n, i + 1))))
    aads = {
        "from-1": ("indices counted from 1", lambda k, i, n, ctx: ref.record_aad(k, i + 1, n, ctx)),
        "without-count": ("AAD without the count", lambda k, i, n,
                          ctx: struct.pack(">BI", k, i) + ctx),
        "without-index": ("AAD without the index", lambda k, i, n,
                          ctx: struct.pack(">BI", k, n) + ctx),
        "without-context": ("AAD without the context", lambda k, i, n,
                            ctx: ref.record_aad(k, i, n, b"")),
        "of-envelope": ("AAD as in an envelope", lambda k, i, n, ctx: bytes([k]) + ctx),
        "kind-01": ("AAD with kind 01", lambda k, i, n, ctx: ref.record_aad(1, i, n, ctx)),
        "kind-82": ("AAD with kind 82", lambda k, i, n, ctx: ref.record_aad(0x82, i, n, ctx)),
        "little-endian": ("AAD with little-endian numbers", lambda k, i, n,
                          ctx: struct.pack("<BII", k, i, n) + ctx),
    }
    bound = c.base("batch-x25519-aes")
    for name, (comment, aad) in aads.items():
        add(f"aad-{name}", OPEN, comment, g.batch(bound.s, bound.nonce, made(bound, aad=aad)),
            bound)
    add("under-report-key", OPEN, "sealed under report_key",
        g.batch(b.s, b.nonce, made(key=b.s.report_key)))
    add("context-other", OPEN, "a good batch, opened with another context", b.blob, context=b"demo")
    add("context-missing", OPEN, "a good batch, opened without its context", bound.blob, bound,
        context=b"")
    envelope = c.base("envelope-worked-example")
    add("from-envelope", OPEN, "an envelope dressed up as a batch of one",
        g.batch(envelope.s, envelope.nonce, [envelope.body[25:]]), envelope, call="open_batch")
    add("other-header", OPEN, "header of another session", one.header + b.body)

    add("padded-kind-changed", OPEN, "kind 82 changed to 02",
        flip(padded.blob, len(padded.header), 0x80), padded)
    add("padded-aad-of-unpadded", OPEN, "kind 82, sealed with the AAD of kind 02",
        g.batch(padded.s, padded.nonce, made(padded, kind=2), 0x82), padded)
    for name, comment, plaintext in (
        ("zeros", "last record all zeros, no marker", bytes(1024)),
        ("one-step-more", "last record one Padmé step too long",
         padded.plaintexts[-1] + bytes(ref.padme(1025) - 1024)),
        ("length-16", "last record empty: the least padded length is 17", b""),
    ):
        plaintexts = [*padded.plaintexts[:-1], plaintext]
        add(f"padded-{name}", OPEN, comment,
            g.batch(padded.s, padded.nonce, made(padded, plaintexts, 0x82), 0x82), padded)


# ---- uploads -------------------------------------------------------------------------------------


def uploads(c):
    b, chacha = c.base("upload-context-short"), c.base("upload-x25519-chacha")
    large, exact = c.base("upload-nonce-ones-aes"), c.base("upload-length-16384-aes")
    empty = c.base("upload-length-0-aes")
    at = len(b.header) + 1
    data = {u.name: g.pattern(u.vector["plaintext"]["length"]) for u in (b, chacha, large, exact,
                                                                         empty)}

    def add(name, error, comment, blob, base=b, **more):
        c.add(base, f"upload-{name}", error, comment, blob, **more)

    def cut_chunks(base):
        commitment, pieces = g.chunks(base.s, base.salt, data[base.name], base.context)
        assert g.upload(base.s, base.salt, commitment, pieces) == base.blob
        return commitment, pieces

    def resealed(base, pieces_of):
        """Other chunks under the right keys: pieces_of(aead, base nonce, data) makes them."""
        made = ref.upload_aead(base.cipher, base.s.upload_key, base.salt, base.context)
        aead, nonce, commitment = made
        return g.upload(base.s, base.salt, commitment, pieces_of(aead, nonce, data[base.name]))

    commitment, pieces = cut_chunks(b)
    for name, length in {"salt": 0, "in-salt": 23, "commitment": 24, "in-commitment": 55,
                         "chunks": 56, "in-tag": 71}.items():
        add(f"cut-{name}", TRUNCATED, f"{length} bytes after the kind", b.blob[: at + length])
    add("cut-one-byte", OPEN, "last byte missing: the final chunk's tag fails", b.blob[:-1])
    add("trailing-byte", OPEN, "one byte more", b.blob + b"\0")
    for name, where in {"salt-first": at, "salt-last": at + 23, "commitment-first": at + 24,
                        "commitment-last": at + 55, "ciphertext": at + 56, "tag": -1}.items():
        add(f"{name}-bit", OPEN, "one bit flipped", flip(b.blob, where))
    add("tag-bit-chacha", OPEN, "last bit of the tag flipped", flip(chacha.blob, -1), chacha)
    add("commitment-of-header", OPEN, "the header's commitment in the upload's place",
        g.upload(b.s, b.salt, b.s.commitment, pieces))
    other_key = ref.upload_aead(1, b.s.report_key, b.salt, b.context)
    add("commitment-of-other-key", OPEN,
        "commitment derived from report_key, chunks from upload_key",
        g.upload(b.s, b.salt, other_key[2], pieces))
    add("under-report-key", OPEN, "commitment and chunks derived from report_key",
        g.upload(b.s, b.salt, other_key[2],
                 [other_key[0].encrypt(other_key[1], data[b.name], None)]))

    _, three = cut_chunks(large)
    first, second, last = three
    commitment_large = cut_chunks(large)[0]

    def order(name, error, comment, *pieces):
        add(name, error, comment, g.upload(large.s, large.salt, commitment_large, pieces), large)

    order("chunks-swapped", OPEN, "chunks 0 and 1 swapped", second, first, last)
    order("chunk-twice", OPEN, "chunk 0 twice", first, first, second, last)
    order("chunk-dropped", OPEN, "chunk 1 of 0, 1, 2 dropped", first, last)
    order("last-chunk-missing", TRUNCATED, "ends after two whole chunks", first, second)
    order("only-last-chunk", OPEN, "chunks 0 and 1 dropped", last)
    order("last-chunk-15-bytes", TRUNCATED, "15 bytes after two whole chunks", first, second,
          last[:15])
    order("last-chunk-16-bytes", OPEN, "16 bytes left of the last chunk", first, second, last[:16])
    order("chunk-bit", OPEN, "one bit of chunk 1 flipped", first, flip(second, 9), last)
    order("chunk-after-last", OPEN, "chunk 1 once more after the last one", first, second, last,
          second)
    add("full-chunk-alone", TRUNCATED, "16384 bytes, the empty last chunk missing",
        exact.blob[:-16], exact)
    add("empty-chunk-tag-bit", OPEN, "16384 bytes, tag of the empty last chunk flipped",
        flip(exact.blob, -1), exact)

    made = ref.upload_aead(1, empty.s.upload_key, empty.salt, empty.context)
    aead, nonce, commitment_empty = made
    blank = [aead.encrypt(ref.chunk_nonce(nonce, k), b"", None) for k in range(2)]
    add("empty-chunk-added", OPEN, "an empty chunk 1 after the empty last chunk 0",
        g.upload(empty.s, empty.salt, commitment_empty, blank), empty)
    add("empty-chunk-numbered-1", OPEN, "an empty upload whose only chunk is chunk 1",
        g.upload(empty.s, empty.salt, commitment_empty, blank[1:]), empty)
    add("empty-no-chunk", TRUNCATED, "an empty upload with no chunk at all", empty.blob[:-16],
        empty)
    aead, nonce, commitment_b = ref.upload_aead(1, b.s.upload_key, b.salt, b.context)
    add("empty-chunk-after-last", OPEN, "a well sealed empty chunk 1 after the last chunk 0",
        g.upload(b.s, b.salt, commitment_b,
                 [*pieces, aead.encrypt(ref.chunk_nonce(nonce, 1), b"", None)]))
    add("two-short-chunks", OPEN, "20 bytes in two chunks of 10",
        g.upload(b.s, b.salt, commitment_b, [
        aead.encrypt(ref.chunk_nonce(nonce, k), data[b.name][10 * k : 10 * k + 10],
                     None) for k in range(2)]))
    made = ref.upload_aead(1, exact.s.upload_key, exact.salt, exact.context)
    aead, nonce, commitment_exact = made
    add("chunk-too-large", OPEN, "16385 bytes sealed in one chunk", g.upload(
        exact.s, exact.salt, commitment_exact, [aead.encrypt(nonce, g.pattern(16385), None)]),
        exact)

    add("chunk-aad", OPEN, "chunk sealed with the context as AAD",
        resealed(b, lambda aead, nonce, d: [aead.encrypt(nonce, d, b"\x03" + b.context)]))
    add("chunk-numbered-1", OPEN, "chunks numbered from 1",
        resealed(b, lambda aead, nonce, d: [aead.encrypt(ref.chunk_nonce(nonce, 1), d, None)]))
    add("nonce-added", OPEN, "chunk nonces base + k, not base XOR k",
        resealed(large, lambda aead, nonce, d: [
        aead.encrypt(((int.from_bytes(nonce, "big") + k) % 2**96).to_bytes(12, "big"),
                     d[p : p + 16384], None)
        for k, p in enumerate(range(0, len(d), 16384))]), large)
    add("nonce-same", OPEN, "the base nonce for every chunk",
        resealed(large, lambda aead, nonce, d: [
        aead.encrypt(nonce, d[p : p + 16384], None) for p in range(0, len(d), 16384)]), large)

    def derived(name, comment, info):
        okm = ref.hkdf_expand(b.s.upload_key, info, 76)
        sealed = ref.AESGCM(okm[:32]).encrypt(okm[32:44], data[b.name], None)
        add(f"derived-{name}", OPEN, comment, g.upload(b.s, b.salt, okm[44:], [sealed]))

    label = b"c2sp.org/chunked-encryption@v1+"
    derived("without-kind", "context of the derivation without the kind",
            label + b"AEAD_AES_256_GCM\0" + b.salt + b.context)
    derived("other-name", "the name of AES-128",
            label + b"AEAD_AES_128_GCM\0" + b.salt + b"\x03" + b.context)
    derived("without-zero", "no zero byte after the name",
            label + b"AEAD_AES_256_GCM" + b.salt + b"\x03" + b.context)
    derived("without-context", "without the context",
            label + b"AEAD_AES_256_GCM\0" + b.salt + b"\x03")
    crossed = ref.upload_aead(2, b.s.upload_key, b.salt, b.context)
    add("wrong-cipher", OPEN, "header says cipher 1, sealed with ChaCha20-Poly1305 under its name",
        g.upload(b.s, b.salt, crossed[2], [crossed[0].encrypt(crossed[1], data[b.name], None)]))
    add("context-other", OPEN, "a good upload, opened with another context", b.blob,
        context=b"agent 8")
    add("context-missing", OPEN, "a good upload, opened without its context", b.blob, context=b"")
    add("other-header", OPEN, "header of another session", empty.header + b.body)
    add("unknown-key", UNKNOWN, "a good upload for somebody else", b.blob, keys=["x25519-b"])
    bt = c.base("batch-2")
    c.add(bt, "batch-unknown-key", UNKNOWN, "a good batch for somebody else", bt.blob,
          keys=["p256-b", "rsa2048-b"])


def make(recipients, valid):
    cases = Cases(recipients, valid)
    for part in (header, wrapped, envelopes, batches, uploads):
        part(cases)
    return cases.vectors
