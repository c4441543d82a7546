# SPDX-License-Identifier: Apache-2.0
"""What a caller may choose about sealing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from upseal.engine.sizes import AES_256_GCM, CHACHA20_POLY1305


class Cipher(IntEnum):
    """The cipher family of a session: one byte of its header."""

    AES_256_GCM = AES_256_GCM
    """XAES-256-GCM for reports, Cobblestone-256 for uploads."""
    CHACHA20_POLY1305 = CHACHA20_POLY1305
    """XChaCha20-Poly1305 for reports, chunked ChaCha20-Poly1305 for uploads."""

    @classmethod
    def parse(cls, value: Cipher | int | str) -> Cipher:
        """Takes the number, or a name such as ``"aes-256-gcm"`` or ``"chacha20-poly1305"``.

        Raises:
            ValueError: there is no such cipher.
        """
        try:
            if isinstance(value, str):
                return cls[value.upper().replace("-", "_")]
            return cls(value)
        except (KeyError, ValueError):
            names = ", ".join(repr(str(c)) for c in cls)
            raise ValueError(f"no cipher {value!r}: choose one of {names}") from None

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


class Padding(Enum):
    """How reports hide their exact length."""

    PADME = "padme"
    """Padmé: at most 12 % longer, and sizes tell O(log log n) bits."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a session ends and the next seal makes a new one.

    Args:
        max_age: seconds since the session was made, sleep of the machine included.
        max_messages: reports (each record of a batch counts) and uploads. A call that does not
            fit into what is left gets a new session, and a larger one than this a session alone.
    """

    max_age: float = 3600
    max_messages: int = 2**20

    def __post_init__(self) -> None:
        if not self.max_age > 0:
            raise ValueError(f"max_age must be above 0 seconds, not {self.max_age}")
        if not 1 <= self.max_messages <= 2**32:
            raise ValueError(f"max_messages must be 1 to 2^32, not {self.max_messages}")
        if not isinstance(self.max_messages, int):
            raise TypeError(f"max_messages must be a whole number, not {self.max_messages}")
