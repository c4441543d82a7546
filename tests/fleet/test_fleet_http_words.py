# SPDX-License-Identifier: Apache-2.0
"""What goes over the wire beside the bodies: problems, results, preferences."""

import copy
import json
import os
import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from upseal.fleet.http import prefer, results
from upseal.fleet.http.problems import (
    MOST_BYTES,
    MOST_DELAY,
    MOST_TEXT,
    NAMES,
    UNKNOWN,
    Problem,
    delay,
)
from upseal.fleet.http.results import MalformedResults, Result, State

PROBLEM = {"content-type": "application/problem+json"}
WIRE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


# -- problems ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(NAMES) - {UNKNOWN}), ids="problem-{}".format)
def test_a_problem_arrives_as_it_was_raised(name):
    sent = Problem(name, "why it was", retry_after=2.5)
    answer = sent.to_response()
    got = Problem.from_response(answer.status_code, answer.headers, answer.body)
    assert (got.name, got.status, got.title, got.detail) == (
        name,
        sent.status,
        sent.title,
        "why it was",
    )
    assert got.retry_after == 3  # whole seconds, never earlier than asked
    assert got.type == f"https://upseal.invalid/problems/{name}"
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.headers.get("www-authenticate") == "Upseal") == (sent.status == 401)


def test_a_problem_survives_copies_and_pickle():
    sent = Problem("full", "no room", retry_after=4, status=507)
    for again in (copy.copy(sent), pickle.loads(pickle.dumps(sent))):
        assert (again.name, again.status, again.detail, again.retry_after) == (
            "full",
            507,
            "no room",
            4,
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "no-such"},
        {"name": "full", "status": 200},
        {"name": "full", "retry_after": -1},
        {"name": "full", "retry_after": float("nan")},
    ],
)
def test_a_wrong_problem_is_the_callers_mistake(wrong):
    with pytest.raises(ValueError):
        Problem(**wrong)


def test_what_the_status_line_says_goes_before_the_body():
    body = json.dumps({"type": "https://upseal.invalid/problems/full", "status": 200}).encode()
    got = Problem.from_response(503, PROBLEM, body)
    assert (got.name, got.status) == ("full", 503)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * 60000,
        b'{"a":' * 10000,
        b"\xff\xfe\x00",
        b"[]",
        b'"full"',
        b'{"type": ["https://upseal.invalid/problems/full"]}',
        b'{"type": "full"}',
        b'{"type": "https://evil.invalid/problems/full"}',
        b'{"type": "https://upseal.invalid/problems/"}',
        b'{"type": {}, "status": 1e999, "title": 7, "detail": [1]}',
        b'{"type": "https://upseal.invalid/problems/full", "x": "' + b"x" * MOST_BYTES + b'"}',
        b"1" * 5000,
    ],
)
def test_hostile_problem_documents_name_nothing(body):
    got = Problem.from_response(500, PROBLEM, body)
    assert (got.name, got.status, got.type) == (UNKNOWN, 500, "about:blank")


def test_only_a_problem_document_is_read_as_one():
    body = Problem("revoked").encode()
    assert Problem.from_response(403, {"content-type": "text/html"}, body).name == UNKNOWN
    kind = {"content-type": "Application/Problem+JSON; charset=utf-8"}
    assert Problem.from_response(403, kind, body).name == "revoked"


def test_words_for_people_are_one_printable_line_of_bounded_length():
    nasty = "\x1b]0;owned\x07 a\r\nb\u202ec " + "y" * 10000
    got = Problem.from_dict({"type": "https://upseal.invalid/problems/full", "detail": nasty})
    assert got.detail is not None and got.detail.isprintable() and len(got.detail) <= MOST_TEXT
    assert got.detail.startswith("]0;owned a b c")


@given(WIRE, st.integers(-5, 999) | st.none())
def test_any_json_is_some_problem(value, status):
    got = Problem.from_dict(value, status)
    assert 400 <= got.status <= 599
    assert Problem.from_dict(got.to_dict()).status == got.status


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("99999999999999999999999", MOST_DELAY),
        ("-3", None),
        ("1.5", None),
        ("\u0667", None),
        ("soon", None),
        ("", None),
        (None, None),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40),
        ("Thu, 01 Jan 1970 00:00:20 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MOST_DELAY),
        ("Thu, 99 Jan 1970 00:01:40 GMT", None),
        ("Thu, 01 Jan 1970 00:01:40 " + "G" * 5000, None),
    ],
)
def test_retry_after(text, seconds):
    assert delay(text, now=60) == seconds


# -- results ----------------------------------------------------------------------------

IDS = st.binary(min_size=32, max_size=32)
RESULTS = st.one_of(
    st.builds(Result.done, IDS, st.lists(st.binary(min_size=1, max_size=200), max_size=4)),
    st.builds(Result.pending, IDS),
    st.builds(Result.unknown, IDS),
)


@given(st.lists(RESULTS, max_size=5))
def test_results_arrive_as_they_were_sent(sent):
    assert results.decode(results.encode(sent)) == sent


def test_a_failed_body_carries_its_problem_and_how_long_to_wait():
    body = os.urandom(32)
    sent = Result.failed(body, Problem("stale-key", "generation 3 is retired", retry_after=1.5))
    (got,) = results.decode(results.encode([sent]))
    assert (got.body, got.state) == (body, State.PROBLEM)
    assert got.problem is not None
    assert (got.problem.name, got.problem.status) == ("stale-key", 409)
    assert (got.problem.detail, got.problem.retry_after) == ("generation 3 is retired", 1.5)


def with_(**changes):
    whole = {"body": "ab" * 32, "state": "done", "receipts": ["AAAA"], **changes}
    return json.dumps({"results": [whole]}).encode()


def test_the_form_that_the_others_spoil():
    (got,) = results.decode(with_())
    assert got == Result.done(b"\xab" * 32, [b"\0\0\0"])
    assert results.decode(with_(more="to come")) == [got]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"results": {}}',
        b'{"results": [null]}',
        b"[" * 100_000,
        b'{"results": ' * 20_000,
        b"\xff",
        with_()[:-1],
        with_(body="ab" * 31),
        with_(body="AB" * 32),
        with_(body="zz" * 32),
        with_(body=" a" * 32),
        with_(body=None),
        with_(state="stored"),
        with_(state=["done"]),
        with_(state=None),
        with_(receipts=None),
        with_(receipts="AAAA"),
        with_(receipts=[7]),
        with_(receipts=[""]),
        with_(receipts=["A"]),
        with_(receipts=["AAA="]),
        with_(receipts=["AA A"]),
        with_(receipts=["+/AA"]),
        with_(receipts=["AB"]),  # bits beyond the last byte
        with_(receipts=["\u0410AAA"]),
        with_(receipts=["A" * 2000]),
    ],
)
def test_anything_else_is_malformed(data):
    with pytest.raises(MalformedResults):
        results.decode(data)


@given(WIRE)
@example({"results": [{"body": "ab" * 32, "state": "problem", "retry_after": float("inf")}]})
@example({"results": [{"body": "ab" * 32, "state": "problem", "retry_after": float("nan")}]})
@example({"results": [{"body": "ab" * 32, "state": "problem", "retry_after": 10**400}]})
def test_any_json_is_results_or_malformed(value):
    for form in (value, {"results": value}, {"results": [value]}):
        try:
            got = results.decode(json.dumps(form).encode())
        except MalformedResults:
            continue
        for result in got:
            assert result.problem is None or (result.problem.retry_after or 0) <= MOST_DELAY


@pytest.mark.parametrize(
    "wrong",
    [
        {"body": b"short", "state": State.PENDING},
        {"body": bytes(32), "state": State.PROBLEM},
        {"body": bytes(32), "state": State.PENDING, "problem": Problem("full")},
        {"body": bytes(32), "state": State.PENDING, "receipts": (b"x",)},
    ],
)
def test_a_result_that_contradicts_itself_is_the_callers_mistake(wrong):
    with pytest.raises(ValueError):
        Result(**wrong)


def test_ids_asked_about():
    ids = [os.urandom(32) for _ in range(3)]
    assert results.decode_ids(results.encode_ids(ids)) == ids
    assert results.decode_ids(results.encode_ids([*ids, ids[0]])) == ids
    with pytest.raises(ValueError):
        results.encode_ids([])
    with pytest.raises(ValueError):
        results.encode_ids([b"short"])
    many = json.dumps({"bodies": ["00" * 32] * (results.MOST_IDS + 1)}).encode()
    for data in (b"{}", b'{"bodies": []}', b'{"bodies": ["x"]}', b'{"bodies": "x"}', many, b"["):
        with pytest.raises(MalformedResults):
            results.decode_ids(data)


# -- Prefer -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("wait=10", 10),
        ("Wait = 10", 10),
        ('wait="10"', 10),
        ("respond-async, wait=10", 10),
        ("wait=10;foo=bar, wait=20", 10),
        ('handling="a, wait=9", wait=3', 3),
        (r'x="\", wait=9", wait=4', 4),
        ("wait=86400", 30),
        ("wait=" + "9" * 900, 30),
        ("wait=-1", 0),
        ("wait=1.5", 0),
        ("wait=\u0663", 0),
        ("wait", 0),
        ("wait=", 0),
        ("waiting=10", 0),
        ("foo;wait=10", 0),
        ("," * 500, 0),
        ('"' * 500, 0),
        ("wait=5," + "x" * 5000, 0),
    ],
)
def test_prefer_wait(header, seconds):
    assert prefer.wait(header) == seconds


@given(st.text(max_size=60))
def test_no_preference_is_an_error(text):
    assert 0 <= prefer.wait(text) <= 30


def test_prefer_is_asked_for_and_confirmed():
    assert prefer.header(0) == {} and prefer.header(12.9) == {"prefer": "wait=12"}
    assert prefer.wait(Headers(prefer.header(100)).get("Prefer")) == 30
    assert prefer.applied(3) == {"preference-applied": "wait=3"} and prefer.applied(0) == {}
