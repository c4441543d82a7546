# SPDX-License-Identifier: Apache-2.0
"""Requests as text, as `asgi` reads them: how they are changed, and those to begin with."""

import base64
import hashlib

from upfuzz import world
from upfuzz.asgi import FORMS, METHODS, MOST_REQUESTS, SEPARATOR
from upfuzz.bodies import example_units
from upfuzz.harness import attempt
from upfuzz.mutators import json_bytes
from upfuzz.resign import mutate_rows
from upseal.fleet.encoding import b64url, dump_json
from upseal.fleet.units import MalformedUnits, clear_body, parse_clear, unit_rows

_PATHS = (
    "/v1/units", "/v1/results", "/v1/manifest", "/v1/manifest?since=", "/v1/capabilities",
    "/v1/enrol", "/v1/relay/key", "/v1/relay/challenge", "/v1/relay/answer", "/v1/uploads",
    "/v1/uploads/@", "/healthz", "/readyz", "/metrics", "/admin", "/admin/login", "/",
    "/v1/uploads/" + "0" * 64, "/v1/units/", "//v1/units", "/v1/%75nits", "/v1/uploads/%00",
)  # fmt: skip
_HEADERS = (
    b"prefer: wait=1", b"tus-resumable: 1.0.0", b"upload-length: 5", b"upload-offset: 0",
    b"content-type: application/offset+octet-stream", b"x-http-method-override: PATCH",
    b"upload-defer-length: 1", b"content-length: 99999999999", b"content-length: -1",
    b"if-none-match: *", b"upload-checksum: sha1 2jmj7l5rSw0yVb/vlWAYkK/YBwk=", b"expect: x",
    b"transfer-encoding: chunked", b"authorization: Upseal x", b"upseal-proof: x.y.z",
    b"upload-metadata: upload AAAAAAAAAAAAAAAAAAAAAA==,form Y2xlYXI=", b"host: x", b"cookie: a=b",
)  # fmt: skip


def mutate_requests(data, rnd, plain):
    """One of the requests with another head, or another body that fits its form."""
    parts = data.split(SEPARATOR)
    if not rnd.randrange(6):
        return plain(data)
    at = rnd.randrange(len(parts))
    match rnd.randrange(8):
        case 0:
            parts.insert(at, rnd.choice(parts))
        case 1 if len(parts) > 1:
            del parts[at]
        case 2 if len(parts) > 1:
            parts[at], parts[-1] = parts[-1], parts[at]
        case _:
            parts[at] = _mutate_one(parts[at], rnd, plain)
    return SEPARATOR.join(parts[:MOST_REQUESTS])


def _mutate_one(part, rnd, plain):
    head, _, body = part.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    words = first.split(b" ")
    words += [b""] * (4 - len(words))
    match rnd.randrange(9):
        case 0:
            words[1] = rnd.choice(_PATHS).encode()
        case 1:
            at = rnd.choice((0, 2, 3))
            choices = (METHODS, (), ("agent", "relay", "stranger", "nobody"), FORMS)[at]
            words[at] = rnd.choice(choices).encode()
        case 2:
            lines.append(rnd.choice(_HEADERS))
        case 3 if lines:
            at = rnd.randrange(len(lines))
            lines[at] = plain(lines[at])
        case 4 if lines:
            del lines[rnd.randrange(len(lines))]
        case 5:
            body = plain(body)
        case _:
            body = _mutate_body(words[3], body, rnd, plain)
    return b"\n".join([b" ".join(words), *lines]) + b"\n\n" + body


def _mutate_body(form, body, rnd, plain):
    if form in (b"sign", b"seal", b"bundle"):
        rows, _ = attempt(lambda: parse_clear(body), MalformedUnits)
        rows = None if rows is None else mutate_rows(rows, rnd, plain)
        return clear_body(rows) if rows else plain(body)
    return json_bytes(body, rnd, plain)


# -- seeds -----------------------------------------------------------------------------------------


def request_seeds():
    """One request of each kind, and what belongs together."""
    rows = unit_rows(example_units()[:2])
    clear = clear_body(rows)
    for who in ("agent", "relay"):
        for form in ("sign", "seal", "bundle"):
            yield f"POST /v1/units {who} {form}\nprefer: wait=1\n\n".encode() + clear
    yield b"POST /v1/units nobody raw\n\n" + clear
    asked = dump_json({"bodies": [hashlib.sha256(clear).hexdigest()]})
    yield b"POST /v1/results agent raw\nprefer: wait=1\n\n" + asked
    yield b'GET /v1/manifest?since=0 nobody raw\nif-none-match: "1-x"\n\n'
    yield b"GET /v1/capabilities nobody raw\n\n" + SEPARATOR + b"GET /readyz nobody raw\n\n"
    enrol = {
        "name": "new", "role": "agent", "decrypts": False, "accepts_sealed": True, "t": "now",
    }  # fmt: skip
    yield b"POST /v1/enrol stranger enrol\n\n" + dump_json(enrol)
    public = world.private("p256-b").public_key.to_pem().decode()
    said = {"generation": 1, "t": "now"}
    for name, more in (
        ("key", {"public_key": public}),
        ("challenge", {}),
        ("answer", {"answer": b64url(bytes(32))}),
    ):
        yield f"POST /v1/relay/{name} relay jws\n\n".encode() + dump_json({**said, **more})
    content = b"hello"
    pairs = {"upload": b"u" * 16, "sha256": hashlib.sha256(content).digest(), "form": b"clear"}
    metadata = ",".join(f"{k} {base64.b64encode(v).decode()}" for k, v in pairs.items())
    head = "agent raw\ntus-resumable: 1.0.0\n"
    create = f"POST /v1/uploads {head}upload-length: 5\nupload-metadata: {metadata}\n\n"
    kind = "content-type: application/offset+octet-stream\n"
    send = f"PATCH /v1/uploads/@ {head}{kind}".encode()
    where = b"HEAD /v1/uploads/@ agent raw\ntus-resumable: 1.0.0\n\n"
    yield SEPARATOR.join([
        create.encode(), where, send + b"upload-offset: 0\n\nhel", send + b"upload-offset: 3\n\nlo",
    ])  # fmt: skip
    yield create.encode()
    yield b"OPTIONS /v1/uploads nobody raw\n\n"
    yield b"GET /admin nobody raw\n\n" + SEPARATOR + b"GET /metrics nobody raw\n\n"
