# SPDX-License-Identifier: Apache-2.0
"""Message-level encryption for agents and relays.

Reports and files are sealed to public keys at the agent and opened where they are used; nothing in
between can read them. docs/format.md specifies every byte.
"""

from upseal.core.batch import Batch
from upseal.core.explain import Explanation, explain
from upseal.core.files import open_file, seal_file
from upseal.core.keys import PrivateKey, PublicKey
from upseal.core.opener import KeyOpener, Opener
from upseal.core.options import Cipher, Limits, Padding
from upseal.core.reader import OpeningReader
from upseal.core.sealer import Sealer
from upseal.core.writer import SealingWriter
from upseal.errors import OpenError, Truncated, UnknownRecipient, UnsupportedFormat

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Cipher",
    "Explanation",
    "KeyOpener",
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
