# SPDX-License-Identifier: Apache-2.0
"""Mutations of bytes that nobody knows the meaning of, and of JSON."""

import json

from upfuzz import DICTIONARIES

_NUMBERS = (0, 1, 2, 3, 15, 16, 17, 127, 128, 255, 256, 1023, 1024, 65535, 65536, 2**20, 2**20 + 1,
            2**24, 2**24 + 16, 2**31 - 1, 2**31, 2**32 - 1)  # fmt: skip
ODD = (
    None, True, False, 0, 1, -1, 2**31, 2**32, 2**53 - 1, 2**53, 2**63, 2**64, 10**400, -(10**30),
    1.0, 0.5, -0.0, 1e308, "", " ", "0", "\x00", "\ud800", "é", "A" * 5000, "server", "any", [], {},
    [[]], {"": None}, [None] * 17, "=", "AA==", "../..",
)  # fmt: skip
"""JSON values that are seldom what is meant."""


def words_of(dictionary):
    """The words of a dictionary in libFuzzer's form."""
    if dictionary is None:
        return ()
    found = []
    for line in (DICTIONARIES / dictionary).read_text().splitlines():
        if line.startswith('"') and line.endswith('"'):
            found.append(line[1:-1].encode().decode("unicode_escape").encode("latin-1"))
    return tuple(found)


def blind(data, rnd, words=(), longest=1 << 14):
    """A mutation where libFuzzer's are not at hand: one to four small changes."""
    out = bytearray(data)
    for _ in range(1 + rnd.getrandbits(2)):
        _one(out, rnd, words)
    return bytes(out[:longest])


def _one(out, rnd, words):
    at = rnd.randrange(len(out) + 1)
    match rnd.randrange(9):
        case 0 if out:
            out[at % len(out)] ^= 1 << rnd.randrange(8)
        case 1 if out:
            out[at % len(out)] = rnd.randrange(256)
        case 2:
            out[at:at] = rnd.randbytes(1 + rnd.randrange(8))
        case 3:
            del out[at : at + 1 + rnd.randrange(16)]
        case 4:
            out[at:at] = out[at : at + rnd.randrange(64)]
        case 5:
            size = rnd.choice((1, 2, 4, 8))
            number = (rnd.choice(_NUMBERS) + rnd.choice((0, 0, -1, 1))) % (1 << 8 * size)
            out[at : at + size] = number.to_bytes(size, rnd.choice(("big", "little")))
        case 6:
            del out[at:]
        case 7 if words:
            word = rnd.choice(words)
            out[at : at + rnd.choice((0, len(word)))] = word
        case _:
            start = rnd.randrange(len(out) + 1)
            out[at : at + 8] = out[start : start + 8]


def json_value(value, rnd, plain):
    """A JSON value with one thing about it changed, often deep inside."""
    if isinstance(value, dict) and value and rnd.randrange(5):
        name = rnd.choice(list(value))
        out = dict(value)
        match rnd.randrange(12):
            case 0:
                del out[name]
            case 1:
                out[name + "_" if rnd.getrandbits(1) else name.upper()] = out[name]
            case 2:
                out[name] = value[rnd.choice(list(value))]
            case 3 if lists := [n for n in value if isinstance(value[n], list) and value[n]]:
                from_, to = rnd.choice(lists), rnd.choice(lists)
                out[to] = [rnd.choice(value[from_]), *value[to]]
            case _:
                out[name] = json_value(value[name], rnd, plain)
        return out
    if isinstance(value, list) and value and rnd.randrange(5):
        out = list(value)
        at = rnd.randrange(len(out))
        match rnd.randrange(10):
            case 0:
                del out[at]
            case 1:
                out.insert(at, out[rnd.randrange(len(out))])
            case 2:
                out[at], out[-1] = out[-1], out[at]
            case 3:
                out = out * rnd.choice((2, 20))
            case _:
                out[at] = json_value(out[at], rnd, plain)
        return out
    if isinstance(value, str) and rnd.randrange(3):
        return _text(value, rnd, plain)
    if isinstance(value, bool) and rnd.randrange(2):
        return not value
    if isinstance(value, int) and rnd.randrange(3):
        return value + rnd.choice((-1, 1, -(2**20), 2**20, 1000, 10**12))
    return rnd.choice(ODD)


def _text(value, rnd, plain):
    if value.startswith("-----BEGIN") and rnd.randrange(4):
        from upfuzz.keyfiles import mutate_pem
        from upfuzz.reissue import certificate

        if "CERTIFICATE" in value and rnd.getrandbits(1):
            return certificate(rnd).decode()
        return mutate_pem(value.encode("utf-8", "replace"), rnd, plain).decode("utf-8", "replace")
    match rnd.randrange(7):
        case 0:
            return value.upper() if value != value.upper() else value.lower()
        case 1:
            return value + rnd.choice(("=", " ", "\n", "A", "0", ".", "\x00", value[:200]))
        case 2:
            return value[: rnd.randrange(len(value) + 1)]
        case 3 if value:
            at = rnd.randrange(len(value))
            return value[:at] + rnd.choice("0afAZ_-/+=\u00e9\u0660 ") + value[at + 1 :]
        case _:
            return plain(value.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")


def json_bytes(data, rnd, plain):
    """A JSON text changed as a value, or, where it is none, as bytes; at times nested deep."""
    if not rnd.randrange(30):
        at = rnd.choice([i for i, byte in enumerate(data) if byte in b":[,"] or [0]) + 1
        return data[:at] + rnd.choice((b"[", b'{"a":')) * rnd.choice((20, 1500)) + data[at:]
    try:
        value = json.loads(data)
        if rnd.randrange(4):
            return json.dumps(json_value(value, rnd, plain), separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        pass
    return plain(data)
