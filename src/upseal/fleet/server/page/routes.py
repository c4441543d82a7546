# SPDX-License-Identifier: Apache-2.0
"""What is served below ``/admin``, and to whom. A GET changes nothing, and a POST only a login."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.rates import Addresses
from upseal.fleet.manifest import Manifest
from upseal.fleet.server.page import chart
from upseal.fleet.server.page.asking import RANGES, Asked
from upseal.fleet.server.page.facts import Facts, NoManifest
from upseal.fleet.server.page.fields import basic_of, fields_of, is_local, refuse_other_sites
from upseal.fleet.server.page.passwords import Passwords
from upseal.fleet.server.page.rendering import Templates
from upseal.fleet.server.page.sessions import (
    BEFORE,
    SESSION,
    VALUE_MAX,
    Session,
    Sessions,
    is_tls,
    new_value,
)
from upseal.fleet.server.settings import Settings
from upseal.fleet.server.store import Store, logins, now_ms
from upseal.fleet.server.store.coverage import MINUTE_MS

ROOT = "/admin"
HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_FORM_SECONDS = 600
_LINE = 32
_T = TypeVar("_T")
Endpoint = Callable[[Request], Awaitable[Response]]


class _LoggedOut(Exception):  # noqa: N818 - a state of affairs
    """There is no session, or its time is over."""


class Page:
    """The routes, and what stands behind them."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        manifest: Callable[[], Manifest | None],
        metrics: Metrics,
    ) -> None:
        """Starts nothing but two threads when they are needed; `close` ends them."""
        self._store, self._settings = store, settings
        self._facts = Facts(store, settings, manifest)
        self._templates = Templates()
        self._sessions = Sessions(settings.limits.page_session_hours * 3600)
        results = metrics.counter(
            "page_logins", "Logins to the page by what came of them", ("result",)
        )
        self._passwords = Passwords(store, results)
        self._addresses = Addresses(settings.rates.exceptions)
        self._pool = ThreadPoolExecutor(1, "upseal-page")
        self._waiting = 0
        self._lock = threading.Lock()
        self._has_logins = (0.0, False)

    def close(self) -> None:
        """What waits is dropped."""
        self._passwords.close()
        self._pool.shutdown(cancel_futures=True)

    def routes(self) -> list[Route]:
        """For the application."""
        looks, both = ("GET", "HEAD"), ("GET", "HEAD", "POST")
        table: list[tuple[str, Endpoint, tuple[str, ...], bool]] = [
            ("", self.page, looks, True),
            ("/login", self.login, both, True),
            ("/logout", self.logout, ("POST",), True),
            ("/live", self.live, looks, False),
            ("/status.json", self._json(self._status), looks, False),
            ("/clients.json", self._json(self._facts.clients), looks, False),
            ("/coverage.json", self._json(self._coverage), looks, False),
            *((f"/{name}", self._asset(name), looks, False) for name in self._templates.assets),
            ("/{rest:path}", self.nothing, looks, True),
        ]
        return [
            Route(ROOT + path, self._guarded(endpoint, methods, for_people), methods=_METHODS)
            for path, endpoint, methods, for_people in table
        ]

    # -- for people ----------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """All of it; or the way to the login."""
        session = self._sessions.find(SESSION.read(request))
        if session is None:
            return await self._way_in(request)
        asked = Asked.read(request.query_params)
        given = await self._looking(request, session, lambda: self._shown(asked))
        token = SESSION.read(request) or ""
        return self._html(
            "page.html",
            given=given,
            login=session.name,
            form_token=self._sessions.form_token(token),
        )

    async def live(self, request: Request) -> Response:
        """The part of the page that changes, as HTML: what the page itself asks for."""
        session = self._sessions.find(SESSION.read(request))
        if session is None:
            raise Problem("unauthenticated", "log in")
        asked = Asked.read(request.query_params)
        given = await self._looking(request, session, lambda: self._shown(asked))
        return self._html("live.html", given=given)

    async def login(self, request: Request) -> Response:
        """The form, and what it sends."""
        if request.method != "POST":
            if self._sessions.find(SESSION.read(request)) is not None:
                return RedirectResponse(ROOT, 303)
            if not await self._any_logins():
                return self._html("setup.html")
            return self._form(request)
        refuse_other_sites(request)
        said = await fields_of(request)
        if not self._sessions.is_ours(BEFORE.read(request), said("token")):
            return self._form(request, "This form is out of date. Try again.", 403)
        name = said("name")
        try:
            login = await self._passwords.check(name, said("password"), self._where(request))
        except Problem as problem:
            response = self._form(request, _wait_words(problem), problem.status, name)
            response.headers["retry-after"] = problem.headers().get("retry-after", "2")
            return response
        if login is None:
            return self._form(request, "There is no such name with that password.", 401, name)
        self._sessions.end(SESSION.read(request))
        response = RedirectResponse(ROOT, 303)
        token = self._sessions.begin(login.name, login.created)
        SESSION.write(request, response, token, self._sessions.seconds)
        BEFORE.drop(request, response)
        return response

    async def logout(self, request: Request) -> Response:
        """Ends the session."""
        refuse_other_sites(request)
        token = SESSION.read(request)
        if self._sessions.find(token) is not None:
            said = await fields_of(request)
            if not self._sessions.is_ours(token, said("token")):
                raise Problem("malformed", "this form is out of date", status=403)
            self._sessions.end(token)
        response = RedirectResponse(f"{ROOT}/login", 303)
        SESSION.drop(request, response)
        return response

    async def nothing(self, request: Request) -> Response:
        """Everything else below."""
        raise Problem("not-found")

    def _form(
        self, request: Request, error: str = "", status: int = 200, name: str = ""
    ) -> Response:
        cookie = BEFORE.read(request)
        if not cookie or len(cookie) > VALUE_MAX:
            cookie = new_value()
        response = self._html(
            "login.html", status, error=error, name=name[: logins.NAME_MAX],
            form_token=self._sessions.form_token(cookie), site=self._settings.name,
            readable=not is_tls(request) and not is_local(request),
        )  # fmt: skip
        if status == 401:
            response.headers["www-authenticate"] = "Upseal"
        BEFORE.write(request, response, cookie, _FORM_SECONDS)
        return response

    async def _way_in(self, request: Request) -> Response:
        if not await self._any_logins():
            return self._html("setup.html")
        response = RedirectResponse(f"{ROOT}/login", 303)
        if SESSION.read(request) is not None:
            SESSION.drop(request, response)
        return response

    async def _any_logins(self) -> bool:
        """Asked by strangers, so the database is asked now and then."""
        looked, found = self._has_logins
        now = time.monotonic()
        if looked:
            if now - looked < (1.0 if found else 0.1):
                return found
            self._has_logins = (now, found)  # what is known goes for all others who ask meanwhile

        def look() -> bool:
            with self._store.reading() as db:
                return logins.any_there(db)

        found = await self._in_pool(look)
        self._has_logins = (time.monotonic(), found)
        return found

    def _shown(self, asked: Asked) -> dict[str, Any]:
        samples = self._facts.samples(asked)
        now = now_ms() // MINUTE_MS
        return {
            "status": self._facts.status(),
            "clients": self._facts.clients(asked),
            "asked": asked,
            "ranges": RANGES,
            "coverage": chart.clients(samples, asked.range, now),
            "reports": chart.reports(samples, asked.range, now),
        }

    def _html(self, template: str, status: int = 200, **given: Any) -> Response:
        return Response(
            self._templates.render(template, **given), status, media_type="text/html; charset=utf-8"
        )

    # -- for machines ----------------------------------------------------------------------

    def _json(self, gather: Callable[[Asked], dict[str, Any]]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            session = await self._session_or_basic(request)
            asked = Asked.read(request.query_params)
            return JSONResponse(await self._looking(request, session, lambda: gather(asked)))

        return endpoint

    def _status(self, _: Asked) -> dict[str, Any]:
        return self._facts.status()

    def _coverage(self, asked: Asked) -> dict[str, Any]:
        names = ("sealed", "clear", "withheld", "silent", "sealed_reports", "clear_reports")
        return {
            "range": asked.range,
            "samples": [
                {"at": s.minute * MINUTE_MS, **{name: getattr(s, name) for name in names}}
                for s in self._facts.samples(asked)
            ],
        }

    async def _session_or_basic(self, request: Request) -> Session:
        """By the cookie, or by name and password with the request."""
        basic = basic_of(request)
        if basic is not None:
            login = await self._passwords.check(*basic, self._where(request))
            if login is not None:
                return Session(login.name, login.created, 0)
        else:
            session = self._sessions.find(SESSION.read(request))
            if session is not None:
                return session
        raise Problem("unauthenticated", "log in, or give name and password by HTTP Basic")

    # -- how -------------------------------------------------------------------------------

    def _where(self, request: Request) -> str | None:
        return self._addresses.key(request.client.host) if request.client is not None else None

    def _asset(self, name: str) -> Endpoint:
        asset = self._templates.assets[name]

        async def endpoint(request: Request) -> Response:
            return Response(asset.data, media_type=asset.media_type)

        return endpoint

    async def _looking(self, request: Request, session: Session, look: Callable[[], _T]) -> _T:
        """What somebody who is logged in looks at.

        Raises:
            _LoggedOut: his login was removed, or made anew.
        """

        def work() -> _T:
            with self._store.reading() as db:
                login = logins.find(db, session.name)
            if login is None or login.created != session.created:
                self._sessions.end(SESSION.read(request))
                raise _LoggedOut
            return look()

        return await self._in_pool(work)

    async def _in_pool(self, work: Callable[[], _T]) -> _T:
        """In the page's own thread: reports wait for nobody who looks."""
        with self._lock:
            if self._waiting >= _LINE:
                raise Problem("busy", "many look at once", retry_after=2)
            self._waiting += 1
        try:
            future: Future[_T] = self._pool.submit(work)
        except RuntimeError:
            self._leave(None)
            raise Problem("stopping", retry_after=5) from None
        future.add_done_callback(self._leave)
        try:
            return await asyncio.wrap_future(future)
        except SQLAlchemyError:
            raise Problem("full", "the database cannot be used", retry_after=10) from None
        except NoManifest:
            raise Problem("full", "there is no manifest yet", retry_after=5) from None

    def _leave(self, _: object) -> None:
        with self._lock:
            self._waiting -= 1

    def _guarded(self, endpoint: Endpoint, methods: tuple[str, ...], for_people: bool) -> Endpoint:
        """Our headers on every answer, also on refusals."""

        @functools.wraps(endpoint)
        async def guarded(request: Request) -> Response:
            try:
                if request.method not in methods:
                    raise Problem("method-not-allowed")
                response = await endpoint(request)
            except _LoggedOut:
                response = self._out(request, for_people)
            except Problem as problem:
                response = self._refusal(request, problem, for_people)
                if problem.name == "method-not-allowed":
                    response.headers["allow"] = ", ".join(methods)
            response.headers.update(HEADERS)
            return response

        return guarded

    def _out(self, request: Request, for_people: bool) -> Response:
        if for_people:
            response: Response = RedirectResponse(f"{ROOT}/login", 303)
            SESSION.drop(request, response)
            return response
        return self._refusal(request, Problem("unauthenticated", "log in"), False)

    def _refusal(self, request: Request, problem: Problem, for_people: bool) -> Response:
        if for_people:
            response = self._html("error.html", problem.status, problem=problem)
            if problem.retry_after is not None:
                response.headers["retry-after"] = problem.headers()["retry-after"]
            return response
        response = problem.to_response()
        if problem.status == 401 and request.url.path.endswith(".json"):
            response.headers["www-authenticate"] = 'Basic realm="upseal", charset="UTF-8"'
        return response


def _wait_words(problem: Problem) -> str:
    seconds = problem.headers().get("retry-after", "2")
    return f"Too many logins at the moment: {problem.detail}. Try again in {seconds} s."
