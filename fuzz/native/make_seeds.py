# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of the fuzz targets: ``python fuzz/native/make_seeds.py [--check]``.

Published vectors and those of tests/vectors, each as the case (cases.h, fuzz_chunks.c) that opens
it, and one case for each kind of call besides.  With ``--check`` it only compares.  Seeds are few
and small: the fuzzer finds the rest, and keeps it in build/fuzz/corpus.
"""

import base64
import json
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
VECTORS = HERE.parents[1] / "tests" / "vectors"
sys.path.insert(0, str(VECTORS))
import reference  # noqa: E402

SEAL, OPEN = 0, 1
CIPHER, PADDED, FENCED, LAST, BUILT, NEAR_END = 1, 2, 4, 2, 8, 16
OWN_KEY = 128
PREFIX_MAX = 200


def records(
    call: int,
    values: list[bytes],
    *,
    flags: int = 0,
    key: bytes = b"",
    prefix: bytes = b"",
    aad: bytes = b"",
    nonce: bytes = bytes(24),
    first: int = 0,
    bend: tuple[int, int] = (0, 0),
    out_more: int = 0,
) -> bytes:
    """A case of cases.h; without ``key`` that of seed 0."""
    head = struct.pack(
        "<BBBBHBBBBhhIqq24s",
        *(call, flags, 0, OWN_KEY if key else 0, 0, len(prefix), len(aad), len(values)),
        *(bend[0], out_more, 0, first, 0, bend[1], nonce),
    )
    lengths = b"".join(struct.pack("<H", len(value)) for value in values)
    return head + key + lengths + prefix + aad + b"".join(values)


def chunks(
    call: int,
    content: bytes,
    *,
    flags: int = LAST,
    key: bytes = b"",
    first: int = 0,
    text_len: int = 0,
) -> bytes:
    """A case of fuzz_chunks.c."""
    own = OWN_KEY if key else 0
    return struct.pack("<BBBBHhQI", call, flags, 0, own, 0, 0, first, text_len) + key + content


def published() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The vectors of XAES-256-GCM and XChaCha20-Poly1305, opened and sealed."""
    primitives = json.loads((VECTORS / "primitives.json").read_text())
    one, many = {}, {}
    for cipher, name in ((0, "xaes_256_gcm"), (CIPHER, "xchacha20_poly1305")):
        for i, vector in enumerate(primitives[name]):
            key, nonce, aad, text, sealed = (
                bytes.fromhex(vector[part])
                for part in ("key", "nonce", "aad", "plaintext", "sealed")
            )
            if len(aad) > PREFIX_MAX or len(text) > PREFIX_MAX:
                continue
            label = f"{name.replace('_', '-')}-{i + 1}"
            whole = nonce + sealed
            same = {"flags": cipher, "key": key, "aad": aad}
            one[f"open-{label}"] = records(OPEN, [whole], **same)
            one[f"seal-{label}"] = records(SEAL, [text], nonce=nonce, **same)
            many[f"open-{label}"] = records(OPEN, [whole] * 2, **same)
    return one, many


WANTED = {
    "envelope-worked-example",
    "envelope-x25519-chacha",
    "envelope-padded-8-chacha",
    "envelope-padded-255-chacha",
    "envelope-zeros-chacha",
    "envelope-empty-chacha",
    "batch-x25519-aes",
    "batch-1-chacha",
    "batch-5-chacha",
    "batch-padded-chacha",
    "batch-nonce-ones-chacha",
    "upload-x25519-aes",
    "upload-x25519-chacha",
}


def of_the_format() -> dict[str, dict[str, bytes]]:
    """Envelopes, batches and uploads of tests/vectors, without what the C core does not see."""
    names = ("envelope", "envelopes", "batch", "chunks")
    found: dict[str, dict[str, bytes]] = {name: {} for name in names}
    for vector in json.loads((VECTORS / "valid.json").read_text())["vectors"]:
        if vector["name"] not in WANTED:
            continue
        blob = base64.b64decode(vector["blob"])
        header, context = (bytes.fromhex(vector[k]) for k in ("header", "context"))
        cipher, kind = vector["cipher"], blob[len(header) : len(header) + 1]
        flags = (CIPHER if cipher == 2 else 0) | (PADDED if vector["padded"] else 0)
        keys = {name: bytes.fromhex(value) for name, value in vector["keys"].items()}
        body, name = blob[len(header) + 1 :], vector["name"]
        if vector["kind"] == "envelope":
            same = {"flags": flags, "key": keys["report_key"], "prefix": header + kind}
            aad = kind + context
            other = blob[:3] + b"\x02" + blob[4:]
            found["envelope"][name] = records(OPEN, [blob], aad=aad, **same)
            found["envelopes"][name] = records(OPEN, [blob, other, blob[:-1]], aad=aad, **same)
        elif vector["kind"] == "batch":
            (count,) = struct.unpack(">I", body[24:28])
            lengths = struct.unpack(f">{count}I", body[28 : 28 + 4 * count])
            values, at = [], 28 + 4 * count
            for length in lengths:
                values.append(body[at : at + length])
                at += length
            aad = kind + bytes(4) + struct.pack(">I", count) + context
            same = {"flags": flags, "key": keys["batch_key"], "nonce": body[:24]}
            if sum(lengths) > 1500:
                values = values[:8]  # a part of a batch opens by itself
            found["batch"][name] = records(OPEN, values, aad=aad, **same)
            if count > 2:
                part = values[1:3]
                found["batch"][f"{name}-part"] = records(OPEN, part, aad=aad, first=1, **same)
        else:
            name_of = {1: b"AEAD_AES_256_GCM", 2: b"AEAD_CHACHA20_POLY1305"}[cipher]
            info = b"c2sp.org/chunked-encryption@v1+" + name_of + b"\0" + body[:24] + kind + context
            okm = reference.hkdf_expand(keys["upload_key"], info, 76)
            assert okm[44:] == body[24:56], name
            found["chunks"][name] = chunks(OPEN, body[56:], flags=flags | LAST, key=okm[:44])
    return found


def calls() -> dict[str, dict[str, bytes]]:
    """A case for each kind of call that no vector is."""
    aad = b"\x02" + bytes(4) + struct.pack(">I", 3) + b"context"
    three = [b"", b"report", bytes(range(40))]
    last = (1 << 20) - 3
    past = (1 << 63) - 1
    return {
        "envelopes": {
            "seal": records(SEAL, three, prefix=b"USL!", aad=b"\x01context", first=5),
            "seal-padded": records(SEAL, three, flags=CIPHER | PADDED | FENCED, prefix=b"USL!"),
            "seal-last": records(SEAL, three, first=last),
            "seal-past": records(SEAL, three, first=last + 1),
            "seal-bent": records(SEAL, three, bend=(2, past)),
            "seal-short": records(SEAL, three, out_more=-1),
        },
        "batch": {
            "seal": records(SEAL, three, aad=aad),
            "seal-padded-last": records(SEAL, three, flags=CIPHER | PADDED, aad=aad, first=last),
            "seal-bent": records(SEAL, three, aad=aad, bend=(4, past)),
        },
        "chunks": {
            "seal": chunks(0, b"an upload"),
            "seal-built": chunks(0, b"", flags=LAST | BUILT | FENCED, text_len=40000),
            "open-built": chunks(1, b"", flags=LAST | BUILT, text_len=2**31 + 4),
            "open-swapped": chunks(
                2, b"\x03\0\0\0\0\x01", flags=LAST | BUILT | CIPHER, text_len=33000
            ),
            "open-near-end": chunks(
                1, b"", flags=LAST | BUILT | NEAR_END, first=2, text_len=2**31 + 3
            ),
        },
        "padding": {
            "length": b"\0" + struct.pack("<Q", 255),
            "measure": b"\x01" + struct.pack("<Q4q", 90, 0, 40, 40, 90),
            "measure-padded": b"\x0d" + struct.pack("<Q3q", 1 << 24, 7, 7, (1 << 24) + 6),
            "table": b"\x02" + struct.pack(">3I", 16, 17, 2**24 + 16),
            "table-padded": b"\x06" + struct.pack(">2I", 17, 16),
            "right": b"\x03\0\0\1\0" + bytes(range(1, 9)) + b"\x80",
            "wrong": b"\x07\0\0\2\0" + bytes(range(1, 9)) + b"\x80",
        },
        "arena": {
            "session": b"\0\x01\0\7\0" + b"\2\0\0\5infos" + b"\3\1\0" + b"\3\2\0" + b"\6\0\0",
            "many": b"\0\2\xf2\7\0" + b"\x10\0\0\1\xf1\7\0" + b"\4\3\0" * 5 + b"\7\0\0" + b"\3\1\0",
            "expand": b"\5" + struct.pack("<HH", 10, 76) + bytes(42),
            "expand-most": b"\5" + struct.pack("<HH", 10, 16320) + bytes(42),
        },
        "keys": {
            "record": b"\0\x01" + bytes(32),
            "chunks": b"\x08\x02" + bytes(range(44)),
            "work": b"\x04" + struct.pack("<Q", 9),
            "equal": b"\x05" + b"same" * 2,
            "wipe": b"\x06\x03\0" + bytes(20),
            "offsets": b"\x07" + struct.pack("<3q", 64, 1, 2),
        },
    }


def sequence(seeds: dict[str, dict[str, bytes]]) -> dict[str, bytes]:
    """A few of the others in one case: each sort of call, forged between right."""
    order = ("envelopes", "envelope", "batch", "chunks", "padding", "keys", "arena")
    firsts = [(which, seeds[name][min(seeds[name])]) for which, name in enumerate(order)]
    forged = [(which, case[:-1] + bytes([case[-1] ^ 1])) for which, case in firsts[:4]]

    def case(steps: list[tuple[int, bytes]]) -> bytes:
        return b"".join(struct.pack("<BH", which, len(one)) + one for which, one in steps)

    return {"each": case(firsts), "forged-then-right": case(forged + firsts[:4])}


def all_seeds() -> dict[str, dict[str, bytes]]:
    """By target, by name."""
    seeds = of_the_format()
    seeds["envelope"] |= (one_and_many := published())[0]
    seeds["envelopes"] |= one_and_many[1]
    for target, named in calls().items():
        seeds[target] = seeds.get(target, {}) | named
    seeds["sequence"] = sequence(seeds)
    return seeds


def main() -> int:
    """Writes, or compares."""
    wanted = {
        HERE / "seeds" / target / name: case
        for target, named in all_seeds().items()
        for name, case in named.items()
    }
    here = {path: path.read_bytes() for path in (HERE / "seeds").glob("*/*")}
    if "--check" in sys.argv[1:]:
        wrong = sorted(str(p) for p in wanted.keys() | here.keys() if wanted.get(p) != here.get(p))
        print("\n".join(wrong) or f"{len(wanted)} seeds are as they are made")
        return 1 if wrong else 0
    for path in here.keys() - wanted.keys():
        path.unlink()
    for path, case in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(case)
    print(f"{len(wanted)} seeds, {sum(map(len, wanted.values()))} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
