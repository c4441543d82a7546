# SPDX-License-Identifier: Apache-2.0
"""requests: an adapter that seals request bodies (docs/integrations/http.md).

seal_session(session, Recipients([key]))

A request that was sealed carries its sealed body from then on, and so does what requests makes of
it: a redirect, an answer to a challenge, a retry of urllib3. If that comes to another adapter, it
is sealed still; if it comes back here, it is sealed anew, for where it goes now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO, Any

from upseal.core.sealer import Sealer
from upseal.integrations.http import sealing
from upseal.integrations.http.bodies import (
    CODING,
    PROBLEM,
    Bound,
    Clear,
    Context,
    Policy,
    Recipients,
    Seal,
    Withheld,
    is_stale_key,
    target_of,
)
from upseal.integrations.http.sealing import ENVELOPE_MAX, BodyChanged, SealerMaker, Sealing, Upload

try:
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import parse_url
except ImportError as error:
    raise ImportError("requests is not installed: pip install 'upseal[requests]'") from error

__all__ = ["BodyChanged", "NotAgain", "Recipients", "SealingAdapter", "Withheld", "seal_session"]

_HEADERS = (sealing.ENCODING, sealing.LENGTH, sealing.TRANSFER)
_PIECE = 1 << 18


class NotAgain(requests.RequestException):
    """The body cannot be read a second time: the key was stale, say, and a newer one is known."""


class _Spent(Exception):  # noqa: N818
    """The same, while urllib3 reads the body: it takes every OSError for the connection's."""


class _Plain:
    """A body as the application gave it."""

    def __init__(self, request: requests.PreparedRequest) -> None:
        self.body: Any = request.body
        self.headers = {name: request.headers[name] for name in _HEADERS if name in request.headers}
        self._read = False
        self._start: int | None = None
        body: Any = self.body
        if hasattr(body, "read") and hasattr(body, "seek"):
            with suppress(OSError, AttributeError):
                self._start = body.tell()

    @property
    def whole(self) -> bytes | None:
        """If it is in memory."""
        if self.body is None:
            return b""
        if isinstance(self.body, str):
            return self.body.encode("utf-8")
        return bytes(self.body) if isinstance(self.body, bytes | bytearray | memoryview) else None

    @property
    def replayable(self) -> bool:
        """Whether it can be read (again)."""
        return not self._read or self.whole is not None or self._start is not None

    def pieces(self) -> Iterator[bytes]:
        """All of it, from its beginning.

        Raises:
            _Spent: it was read before.
        """
        if not self.replayable:
            raise _Spent
        again, self._read = self._read, True
        whole = self.whole
        if whole is not None:
            return iter((whole,))
        if hasattr(self.body, "read"):
            if again:
                self.body.seek(self._start)
            return _file_pieces(self.body)
        return iter(self.body)


class _Envelope(bytes):
    """A whole body, sealed: sent again, it is the same bytes."""

    plain: _Plain


class _Chunked:
    """An upload: each time it is sent, it is sealed anew. To requests and urllib3 an iterable."""

    def __init__(self, plain: _Plain, shared: Sealing, used: Seal, bound: Bound) -> None:
        self.plain = plain
        self._again = shared, used, bound
        self._next: Upload | None = self._upload()
        self.sealed_length = self._next.sealed_length

    def _upload(self) -> Upload:
        shared, used, bound = self._again
        return shared.upload(used, bound, sealing.declared(self.plain.headers))

    def __iter__(self) -> Iterator[bytes]:
        pieces: Iterable[bytes] = self.plain.pieces()
        upload, self._next = self._next or self._upload(), None
        return sealing.sealed_pieces(upload, pieces)

    def seek(self, _offset: int) -> None:
        """What requests calls before a redirect. To iterate again begins at the beginning."""


class SealingAdapter(HTTPAdapter):
    """Seals what a session sends.

    Mount it on every prefix (`seal_session` does that): what it has sealed never leaves in clear by
    another adapter, but what never comes here does.

    Args:
        policy: `Recipients`, or `upseal.integrations.http.manifest.FollowManifest`.
        context: as in docs/integrations/http.md, for proxies that rewrite paths.
        envelope_max: longer bodies are sealed chunk by chunk.
        sealer: makes the sealer for some recipients: `functools.partial(Sealer, padding=...)`, say.
        **settings: as `requests.adapters.HTTPAdapter` takes them.

    A request raises `Withheld` before anything leaves, if the policy does not let it go in clear
    and it cannot be sealed; `NotAgain`; and `BodyChanged`.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        context: Context | None = None,
        envelope_max: int = ENVELOPE_MAX,
        sealer: SealerMaker = Sealer,
        **settings: Any,
    ) -> None:
        self._shared = Sealing(policy, context, envelope_max, sealer)
        super().__init__(**settings)

    def __getstate__(self) -> dict[str, Any]:
        """Never: a copy would not have the policy, and so send in clear."""
        raise TypeError("a SealingAdapter cannot be copied or pickled: make another one")

    def send(
        self, request: requests.PreparedRequest, *args: Any, **settings: Any
    ) -> requests.Response:
        """Seals and sends; again, once, if the key was stale."""
        shared = self._shared
        plain = _restored(request)
        if not sealing.to_be_sealed(request.method or "", request.body in (None, b"", "")):
            return super().send(request, *args, **settings)
        if shared.policy.due:
            shared.policy.renew()
        decision = shared.decide()
        if isinstance(decision, Clear):
            return super().send(request, *args, **settings)
        self._seal(request, plain, decision)
        response = self._send(request, *args, **settings)
        if not is_stale_key(response.status_code, response.headers.get(PROBLEM)):
            return response
        try:
            newer = shared.again(decision)
            if newer is None:
                return response
            if not plain.replayable:
                raise NotAgain(sealing.NOT_AGAIN, request=request)
        except BaseException:
            response.close()
            raise
        response.close()
        _restored(request)
        self._seal(request, plain, newer)
        return self._send(request, *args, **settings)

    def _send(
        self, request: requests.PreparedRequest, *args: Any, **settings: Any
    ) -> requests.Response:
        try:
            return super().send(request, *args, **settings)
        except _Spent:
            raise NotAgain(sealing.NOT_AGAIN, request=request) from None

    def _seal(self, request: requests.PreparedRequest, plain: _Plain, decision: Seal) -> None:
        """Puts the sealed body in, and the headers that go with it."""
        bound = bound_of(request)
        whole = plain.whole
        body: Any
        if whole is not None and len(whole) <= self._shared.envelope_max:
            body = _Envelope(self._shared.envelope(decision, bound, whole))
            body.plain = plain
            length: int | None = len(body)
        else:
            body = _Chunked(plain, self._shared, decision, bound)
            length = body.sealed_length
        for name in _HEADERS:
            request.headers.pop(name, None)
        request.headers["Content-Encoding"] = sealing.coded(bound.coding.decode())
        if length is None:
            request.headers["Transfer-Encoding"] = "chunked"
        else:
            request.headers["Content-Length"] = str(length)
        request.body = body


def seal_session(session: requests.Session, policy: Policy, **settings: Any) -> requests.Session:
    """Seals all that this session sends: every adapter in it is replaced.

    Args:
        session: any.
        policy: as `SealingAdapter` takes it.
        **settings: as well.
    """
    adapter = SealingAdapter(policy, **settings)
    for prefix in [*session.adapters, "http://", "https://"]:
        session.mount(prefix, adapter)
    return session


def bound_of(request: requests.PreparedRequest) -> Bound:
    """What the body of this request is bound to.

    Raises:
        ValueError: it is sealed already.
    """
    parsed = parse_url(request.path_url)  # as urllib3 will write it
    target = (parsed.path or "/") + ("" if parsed.query is None else "?" + parsed.query)
    path, query = target_of(target.encode("latin-1"))
    kind: str | bytes = request.headers.get("Content-Type") or ""
    kind = kind.encode("latin-1") if isinstance(kind, str) else kind
    coding = sealing.inside_coding({sealing.ENCODING: _encoding(request)})
    return Bound(
        request.method or "GET", path, query, kind.strip(), coding.encode(), request.headers.get
    )


def _restored(request: requests.PreparedRequest) -> _Plain:
    """The clear body, put back into a request that came here before or was redirected."""
    body: Any = request.body
    if isinstance(body, _Envelope | _Chunked):
        for name in _HEADERS:
            request.headers.pop(name, None)
        request.headers.update(body.plain.headers)
        request.body = body.plain.body
        return body.plain
    if body is None and CODING in _encoding(request):
        del request.headers[sealing.ENCODING]  # of a redirect that has left the body out
    return _Plain(request)


def _encoding(request: requests.PreparedRequest) -> str:
    value: str | bytes = request.headers.get(sealing.ENCODING) or ""
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _file_pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece
