# SPDX-License-Identifier: Apache-2.0
"""Uploads a file of 64 MiB to a server in this process; prints by how much memory grew, in KiB."""

import hashlib
import sys

import httpx
import requests
from http_support import KEY, fastapi_app, flask_app, serve_asgi, serve_werkzeug

from upseal import Opener
from upseal.integrations import asgi, wsgi
from upseal.integrations.httpx import Recipients, SealingTransport
from upseal.integrations.requests import seal_session

POLICY = Recipients([KEY.public_key])
PIECE = bytes(range(256)) * 256


class File:
    """So many pieces, as a file that can be read once."""

    def __init__(self, pieces):
        self.left, self.digest = pieces, hashlib.sha256()

    def read(self, _=-1):
        if not self.left:
            return b""
        self.left -= 1
        self.digest.update(PIECE)
        return PIECE

    def __iter__(self):
        return iter(self.read, b"")


def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name))


def by_httpx(url, file):
    with httpx.Client(transport=SealingTransport(POLICY), timeout=60) as client:
        return client.put(url + "/stream", content=iter(file)).json()


def by_requests(url, file):
    with seal_session(requests.Session(), POLICY) as session:
        return session.put(url + "/stream", data=iter(file)).json()


def main(server, client):
    send = {"httpx": by_httpx, "requests": by_requests}[client]
    if server == "asgi":
        running = serve_asgi(asgi.OpeningMiddleware(fastapi_app(), Opener([KEY])))
    else:
        running = serve_werkzeug(wsgi.OpeningMiddleware(flask_app(), Opener([KEY])))
    with running as (host, port):
        url = f"http://{host}:{port}"
        send(url, File(64))
        with open("/proc/self/clear_refs", "w") as refs:
            refs.write("5")
        before = status("VmRSS")
        file = File(1024)
        answer = send(url, file)
        assert answer == {"length": 1024 * len(PIECE), "sha256": file.digest.hexdigest()}, answer
        print(status("VmHWM") - before)


main(*sys.argv[1:])
