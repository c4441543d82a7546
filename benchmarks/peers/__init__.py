# SPDX-License-Identifier: Apache-2.0
"""What upseal is compared with: one adapter a file, each left out, visibly, where it is missing."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from peers.base import MissingError, Peer

MODULES = (
    "cp_program",
    "aesgcm",
    "hpke",
    "cobblestone",
    "sealedbox",
    "age_python",
    "age_program",
    "google_tink",
    "aws_esdk",
    "jose",
    "openssl_program",
)
"""Modules of this package. Each has ``PEERS``, the `Peer` classes in it."""


@cache
def load() -> tuple[list[Peer], dict[str, str]]:
    """The peers that work here, and why the others do not."""
    found: list[Peer] = []
    missing: dict[str, str] = {}
    for module in MODULES:
        try:
            classes = import_module(f"peers.{module}").PEERS
        except ImportError as error:
            missing[module] = f"not installed: {error}"
            continue
        for peer in classes:
            try:
                found.append(peer())
            except (MissingError, ImportError) as error:
                missing[peer.name] = str(error)
    return found, missing


def one(where: str) -> Peer:
    """The peer of ``module:Class``, without importing any other."""
    module, _, name = where.partition(":")
    peer: Peer = getattr(import_module(f"peers.{module}"), name)()
    return peer


def where(peer: Peer) -> str:
    """What `one` makes it from again, in another process."""
    return f"{type(peer).__module__.removeprefix('peers.')}:{type(peer).__name__}"


__all__ = ["MODULES", "MissingError", "Peer", "load", "one", "where"]
