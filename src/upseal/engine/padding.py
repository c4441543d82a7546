# SPDX-License-Identifier: Apache-2.0
"""Padmé padding (Nikitin et al., "Reducing Metadata Leakage from Encrypted Files", PETS 2019)."""

from __future__ import annotations


def padded_len(length: int) -> int:
    """Length in bytes of a padded report of ``length`` bytes: Padmé of ``length + 1``."""
    length += 1
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    mask = (1 << (exponent - exponent.bit_length())) - 1
    return (length + mask) & ~mask


def pad(report: bytes) -> bytes:
    """``report | 80 | 00...`` up to its padded length."""
    return (report + b"\x80").ljust(padded_len(len(report)), b"\0")


def unpad(padded: bytes) -> bytes | None:
    """The report, or None if this is not exactly how `pad` writes it.

    Python cannot do this in constant time; the native engine does.
    """
    marked = padded.rstrip(b"\0")
    if not marked.endswith(b"\x80") or padded_len(len(marked) - 1) != len(padded):
        return None
    return marked[:-1]
