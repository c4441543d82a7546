# SPDX-License-Identifier: Apache-2.0
"""A deployment whose manifests are real, and a server for them that lies when it is told to."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

from http_support import serve_werkzeug

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fleet"))
from fleet_support import Site, start_trust

__all__ = ["Publisher", "Site", "published"]


class Publisher:
    """Serves what it has; ``answer`` instead, if that is set."""

    def __init__(self, site):
        self.site, self.answer, self.asked = site, None, 0

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] != "/v1/manifest":
            start_response("404 Not Found", [("Content-Length", "0")])
            return [b""]
        self.asked += 1
        body = "\n".join(self.site.tokens if self.answer is None else self.answer).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]


@contextmanager
def published(path, site):
    """(publisher, its URL, a trust that has seen nothing yet)."""
    publisher = Publisher(site)
    with serve_werkzeug(publisher) as (host, port):
        yield publisher, f"http://{host}:{port}", start_trust(path / "trust.json", site)


def problem(status, name):
    """An answer as anybody can give it."""
    body = json.dumps({"type": f"https://upseal.invalid/problems/{name}", "status": status})
    return (
        f"HTTP/1.1 {status} No\r\nUpseal-Problem: {name}\r\n"
        "Content-Type: application/problem+json\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def plain(status, *headers):
    """An answer of a few bytes."""
    lines = "".join(f"{header}\r\n" for header in headers)
    return (
        f"HTTP/1.1 {status} Yes\r\n{lines}Connection: close\r\nContent-Length: 2\r\n\r\nok"
    ).encode()


HOSTILE = [
    plain(200), plain(204), plain(400), plain(401, 'WWW-Authenticate: Basic realm="x"'),
    plain(401, 'WWW-Authenticate: Digest realm="x", nonce="n", qop="auth", algorithm=MD5'),
    plain(307, "Location: %URL%/elsewhere"), plain(308, "Location: %URL%/raw"),
    plain(303, "Location: %URL%/raw"), plain(302, "Location: %URL%/raw"), plain(409), plain(411),
    plain(413), plain(415, "Accept-Encoding: identity"), plain(415), plain(421), plain(426),
    plain(503, "Retry-After: 0"), problem(409, "stale-key"), problem(422, "sealed-not-accepted"),
    problem(422, "clear-not-accepted"), problem(415, "media-type"), problem(400, "malformed"),
    problem(403, "revoked"), b"", b"\x00garbage\r\n\r\n",
]  # fmt: skip
"""Answers of whoever sits on the way and wants the body in clear."""
