# SPDX-License-Identifier: Apache-2.0
"""Tokens, statements and receipts changed and signed again by the right key, or by another."""

import json

from upfuzz import world
from upfuzz.mutators import json_bytes, json_value
from upfuzz.reissue import certificate
from upseal.fleet import jws
from upseal.fleet.encoding import b64url, from_b64url
from upseal.fleet.statements import SIGNED_LEN, STATEMENT_LEN, Statement, records_digest

TYPES = (jws.MANIFEST, jws.CAPABILITIES, jws.ENROL, jws.ENROLLED, jws.HOP, jws.PROOF, jws.RELAY)


def parts(token):
    """Header, claims and signature of a token, or None."""
    try:
        head, payload, signature = token.decode("ascii").split(".")
        return json.loads(from_b64url(head)), json.loads(from_b64url(payload)), signature
    except (ValueError, RecursionError):
        return None


def signed(head, claims, key):
    """A token of exactly these words, whatever they are."""
    texts = [
        b64url(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (head, claims)
    ]
    said = ".".join(texts)
    return f"{said}.{b64url(key.sign(said.encode()))}".encode()


def mutate_token(data, rnd, plain):
    """A token with another header or other claims, signed again."""
    found = parts(data)
    if found is None or not rnd.randrange(8):
        return plain(data)
    head, claims, _ = found
    kid = head.get("kid") if isinstance(head, dict) else None
    key = world.signer_of(kid if isinstance(kid, str) else None) or world.signing("stranger")
    match rnd.randrange(10):
        case 0:
            head = json_value(head, rnd, plain)
        case 1:
            key = world.signer_of(rnd.choice(sorted(world._signers())))
            if rnd.getrandbits(1) and isinstance(head, dict):
                head = {**head, "kid": key.public.key_id.hex(), "alg": key.algorithm}
            if rnd.getrandbits(1) and isinstance(head, dict):
                head = {**head, "jwk": key.public.jwk()}
        case 2 if isinstance(head, dict):
            name = rnd.choice(("typ", "alg", "crit", "b64", "jku", "jwk", "kid"))
            head = {**head, name: rnd.choice(
                (*TYPES, "none", "HS256", "ES256", "Ed25519", True, ["b64"], {}, key.public.jwk())
            )}  # fmt: skip
        case 3:
            claims = json_bytes(json.dumps(claims).encode(), rnd, plain)
        case 4:
            return _respelt(data, key, rnd)
        case _:
            claims = _claims(claims, rnd, plain)
            if not rnd.randrange(3):
                claims = _claims(claims, rnd, plain)
    try:
        return signed(head, claims, key)
    except ValueError:
        return plain(data)


def _respelt(data, key, rnd):
    """The same bytes in another spelling of base64url, signed as they stand there."""
    texts = data.split(b".")[:2]
    at = rnd.randrange(2)
    text = texts[at]
    last = bytes([text[-1] + 1]) if text else b"A"
    texts[at] = rnd.choice((text[:-1] + last, text + b"=", text + b"\n", b" " + text, text + b"+"))
    said = b".".join(texts)
    return said + b"." + b64url(key.sign(said)).encode()


def _recertified(claims, rnd):
    """Of a manifest: one of its keys has another certificate of the same CA."""
    made = json.loads(json.dumps(claims))
    found, left = [], [made]
    while left:
        value = left.pop()
        if isinstance(value, dict) and "certificate" in value:
            found.append(value)
        elif isinstance(value, dict | list):
            left.extend(value.values() if isinstance(value, dict) else value)
    if found:
        rnd.choice(found)["certificate"] = certificate(rnd).decode()
    return made


def _claims(claims, rnd, plain):
    """The token inside another one is changed as a token; keys go from list to list."""
    if isinstance(claims, dict) and "authorities" in claims and not rnd.randrange(4):
        return _recertified(claims, rnd)
    if isinstance(claims, dict) and not rnd.randrange(8):
        lists = [name for name, value in claims.items() if isinstance(value, list) and value]
        if lists:
            from_, to = rnd.choice(lists), rnd.choice(lists)
            return {**claims, to: [rnd.choice(claims[from_]), *claims[to]]}
    if isinstance(claims, dict) and rnd.getrandbits(1):
        inner = [n for n, v in claims.items() if isinstance(v, str) and v.count(".") == 2]
        if inner:
            name = rnd.choice(inner)
            token = mutate_token(claims[name].encode("utf-8", "replace"), rnd, plain)
            return {**claims, name: token.decode("latin-1")}
    return json_value(claims, rnd, plain)


# -- rows of units ---------------------------------------------------------------------------------


def sign_statement(encoded, key):
    """A statement record of these bytes, whatever they are."""
    return encoded + key.sign(encoded)


def statement_of(row):
    """The statement of a row, or None where it is a record."""
    if len(row) != SIGNED_LEN:
        return None
    try:
        return Statement.decode(row[:STATEMENT_LEN])
    except ValueError:
        return None


def mutate_rows(rows, rnd, plain):
    """Rows of units changed; statements fit their records again, or not, and are signed."""
    rows = list(rows)
    heads = [i for i, row in enumerate(rows) if statement_of(row) is not None]
    key = world.signing("agent") if rnd.randrange(5) else world.signing("agent 2", "p256")
    at = rnd.choice(heads) if heads else 0
    match rnd.randrange(9):
        case 0 if rows:
            rows[rnd.randrange(len(rows))] = plain(rnd.choice(rows))
        case 1 if rows:
            del rows[rnd.randrange(len(rows))]
        case 2 if rows:
            rows.insert(rnd.randrange(len(rows) + 1), rnd.choice(rows))
        case 3 if heads:  # the unit's records are other ones, and the statement says so
            end = next((i for i in heads if i > at), len(rows))
            records = [plain(row) for row in rows[at + 1 : end]]
            if rnd.getrandbits(1):
                records = records[1:] if rnd.getrandbits(1) else [*records, b"more"]
            rows[at:end] = [_restated(rows[at], key, records), *records]
        case 4 if heads:  # its numbers are other ones
            encoded = bytearray(rows[at][:STATEMENT_LEN])
            place = rnd.choice((20, 36, 52, 68, 76, 84, 85, 86, 90))
            size = min(rnd.choice((1, 4, 8)), STATEMENT_LEN - place)
            encoded[place : place + size] = rnd.choice(
                (bytes(size), b"\xff" * size, rnd.randbytes(size), b"\0" * (size - 1) + b"\1")
            )
            rows[at] = sign_statement(bytes(encoded), key)
        case 5 if heads:
            rows[at] = sign_statement(plain(rows[at][:STATEMENT_LEN]), key)
        case 6:
            rows = rows * rnd.choice((2, 3))
        case 7 if len(heads) > 1:
            rows = rows[heads[-1] :] + rows[: heads[-1]]
        case _ if heads:
            rows[at] = rows[at][:STATEMENT_LEN] + plain(rows[at][STATEMENT_LEN:])
    return rows


def _restated(row, key, records):
    said = statement_of(row)
    made = Statement(
        said.deployment, key.public.agent_id, said.epoch, said.sequence, said.milliseconds,
        said.level, said.reason, len(records), records_digest(records),
    )  # fmt: skip
    return sign_statement(made.encode(), key)
