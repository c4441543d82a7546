# SPDX-License-Identifier: Apache-2.0
"""What a request to log in carries: a form, or HTTP Basic."""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Callable
from urllib.parse import parse_qs

from starlette.requests import Request

from upseal.fleet.http.apps import read_body
from upseal.fleet.http.problems import Problem

_FORM_MAX = 4096


async def fields_of(request: Request) -> Callable[[str], str]:
    """A form's fields, each once.

    Raises:
        Problem: it is none, or far too long.
    """
    data = await read_body(request, _FORM_MAX)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Problem("malformed", "this takes a form")
    try:
        found = parse_qs(data.decode("utf-8"), keep_blank_values=True, max_num_fields=8)
    except ValueError:
        raise Problem("malformed", "this is no form") from None
    return lambda name: found.get(name, [""])[0]


def basic_of(request: Request) -> tuple[str, str] | None:
    """Name and password of HTTP Basic (RFC 7617); None if there is none.

    Raises:
        Problem: malformed.
    """
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(rest.strip(), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise Problem("malformed", "this is not HTTP Basic") from None
    name, colon, password = text.partition(":")
    if not colon or len(text) > _FORM_MAX:
        raise Problem("malformed", "this is not HTTP Basic")
    return name, password


def refuse_other_sites(request: Request) -> None:
    """What a browser says itself; the form's token is what counts where it says nothing."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Problem("malformed", "forms come from this page alone", status=403)


def is_local(request: Request) -> bool:
    """Whether it came from this machine."""
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
