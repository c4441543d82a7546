# SPDX-License-Identifier: Apache-2.0
"""Why an act was not done. Every refusal says what, why, and what to do next; nothing has changed.

A caller's plain mistakes (a level that does not exist, say) are ValueError and TypeError as
everywhere; these here are about the deployment as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """The act was refused and nothing was changed.

    Attributes:
        what: the act, in a few words.
        why: what stands in its way.
        next: a command, or a sentence, that leads on.
    """

    name = "refused"

    def __init__(self, what: str, why: str, next: str) -> None:
        super().__init__(f"cannot {what}: {why}; {next}")
        self.what = what
        self.why = why
        self.next = next

    def facts(self) -> dict[str, Any]:
        """For machines."""
        return {"refused": self.name, "what": self.what, "why": self.why, "next": self.next}


class WouldOrphan(Refused):
    """Clients could not report any more. ``force`` does it all the same."""

    name = "would-orphan"

    def __init__(self, what: str, orphans: Sequence[Any]) -> None:
        few = ", ".join(orphan.name for orphan in orphans[:5])
        more = f" and {len(orphans) - 5} more" if len(orphans) > 5 else ""
        count = f"{len(orphans)} client" + ("s" if len(orphans) > 1 else "")
        super().__init__(
            what,
            f"{count} would withhold everything: {few}{more}",
            "see all of them with --dry-run --json, or do it all the same with --force",
        )
        self.orphans = tuple(orphans)

    def facts(self) -> dict[str, Any]:
        """For machines, with each of them."""
        return {**super().facts(), "orphans": [orphan.facts() for orphan in self.orphans]}


class NotReady(Refused):
    """Some holder has not proven that it has the new key. ``force`` enables without it."""

    name = "not-ready"

    def __init__(self, what: str, waiting: Sequence[Any]) -> None:
        names = "; ".join(f"{holder.name}: {holder.why}" for holder in waiting)
        super().__init__(
            what,
            f"not ready: {names}",
            "ask again with `upseal admin ready`, or go on without them with --force",
        )
        self.waiting = tuple(waiting)

    def facts(self) -> dict[str, Any]:
        """For machines, with each of them."""
        return {**super().facts(), "waiting": [holder.facts() for holder in self.waiting]}


class StillUsed(Refused):
    """Reports still arrive under a key that should go. ``force`` retires it all the same."""

    name = "still-used"

    def __init__(self, what: str, why: str, clients: Sequence[str]) -> None:
        super().__init__(what, why, "wait (`upseal admin status` shows the drain), or use --force")
        self.clients = tuple(clients)

    def facts(self) -> dict[str, Any]:
        """For machines, with the clients."""
        return {**super().facts(), "clients": list(self.clients)}


class Overtaken(Refused):
    """Somebody else changed the deployment in the same moment."""

    name = "overtaken"

    def __init__(self, what: str) -> None:
        super().__init__(
            what,
            "somebody else changed the deployment in the same moment",
            "look at it with `upseal admin status`, and try again",
        )


class Unusable(Refused):
    """The deployment's folder, a file in it, or its database cannot be used."""

    name = "unusable"
