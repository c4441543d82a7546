# SPDX-License-Identifier: Apache-2.0
"""The administrator's page over HTTP: who gets in, what is shown, and what never is."""

import asyncio
import base64
import contextlib
import html
import itertools
import json
import re
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from fleet_page_support import HOUR, MINUTE, Visitor, add_client, add_login, populate, says
from fleet_server_support import Site, clear, now_ms, until
from sqlalchemy.exc import OperationalError
from starlette.requests import Request
from starlette.responses import Response

from upseal.cli import main
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.problems import Problem
from upseal.fleet.policy import Level, Reason
from upseal.fleet.server import tables
from upseal.fleet.server.overview import orphans
from upseal.fleet.server.overview.census import DOES, FILTERS, SORTS, Census, Choice
from upseal.fleet.server.page import chart, passwords
from upseal.fleet.server.page.asking import RANGES, Asked
from upseal.fleet.server.page.passwords import Passwords, Pauses
from upseal.fleet.server.page.routes import HEADERS, Page
from upseal.fleet.server.page.sessions import SESSION, Sessions
from upseal.fleet.server.recording import Recording
from upseal.fleet.server.settings import SettingsError, read_settings
from upseal.fleet.server.store import Store, alarms, coverage, logins
from upseal.fleet.server.store.coverage import KEPT, MINUTES_KEPT, Sample

EVIL = '<script>alert("x")</script>&amp;\u202e'
CSP = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


COST = logins._COST


@pytest.fixture(scope="module", autouse=True)
def cheap():
    """Many log in here, and each would take a tenth of a second."""
    logins._COST = 1 << 10
    yield
    logins._COST = COST


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A server with a populated deployment, and a login."""
    made = Site(tmp_path_factory.mktemp("page") / "site")
    made.old, made.new = populate(made, 120, days=3)
    with made.store() as store, store.writing() as db:
        add_client(db, EVIL[:48])
    made.password = add_login(made)
    with made.running():
        yield made


@pytest.fixture
def visitor(site):
    """Somebody who is logged in."""
    found = Visitor(site.url)
    assert found.login("root", site.password).status == 303
    return found


@pytest.fixture
def empty(tmp_path):
    """A deployment without a server."""
    return Site(tmp_path / "site")


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    database = tmp_path / "server.db"
    if request.param == "postgresql":
        database = request.getfixturevalue("postgresql").database()
    with Store.create(database, bytes(16)) as made:
        yield made


# -- who gets in ------------------------------------------------------------------------


def test_without_a_login_the_page_says_how_to_make_one_and_nothing_else(empty):
    with empty.running():
        visitor = Visitor(empty.url)
        for path in ("/admin", "/admin/login"):
            answer = visitor.get(path)
            assert answer.status == 200 and "upseal admin login add NAME" in answer.text
            assert "<form" not in answer.text and "site" not in answer.text
            assert not answer.cookies
        for path in ("/admin/live", "/admin/status.json", "/admin/clients.json"):
            assert visitor.get(path).status == 401
        password = add_login(empty)
        until(lambda: visitor.get().status == 303, "the login to be noticed")
        assert visitor.login("root", password).status == 303
        assert "Nobody has enrolled yet" in visitor.get().text


def test_logging_in_and_out(site):
    visitor = Visitor(site.url)
    assert visitor.get().headers["location"] == "/admin/login"
    answer = visitor.get("/admin/login")
    before = answer.cookies["upseal-login"]
    answer = visitor.login("root", site.password)
    assert (answer.status, answer.headers["location"]) == (303, "/admin")
    cookie = answer.cookies["upseal-session"]
    for header in (before, cookie):
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(header.split("; "))
        assert "Domain" not in header and "Secure" not in header, "plain HTTP"
    assert "Max-Age=43200" in cookie and "Max-Age=0" in answer.cookies["upseal-login"]
    page = visitor.get()
    assert page.status == 200 and "Encryption is" in page.text
    assert visitor.get("/admin/login").headers["location"] == "/admin"

    stolen = Visitor(site.url)
    stolen.cookies = dict(visitor.cookies)
    token = re.search(r'name="token" value="(\w+)"', page.text)[1]
    answer = visitor.post("/admin/logout", token=token)
    assert (answer.status, answer.headers["location"]) == (303, "/admin/login")
    assert visitor.cookies.keys() <= {"upseal-login"}
    assert stolen.get().status == 303, "the session has ended, and not the cookie alone"
    assert stolen.get("/admin/status.json").status == 401


def test_a_session_begins_with_a_new_cookie(site):
    visitor = Visitor(site.url)
    visitor.cookies["upseal-session"] = "planted"
    visitor.login("root", site.password)
    assert len(visitor.cookies["upseal-session"]) == 43
    again = Visitor(site.url)
    again.login("root", site.password)
    assert again.cookies["upseal-session"] != visitor.cookies["upseal-session"]


def test_a_form_counts_only_from_the_browser_that_it_was_given_to(site):
    visitor, other = Visitor(site.url), Visitor(site.url)
    token = visitor.token()
    said = {"name": "root", "password": site.password}
    for bad in ("", "0" * 64, other.token()):
        answer = visitor.post("/admin/login", token=bad, **said)
        assert answer.status == 403 and "upseal-session" not in answer.cookies
    assert other.post("/admin/login", token=token, **said).status == 403
    other.cookies.clear()
    assert other.post("/admin/login", token=token, **said).status == 403
    for from_where in ("cross-site", "same-site"):
        answer = visitor.post("/admin/login", {"sec-fetch-site": from_where}, token=token, **said)
        assert answer.status == 403
    answer = visitor.post("/admin/login", {"sec-fetch-site": "same-origin"}, token=token, **said)
    assert answer.status == 303


def test_logging_out_needs_the_form_as_well(site, visitor):
    for fields in ({}, {"token": "0" * 64}):
        assert visitor.post("/admin/logout", **fields).status == 403
    assert visitor.get("/admin/logout").status == 405
    assert visitor.get().status == 200


@pytest.mark.parametrize(
    ("name", "password"), [("root", "wrong"), ("nobody", "wrong"), ("", ""), ("root\0", "x" * 256)]
)
def test_a_wrong_password_says_nothing_about_the_name(site, name, password):
    visitor = Visitor(site.url)
    answer = visitor.login(name, password)
    if answer.status != 429:  # another case of this test has used the name up
        assert answer.status == 401 and "no such name with that password" in answer.text
    assert "upseal-session" not in answer.cookies
    assert visitor.get("/admin/status.json").status == 401


def test_what_is_no_form_is_refused(site):
    visitor = Visitor(site.url)
    token = visitor.token()
    assert visitor.post("/admin/login", token=token, name="x" * 5000).status == 413
    json_form = {"content-type": "application/json"}
    assert visitor.post("/admin/login", json_form, token=token).status == 400
    many = {f"f{number}": "1" for number in range(20)}
    assert visitor.post("/admin/login", **many).status == 400
    assert visitor.ask(
        "POST", "/admin/login", b"\xff\xfe", **{"content-type": "application/x-www-form-urlencoded"}
    ).status in (400, 403)


def test_a_login_that_is_removed_or_made_anew_is_out_at_once(site):
    password = add_login(site, "passing")
    visitor = Visitor(site.url)
    visitor.login("passing", password)
    assert visitor.get().status == 200
    with site.admin() as deployment:
        deployment.remove_login("passing")
    assert visitor.get("/admin/live").status == 401
    assert visitor.get().status == 303 and "upseal-session" not in visitor.cookies
    first = add_login(site, "passing")
    visitor.login("passing", first)
    with site.admin() as deployment:
        deployment.remove_login("passing")
        deployment.add_login("passing")
    assert visitor.get().status == 303, "somebody else of the same name"


def test_json_by_basic(site):
    visitor = Visitor(site.url)

    def basic(text):
        return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}

    answer = visitor.get("/admin/status.json")
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == 'Basic realm="upseal", charset="UTF-8"'
    found = json.loads(visitor.get("/admin/status.json", **basic(f"root:{site.password}")).body)
    assert found["state"] == "enabled" and found["coverage"]["clients"] == 121
    assert visitor.get("/admin/status.json", **basic("basil:wrong")).status == 401
    for bad in ("Basic ???", "Basic " + base64.b64encode(b"\xff").decode(), "Basic Zm9v"):
        assert visitor.get("/admin/status.json", authorization=bad).status == 400
    # The page itself is for cookies: a browser would send Basic with whatever it is made to ask.
    assert visitor.get("/admin", **basic(f"root:{site.password}")).status == 303
    assert visitor.get("/admin/live", **basic(f"root:{site.password}")).status == 401


def test_sessions_end_by_their_time_and_are_kept_by_hash_alone():
    now = [100.0]
    sessions = Sessions(60, lambda: now[0])
    token = sessions.begin("root", 1)
    assert sessions.find(token).name == "root"
    assert token not in repr(sessions.__dict__) and token.encode() not in b"".join(sessions._found)
    now[0] += 60
    assert sessions.find(token) is None
    for nothing in (None, "", "x", "x" * 1000, "\udcff"):
        assert sessions.find(nothing) is None
    tokens = [sessions.begin("root", 1) for _ in range(1030)]
    assert len(sessions._found) == 1024 and sessions.find(tokens[0]) is None
    assert not sessions.is_ours(None, sessions.form_token(""))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_by_tls_cookies_are_bound_to_the_host(scheme):
    scope = {
        "type": "http", "method": "GET", "scheme": scheme, "path": "/admin", "query_string": b"",
        "server": ("example", 443), "headers": [],
    }  # fmt: skip
    response = Response()
    SESSION.write(Request(scope), response, "value", 60)
    (header,) = response.headers.getlist("set-cookie")
    name, _, rest = header.partition("=")
    assert name == ("__Host-upseal-session" if scheme == "https" else "upseal-session")
    assert ("Secure" in rest.split("; ")) == (scheme == "https")
    assert "Path=/;" in rest and "Domain" not in rest
    other = "upseal-session" if scheme == "https" else "__Host-upseal-session"
    for cookie, found in ((name, "value"), (other, None)):
        headers = [(b"cookie", f"{cookie}=value".encode())]
        assert SESSION.read(Request({**scope, "headers": headers})) == found


# -- guessing ---------------------------------------------------------------------------


@pytest.fixture
def checks(empty):
    """`Passwords` with a clock of its own, which rests move on."""
    now = [1000.0]
    rests = []

    def sleep(seconds):
        rests.append(seconds)
        now[0] += seconds

    metrics = Metrics("test")
    with empty.store() as store:
        made = Passwords(store, metrics.counter("logins", "-", ("result",)), lambda: now[0], sleep)
        made.now, made.rests, made.store = now, rests, store
        yield made
        made.close()


def tried(checks, name, password="wrong"):
    """The login, None, or the seconds to wait."""
    try:
        return checks._submit(name, password).result()
    except Problem as problem:
        assert problem.name == "busy"
        return problem.retry_after


@pytest.mark.parametrize("name", ["root", "nobody"])
def test_after_failures_a_name_has_to_wait(empty, checks, name):
    password = add_login(empty, "root")
    assert [tried(checks, name) for _ in range(passwords.FREE)] == [None] * passwords.FREE
    waits = []
    for _ in range(8):
        waits.append(tried(checks, name))
        checks.now[0] += waits[-1]
        assert tried(checks, name) is None
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30], "and so for names that are not there"
    # Who guesses at one name keeps nobody else out.
    assert (tried(checks, "root", password) == passwords.LONGEST) == (name == "root")
    checks.now[0] += passwords.LONGEST
    assert tried(checks, "root", password).name == "root"
    assert tried(checks, "root") is None, "the right one wipes the slate"


def test_who_guesses_elsewhere_keeps_nobody_out(empty, checks, monkeypatch):
    """However long he goes on: a pause is for one address, and so is most of the line."""
    password = add_login(empty, "root")
    there, here = "192.0.2.1", "192.0.2.2"
    for _ in range(passwords.FREE):
        assert checks._submit("root", "wrong", there).result() is None
    with pytest.raises(Problem, match="busy"):
        checks._submit("root", password, there)
    assert checks._submit("root", password, here).result().name == "root"
    gate, slow = threading.Event(), logins.Secret.matches
    monkeypatch.setattr(
        logins.Secret, "matches", lambda self, word: gate.wait(30) and slow(self, word)
    )
    waiting = []
    with pytest.raises(Problem, match="busy"):
        for number in range(passwords.LINE):
            waiting.append(checks._submit(f"name {number}", "x", there))
    assert len(waiting) < passwords.LINE
    mine = checks._submit("root", password, here)
    gate.set()
    assert mine.result().name == "root"
    assert [future.result() for future in waiting] == [None] * len(waiting)
    assert checks._submit("again", "x", there).result() is None, "the line is free again"


@pytest.mark.parametrize("name", ["nul\0", "\x7f", "x" * 65, ""])
def test_what_is_no_name_is_not_asked_for(store, name):
    """PostgreSQL takes no NUL in a text: a stranger must not cause an error by it."""
    checks = Passwords(store, Metrics("test").counter("logins", "-", ("result",)))
    assert checks._submit(name, "wrong").result() is None
    checks.close()


def test_a_full_disk_keeps_nobody_out(empty, checks, monkeypatch):
    password = add_login(empty, "root")

    def full():
        raise OperationalError("-", {}, sqlite3.OperationalError("database or disk is full"))

    monkeypatch.setattr(checks.store, "writing", full)
    assert tried(checks, "root", password).name == "root"
    for _ in range(passwords.ALARM + 1):
        checks.now[0] += passwords.LONGEST
        assert tried(checks, "root") is None
    monkeypatch.setattr(checks.store, "reading", full)
    with pytest.raises(Problem) as refused:
        asyncio.run(checks.check("other", password))
    assert refused.value.name == "full"


def test_a_database_that_hangs_makes_no_long_rest(checks, monkeypatch):
    """A server that stops waits for whoever rests."""

    def slow(self, password):
        checks.now[0] += 60
        return False

    monkeypatch.setattr(logins.Secret, "matches", slow)
    tried(checks, "one"), tried(checks, "two")
    assert max(checks.rests) <= 5


def test_strangers_ask_the_database_once_however_many(empty):
    """They would take the line of those who look."""

    async def ask(page):
        gate = threading.Event()
        page._pool.submit(gate.wait)
        page._has_logins = (1e-9, True)
        asked = [asyncio.ensure_future(page._any_logins()) for _ in range(50)]
        await asyncio.sleep(0)
        assert page._waiting <= 1
        gate.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    add_login(empty)
    with empty.store() as store:
        page = Page(store, empty.settings, lambda: None, Metrics("server"))
        assert asyncio.run(ask(page)) == [True] * 50
        page.close()


def test_many_failures_are_an_alarm_of_one_row(empty, checks):
    add_login(empty, "root")
    for number in range(passwords.ALARM + 3):
        checks.now[0] += passwords.LONGEST
        assert tried(checks, "root") is None
        with checks.store.reading() as db:
            found = list(alarms.listing(db))
        assert len(found) == (1 if number + 1 >= passwords.ALARM else 0)
    (alarm,) = found
    assert (alarm.kind, alarm.subject) == ("page-logins-refused", b"")
    assert alarm.times == 4 and alarm.details["login"] == "root"


def test_failures_of_many_names_are_an_alarm_too_and_name_nobody(checks):
    for number in range(passwords.ALARM_OF_ALL):
        assert tried(checks, f"{EVIL}{number}") is None
    with checks.store.reading() as db:
        (alarm,) = alarms.listing(db)
    assert "login" not in alarm.details


def test_names_that_are_not_there_cost_as_much(empty, checks, monkeypatch):
    assert COST == 1 << 15
    add_login(empty, "root")
    costs = []
    scrypt = logins.hashlib.scrypt
    monkeypatch.setattr(
        logins.hashlib,
        "scrypt",
        lambda *a, **k: (costs.append((k["n"], k["r"])), scrypt(*a, **k))[1],
    )
    tried(checks, "root")
    tried(checks, "nobody")
    tried(checks, "x" * 4000)
    assert costs == [(1 << 10, 8)] * 3


def test_one_at_a_time_and_few_in_the_line(empty, checks, monkeypatch):
    running, most, gate = [0], [0], threading.Event()

    def slow(self, password):
        running[0] += 1
        most[0] = max(most[0], running[0])
        assert gate.wait(30)
        running[0] -= 1
        return False

    monkeypatch.setattr(logins.Secret, "matches", slow)
    futures = [checks._submit(f"name {n}", "x") for n in range(passwords.LINE)]
    with pytest.raises(Problem) as refused:
        checks._submit("one more", "x")
    assert refused.value.status == 429
    gate.set()
    assert [future.result() for future in futures] == [None] * passwords.LINE
    assert most == [1]
    assert checks._submit("again", "x").result() is None, "the line is free again"


def test_those_in_the_line_wait_as_well_once_the_name_has_failed(checks, monkeypatch):
    gate, asked = threading.Event(), []

    def slow(self, password):
        assert gate.wait(30)
        asked.append(password)
        return False

    monkeypatch.setattr(logins.Secret, "matches", slow)
    futures = [checks._submit("root", "x") for _ in range(passwords.LINE)]
    gate.set()
    outcomes = [future.exception() for future in futures]
    assert len(asked) == passwords.FREE
    assert [o is None for o in outcomes] == [True] * passwords.FREE + [False] * 5


def test_failures_leave_most_of_a_core_alone(checks, monkeypatch):
    def slow(self, password):
        checks.now[0] += 0.1
        return False

    monkeypatch.setattr(logins.Secret, "matches", slow)
    begun = checks.now[0]
    for number in range(10):
        assert tried(checks, f"name {number}") is None
    assert sum(checks.rests) == pytest.approx(9 * 0.3)
    assert checks.now[0] - begun == pytest.approx(10 * 0.1 + 9 * 0.3)


def test_pauses_are_forgotten_and_bounded(monkeypatch):
    now = [0.0]
    pauses = Pauses(lambda: now[0])
    monkeypatch.setattr(passwords, "_NAMES", 10)
    for _ in range(5):
        pauses.failed("root")
    assert pauses.wait("root") == 4
    now[0] += 3601
    assert pauses.failed("root") == 1
    for number in range(50):
        pauses.failed(str(number))
    assert len(pauses._failures) == 10


# -- what goes with every answer ------------------------------------------------------------


def test_our_headers_are_on_every_answer(site, visitor):
    assert HEADERS["content-security-policy"] == CSP
    stranger = Visitor(site.url)
    answers = [
        who.ask(method, path)
        for who in (visitor, stranger)
        for method, path in itertools.product(
            ("GET", "HEAD", "POST", "PUT", "OPTIONS"),
            (
                "/admin", "/admin/login", "/admin/logout", "/admin/live", "/admin/status.json",
                "/admin/clients.json", "/admin/coverage.json", "/admin/page.css", "/admin/page.js",
                "/admin/icon.svg", "/admin/", "/admin/nothing", "/admin?range=never",
                "/admin/clients.json?filter=x",
            ),
        )
    ]  # fmt: skip
    assert {answer.status for answer in answers} >= {200, 303, 400, 401, 404, 405}
    assert all(answer.status < 500 for answer in answers)
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers.get_all(name) == [value]
        if answer.status == 405:
            assert "GET" in answer.headers["allow"] or answer.headers["allow"] == "POST"


def test_nothing_is_inline_and_nothing_is_elsewhere(visitor):
    for path in ("/admin", "/admin/live", "/admin?filter=orphaned&range=1h"):
        page = visitor.get(path).text
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?! src)", page)
        assert not re.search(r"(src|href|action)=\"(?!/admin|#)", page)
    for path in ("/admin/page.css", "/admin/page.js", "/admin/icon.svg"):
        text = visitor.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text and "@import" not in text


def test_what_clients_call_themselves_is_text(visitor, site):
    for path in ("/admin?q=script", "/admin/live?q=script"):
        page = visitor.get(path).text
        assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;&amp;amp;" in page
        assert "<script>alert" not in page
    page = visitor.get("/admin?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E").text
    assert "<script>alert" not in page and "&#34;&gt;&lt;script&gt;" in page
    stranger = Visitor(site.url)
    answer = stranger.login('"><script>alert(1)</script>', "x")
    assert "<script>" not in answer.text and "&#34;&gt;&lt;script&gt;" in answer.text
    found = json.loads(visitor.get("/admin/clients.json?q=script").body)
    assert [client["name"] for client in found["clients"]] == [EVIL[:48]]


def test_a_get_changes_nothing(visitor, site):
    def dump():
        with closing(sqlite3.connect(site.folder / "server.db")) as db:
            return [
                line
                for line in db.iterdump()
                if not re.match(r"INSERT INTO \"?(coverage|challenges|key_use)", line)
            ]

    before = dump()
    for path in ("/admin", "/admin/live", "/admin/login", "/admin/logout", "/admin/status.json"):
        visitor.get(path)
        visitor.get(path + "?filter=silent&sort=-seen&page=2&q=web")
    assert dump() == before


def test_no_report_is_ever_shown(visitor, site):
    sender = site.enrol("telltale")
    marker = b"what-only-this-report-says"
    sender.send(clear(sender.unit(marker, reason=Reason.LEVEL_NONE, level=Level.NONE)))
    until(
        lambda: b'"clear_reports":1,' in visitor.get("/admin/clients.json?q=telltale").body,
        "the report",
    )
    for path in ("", "/live", "/status.json", "/clients.json", "/coverage.json"):
        answer = visitor.get(f"/admin{path}?q=telltale")
        assert answer.status == 200 and marker not in answer.body
    assert b"telltale" in visitor.get("/admin?q=telltale").body


def test_the_page_can_be_turned_off(empty):
    empty.configure("[server]\npage = false")
    with empty.running():
        for path in ("/admin", "/admin/login", "/admin/status.json"):
            assert Visitor(empty.url).get(path).status == 404


def test_settings(empty):
    settings = read_settings(empty.folder)
    assert settings.limits.page and settings.limits.page_session_hours == 12
    assert settings.calendar.silent_hours == 24
    with pytest.raises(SettingsError, match="page_session_hours"):
        empty.configure("[server]\npage_session_hours = 0")
    text = (empty.folder / "deployment.toml").read_text()
    text = text.replace("page_session_hours = 0", 'page = "no"')
    (empty.folder / "deployment.toml").write_text(text)
    with pytest.raises(SettingsError, match="page must be of type bool"):
        read_settings(empty.folder)
    text = text.replace('page = "no"', "page = true")
    text = text.replace("silent_hours = 24", "silent_hours = 7")
    (empty.folder / "deployment.toml").write_text(text)
    assert read_settings(empty.folder).calendar.silent_hours == 7


# -- what is shown --------------------------------------------------------------------------


def test_the_page_shows_what_the_command_line_says(visitor, site):
    with site.admin() as deployment:
        status = deployment.status().facts()

    def counted_anew():  # what the page has counted it keeps for a moment
        said = json.loads(visitor.get("/admin/status.json").body)
        return said if said["coverage"] == status["coverage"] else None

    found = until(counted_anew, "the page to count anew")
    same = ("deployment", "state", "serial", "expires", "coverage", "relays", "warnings")
    assert {name: found[name] for name in same} == {name: status[name] for name in same}
    shown = [{k: key[k] for k in status["keys"][0]} for key in found["keys"]]
    assert shown == status["keys"]
    (drain,) = found["old_keys"]
    assert {k: v for k, v in drain.items() if k != "may_go"} == status["old_keys"][0]
    assert drain["last_hour"] == 3120 and drain["clients"] and not drain["may_go"]
    assert [holder["name"] for holder in found["readiness"]] == []
    assert found["dead_letters"]["by_reason"] == {"missing-key": 2}
    assert found["uploads"]["count"] == 3
    assert found["rates"]["hour"]["sealed"] > 1
    page = visitor.get().text
    for text in (
        site.old, site.new, "berlin", "lisbon", "not let in", "nightly.dump", "8.5 GiB",
        "größte Aufnahme.mkv", "missing-key", "clear-though-required", "draining",
    ):  # fmt: skip
        assert text in page, text


@pytest.mark.parametrize("only", FILTERS)
def test_filters_are_those_of_the_command_line(visitor, site, only):
    with site.admin() as deployment:
        expected = deployment.clients(only)

    def counted_anew():
        said = json.loads(visitor.get(f"/admin/clients.json?filter={only}&size=1000").body)
        text = visitor.get(f"/admin?filter={only}").text
        right = said["clients"] == expected and f'id="matching">{len(expected)}<' in text
        return (said, text) if right else None

    found, page = until(counted_anew, "the page to count anew")
    assert found["count"] == len(expected)
    rows = [html.unescape(n) for n in re.findall(r'<span class="name">([^<]*)</span>', page)]
    assert rows == [client["name"] for client in expected[:50]]
    if only == "gaps":
        return
    status = json.loads(visitor.get("/admin/status.json").body)
    count = status["orphaned"] if only == "orphaned" else status["coverage"][only]
    assert count == len(expected) and expected


@pytest.mark.parametrize("sort", SORTS)
def test_orders(visitor, sort):
    def names(query):
        found = json.loads(visitor.get(f"/admin/clients.json?size=1000&sort={query}").body)
        return [client["agent"] for client in found["clients"]]

    up, down = names(sort), names(f"-{sort}")
    assert up == down[::-1] and len(set(up)) >= 121
    page = visitor.get(f"/admin?sort=-{sort}").text
    assert 'aria-sort="descending"' in page and f'href="/admin{Asked().link(sort=sort)}#' in page


def test_pages(visitor):
    whole = json.loads(visitor.get("/admin/clients.json?size=1000").body)["clients"]
    parts, page = [], 1
    while True:
        found = json.loads(visitor.get(f"/admin/clients.json?size=25&page={page}").body)
        parts += found["clients"]
        if page == found["pages"]:
            break
        page += 1
    assert parts == whole and page == 5
    assert 'rel="next"' in visitor.get("/admin?page=1").text
    assert 'rel="next"' not in visitor.get("/admin?page=3").text
    assert visitor.get("/admin?page=900000").status == 200
    by_id = json.loads(visitor.get(f"/admin/clients.json?q={whole[7]['agent'][:9]}").body)
    assert [client["agent"] for client in by_id["clients"]] == [whole[7]["agent"]]
    assert json.loads(visitor.get("/admin/clients.json?q=WEB-00").body)["count"] == 9
    assert json.loads(visitor.get("/admin/clients.json?q=%25").body)["count"] == 0, "no pattern"


@pytest.mark.parametrize(
    "query",
    ["filter=x", "sort=x", "sort=--name", "page=0", "page=x", "page=-1", "page=9999999999",
     "size=0", "size=1001", "range=2h", "q=" + "x" * 129, "q=%00", "page=%D9%A1"],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_refused(visitor, query):
    for path in ("/admin", "/admin/live", "/admin/clients.json"):
        assert visitor.get(f"{path}?{query}").status == 400


def test_the_chart_is_there_in_every_range(visitor):
    for span in RANGES:
        page = visitor.get(f"/admin?range={span}").text
        assert re.search(r'data-layer="sealed" fill="url\(#fill-sealed\)" d="M[\d. L]+Z', page), (
            span
        )
        found = json.loads(visitor.get(f"/admin/coverage.json?range={span}").body)
        times = [sample["at"] for sample in found["samples"]]
        assert times == sorted(times) and 2 <= len(times) <= 260
        assert len(page) < 200_000


def test_the_fragment_is_the_page_without_its_frame(visitor):
    page = visitor.get("/admin?filter=clear").text
    fragment = visitor.get("/admin/live?filter=clear").text
    assert "<html" not in fragment and "token" not in fragment
    for name in ("now", "duties", "chart-clients", "chart-reports", "filters", "listing", "keys"):
        assert f'id="{name}"' in fragment and f'id="{name}"' in page


# -- the census -----------------------------------------------------------------------------


def test_the_database_counts_as_orphans_are_found(store):
    """Every combination of level, statement, state and manifest, on both databases."""
    site_manifest = _manifest()
    now = 10_000 * HOUR
    wanted = (None, *Level)
    actuals = (None, "", "sealed", "clear", "withheld")
    reasons = (Reason.SEALED, Reason.PARENT_REFUSES_SEALED)
    seen = (now - 1, now - 25 * HOUR)
    sets = (None, *Level)
    cases = list(itertools.product(wanted, actuals, reasons, seen, sets, (False, True)))
    levels, gone = {}, set()
    with store.writing() as db:
        for number, (want, actual, reason, when, level, revoked) in enumerate(cases):
            agent = add_client(db, f"client {number:04}")
            if want is not None and actual is not None:
                says(db, agent, actual, wanted=want, reason=reason, seen=when)
            if level is not None:
                levels[agent] = level
            if revoked:
                gone.add(agent)
        add_client(db, "a relay", "relay")
    for state, default in itertools.product(("enabled", "disabled"), (None, *Level)):
        manifest = site_manifest(state, default, levels, frozenset(gone))
        with store.reading() as db:
            census = Census(db, manifest, now, 24)
            known = census.listing(Choice())
            assert len(known) == len(cases)
            found = {o.agent for o in orphans.find([k.client for k in known], manifest, manifest)}
            for only in (word for word in FILTERS if word != "gaps"):
                mine = [
                    k.client.agent
                    for k in known
                    if (
                        k.client.agent in found or k.does == "withheld"
                        if only == "orphaned"
                        else k.does == only
                    )
                ]
                chosen = [k.client.agent for k in census.listing(Choice(only))]
                assert chosen == mine, (state, default, only)
                assert census.count(Choice(only)) == len(mine)
            counts = census.counts()
            assert counts.orphaned == census.count(Choice("orphaned"))
            assert counts.clients == len(cases)
            assert counts.by == {
                word: sum(1 for k in known if k.does == word) for word in DOES
            }  # fmt: skip
            for sort in SORTS:
                census.listing(Choice(sort=sort, descending=True), 5, 5)
            assert len(census.listing(Choice(search="CLIENT 00"))) == 100


def _manifest():
    class Told:
        def __init__(self, state, default, levels, gone):
            self.active = state == "enabled"
            self.default_level, self.levels, self.revoked_agents = default, levels, gone

        def level_for(self, agent):
            return self.levels.get(agent, self.default_level)

    return Told


# -- coverage over time -----------------------------------------------------------------------


def sample(minute, sealed=1, reports=0):
    return Sample(minute, sealed, 0, 0, 0, reports, 0)


def test_coverage_is_thinned_out_and_forgotten(store):
    now = 30_000_017
    with store.writing() as db:
        for minute in (*range(now - MINUTES_KEPT - 300, now + 1, 7), now - KEPT, now - KEPT - 1):
            coverage.note(db, sample(minute))
        coverage.note(db, sample(now, sealed=9))
        coverage.note(db, sample(now, sealed=5))
        assert coverage.before(db, now) == sample(now, sealed=5), "the same minute again"
        before = coverage.samples(db, 0, now + 1)
        assert coverage.thin(db, now * MINUTE) > 0
        after = coverage.samples(db, 0, now + 1)
        assert coverage.thin(db, now * MINUTE) == 0
    edge = (now - MINUTES_KEPT) // 60 * 60
    recent = [s for s in before if s.minute >= edge]
    assert [s for s in after if s.minute >= edge] == recent
    old = [s.minute for s in after if s.minute < edge]
    assert old[0] == now - KEPT, "one older is gone"
    hours = [minute // 60 for minute in old]
    assert len(hours) == len(set(hours)) == 6
    for minute in old[1:]:
        later = [s.minute for s in before if s.minute // 60 == minute // 60]
        assert minute == max(later)


def test_coverage_in_steps(store):
    with store.writing() as db:
        for minute in range(1000, 1100):
            coverage.note(db, sample(minute))
        found = [s.minute for s in coverage.samples(db, 1010, 1090, 30)]
        assert found == [1019, 1049, 1079, 1089]
        assert coverage.before(db, 999) is None and coverage.before(db, 1050).minute == 1050


def test_a_row_a_minute(empty, monkeypatch):
    from upseal.fleet.server import recording

    now = [now_ms()]
    monkeypatch.setattr(recording, "now_ms", lambda: now[0])
    with empty.store() as store:
        made = Recording(store, 24)
        assert not made.round(None)
        manifest = empty.manifest()
        with store.writing() as db:
            says(db, add_client(db, "a"), "sealed", seen=now[0], sealed=7, clear=2)
            says(db, add_client(db, "b"), "withheld", seen=now[0] - 25 * HOUR)
        assert made.round(manifest) and not made.round(manifest)
        now[0] += MINUTE
        assert made.round(manifest)
        with store.reading() as db:
            found = coverage.samples(db, 0, now[0] // MINUTE + 1)
        assert [s.minute for s in found] == [now[0] // MINUTE - 1, now[0] // MINUTE]
        assert found[1] == Sample(now[0] // MINUTE, 1, 0, 0, 1, 7, 2)


def test_a_database_of_before_gets_the_tables(empty):
    with closing(sqlite3.connect(empty.folder / "server.db")) as db:
        for table in ("coverage", "page_logins"):
            db.execute(f"DROP TABLE {table}")
        db.commit()
    with empty.store() as store, store.reading() as db:
        assert coverage.samples(db, 0, 1) == [] and logins.listing(db) == []


def test_a_hole_in_time_is_a_hole_in_the_chart():
    samples = [
        sample(minute, reports=minute) for minute in (*range(1000, 1010), *range(1030, 1040))
    ]
    drawn = chart.clients(samples, "1h", 1040).wide
    paths = dict(drawn.layers)
    assert paths["sealed"].count("M") == 2 and not paths["clear"]
    reports = chart.reports(samples, "1h", 1040)
    assert dict(reports.wide.layers)["sealed"].count("M") == 2
    assert {values for _, values in reports.rows} == {(1.0, 0.0)}
    alone = chart.clients([sample(1020)], "1h", 1040)
    assert dict(alone.wide.layers)["sealed"]
    nothing = chart.clients([], "24h", 1040)
    assert not any(path for _, path in nothing.wide.layers) and nothing.rows == ()


@pytest.mark.parametrize("highest", [0, 0.02, 1, 3, 4, 7, 99, 240, 100_000, 1_234_567])
def test_the_scale_reaches_above_the_highest(highest):
    ticks = chart._round_steps(highest)
    assert ticks[0] == 0 and highest <= ticks[-1] <= max(1, 2 * highest) and 2 <= len(ticks) <= 6
    drawn = chart.clients([sample(1000, highest), sample(1001, highest)], "1h", 1001).narrow
    numbers = re.findall(r"-?[\d.]+", dict(drawn.layers)["sealed"])
    for x, y in zip(numbers[::2], numbers[1::2], strict=True):
        assert 0 <= float(x) <= drawn.width and 0 <= float(y) <= drawn.height


# -- the command -----------------------------------------------------------------------------


def said(capsys, *words):
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_upseal_admin_login(empty, capsys):
    def run(*words):
        return said(capsys, "admin", "login", *words, "-d", empty.folder)

    code, out, _ = run("add", "root")
    password = re.search(r"shown this once: (\S+)\n", out)[1]
    assert code == 0 and re.fullmatch(r"([a-z2-9]{5}-){4}[a-z2-9]{5}", password)
    with empty.store() as store, store.reading() as db:
        login = logins.find(db, "root")
    assert login.secret.matches(password) and not login.secret.matches(password + " ")
    stored = (empty.folder / "server.db").read_bytes()
    wal = empty.folder / "server.db-wal"
    stored += wal.read_bytes() if wal.exists() else b""
    assert password.encode() not in stored

    code, _, err = run("add", "root")
    assert code == 6 and "login remove root" in err
    assert run("add", "else", "--dry-run")[0] == 0
    found = json.loads(run("list", "--json")[1])["logins"]
    assert [one["name"] for one in found] == ["root"]
    made = json.loads(run("add", "other", "--json")[1])
    assert made["login"] == "other" and made["changed"] and len(made["password"]) == 29
    assert "other" in run()[1]
    assert run("remove", "other")[0] == 0 and run("remove", "other")[0] == 6
    for wrong in (("add", "a:b"), ("add", ""), ("add", " a"), ("add", "x" * 65), ("add",),
                  ("remove",), ("list", "root"), ("add", "a\nb")):  # fmt: skip
        assert run(*wrong)[0] == 2, wrong
    with empty.admin() as deployment:
        acts = [(e["act"], e["details"].get("login")) for e in deployment.audit()["entries"]]
    assert acts[-3:] == [("login-add", "root"), ("login-add", "other"), ("login-remove", "other")]
    with empty.admin() as deployment, contextlib.suppress(KeyError):
        assert password not in json.dumps(deployment.audit())


def test_a_table_of_costs_cannot_take_the_memory():
    secret = logins.Secret(bytes(16), bytes(32), 1 << 24, 8, 1)
    with pytest.raises(ValueError, match="memory"):
        secret.matches("x")


def test_what_looks_at_once_is_gathered_once(site, visitor, monkeypatch):
    """And the longer it takes, the longer it is kept."""
    from upseal.fleet.server.page import facts

    with site.store() as store:
        now, looks = [0.0], []
        made = facts.Facts(store, site.settings, site.manifest, lambda: now[0])
        look = made._look

        def slow(manifest):
            looks.append(now[0])
            now[0] += 2.0
            return look(manifest)

        monkeypatch.setattr(made, "_look", slow)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: made.status(), range(8)))
        assert len(looks) == 1
        now[0] += 19.9
        made.status()
        assert len(looks) == 1
        now[0] += 0.2
        made.status()
        assert len(looks) == 2


def test_every_table_of_the_page_is_known():
    assert {"coverage", "page_logins"} <= set(tables.metadata.tables)
