# SPDX-License-Identifier: Apache-2.0
"""A session of requests that seals what it sends.

Run it: `python examples/requests/client.py`. The server stands in for yours: it has a new key,
which the client does not know yet.
"""

import threading
from collections.abc import Callable
from wsgiref.simple_server import WSGIRequestHandler, make_server

import requests

from upseal import Opener, PrivateKey
from upseal.integrations.requests import Recipients, seal_session
from upseal.integrations.wsgi import OpeningMiddleware

old, new = PrivateKey.generate("x25519"), PrivateKey.generate("x25519")


# -- the server: an application that knows nothing of upseal, behind the middleware


def application(environ: dict, start_response: Callable) -> list[bytes]:
    """Answers with what it got."""
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"got %d bytes, beginning with %r" % (len(body), body[:12])]


class Quiet(WSGIRequestHandler):
    """Prints nothing."""

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


server = make_server(
    "127.0.0.1", 0, OpeningMiddleware(application, Opener([new])), handler_class=Quiet
)
threading.Thread(target=server.serve_forever, args=(0.05,)).start()

# -- the client: two lines are upseal's

policy = Recipients([old.public_key], fetch=lambda: [new.public_key])
url = f"http://127.0.0.1:{server.server_port}"

with seal_session(requests.Session(), policy) as session:
    answer = session.post(url + "/reports", json={"disk": "41%"})
    print(answer.text)
    print("sealed again, since the first key was stale:", policy.decide().recipients[0])
    print("on the wire:", answer.request.headers["Content-Encoding"])

    answer = session.post(url + "/files", files={"file": ("log.txt", b"a line\n" * 300_000)})
    print(answer.text)

server.shutdown()
server.server_close()
