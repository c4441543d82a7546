# SPDX-License-Identifier: Apache-2.0
"""Paths that more than one room must tell from the others (docs/protocol.md)."""

from __future__ import annotations

from typing import Final

ENROL: Final = "/v1/enrol"
UPLOADS: Final = "/v1/uploads"
"""Where bodies are created; each is below it by its id in hex."""
