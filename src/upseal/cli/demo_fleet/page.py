# SPDX-License-Identifier: Apache-2.0
"""The administrator's page, as a browser gets it: a login is made, and used."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from upseal.cli.common import BAD, Failure
from upseal.fleet.admin.deployment import Deployment
from upseal.fleet.http.client import Client, Response
from upseal.fleet.server.settings import HOST, PORT

LOGIN = "demo"
ADDRESS = f"http://{HOST}:{PORT}/admin"
"""Where the page is when the deployment's server runs as its settings say."""
_FORM = {"content-type": "application/x-www-form-urlencoded"}
_COUNTED = ("sealed", "clear", "withheld", "silent", "orphaned")
_TOKEN = re.compile(r'name="token" value="([0-9a-f]+)"')
_COOKIE = re.compile(r"(upseal-[a-z]+)=([A-Za-z0-9_-]+);")


def look(deployment: Deployment, folder: Path, files: Iterable[str]) -> dict[str, Any]:
    """Logs in at the running server, and reads what the page says.

    Not through a recorded hop: names stand on the page, as they should.

    Args:
        deployment: gets the login.
        folder: of the server.
        files: names of uploads that should be shown.

    Returns:
        ``status`` of the page, how many of the files it shows, its coverage, and the login.
    """
    password = deployment.add_login(LOGIN).result["password"]
    address = (folder / "address").read_text("ascii").strip()
    with Client(f"http://{address}") as client:
        form = client.request("GET", "/admin/login")
        token = _TOKEN.search(form.body.decode())
        if token is None:
            raise Failure(BAD, f"the demo failed: the page has no login (status {form.status})")
        said = urlencode({"token": token[1], "name": LOGIN, "password": password})
        entered = client.request("POST", "/admin/login", said.encode(), {**_cookies(form), **_FORM})
        page = client.request("GET", "/admin", headers=_cookies(entered))
    text = unescape(page.body.decode())
    uploads = text.partition('<section id="uploads"')[2].partition("</section>")[0]
    return {
        "status": page.status,
        "uploads_shown": sum(name in uploads for name in files),
        "coverage": {word: _figure(text, word) for word in _COUNTED},
        "address": ADDRESS,
        "login": LOGIN,
        "password": password,
    }


def _cookies(answer: Response) -> dict[str, str]:
    """What a browser would send after this answer."""
    found = _COOKIE.findall(answer.headers.get("set-cookie", ""))
    return {"cookie": "; ".join(f"{name}={value}" for name, value in found)}


def _figure(text: str, word: str) -> int | None:
    """How many clients a tile of the page counts."""
    match = re.search(rf'id="count-{word}">([^<]*)<', text)
    digits = "" if match is None else re.sub(r"\D", "", match[1])
    return int(digits) if digits else None
