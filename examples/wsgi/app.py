# SPDX-License-Identifier: Apache-2.0
"""A Flask application whose clients seal what they send.

Run it: `python examples/wsgi/app.py`. Under a server of yours it is `gunicorn app:app`; here it
is started, asked, and stopped.
"""

import hashlib
import threading

import requests
import waitress.server
from flask import Flask, request

from upseal import Opener, PrivateKey
from upseal.integrations.requests import Recipients, seal_session
from upseal.integrations.wsgi import OpeningMiddleware

key = PrivateKey.generate("x25519")  # yours comes from a file: PrivateKey.from_pem(...)

app = Flask(__name__)
app.wsgi_app = OpeningMiddleware(app.wsgi_app, Opener([key]), clear=["/healthz"])


@app.post("/reports")
def reports() -> dict:
    """Gets the report as if nothing had happened to it."""
    received = request.environ["upseal"]
    return {"report": request.get_json(), "sealed": received.sealed, "kind": received.kind}


@app.post("/files")
def files() -> dict:
    """A file of any size: opened chunk by chunk while it is read."""
    digest = hashlib.sha256()
    while piece := request.files["file"].stream.read(1 << 16):
        digest.update(piece)
    return {"sha256": digest.hexdigest()[:16]}


# -- from here on: a server in a thread, and two clients

sockets: dict = {}
server = waitress.server.create_server(app, map=sockets, host="127.0.0.1", port=0, threads=2)
thread = threading.Thread(target=server.run)
thread.start()
url = f"http://127.0.0.1:{server.effective_port}"

with seal_session(requests.Session(), Recipients([key.public_key])) as session:
    print(session.post(url + "/reports", json={"disk": "41%"}).json())
    print(session.post(url + "/files", files={"file": ("log.txt", b"a line\n" * 300_000)}).json())

answer = requests.post(url + "/reports", json={"disk": "41%"}, timeout=10)  # does not seal
print(answer.status_code, answer.json()["type"], answer.json()["detail"])

server.trigger.pull_trigger(lambda: server.asyncore.close_all(sockets))
thread.join()
server.task_dispatcher.shutdown()
