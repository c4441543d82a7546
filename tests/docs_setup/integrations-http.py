# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: F401 - the page uses these names
from dataclasses import replace
from pathlib import Path

import httpx
import requests
from starlette.applications import Starlette

from upseal import Opener, PrivateKey
from upseal.fleet.credentials import Token

private_key = PrivateKey.generate("x25519")
key = private_key.public_key

app = Starlette()
text = Path("token").read_text().strip()
