# SPDX-License-Identifier: Apache-2.0
"""The sending side: cut lines, restarts, lying parents; and the requests it goes through."""

import os
import threading
from contextlib import contextmanager

import pytest
from fleet_support import Site
from fleet_uploads_support import PIECE, TUS, eventually, hop, limits, ticket_of
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from upseal.fleet.agent.membership import Credentials
from upseal.fleet.agent.parent import Parent
from upseal.fleet.agent.tally import Alarms
from upseal.fleet.http.apps import application, read_body
from upseal.fleet.http.client import Client, Response, Unreachable
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.serving import in_thread
from upseal.fleet.uploads import carrier
from upseal.fleet.uploads.carrier import LEAST_PIECE, Carrier, Throttle
from upseal.fleet.uploads.words import path_of

DATA = os.urandom(5 * PIECE + 77)


class Bytes:
    def __init__(self, data):
        self.data, self.reads = data, []

    def read(self, offset, length):
        self.reads.append((offset, length))
        return self.data[offset : offset + length]


class Line:
    """A link on which things happen: ``happens(number, method)`` says what, before each request."""

    def __init__(self, link, happens=lambda number, method: None):
        self.link, self.happens, self.sent = link, happens, []

    def request(self, method, path, body, headers):
        what = self.happens(len(self.sent), method)
        self.sent.append((method, len(body)))
        if what == "cut":
            raise Unreachable("cut before")
        if isinstance(what, Response):
            return what
        answer = self.link.request(method, path, body, headers)
        if what == "lost":
            raise Unreachable("cut after")
        return answer


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(carrier, "_PAUSE", 0.0)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    with hop(tmp_path_factory.mktemp("shelf")) as found:
        yield found


@pytest.fixture
def sender(there):
    return there.sender()


def carry(link, data=DATA, ticket=None, stop=None, source=None, **how):
    how.setdefault("piece", PIECE)
    how.setdefault("on_progress", lambda *_: None)
    ticket = ticket or ticket_of(data)
    return Carrier(link, **how).carry(ticket, source or Bytes(data), stop or threading.Event())


def arrived(there, sender, ticket, data=DATA):
    there.settled(sender, ticket)
    return there.shelf.find(sender.hop_id, ticket.body_id).path.read_bytes() == data


def refusal(name, **more):
    problem = Problem(name, **more)
    return Response(problem.status, problem.headers(), problem.encode())


class TestCarrying:
    def test_all_of_it(self, there, sender):
        ticket, line, seen = ticket_of(DATA), Line(sender.link), []
        assert carry(line, ticket=ticket, on_progress=lambda *said: seen.append(said))
        assert arrived(there, sender, ticket)
        pieces = [("PATCH", PIECE)] * 5 + [("PATCH", 77)]
        assert line.sent == [("HEAD", 0), ("POST", 0), *pieces]
        assert seen == [
            (ticket.body_id, at, len(DATA)) for at in [*range(0, len(DATA), PIECE), len(DATA)]
        ]
        assert carry(line, ticket=ticket), "and it is there"
        assert len(line.sent) == 9

    def test_zero_bytes(self, there, sender):
        ticket = ticket_of(b"")
        assert carry(sender.link, b"", ticket)
        assert arrived(there, sender, ticket, b"")

    def test_it_goes_on_where_it_was(self, there, sender):
        ticket, source = ticket_of(DATA), Bytes(DATA)
        sender.create(ticket)
        sender.patch(ticket, 0, DATA[:1000])
        assert carry(sender.link, ticket=ticket, source=source)
        assert source.reads[0] == (1000, PIECE) and arrived(there, sender, ticket)

    def test_when_it_is_stopped(self, there, sender):
        ticket, stop = ticket_of(DATA), threading.Event()

        def progress(body_id, offset, size):
            if offset >= 2 * PIECE:
                stop.set()

        assert not carry(sender.link, ticket=ticket, stop=stop, on_progress=progress)
        assert sender.offset(ticket) == 2 * PIECE
        assert carry(sender.link, ticket=ticket)
        assert arrived(there, sender, ticket)
        assert not carry(sender.link, stop=stop)

    def test_known_above(self, tmp_path):
        with hop(tmp_path, known=lambda who, body: True) as there:
            line = Line(there.sender().link)
            assert carry(line)
            assert line.sent == [("HEAD", 0)]

    def test_a_source_that_ends_early(self, sender):
        with pytest.raises(OSError, match="fewer bytes"):
            carry(sender.link, ticket=ticket_of(DATA), source=Bytes(DATA[:-1]))


class TestBadLines:
    @pytest.mark.parametrize("what", ["cut", "lost"])
    @pytest.mark.parametrize("every", [3, 4])
    def test_requests_and_answers_are_lost(self, there, sender, what, every):
        ticket = ticket_of(DATA)
        line = Line(sender.link, lambda number, _: what if number % every == 0 else None)
        assert carry(line, ticket=ticket)
        assert arrived(there, sender, ticket)

    def test_pieces_get_shorter_and_longer_again(self, tmp_path):
        with hop(tmp_path, max_piece=1 << 20) as there:
            sender, data = there.sender(), os.urandom(3 << 20)
            ticket = ticket_of(data)
            cuts = iter([None, None, "cut", None, "cut", None, "cut"])
            line = Line(sender.link, lambda *_: next(cuts, None))
            assert carry(line, data, ticket, piece=1 << 19)
            sizes = [size for method, size in line.sent if method == "PATCH"]
            assert sizes[:4] == [1 << 19, 1 << 18, 1 << 17, 1 << 16]
            assert sizes[4:6] == [1 << 17, 1 << 18] and max(sizes[6:]) == 1 << 19
            assert arrived(there, sender, ticket, data)

    def test_it_gives_up(self, sender):
        line = Line(sender.link, lambda number, _: "cut")
        with pytest.raises(Unreachable, match="cut before"):
            carry(line)
        assert len(line.sent) == 6
        line = Line(sender.link, lambda number, method: "cut" if method == "PATCH" else None)
        with pytest.raises(Unreachable):
            carry(line)
        assert {size for _, size in line.sent} == {0, LEAST_PIECE}

    def test_a_piece_that_is_too_large(self, tmp_path):
        with hop(tmp_path, max_piece=100_000) as there:
            sender, ticket = there.sender(), ticket_of(DATA)
            line = Line(sender.link)
            assert carry(line, ticket=ticket, piece=1 << 20)
            assert [size for _, size in line.sent][2:5] == [len(DATA), 100_000, 100_000]
            assert arrived(there, sender, ticket)

    def test_or_for_a_proxy_between(self, there, sender):
        ticket = ticket_of(DATA)

        class Proxy(Line):
            def request(self, method, path, body, headers):
                self.sent.append(len(body))
                if len(body) > 70_000:
                    return Response(413, {}, b"<html>")
                return self.link.request(method, path, body, headers)

        line = Proxy(sender.link)
        assert carry(line, ticket=ticket, piece=4 * PIECE)
        assert line.sent[2:6] == [4 * PIECE, 2 * PIECE, PIECE, PIECE]
        assert arrived(there, sender, ticket)
        line = Line(sender.link, lambda _, m: Response(413, {}, b"") if m == "PATCH" else None)
        with pytest.raises(Problem) as caught:
            carry(line)
        assert caught.value.status == 413

    def test_a_line_so_slow_that_the_proof_of_a_piece_is_out_of_date(self, tmp_path):
        """A proof holds for five minutes: what takes longer must go in shorter pieces."""

        class Slow(Line):
            def request(self, method, path, body, headers):
                self.sent.append((method, len(body)))
                if len(body) > 100_000:
                    return refusal("clock")
                return self.link.request(method, path, body, headers)

        with hop(tmp_path, max_piece=1 << 20) as there:
            sender, ticket = there.sender(), ticket_of(DATA)
            line = Slow(sender.link)
            assert carry(line, ticket=ticket, piece=4 * PIECE)
            sizes = [size for method, size in line.sent if method == "PATCH"]
            assert sizes[:4] == [4 * PIECE, 2 * PIECE, PIECE, PIECE]
            assert max(sizes[2:]) == PIECE, "and no longer ones again"
            assert arrived(there, sender, ticket)
            line = Line(sender.link, lambda _, m: refusal("clock") if m == "PATCH" else None)
            with pytest.raises(Problem) as caught:
                carry(line, ticket=ticket_of(DATA), piece=4 * PIECE)
            assert caught.value.name == "clock", "the shortest ones do not help either"

    def test_it_has_expired_meanwhile(self, there, sender):
        ticket, happened = ticket_of(DATA), []

        def expires(number, method):
            if number == 4:
                happened.append(there.shelf.expire(2e10))

        line = Line(sender.link, expires)
        assert carry(line, ticket=ticket)
        assert happened[0] >= 1 and [m for m, _ in line.sent].count("POST") == 2
        assert arrived(there, sender, ticket)

    def test_somebody_else_has_sent_bytes(self, there, sender):
        """A process of ours that was thought dead."""
        ticket = ticket_of(DATA)

        def other(number, method):
            if number == 3:
                sender.patch(ticket, PIECE, DATA[PIECE : 2 * PIECE])

        line = Line(sender.link, other)
        assert carry(line, ticket=ticket)
        assert arrived(there, sender, ticket)


class TestRefusals:
    def test_they_are_told(self, tmp_path):
        with hop(tmp_path, unwelcome=lambda ticket: Problem("sealed-not-accepted")) as there:
            with pytest.raises(Problem) as caught:
                carry(there.sender().link)
            assert caught.value.name == "sealed-not-accepted"
        with hop(tmp_path, shelf_limits=limits(open_per_hop=1)) as there:
            sender = there.sender()
            sender.create(ticket_of(DATA))
            with pytest.raises(Problem) as caught:
                carry(sender.link)
            assert caught.value.name == "busy" and caught.value.retry_after > 0

    @pytest.mark.parametrize("name", ["full", "parent-away", "stopping", "revoked", "conflict",
                                      "internal", "unauthenticated", "malformed"])  # fmt: skip
    def test_at_once(self, sender, name):
        line = Line(sender.link, lambda n, m: refusal(name, retry_after=7) if n == 3 else None)
        with pytest.raises(Problem) as caught:
            carry(line)
        assert (caught.value.name, caught.value.retry_after) == (name, 7)

    @pytest.mark.parametrize("name", ["checksum", "offset", "slow", "not-found"], ids="{}!".format)
    def test_those_that_a_second_look_may_heal(self, there, sender, name):
        ticket = ticket_of(DATA)
        line = Line(sender.link, lambda n, m: refusal(name) if n == 3 else None)
        assert carry(line, ticket=ticket) and arrived(there, sender, ticket)
        line = Line(sender.link, lambda n, m: refusal(name) if m == "PATCH" else None)
        with pytest.raises((Problem, Unreachable)):
            carry(line)
        assert [m for m, _ in line.sent].count("PATCH") == 6

    def test_somebody_else_is_at_work(self, there, sender):
        ticket, busy = ticket_of(DATA), refusal("busy", status=423)
        line = Line(sender.link, lambda n, m: busy if n == 3 else None)
        assert carry(line, ticket=ticket) and arrived(there, sender, ticket)

    def test_a_parent_without_uploads(self, sender):
        line = Line(sender.link, lambda n, m: Response(404, {}, b""))
        with pytest.raises(Unreachable, match="lead nowhere"):
            carry(line)

    @pytest.mark.parametrize(
        ("at", "status", "headers"),
        [(0, 200, {}), (0, 200, {"upload-offset": "1", "upload-length": "x"}),
         (0, 200, {"upload-offset": "-1", "upload-length": str(len(DATA))}),
         (0, 200, {"upload-offset": "9" * 30, "upload-length": "9" * 31}),
         (0, 200, {"upload-offset": "6", "upload-length": "5"}),
         (0, 200, {"upload-offset": "0", "upload-length": "5"}), (0, 302, {"location": "/x"}),
         (2, 204, {}), (2, 204, {"upload-offset": "0"}), (2, 204, {"upload-offset": "5"}),
         (2, 204, {"upload-offset": str(10**15)}), (2, 302, {}), (1, 304, {})],
    )  # fmt: skip
    def test_answers_that_make_no_sense(self, sender, at, status, headers):
        kinds = ("HEAD", "POST", "PATCH")

        def lie(number, method):
            return Response(status, headers, b"") if method == kinds[at] else None

        line = Line(sender.link, lie)
        with pytest.raises((Unreachable, Problem)):
            carry(line)
        assert len(line.sent) < 20


class Waits(threading.Event):
    """Says how long it was waited for."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.waited, self.stop_at = [], stop_at

    def wait(self, timeout=None):
        self.waited.append(timeout)
        return self.stop_at is not None and len(self.waited) >= self.stop_at


class TestThrottle:
    def test_each_waits_for_those_before(self, monkeypatch):
        monkeypatch.setattr(carrier.time, "monotonic", lambda: 100.0)
        throttle, stop = Throttle(1000), Waits()
        assert all(throttle.wait(500, stop) for _ in range(4))
        assert stop.waited == [0, 0.5, 1.0, 1.5]
        monkeypatch.setattr(carrier.time, "monotonic", lambda: 200.0)
        assert throttle.wait(500, stop) and stop.waited[-1] == 0, "what was not used is gone"

    def test_it_can_be_stopped(self, there, sender):
        throttle, stop = Throttle(LEAST_PIECE), Waits(stop_at=3)
        assert not carry(sender.link, stop=stop, throttle=throttle)
        assert len(stop.waited) == 3

    def test_without_a_rate(self):
        stop = threading.Event()
        assert Throttle(0).wait(10**12, stop) and Throttle(0).piece(5) == 5
        stop.set()
        assert not Throttle(0).wait(1, stop)

    def test_pieces_are_of_a_second(self):
        assert Throttle(1_000_000).piece(4 << 20) == 1_000_000
        assert Throttle(10).piece(4 << 20) == LEAST_PIECE
        assert Throttle(10).piece(1000) == 1000
        assert Throttle(1e9).piece(4 << 20) == 4 << 20

    @pytest.mark.parametrize("rate", [-1, float("inf"), float("nan")])
    def test_rates_that_are_none(self, rate):
        with pytest.raises(ValueError):
            Throttle(rate)


# -- the links -------------------------------------------------------------------------


@contextmanager
def agents_link(there, site):
    member = site.agent()
    trust = site.trust(there.shelf.folder / "trust.json")
    mine = Credentials(
        site.deployment, member.agent, member.credential, member.identity, member.hop
    )
    with Client(there.address.url, 20.0) as client:
        yield Parent(client, mine, trust, Alarms()), member.hop.public.agent_id


class TestLinks:
    def test_an_agents(self, tmp_path):
        site = Site()
        with hop(tmp_path, site=site) as there, agents_link(there, site) as (link, hop_id):
            link._offset = 3_600_000  # the first request, HEAD, is answered without a body
            ticket = ticket_of(DATA)
            assert carry(link, ticket=ticket)
            assert abs(link._offset) < 3000
            eventually(lambda: there.shelf.find(hop_id, ticket.body_id).state == "whole")
            response = link.request("DELETE", path_of(ticket.body_id), b"", TUS)
            assert response.status == 204

    def test_a_relays(self, there, sender):
        sender.link._offset = -3_600_000
        ticket = ticket_of(DATA)
        assert carry(sender.link, ticket=ticket)
        assert abs(sender.link._offset) < 3000 and arrived(there, sender, ticket)
        assert sender.link.refusal is None and not sender.link.away

    def test_a_query_is_not_proven(self, there, sender):
        response = sender.request("DELETE", path_of(bytes(32)) + "?x=1")
        assert response.status == 404 and response.problem().name == "not-found"

    def test_a_relay_hears_that_it_is_refused(self, tmp_path):
        site = Site()
        with hop(tmp_path, site=site) as there:
            sender = there.sender()
            site.change(revoked_agents=(sender.hop_id,))
            with pytest.raises(Problem):
                carry(sender.link)
            assert sender.link.refusal == "revoked"
        with pytest.raises(Unreachable):
            carry(sender.link)
        assert sender.link.away

    def test_long_bodies_go_in_pieces(self, monkeypatch):
        """A timeout holds for what is sent at once, and a slow line takes its time."""
        got = []

        async def take(request):
            got.append((await read_body(request, 1 << 20), dict(request.headers)))
            return PlainTextResponse("")

        app = application([Route("/x", take, methods=["POST"])], metrics=Metrics("relay"))
        import http.client

        sizes, real = [], http.client.HTTPConnection.send

        def send(self, data):
            sizes.append(len(data))
            return real(self, data)

        monkeypatch.setattr(http.client.HTTPConnection, "send", send)
        with in_thread(app) as address, Client(address.url, 20.0) as client:
            for data in (DATA, bytearray(DATA), memoryview(DATA), DATA[:100]):
                assert client.request("POST", "/x", data).status == 200
                body, headers = got.pop()
                assert body == bytes(data)
                assert headers["content-length"] == str(len(data))
                assert "transfer-encoding" not in headers
        assert max(sizes) == 64 << 10
