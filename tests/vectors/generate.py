"""Makes the test vectors of docs/format.md, and checks them with reference.py.

    python tests/vectors/generate.py           rewrites the JSON files, then checks them
    python tests/vectors/generate.py --check   only checks the files that are there

It needs `cryptography` (>= 50) and nothing of the product: the product is what these vectors test.

Running it again gives the same bytes. Three things make it so:
* the keys are kept in keys.json;
* session secrets, nonces and salts are SHA-256 of a vector's name. That is fine here, where they
  are published anyway and every name is used for one message only. A product must take all three
  from the system's random-number generator: a nonce that can be guessed from a name is a nonce
  that is used twice as soon as a name is;
* what HPKE and OAEP make of their own randomness is kept in wrapped.json, by recipient and secret.
"""

import base64
import hashlib
import json
import struct
import sys
from pathlib import Path

import reference as ref
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, rsa, x25519

HERE = Path(__file__).parent
SUITE_IDS = {"x25519": ref.X25519, "p256": ref.P256, "mlkem768-x25519": ref.HYBRID,
             "rsa2048": ref.RSA, "rsa3072": ref.RSA, "rsa4096": ref.RSA}  # fmt: skip
KEY_NAMES = {f"{suite}-a": suite for suite in SUITE_IDS}
KEY_NAMES |= {"x25519-b": "x25519", "p256-b": "p256", "mlkem768-x25519-b": "mlkem768-x25519",
              "rsa2048-b": "rsa2048"}  # fmt: skip
KEY_NAMES |= {f"x25519-r{i:02}": "x25519" for i in range(1, 18)}  # for headers with many recipients
FLEET = b"upseal/v1 fleet\x00" + bytes(range(0xA0, 0xB0))  # what the fleet binds: a deployment id


def load(name):
    path = HERE / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def store(name, value):
    (HERE / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")


def derived(purpose, name, length=32):
    return hashlib.sha256(f"upseal test vector {purpose}: {name}".encode()).digest()[:length]


def pattern(length):
    return bytes((i * 7 + 13) % 251 for i in range(length))


# ---- recipients ----------------------------------------------------------------------------------


def make_key(suite):
    if suite.startswith("rsa"):
        parts = [rsa.generate_private_key(65537, int(suite[3:]))]
    elif suite == "p256":
        parts = [ec.generate_private_key(ec.SECP256R1())]
    else:
        parts = [x25519.X25519PrivateKey.generate()]
        if suite == "mlkem768-x25519":
            parts.insert(0, mlkem.MLKEM768PrivateKey.generate())
    pem = serialization.Encoding.PEM
    private = [part.private_bytes(pem, serialization.PrivateFormat.PKCS8,
                                  serialization.NoEncryption()) for part in parts]  # fmt: skip
    public = [part.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
              for part in parts]  # fmt: skip
    private_pem = b"".join(private).decode()
    return {
        "suite": suite,
        "suite_id": SUITE_IDS[suite],
        "key_id": ref.Key(SUITE_IDS[suite], private_pem).key_id.hex(),
        "private_pem": private_pem,
        "public_pem": b"".join(public).decode(),
    }


class Recipients(dict):
    """Every key by its name, and the memory of what was wrapped to it."""

    def __init__(self):
        stored = load("keys")
        self.json = {n: stored.get(n) or make_key(suite) for n, suite in KEY_NAMES.items()}
        self.known, self.used = load("wrapped"), {}
        for name, key in self.json.items():
            self[name] = ref.Key(key["suite_id"], key["private_pem"])

    def wrap(self, name, secret, how="", make=None):
        """The secret wrapped to a key; `how` and `make` are for wrapping it in a wrong way."""
        key = self[name]
        label = f"{key.key_id.hex()} {secret.hex()} {how}".rstrip()
        if label not in self.known:
            self.known[label] = (make or self.wrap_now)(key, secret).hex()
        self.used[label] = self.known[label]
        return bytes.fromhex(self.known[label])

    @staticmethod
    def wrap_now(key, secret):
        if key.suite == ref.RSA:
            return key.public.encrypt(secret, ref.OAEP)
        # cryptography gives enc || ciphertext, which is just what the format wants
        return ref.hpke_suite(key.suite).encrypt(secret, key.public, info=ref.HPKE_INFO)

    def entry(self, name, secret):
        return make_entry(self[name].suite, self[name].key_id, self.wrap(name, secret))


# ---- sealing: each part can be given other than it should be, for the hostile vectors ------------


def make_entry(suite, key_id, wrapped, length=None):
    return struct.pack(">H8sH", suite, key_id, len(wrapped) if length is None else length) + wrapped


class Session:
    """A header and its keys. They are derived from the header just as it is written here, so a
    wrong header is wrong in that one way only."""

    def __init__(self, entries, secret, cipher=1, magic=b"USL\x01", count=None):
        self.entries, self.secret, self.cipher = entries, secret, cipher
        count = len(entries) if count is None else count
        self.unsigned = magic + bytes([cipher, count]) + b"".join(entries)
        keys = ref.session_keys(secret, self.unsigned)
        self.report_key, self.batch_key, self.upload_key, self.commitment = keys
        self.header = self.unsigned + self.commitment


def seal_report(cipher, key, nonce, plaintext, aad):
    aead, nonce12 = ref.report_aead(cipher, key, nonce)
    return aead.encrypt(nonce12, plaintext, aad)


def envelope(s, nonce, plaintext, context, kind=1, *, key=None, aad=None, cipher=None):
    aad = ref.envelope_aad(kind, context) if aad is None else aad
    sealed = seal_report(cipher or s.cipher, key or s.report_key, nonce, plaintext, aad)
    return s.header + bytes([kind]) + nonce + sealed


def records(s, nonce, plaintexts, context, kind=2, *, key=None, count=None, aad=None, nonces=None):
    count = len(plaintexts) if count is None else count
    aad, nonces = aad or ref.record_aad, nonces or ref.record_nonce
    return [seal_report(s.cipher, key or s.batch_key, nonces(nonce, i), plaintext,
                        aad(kind, i, count, context))
            for i, plaintext in enumerate(plaintexts)]  # fmt: skip


def batch(s, nonce, sealed, kind=2, *, count=None, lengths=None):
    count = len(sealed) if count is None else count
    lengths = [len(r) for r in sealed] if lengths is None else lengths
    table = struct.pack(f">I{len(lengths)}I", count, *lengths)
    return s.header + bytes([kind]) + nonce + table + b"".join(sealed)


def chunks(s, salt, plaintext, context):
    aead, base_nonce, commitment = ref.upload_aead(s.cipher, s.upload_key, salt, context)
    # range to len + 1: when the length is a multiple of the chunk's, an empty chunk comes last
    pieces = [plaintext[at : at + ref.CHUNK] for at in range(0, len(plaintext) + 1, ref.CHUNK)]
    return commitment, [
        aead.encrypt(ref.chunk_nonce(base_nonce, k), piece, None) for k, piece in enumerate(pieces)
    ]


def upload(s, salt, commitment, sealed):
    return s.header + b"\x03" + salt + commitment + b"".join(sealed)


# ---- the valid vectors ---------------------------------------------------------------------------


class Valid:
    def __init__(self, recipients):
        self.recipients, self.vectors = recipients, {}

    def add(self, name, comment, kind, names, cipher, context, padded, fields, blob, s):
        assert name not in self.vectors
        keys = ("report_key", "batch_key", "upload_key", "commitment")
        self.vectors[name] = {
            "name": name, "comment": comment, "kind": kind, "cipher": cipher, "padded": padded,
            "recipients": list(names), "context": context.hex(), "session_secret": s.secret.hex(),
            "header": s.header.hex(), "keys": {k: getattr(s, k).hex() for k in keys},
            **fields, "blob": base64.b64encode(blob).decode(),
        }  # fmt: skip

    def session(self, name, names, cipher):
        secret = derived("secret", name)
        return Session([self.recipients.entry(n, secret) for n in names], secret, cipher)

    def envelope(self, name, comment, report, names=("x25519-a",), cipher=1, context=b"",
                 padded=False):  # fmt: skip
        s, nonce = self.session(name, names, cipher), derived("nonce", name, 24)
        kind = 0x81 if padded else 0x01
        blob = envelope(s, nonce, ref.pad(report) if padded else report, context, kind)
        fields = {"nonce": nonce.hex(), "reports": [report.hex()]}
        self.add(name, comment, "envelope", names, cipher, context, padded, fields, blob, s)

    def batch(self, name, comment, reports, names=("x25519-a",), cipher=1, context=b"",
              padded=False, nonce=None):  # fmt: skip
        s, nonce = self.session(name, names, cipher), nonce or derived("nonce", name, 24)
        kind = 0x82 if padded else 0x02
        plaintexts = [ref.pad(r) if padded else r for r in reports]
        blob = batch(s, nonce, records(s, nonce, plaintexts, context, kind), kind)
        fields = {"nonce": nonce.hex(), "reports": [r.hex() for r in reports]}
        self.add(name, comment, "batch", names, cipher, context, padded, fields, blob, s)

    def upload(self, name, comment, length, names=("x25519-a",), cipher=1, context=b"",
               wanted=None):  # fmt: skip
        s, n, data = self.session(name, names, cipher), 0, pattern(length)
        while True:  # `wanted` picks a salt that gives a base nonce of a certain form
            salt = derived("salt", f"{name} {n}" if n else name, 24)
            if not wanted or wanted(ref.upload_aead(cipher, s.upload_key, salt, context)[1]):
                break
            n += 1
        blob = upload(s, salt, *chunks(s, salt, data, context))
        plaintext = {"length": length, "sha256": hashlib.sha256(data).hexdigest(),
                     "pattern": "byte i is (i * 7 + 13) mod 251"}  # fmt: skip
        fields = {"salt": salt.hex(), "plaintext": plaintext}
        self.add(name, comment, "upload", names, cipher, context, False, fields, blob, s)


def make_valid(recipients):
    v = Valid(recipients)
    cipher_names = {1: "aes", 2: "chacha"}
    v.envelope("envelope-worked-example", "see docs/format.md", b"hello", context=b"demo")
    for suite in SUITE_IDS:
        for cipher, tail in cipher_names.items():
            names, more = (f"{suite}-a",), {"cipher": cipher, "context": b"suites"}
            about = f"recipient {suite}, cipher {cipher}"
            v.envelope(f"envelope-{suite}-{tail}", about, b"a report", names, **more)
            v.batch(f"batch-{suite}-{tail}", about, [b"first", b"second"], names, **more)
            v.upload(f"upload-{suite}-{tail}", about, 100, names, **more)
    lengths = [0, 1, 2, 7, 8, 9, 255, 256, 1000]
    for cipher, tail in cipher_names.items():
        for length in (0, 1, 16383, 16384, 16385, 32768):
            v.upload(f"upload-length-{length}-{tail}", f"{length} bytes", length, cipher=cipher)
        for length in lengths:
            name, about = f"envelope-padded-{length}-{tail}", f"padded report of {length} bytes"
            v.envelope(name, about, pattern(length), cipher=cipher, context=b"padded", padded=True)
        v.batch(f"batch-padded-{tail}", "padded, many lengths", [pattern(n) for n in lengths],
                cipher=cipher, context=b"padded", padded=True)  # fmt: skip
        v.envelope(f"envelope-empty-{tail}", "an empty report, not padded", b"", cipher=cipher)
        v.envelope(f"envelope-zeros-{tail}", "a padded report that itself ends like padding",
                   b"\x80\x00\x80\x00\x00", cipher=cipher, padded=True)  # fmt: skip
        v.batch(f"batch-1-{tail}", "a batch of one empty record", [b""], cipher=cipher)
        v.batch(f"batch-5-{tail}", "some records empty", [b"", b"one", b"", pattern(300), b""],
                cipher=cipher)  # fmt: skip
        v.batch(f"batch-nonce-ones-{tail}", "N all ones: indices are XORed, never added",
                [b"%d" % i for i in range(5)], cipher=cipher, nonce=b"\xff" * 24)  # fmt: skip
        v.batch(f"batch-300-{tail}", "more records than a byte counts", [b""] * 299 + [b"last"],
                cipher=cipher)  # fmt: skip
        v.upload(f"upload-nonce-ones-{tail}", "base nonce ends in ff: XOR, never add",
                 2 * 16384 + 5, cipher=cipher, wanted=lambda n: n[-1] == 0xFF)  # fmt: skip
    v.batch("batch-2", "two records", [b"one", b"two"])
    three = ("x25519-a", "p256-a", "rsa2048-a")
    many = [f"x25519-r{i:02}" for i in range(1, 17)]
    for cipher, tail in cipher_names.items():
        more = {"cipher": cipher, "context": b"many"}
        v.envelope(f"envelope-2-recipients-{tail}", "two keys of one suite", b"for two",
                   ("x25519-a", "x25519-b"), **more)  # fmt: skip
        about = "three classical suites"
        v.envelope(f"envelope-3-recipients-{tail}", about, b"for three", three, **more)
        v.batch(f"batch-3-recipients-{tail}", about, [b"for", b"three"], three, **more)
        v.upload(f"upload-3-recipients-{tail}", about, 33, three, **more)
        v.envelope(f"envelope-16-recipients-{tail}", "as many as a header holds", b"for many",
                   many, **more)  # fmt: skip
    v.envelope("envelope-hybrid-and-classical", "a sealer makes this only when told to",
               b"mixed", ("mlkem768-x25519-a", "x25519-a"))  # fmt: skip
    for about, context in {"empty": b"", "short": b"agent 7", "zero-byte": b"\x00",
                           "300-bytes": pattern(300), "fleet": FLEET}.items():  # fmt: skip
        comment = f"context: {about.replace('-', ' ')}"
        v.envelope(f"envelope-context-{about}", comment, b"bound", context=context)
        v.batch(f"batch-context-{about}", comment, [b"bound", b"too"], cipher=2, context=context)
        v.upload(f"upload-context-{about}", comment, 20, context=context)
    return v.vectors


# ---- primitives ----------------------------------------------------------------------------------


def make_primitives():
    key, nonce = bytes(range(32)), bytes(range(64, 88))
    hello = {"key": key.hex(), "nonce": nonce.hex(),
             "aad": b"aad".hex(), "plaintext": b"hello".hex()}  # fmt: skip
    names = "hkdf_expand_sha512", "xaes_256_gcm", "xchacha20_poly1305", "record_nonce"
    out = {name: [] for name in names}
    for length in (32, 76, 128):
        okm = ref.hkdf_expand(key, b"upseal/v1 keys", length)
        out["hkdf_expand_sha512"].append(
            {"prk": key.hex(), "info": b"upseal/v1 keys".hex(), "length": length,
             "okm": okm.hex()})  # fmt: skip
    for byte, aad in ((1, b""), (3, b"c2sp.org/XAES-256-GCM")):  # its own two vectors
        k, n, p = bytes([byte]) * 32, b"ABCDEFGHIJKLMNOPQRSTUVWX", b"XAES-256-GCM"
        out["xaes_256_gcm"].append(
            {"key": k.hex(), "nonce": n.hex(), "aad": aad.hex(), "plaintext": p.hex(),
             "subkey": ref.xaes_subkey(k, n[:12]).hex(),
             "sealed": seal_report(1, k, n, p, aad).hex()})  # fmt: skip
    assert [v["sealed"] for v in out["xaes_256_gcm"]] == [
        "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271",
        "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d",
    ]
    out["xchacha20_poly1305"].append(
        hello | {"subkey": ref.hchacha20(key, nonce[:16]).hex(),
                 "sealed": seal_report(2, key, nonce, b"hello", b"aad").hex()})  # fmt: skip
    for base in (bytes(24), b"\xff" * 24, nonce):
        for index in (0, 1, 255, 256, 2**20 - 1):
            out["record_nonce"].append([base.hex(), index, ref.record_nonce(base, index).hex()])
    return out


def make_padme():
    powers = {2**e + d for e in range(1, 25) for d in (-1, 0, 1)}
    lengths = sorted(set(range(34)) | powers - {2**24 + 1} | {100, 1000, 5000, 10**6})
    return [[length, ref.padme(length)] for length in lengths]


# ---- checking ------------------------------------------------------------------------------------


def check():
    """Opens every valid vector with every recipient, and every hostile one for its error."""
    keys_json = load("keys")
    keys = {n: ref.Key(k["suite_id"], k["private_pem"]) for n, k in keys_json.items()}
    for name, key in keys.items():
        assert key.key_id.hex() == keys_json[name]["key_id"], name
    call = {"envelope": "open", "batch": "open_batch", "upload": "reader"}
    valid = load("valid")["vectors"]
    for v in valid:
        blob, context = base64.b64decode(v["blob"]), bytes.fromhex(v["context"])
        for recipient in v["recipients"]:
            got = ref.CALLS[call[v["kind"]]](blob, context, [keys[recipient]])
            if v["kind"] == "upload":
                want = pattern(v["plaintext"]["length"])
                assert hashlib.sha256(want).hexdigest() == v["plaintext"]["sha256"], v["name"]
            else:
                want = [bytes.fromhex(report) for report in v["reports"]]
                want = want[0] if v["kind"] == "envelope" else want
            assert got == want, v["name"]
    hostile, names = load("hostile")["vectors"], {v["name"] for v in valid}
    for h in hostile:
        assert h["base"] is None or h["base"] in names, h["name"]
        context, held = bytes.fromhex(h["context"]), [keys[n] for n in h["keys"]]
        try:
            ref.CALLS[h["call"]](base64.b64decode(h["blob"]), context, held)
            error = "nothing"
        except ref.OpenError as e:
            error = type(e).__name__
        assert error == h["error"], f"{h['name']}: {error}, not {h['error']}"
    different = {(h["blob"], h["call"], h["context"], *h["keys"]) for h in hostile}
    assert len({h["name"] for h in hostile}) == len(different) == len(hostile)
    for length, padded in load("padme"):
        assert ref.padme(length) == padded
    assert load("primitives") == make_primitives()
    print(f"good: {len(keys)} keys, {len(valid)} valid, {len(hostile)} hostile vectors")


def main():
    import hostile_cases

    recipients = Recipients()
    store("keys", recipients.json)
    valid = make_valid(recipients)
    store("valid", {"vectors": list(valid.values())})
    store("hostile", {"vectors": hostile_cases.make(recipients, valid)})
    store("wrapped", recipients.used)
    store("padme", make_padme())
    store("primitives", make_primitives())


if __name__ == "__main__":
    if "--check" not in sys.argv[1:]:
        main()
    check()
