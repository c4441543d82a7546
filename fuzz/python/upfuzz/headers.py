# SPDX-License-Identifier: Apache-2.0
"""Targets: what stands in heads of requests and answers, and the answers' bodies."""

import base64
import json

from starlette.datastructures import Headers
from starlette.requests import Request

from upfuzz import world
from upfuzz.bodies import announcement
from upfuzz.harness import Target, attempt, check, same
from upfuzz.mutators import json_bytes
from upseal.fleet.http import prefer, responses, results
from upseal.fleet.http.client import Response
from upseal.fleet.http.paths import UPLOADS
from upseal.fleet.http.problems import MEDIA_TYPE, MOST_DELAY, NAMES, Problem, delay
from upseal.fleet.http.results import MalformedResults, Result, State
from upseal.fleet.trail import parse_unit
from upseal.fleet.uploads import tus
from upseal.fleet.uploads.words import Ticket, covered, parse_number, path_of, proven

# -- uploads ---------------------------------------------------------------------------------------


def run_ticket(data):
    """Lines: Upload-Length, Upload-Metadata, Upload-Offset, Upload-Checksum."""
    lines = data.decode("latin-1").split("\n")
    length, metadata, offset, checksum = (lines + [""] * 4)[:4]
    ticket, _ = attempt(lambda: Ticket.parse(length, metadata), ValueError)
    if ticket is not None:
        same(Ticket.parse(str(ticket.size), ticket.metadata()), ticket)
        same(str(ticket.size), length)
        same(path_of(ticket.body_id), f"{UPLOADS}/{ticket.body_id.hex()}")
        attempt(lambda: Ticket.parse(None, metadata), ValueError)
    number, _ = attempt(lambda: parse_number(offset, "Upload-Offset"), ValueError)
    check(number is None or (0 <= number < 2**63 and str(number) == offset), "another spelling")
    found, _ = attempt(lambda: tus._checksum(checksum), ValueError)
    if found is not None:
        check(not found.fits([data]) or len(found.digest) >= 16, "no digest fits")
    _covered(length, metadata, offset, data)


def _covered(length, metadata, offset, body):
    """What a proof covers: the headers in any case, once each, and not to be read in two ways."""
    said = [("upload-length", length), ("Upload-Metadata", metadata), ("UPLOAD-OFFSET", offset)]
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in said]
    headers = Headers(raw=raw)
    covers = covered(dict(said), bytes(32))
    same(covers, covered(headers, bytes(32)))
    # A header of HTTP has no line end in it; here it may, and must not make two lines of one.
    check(covers.count(b"\n") == 4 or "\n" in length + metadata + offset, "lines")
    same(proven("/v1/units", headers, body), body)
    twice = Headers(raw=[*raw, (b"upload-offset", b"1")])
    check(attempt(lambda: covered(twice, bytes(32)), ValueError)[1] is not None, "there twice")


def _ticket_seeds():
    for size, form in ((1000, "sealed"), (0, "clear"), (2**63 - 1, "clear")):
        said = announcement(form=form)
        ticket = Ticket(said.upload, said.body_sha256, form, size)
        checksum = "sha256 " + base64.b64encode(bytes(32)).decode()
        yield f"{size}\n{ticket.metadata()}\n4096\n{checksum}".encode()
    yield b"1\nfilename d29ybGQ=,is_confidential\n0\nmd5 AAAAAAAAAAAAAAAAAAAAAA=="


# -- results ---------------------------------------------------------------------------------------


def run_results(data):
    ids, _ = attempt(lambda: results.decode_ids(data), MalformedResults)
    if ids is not None:
        same(results.decode_ids(results.encode_ids(ids)), ids)
        check(1 <= len(ids) <= results.MOST_IDS and len(set(ids)) == len(ids), "ids")
    found, _ = attempt(lambda: results.decode(data), MalformedResults)
    if found is None:
        return
    written = results.encode(found)
    same(results.encode(results.decode(written)), written)
    for result in found:
        same(len(result.body), 32)
        check((result.problem is not None) == (result.state is State.PROBLEM), "a problem")
        if result.problem is not None:
            _check_problem(result.problem)


def _check_problem(problem):
    check(problem.name in NAMES and 400 <= problem.status <= 599, "no problem of ours")
    check(str(problem).isprintable() and len(str(problem)) < 700, "what garbles a log")
    wait = problem.retry_after
    check(wait is None or 0 <= wait <= MOST_DELAY, "sent away for ever")
    same(json.loads(problem.encode())["status"], problem.status)
    problem.headers()


def _result_seeds():
    body = bytes(range(32))
    yield results.encode_ids([body, bytes(32)])
    yield results.encode(
        [
            Result.done(body, [b"receipt" * 10, b"x"]),
            Result.pending(bytes(32)),
            Result.unknown(b"\1" * 32),
            Result.failed(b"\2" * 32, Problem("busy", "too many", retry_after=2.5)),
            Result.failed(b"\3" * 32, Problem("unknown", status=418, title="teapot")),
        ]
    )


# -- words -----------------------------------------------------------------------------------------

_NAMES = ("content-type", "retry-after", "date", "upseal-problem", "prefer", "etag")


def run_words(data):
    """Status, header lines, an empty line, a body: an answer of somebody who means harm."""
    head, _, body = data.partition(b"\n\n")
    lines = head.decode("latin-1").split("\n")
    number = lines[0][:3]
    status = int(number) if number.isascii() and number.isdecimal() else 500
    headers = dict(line.partition(": ")[::2] for line in lines[1:])
    answer = Response(status, headers, body)
    problem = answer.problem()
    check((problem is not None) == (status >= 400), "a status")
    if problem is not None:
        _check_problem(problem)
    attempt(answer.json, ValueError)
    check(answer.date is None or isinstance(answer.date, int), "a date")
    for value in headers.values():
        found = delay(value, world.NOW / 1000)
        check(found is None or 0 <= found <= MOST_DELAY, "a delay")
        check(0 <= prefer.wait(value) <= prefer.MOST_WAIT, "a wait")
        unit = parse_unit(value)
        check(unit is None or (len(unit[0]) <= 32 and unit[1] < 10**19), "the name of a unit")
        _asked(value)


def _asked(value):
    """As a query, and as what somebody says that it has."""
    scope = {
        "type": "http", "method": "GET", "path": "/v1/manifest",
        "query_string": b"since=" + value.encode("latin-1"),
        "headers": [(b"if-none-match", value.encode("latin-1"))],
    }  # fmt: skip
    serial, _ = attempt(lambda: responses.since(Request(scope)), Problem)
    check(serial is None or 0 <= serial < 10**20, "a serial")
    answer = responses.of_notice(Request(scope), ("7-abc", b"text"), Problem("full"))
    check(answer.status_code in (200, 304), "an answer")


def mutate_words(data, rnd, plain):
    head, found, body = data.partition(b"\n\n")
    lines = head.split(b"\n")
    if found and rnd.getrandbits(1):
        return head + b"\n\n" + json_bytes(body, rnd, plain)
    if rnd.getrandbits(1):
        lines[rnd.randrange(len(lines))] = plain(rnd.choice(lines))
    else:
        name = rnd.choice(_NAMES).encode()
        value = rnd.choice((*_VALUES, *(line.partition(b": ")[2] for line in lines)))
        lines.append(name + b": " + (plain(value) if rnd.getrandbits(1) else value))
    return b"\n".join(lines) + b"\n\n" + body


_VALUES = (
    b"Mon, 01 Jan 0001 00:00:00 -0000", b"Fri, 31 Dec 9999 23:59:60 GMT", b"120", b"-1", b"1e9",
    b"Mon, 01 Jan 2040 00:00:00 +9999", b"wait=30, respond-async", b'wait="10"; x="\\"', b"wait=",
    b"0123456789ab-42", b"wait=99999999999999999999", b"\xb2", b'"7-abc", W/"8-x"', b"*",
)  # fmt: skip


def _word_seeds():
    problem = Problem("busy", "too many", retry_after=3)
    yield f"429\ncontent-type: {MEDIA_TYPE}\nretry-after: 3\n\n".encode() + problem.encode()
    yield b"404\nupseal-problem: not-found\nprefer: wait=5\n\n"
    yield b'200\ndate: Mon, 23 Nov 2026 17:00:00 GMT\netag: "7-abc"\n\n{}'
    for value in _VALUES:
        yield b"503\nretry-after: " + value + b"\ndate: " + value + b"\n\n"


TARGETS = {
    target.name: target
    for target in (
        Target("ticket", run_ticket, _ticket_seeds, None, "http.dict", longest=6000),
        Target("results", run_results, _result_seeds, json_bytes, "http.dict", longest=8192),
        Target("words", run_words, _word_seeds, mutate_words, "http.dict", longest=4096),
    )
}
