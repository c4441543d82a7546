# SPDX-License-Identifier: Apache-2.0
"""What a forked child must not inherit: locks that another thread held at that moment."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """Something with locks."""

    def after_fork(self) -> None:
        """Makes it usable in the child."""


_alive: WeakSet[Forkable] = WeakSet()


def renew_in_children(thing: Forkable) -> None:
    """Calls ``thing.after_fork()`` in every child forked from now on."""
    _alive.add(thing)


def _after_fork() -> None:
    for thing in list(_alive):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
