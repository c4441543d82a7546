# SPDX-License-Identifier: Apache-2.0
"""What opening can say, and no more than that."""

from __future__ import annotations

from collections.abc import Sequence


class OpenError(Exception):
    """The data cannot be opened.

    Damaged, forged, truncated, made for another context, or no upseal data at all: one class and
    one sentence, so that whoever sent it learns nothing. Where the fault stands in the public part,
    readable without any key, ``problem`` and ``offset`` (bytes from the start of the data) name it;
    otherwise both are None.
    """

    message = "cannot be opened: damaged, forged, truncated, or sealed for another context"

    def __init__(self, problem: str | None = None, offset: int | None = None) -> None:
        super().__init__(self.message)
        self.problem = problem
        self.offset = offset


class KeyUnavailable(Exception):  # noqa: N818 - a state of affairs
    """A private key that is kept elsewhere (a token, a process) cannot be used at the moment.

    It says nothing of the data, which is worth keeping: try again later. Never an `OpenError`, and
    raised only for what does not depend on the data; see `upseal.KeyOpener`.
    """


class UnsupportedFormat(OpenError):  # noqa: N818 - a public name
    """Not upseal data, or of a version, cipher, suite or kind that this release does not know."""

    message = "cannot be opened: not upseal data, or of a version or kind not known here"


class Truncated(OpenError):  # noqa: N818 - a public name
    """The data ends before its own public lengths say it does."""

    message = "cannot be opened: the data is cut off"


class UnknownRecipient(OpenError):  # noqa: N818 - a public name
    """Sealed, but to none of the keys at hand.

    ``recipients`` holds (suite number, key id of 8 bytes) for each key it was sealed to.
    """

    message = "cannot be opened: sealed to none of the keys at hand"

    def __init__(self, recipients: Sequence[tuple[int, bytes]]) -> None:
        super().__init__()
        self.recipients = tuple(recipients)
