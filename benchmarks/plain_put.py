# SPDX-License-Identifier: Apache-2.0
"""A plain HTTP PUT of a file, to compare uploads with: no proof, no digest, nothing to resume.

The application is bare ASGI on uvicorn, as `upseal` uses it, without upseal's bounds: it writes
what comes, and answers when it is synced. With ``--next`` it is a relay that stores and forwards:
it sends the file on when it is there, and answers after that.

    python benchmarks/plain_put.py FOLDER [--next URL]
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import os
import secrets
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn

BLOCK = 1 << 20


def put(url: str, path: Path) -> None:
    """Sends a file; RuntimeError if it was not taken."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, blocksize=BLOCK)
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            connection.request("PUT", "/file", file, {"content-length": str(size)})
            answer = connection.getresponse()
            answer.read()
        if answer.status != 204:
            raise RuntimeError(f"a PUT was answered {answer.status}")
    finally:
        connection.close()


class Taking:
    """The application."""

    def __init__(self, folder: Path, following: str | None) -> None:
        self._folder, self._following = folder, following

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        path = self._folder / f"{secrets.token_hex(8)}.put"
        with open(path, "xb", buffering=0) as file:
            more = True
            while more:
                message = await receive()
                file.write(message.get("body", b""))
                more = message.get("more_body", False)
            await asyncio.to_thread(os.fsync, file.fileno())
        if self._following is not None:
            await asyncio.to_thread(put, self._following, path)
            path.unlink()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--next", metavar="URL")
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = args.folder / "address"
        temporary = address.with_suffix(".new")
        temporary.write_text("{}:{}".format(*sock.getsockname()))
        temporary.rename(address)
        config = uvicorn.Config(
            Taking(args.folder, args.next), log_config=None, lifespan="off", access_log=False
        )
        uvicorn.Server(config).run([sock])


if __name__ == "__main__":
    main()
