# SPDX-License-Identifier: Apache-2.0
"""A FastAPI application whose clients seal what they send.

Run it: `python examples/asgi/app.py`. Under a server of yours it is `uvicorn app:app`; here it is
started, asked, and stopped.
"""

import hashlib
import socket
import threading

import httpx
import uvicorn
from fastapi import FastAPI, Request, UploadFile

from upseal import Opener, PrivateKey
from upseal.integrations.asgi import OpeningMiddleware
from upseal.integrations.httpx import Recipients, SealingTransport

key = PrivateKey.generate("x25519")  # yours comes from a file: PrivateKey.from_pem(...)

app = FastAPI()
app.add_middleware(OpeningMiddleware, opener=Opener([key]), clear=["/healthz"])


@app.post("/reports")
async def reports(report: dict, request: Request) -> dict:
    """Gets the report as if nothing had happened to it."""
    received = request.state.upseal
    return {"report": report, "sealed": received.sealed, "kind": received.kind}


@app.post("/files")
async def files(file: UploadFile) -> dict:
    """A file of any size: opened chunk by chunk while it comes."""
    digest = hashlib.sha256()
    while piece := await file.read(1 << 16):
        digest.update(piece)
    return {"name": file.filename, "sha256": digest.hexdigest()[:16]}


# -- from here on: a server in a thread, and two clients

listening = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", ws="none"))
thread = threading.Thread(target=server.run, args=([listening],))
thread.start()
url = f"http://127.0.0.1:{listening.getsockname()[1]}"

with httpx.Client(transport=SealingTransport(Recipients([key.public_key])), base_url=url) as client:
    print(client.post("/reports", json={"disk": "41%"}).json())
    print(client.post("/files", files={"file": ("log.txt", b"a line\n" * 300_000)}).json())

answer = httpx.post(url + "/reports", json={"disk": "41%"})  # a client that does not seal
print(answer.status_code, answer.json()["type"], answer.json()["detail"])

server.should_exit = True
thread.join()
listening.close()
