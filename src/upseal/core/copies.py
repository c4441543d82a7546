# SPDX-License-Identifier: Apache-2.0
"""What must be there once: a copy would go on at the same place under the same keys."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex


def refuse(self: object, protocol: SupportsIndex, /) -> NoReturn:
    """To be a class's ``__reduce_ex__``, which both ``copy`` and ``pickle`` ask.

    Raises:
        TypeError: always.
    """
    raise TypeError(f"a {type(self).__name__} cannot be copied or pickled: make another one there")
