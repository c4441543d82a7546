# SPDX-License-Identifier: Apache-2.0
"""Message-level encryption for agents and relays.

Reports and files are sealed to public keys at the agent and opened where they are used; nothing in
between can read them. docs/format.md specifies every byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upseal.core.batch import Batch
    from upseal.core.explain import Explanation, explain
    from upseal.core.files import open_file, seal_file
    from upseal.core.keys import PrivateKey, PublicKey
    from upseal.core.opener import KeyOpener, Opener
    from upseal.core.options import Cipher, Limits, Padding
    from upseal.core.reader import OpeningReader
    from upseal.core.sealer import Sealer
    from upseal.core.writer import SealingWriter
    from upseal.errors import (
        KeyUnavailable,
        OpenError,
        Truncated,
        UnknownRecipient,
        UnsupportedFormat,
    )

__version__ = "0.1.0"

_ROOMS = {
    "Batch": "upseal.core.batch",
    "Cipher": "upseal.core.options",
    "Explanation": "upseal.core.explain",
    "KeyOpener": "upseal.core.opener",
    "KeyUnavailable": "upseal.errors",
    "Limits": "upseal.core.options",
    "OpenError": "upseal.errors",
    "Opener": "upseal.core.opener",
    "OpeningReader": "upseal.core.reader",
    "Padding": "upseal.core.options",
    "PrivateKey": "upseal.core.keys",
    "PublicKey": "upseal.core.keys",
    "Sealer": "upseal.core.sealer",
    "SealingWriter": "upseal.core.writer",
    "Truncated": "upseal.errors",
    "UnknownRecipient": "upseal.errors",
    "UnsupportedFormat": "upseal.errors",
    "explain": "upseal.core.explain",
    "open_file": "upseal.core.files",
    "seal_file": "upseal.core.files",
}
"""Where each public name lives. They are imported when they are first used (PEP 562): an agent that
only seals does not pay for what opens, and ``import upseal`` costs next to nothing.
"""

__all__ = [
    "Batch",
    "Cipher",
    "Explanation",
    "KeyOpener",
    "KeyUnavailable",
    "Limits",
    "OpenError",
    "Opener",
    "OpeningReader",
    "Padding",
    "PrivateKey",
    "PublicKey",
    "Sealer",
    "SealingWriter",
    "Truncated",
    "UnknownRecipient",
    "UnsupportedFormat",
    "explain",
    "open_file",
    "seal_file",
]


def __getattr__(name: str) -> object:
    """Imports a public name."""
    from importlib import import_module

    if name not in _ROOMS:
        raise AttributeError(f"module 'upseal' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_ROOMS[name]), name)
    return value


def __dir__() -> list[str]:
    """All public names, imported or not."""
    return sorted({*globals(), *_ROOMS})
