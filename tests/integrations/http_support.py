# SPDX-License-Identifier: Apache-2.0
"""Applications that know nothing of upseal, real servers for them, and raw HTTP."""

import asyncio
import hashlib
import http.client
import io
import socket
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import uvicorn
import waitress.server
import werkzeug.serving
from fastapi import FastAPI, Request, UploadFile
from flask import Flask, jsonify, request

from upseal import KeyUnavailable, PrivateKey, Sealer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "fleet"))
from fleet_proxy import Proxy  # noqa: E402

__all__ = ["Proxy"]
KEY = PrivateKey.generate("x25519")
OTHER = PrivateKey.generate("x25519")
MARKER = b"the words that nobody on the way may read"
PIECE = 1 << 16
LONG = bytes(range(256)) * 1200  # 19 chunks, the last one short


def url_of(address, path=""):
    return f"http://{address[0]}:{address[1]}{path}"


def digest(data):
    return hashlib.sha256(data).hexdigest()


# -- applications


def fastapi_app():
    """JSON, a raw body, a form with a file, a stream."""
    app = FastAPI()
    app.calls, app.whole = [], []

    @app.middleware("http")
    async def note(request: Request, call_next):
        app.calls.append((request.method, request.url.path, dict(request.headers)))
        app.mark = getattr(request.state, "upseal", None)
        return await call_next(request)

    @app.post("/items")
    async def items(item: dict):
        return {"got": item}

    @app.api_route("/raw", methods=["POST", "PUT", "DELETE"])
    @app.post("/other")
    async def raw(request: Request):
        body = await request.body()
        return {"length": len(body), "sha256": digest(body)}

    @app.post("/form")
    async def form(file: UploadFile):
        hashed, size = hashlib.sha256(), 0
        while piece := await file.read(PIECE):
            hashed.update(piece)
            size += len(piece)
        return {"name": file.filename, "length": size, "sha256": hashed.hexdigest()}

    @app.put("/stream")
    async def stream(request: Request):
        hashed, size = hashlib.sha256(), 0
        async for piece in request.stream():
            hashed.update(piece)
            size += len(piece)
        app.whole.append(size)
        return {"length": size, "sha256": hashed.hexdigest()}

    @app.get("/hello")
    async def hello():
        return {"hello": "world"}

    return app


def flask_app():
    """The same in Flask."""
    app = Flask("plain")
    app.calls = []

    @app.before_request
    def note():
        app.calls.append((request.method, request.path, dict(request.headers)))
        app.mark = request.environ.get("upseal")

    @app.post("/items")
    def items():
        return jsonify(got=request.get_json())

    @app.route("/raw", methods=["POST", "PUT", "DELETE"])
    @app.post("/other")
    def raw():
        body = request.get_data()
        return jsonify(length=len(body), sha256=digest(body))

    @app.post("/form")
    def form():
        file = request.files["file"]
        hashed, size = hashlib.sha256(), 0
        while piece := file.stream.read(PIECE):
            hashed.update(piece)
            size += len(piece)
        return jsonify(name=file.filename, length=size, sha256=hashed.hexdigest())

    @app.put("/stream")
    def stream():
        hashed, size = hashlib.sha256(), 0
        while piece := request.stream.read(PIECE):
            hashed.update(piece)
            size += len(piece)
        return jsonify(length=size, sha256=hashed.hexdigest())

    @app.get("/hello")
    def hello():
        return jsonify(hello="world")

    return app


# -- servers


@contextmanager
def serve_asgi(app):
    """uvicorn, in a thread: (host, port)."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try:
        yield listening.getsockname()
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


@contextmanager
def serve_waitress(app):
    """waitress, which reads a whole body before it calls: (host, port)."""
    dispatcher = {}
    server = waitress.server.create_server(
        app, map=dispatcher, host="127.0.0.1", port=0, threads=2, clear_untrusted_proxy_headers=True
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield "127.0.0.1", server.effective_port
    finally:
        server.trigger.pull_trigger(lambda: server.asyncore.close_all(dispatcher))
        thread.join(30)
        server.task_dispatcher.shutdown()


class _Quiet(werkzeug.serving.WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_):
        pass


@contextmanager
def serve_werkzeug(app):
    """werkzeug's, which hands bodies on as they come: (host, port)."""
    server = werkzeug.serving.make_server(
        "127.0.0.1", 0, app, threaded=True, request_handler=_Quiet
    )
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield "127.0.0.1", server.server_port
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()


class Script:
    """A server of raw answers, for lies: each request is answered by the next of them."""

    def __init__(self, answers):
        self.answers = answers
        self.requests = []

    def __enter__(self):
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = url_of(self._listening.getsockname())
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(30)

    def _run(self):
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                try:
                    self.requests.append(read_request(stream))
                    answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
                    connection.sendall(answer.replace(b"%URL%", self.url.encode()))
                    connection.shutdown(socket.SHUT_WR)
                except (OSError, ValueError):
                    pass


def read_request(stream):
    """(first line, headers, body) of one request."""
    line = stream.readline().decode().strip()
    headers = http.client.parse_headers(stream)
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(stream.readline(), 16):
            body += stream.read(size)
            stream.readline()
        stream.readline()
    else:
        body = stream.read(int(headers.get("content-length", 0)))
    return line, headers, body


def requests_in(proxy):
    """What passed a proxy on its way up: (first line, headers, body) of each request."""
    found = []
    for data in proxy.sent_up():
        stream = io.BytesIO(data)
        while stream.tell() < len(data):
            found.append(read_request(stream))
    return found


# -- raw HTTP


class Answer:
    def __init__(self, response):
        self.status, self.headers = response.status, response.headers
        self.body = response.read()

    @property
    def seen(self):
        """All that a sender can tell it by."""
        return self.status, self.headers["upseal-problem"], self.headers["content-type"], self.body


def ask(address, method, target, body=b"", *, cut=None, chunked=False, **headers):
    """One request by hand. ``cut``: only so many bytes of the body are sent, then it is closed."""
    fields = {"Host": "a", "Content-Type": "application/octet-stream", "Connection": "close"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    if chunked:
        fields["Transfer-Encoding"] = "chunked"
        pieces = [body[at : at + 5000] for at in range(0, len(body), 5000)]
        sent = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    else:
        if body or method in ("POST", "PUT"):
            fields["Content-Length"] = str(len(body))
        sent = body
    head = f"{method} {target} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(head.encode() + b"\r\n" + (sent if cut is None else sent[:cut]))
        if cut is not None:
            connection.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(connection, method=method)
        try:
            response.begin()
            return Answer(response)
        finally:
            response.close()


def context(method, path, query=b"", kind=b"application/octet-stream", coding=b""):
    """As docs/integrations/http.md says it, written a second time."""
    out = b"upseal/v1 http request\x00"
    for part in (method.encode(), path, query, kind, coding):
        out += struct.pack(">I", len(part)) + part
    return out


def envelope(body, *bound, key=KEY, **more):
    return Sealer([key.public_key]).seal(body, context(*bound, **more))


def upload(body, *bound, key=KEY, **more):
    out = io.BytesIO()
    with Sealer([key.public_key]).writer(out, context(*bound, **more)) as writer:
        writer.write(body)
    return out.getvalue()


# -- what attackers send


class Unplugged:
    """A key that is away."""

    suite, key_id = KEY.suite, KEY.key_id

    def unwrap(self, wrapped):
        raise KeyUnavailable("the token is not there")


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def damages():
    """Bodies for POST /raw that must all be refused alike: (what is wrong, body)."""
    small = envelope(b"body", "POST", b"/raw")
    long = upload(LONG, "POST", b"/raw")
    front = len(long) - len(LONG) - 19 * 16
    yield "flipped tag", small[:-1] + bytes([small[-1] ^ 1])
    yield "cut envelope", small[:-3]
    yield "longer envelope", small + b"x"
    yield "nothing", b""
    yield "no upseal", b"USX" + small[3:]
    yield "version", flip(small, 3)
    yield "commitment", flip(small, len(small) - 60)
    yield "first chunk", flip(long, front + 5)
    yield "last chunk", flip(long, len(long) - 5)
    yield "cut in a chunk", long[:-9]
    yield "cut between chunks", long[: front + 16400 * 18]
    yield "cut between chunks, and a tag's length", long[: front + 16400 * 18 + 16]
    yield "chunk left out", long[: front + 16400] + long[front + 2 * 16400 :]
    swapped = long[front + 16400 : front + 32800] + long[front : front + 16400]
    yield "chunks swapped", long[:front] + swapped + long[front + 32800 :]
    yield "another path", envelope(b"body", "POST", b"/other")
    yield "another method", envelope(b"body", "PUT", b"/raw")
    yield "another query", envelope(b"body", "POST", b"/raw", b"a=1")
    yield "another type", envelope(b"body", "POST", b"/raw", kind=b"text/plain")
    yield "another coding", envelope(b"body", "POST", b"/raw", coding=b"gzip")
    yield "upload of another path", upload(LONG, "POST", b"/other")
    yield "no context", Sealer([KEY.public_key]).seal(b"body")
    yield "a batch", Sealer([KEY.public_key]).seal_batch([b"body"])


# -- processes of their own


def growth(*arguments):
    """KiB of memory that an upload of 64 MiB took."""
    child = Path(__file__).with_name("http_memory_child.py")
    done = subprocess.run(
        [sys.executable, str(child), *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def example(path):
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
