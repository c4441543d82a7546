# SPDX-License-Identifier: Apache-2.0
"""A relay that lies about files (`fleet_liar`). Its truth is to hand each request through.

``file_lie`` is what it does with uploads, by a method's name; None is the truth.
"""

import asyncio
import os

from fleet_liar import Liar
from starlette.responses import Response
from starlette.routing import Route

from upseal.fleet.http import results
from upseal.fleet.http.apps import read_body
from upseal.fleet.http.client import Unreachable
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result
from upseal.fleet.units import Receipt, Status, signed_receipt

FILE_LIES = ("swap", "swallow", "claim", "forge", "offsets", "refuse", "lose", "empty")
_UP = ("tus-resumable", "upload-length", "upload-metadata", "upload-offset", "content-type")
_DOWN = ("upload-offset", "upload-length", "upload-expires", "location", "tus-resumable",
         "upseal-problem", "upseal-max-piece", "retry-after", "content-type")  # fmt: skip
_REFUSALS = ("malformed", "too-large", "conflict", "stale-key", "sealed-not-accepted",
             "not-enrolled", "offset")  # fmt: skip


class FileLiar(Liar):
    """``pieces`` is all that it was given of files."""

    def __init__(self, folder, parent, chance):
        super().__init__(folder, parent, chance)
        self.file_lie, self.pieces, self._asked, self._sizes = None, [], set(), {}
        self.app.router.routes[:0] = [
            Route("/v1/uploads", self._file, methods=["POST"]),
            Route("/v1/uploads/{body}", self._file, methods=["HEAD", "PATCH", "DELETE"]),
        ]

    async def _file(self, request):
        body = await read_body(request, 64 << 20)
        said = {name: request.headers[name] for name in _UP if name in request.headers}
        return await asyncio.to_thread(self._handle, request, body, said)

    def _handle(self, request, body, said):
        path = request.url.path
        with self._lock:
            self.pieces.append(body)
            lie = self.file_lie
            if "body" in request.path_params:
                self._asked.add(bytes.fromhex(request.path_params["body"]))
        if lie is None:
            return self._through(request.method, path, body, said)
        with self._lock:
            self.told[lie] += 1
        return getattr(self, f"_{lie}")(request.method, path, body, said)

    def _through(self, method, path, body, said):
        try:
            got = self.uplink.request(method, path, body, said)
        except Unreachable:
            raise Problem("parent-away", retry_after=1) from None
        headers = {name: got.headers[name] for name in _DOWN if name in got.headers}
        return Response(got.body, got.status, headers)

    def _ask(self, body):
        """Results: those of files are lies as well."""
        with self._lock:
            mine = [i for i in results.decode_ids(body) if i in self._asked]
            lie = self.file_lie
        if lie in (None, "swap", "offsets", "lose") or not mine:
            return super()._ask(body)
        answers = {
            "swallow": Result.pending, "claim": Result.unknown, "forge": self._forged,
            "refuse": lambda i: Result.failed(i, Problem(self.chance.choice(_REFUSALS))),
            "empty": lambda i: Result.done(i, []),
        }  # fmt: skip
        with self._lock:
            self.told[lie] += len(mine)
        return self._answer([answers[lie](i) for i in mine])

    def _forged(self, body_id):
        with self._lock:
            real = list(self.receipts[-4:])
        digest = os.urandom(32)
        made = [signed_receipt(Receipt(self.deployment, digest, Status.STORED), self.key)]
        for receipt in real:  # true ones, for something else; and changed ones
            flipped = bytearray(receipt)
            flipped[self.chance.randrange(len(receipt))] ^= 1
            made += [receipt, bytes(flipped)]
        return Result.done(body_id, made)

    # -- lies

    @staticmethod
    def _yes(method, said, offset, size=None):
        """That it was done."""
        status = {"POST": 201, "HEAD": 200}.get(method, 204)
        headers = {"tus-resumable": "1.0.0", "upload-offset": str(offset)}
        if size is not None:
            headers["upload-length"] = str(size)
        return Response(b"", status, headers)

    def _swap(self, method, path, body, said):
        """Other bytes."""
        if body:
            changed = bytearray(body)
            changed[self.chance.randrange(len(body))] ^= self.chance.randrange(1, 256)
            body = bytes(changed)
        return self._through(method, path, body, said)

    def _swallow(self, method, path, body, said):
        """Takes all, and has nothing."""
        with self._lock:
            have = self._sizes.get(path, 0)
            if method == "PATCH" and int(said["upload-offset"]) == have:
                have = self._sizes[path] = have + len(body)
        if method == "HEAD" and not have:
            raise Problem("not-found")
        return self._yes(method, said, have, 1 << 40 if method == "HEAD" else None)

    def _claim(self, method, path, body, said):
        """Has all bytes before there were any."""
        return self._yes(method, said, 0, 0)

    _forge = _empty = _claim

    def _offsets(self, method, path, body, said):
        """Numbers that make no sense."""
        offset = self.chance.choice([0, 1, -1, 1 << 62, 10**30, "all", len(body) + 1])
        return self._yes(method, said, offset, self.chance.choice([0, 1, 1 << 62, "much"]))

    def _refuse(self, method, path, body, said):
        raise Problem(self.chance.choice(_REFUSALS))

    def _lose(self, method, path, body, said):
        """Was there such a thing?"""
        if method == "POST":
            return self._yes(method, said, 0)
        raise Problem("not-found")

    def begin(self, lie):
        """To tell another one; None: the truth."""
        with self._lock:
            self.file_lie = lie
            self._sizes.clear()

    def knows(self, *markers):
        """Whether one of these was in anything that it was given."""
        with self._lock:
            given = [*self.bodies, *self.pieces]
        return any(marker in body for marker in markers for body in given)
