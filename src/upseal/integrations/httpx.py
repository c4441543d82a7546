# SPDX-License-Identifier: Apache-2.0
"""httpx: transports that seal request bodies (docs/integrations/http.md).

client = httpx.Client(transport=SealingTransport(Recipients([key])))

A request that was sealed carries its sealed body from then on, and so does what httpx makes of it:
a redirect, or an answer to a challenge. If that comes to another transport, it is sealed still; if
it comes back here, it is sealed anew, for where it goes now.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

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
    import anyio.to_thread
    import httpx
except ImportError as error:
    raise ImportError("httpx is not installed: pip install 'upseal[httpx]'") from error

__all__ = [
    "AsyncSealingTransport",
    "BodyChanged",
    "NotAgain",
    "Recipients",
    "SealingTransport",
    "Withheld",
]

_HEADERS = (sealing.ENCODING, sealing.LENGTH, sealing.TRANSFER)
_Stream = httpx.SyncByteStream | httpx.AsyncByteStream
_INLINE = 1 << 16


class NotAgain(httpx.RequestError):
    """The key was stale, a newer one is known now, and the body cannot be read a second time."""


class SealedStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The sealed body of a request, and what it was made of."""

    def __init__(self, plain: _Stream, headers: dict[str, str]) -> None:
        self.plain = plain
        self.headers = headers
        """Those of `_HEADERS` that the request had in clear."""
        self.begun = False


class _Whole(SealedStream):
    """An envelope: sent again, it is the same bytes."""

    def __init__(self, plain: _Stream, headers: dict[str, str], envelope: bytes) -> None:
        super().__init__(plain, headers)
        self.envelope = envelope

    def __iter__(self) -> Iterator[bytes]:
        yield self.envelope

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.envelope


class _Chunked(SealedStream):
    """An upload: each time it is sent, it is sealed anew."""

    def __init__(
        self, plain: _Stream, headers: dict[str, str], shared: Sealing, used: Seal, bound: Bound
    ) -> None:
        super().__init__(plain, headers)
        self._again = shared, used, bound
        self._next: Upload | None = self._upload()
        self.sealed_length = self._next.sealed_length

    def _upload(self) -> Upload:
        shared, used, bound = self._again
        return shared.upload(used, bound, sealing.declared(self.headers))

    def _start(self) -> Upload:
        upload, self._next = self._next or self._upload(), None
        self.begun = True
        return upload

    def __iter__(self) -> Iterator[bytes]:
        if not isinstance(self.plain, httpx.SyncByteStream):
            raise RuntimeError("an async body came to a transport that is not")
        return sealing.sealed_pieces(self._start(), self.plain)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if not isinstance(self.plain, httpx.AsyncByteStream):
            raise RuntimeError("a sync body came to an async transport")
        upload = self._start()
        try:
            async for piece in self.plain:
                for part in sealing.parts_of(piece):
                    if len(part) <= _INLINE:
                        sealed = upload.feed(part)
                    else:  # so that other requests go on meanwhile
                        sealed = await anyio.to_thread.run_sync(upload.feed, part)
                    if sealed:
                        yield sealed
            yield upload.end()
        finally:
            upload.abort()


class _Requests:
    """What both transports do to a request."""

    def __init__(
        self, policy: Policy, context: Context | None, envelope_max: int, sealer: SealerMaker
    ) -> None:
        self.shared = Sealing(policy, context, envelope_max, sealer)

    def restore(self, request: httpx.Request) -> None:
        """Back to the clear body, of a request that came here before or was redirected."""
        stream = request.stream
        if isinstance(stream, SealedStream):
            self.check_again(request, stream)
            for name in _HEADERS:
                request.headers.pop(name, None)
            request.headers.update(stream.headers)
            request.stream = stream.plain
        elif _empty(request) and CODING in request.headers.get(sealing.ENCODING, ""):
            del request.headers[sealing.ENCODING]  # of a redirect that has left the body out

    def asks(self, request: httpx.Request) -> bool:
        """Whether the policy has a say about it."""
        return sealing.to_be_sealed(request.method, _empty(request))

    def seal(self, request: httpx.Request, decision: Seal) -> SealedStream:
        """Puts the sealed body in, and the headers that go with it."""
        headers = {name: request.headers[name] for name in _HEADERS if name in request.headers}
        bound = bound_of(request)
        plain = request.stream
        body = _content(request)
        sealed: SealedStream
        length: int | None
        if body is not None and len(body) <= self.shared.envelope_max:
            whole = _Whole(plain, headers, self.shared.envelope(decision, bound, body))
            sealed, length = whole, len(whole.envelope)
        else:
            chunked = _Chunked(plain, headers, self.shared, decision, bound)
            sealed, length = chunked, chunked.sealed_length
        for name in _HEADERS:
            request.headers.pop(name, None)
        request.headers[sealing.ENCODING] = sealing.coded(bound.coding.decode())
        if length is None:
            request.headers[sealing.TRANSFER] = "chunked"
        else:
            request.headers[sealing.LENGTH] = str(length)
        request.stream = sealed
        return sealed

    def check_again(self, request: httpx.Request, sealed: SealedStream) -> None:
        """Raises `NotAgain` for a stream that is spent: httpx itself would send what is left."""
        if isinstance(sealed.plain, httpx.ByteStream) or not sealed.begun:
            return
        if sealing.declared(sealed.headers) is None:  # with a length, `BodyChanged` finds out
            raise NotAgain(sealing.NOT_AGAIN, request=request)


class SealingTransport(httpx.BaseTransport):
    """Seals what a client sends, by another transport.

    Args:
        policy: `Recipients`, or `upseal.integrations.http.manifest.FollowManifest`.
        transport: what sends; None: an ordinary one.
        context: as in docs/integrations/http.md, for proxies that rewrite paths.
        envelope_max: longer bodies are sealed chunk by chunk.
        sealer: makes the sealer for some recipients: `functools.partial(Sealer, padding=...)`, say.

    A request raises `Withheld` before anything leaves, if the policy does not let it go in clear
    and it cannot be sealed; `NotAgain`; and `BodyChanged`.
    """

    def __init__(
        self,
        policy: Policy,
        transport: httpx.BaseTransport | None = None,
        *,
        context: Context | None = None,
        envelope_max: int = ENVELOPE_MAX,
        sealer: SealerMaker = Sealer,
    ) -> None:
        self._requests = _Requests(policy, context, envelope_max, sealer)
        self._inner = transport if transport is not None else httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Seals and sends; again, once, if the key was stale."""
        shared = self._requests.shared
        self._requests.restore(request)
        if not self._requests.asks(request):
            return self._inner.handle_request(request)
        if shared.policy.due:
            shared.policy.renew()
        decision = shared.decide()
        if isinstance(decision, Clear):
            return self._inner.handle_request(request)
        sealed = self._requests.seal(request, decision)
        response = self._inner.handle_request(request)
        if not is_stale_key(response.status_code, response.headers.get(PROBLEM)):
            return response
        try:
            newer = shared.again(decision)
            if newer is None:
                return response
            self._requests.check_again(request, sealed)
        except BaseException:
            response.close()
            raise
        response.close()
        self._requests.restore(request)
        self._requests.seal(request, newer)
        try:
            return self._inner.handle_request(request)
        except (httpx.StreamConsumed, BodyChanged) as error:
            raise NotAgain(sealing.NOT_AGAIN, request=request) from error

    def close(self) -> None:
        """Closes the other transport."""
        self._inner.close()


class AsyncSealingTransport(httpx.AsyncBaseTransport):
    """As `SealingTransport`, for `httpx.AsyncClient`, under asyncio or trio."""

    def __init__(
        self,
        policy: Policy,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        context: Context | None = None,
        envelope_max: int = ENVELOPE_MAX,
        sealer: SealerMaker = Sealer,
    ) -> None:
        self._requests = _Requests(policy, context, envelope_max, sealer)
        self._inner = transport if transport is not None else httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Seals and sends; again, once, if the key was stale."""
        shared = self._requests.shared
        self._requests.restore(request)
        if not self._requests.asks(request):
            return await self._inner.handle_async_request(request)
        if shared.policy.due:
            await anyio.to_thread.run_sync(shared.policy.renew)
        decision = shared.decide()
        if isinstance(decision, Clear):
            return await self._inner.handle_async_request(request)
        sealed = await self._seal(request, decision)
        response = await self._inner.handle_async_request(request)
        if not is_stale_key(response.status_code, response.headers.get(PROBLEM)):
            return response
        try:
            newer = await anyio.to_thread.run_sync(shared.again, decision)
            if newer is None:
                return response
            self._requests.check_again(request, sealed)
        except BaseException:
            await response.aclose()
            raise
        await response.aclose()
        self._requests.restore(request)
        await self._seal(request, newer)
        try:
            return await self._inner.handle_async_request(request)
        except (httpx.StreamConsumed, BodyChanged) as error:
            raise NotAgain(sealing.NOT_AGAIN, request=request) from error

    async def _seal(self, request: httpx.Request, decision: Seal) -> SealedStream:
        if len(_content(request) or b"") <= _INLINE:
            return self._requests.seal(request, decision)
        return await anyio.to_thread.run_sync(self._requests.seal, request, decision)

    async def aclose(self) -> None:
        """Closes the other transport."""
        await self._inner.aclose()


def bound_of(request: httpx.Request) -> Bound:
    """What the body of this request is bound to.

    Raises:
        ValueError: it has more than one ``Content-Type``, or is sealed already.
    """
    target = request.extensions.get("target", request.url.raw_path)
    path, query = target_of(target)
    kinds = [value for name, value in request.headers.raw if name.lower() == b"content-type"]
    if len(kinds) > 1:
        raise ValueError("a sealed request has one Content-Type")
    return Bound(
        request.method,
        path,
        query,
        b"".join(kinds).strip(),
        sealing.inside_coding(request.headers).encode(),
        request.headers.get,
    )


def _content(request: httpx.Request) -> bytes | None:
    """The body, if it is in memory as a whole."""
    stream = request.stream
    return b"".join(stream) if isinstance(stream, httpx.ByteStream) else None


def _empty(request: httpx.Request) -> bool:
    return _content(request) == b""
