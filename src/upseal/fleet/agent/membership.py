# SPDX-License-Identifier: Apache-2.0
"""Who an agent is, once it is enrolled: the files of its folder that say so.

- ``agent.toml``: settings
- ``identity.pem`` signs statements: who reports
- ``hop.pem`` signs requests: a passing relay learns this one alone, and not who reports
- ``spool.pem``: what lies in the spool is sealed to it
- ``trust.json``: the newest verified manifest, and the pinned keys
- ``enrolment.json``, written last: with it, the agent is enrolled
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from upseal.fleet.encoding import from_hex
from upseal.fleet.files import read_private, write_private
from upseal.fleet.identity import SigningKey

ENROLMENT = "enrolment.json"
TRUST = "trust.json"
SPOOL_KEY = "spool.pem"
_SMALL = 1 << 20


class NotEnrolled(Exception):  # noqa: N818 - what is the case
    """The folder is not one of an enrolled agent."""


@dataclass(frozen=True, slots=True)
class Membership:
    """What enrolment gave, besides keys."""

    deployment: bytes
    agent: bytes
    credential: str

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Reads it.

        Raises:
            NotEnrolled: it is not there, or not whole.
        """
        path = directory / ENROLMENT
        try:
            found = json.loads(read_private(path, _SMALL))
            deployment, agent = (from_hex(found[n], 16) for n in ("deployment", "agent"))
            credential = found["credential"]
            if not isinstance(credential, str):
                raise ValueError
        except FileNotFoundError:
            raise NotEnrolled(f"{directory} is not the folder of an enrolled agent") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise NotEnrolled(f"{path} is damaged: enrol again in another folder") from None
        return cls(deployment, agent, credential)

    def save(self, directory: Path) -> None:
        """Writes it, atomically."""
        found = {
            "deployment": self.deployment.hex(),
            "agent": self.agent.hex(),
            "credential": self.credential,
        }
        write_private(directory / ENROLMENT, json.dumps(found, indent=1).encode() + b"\n")


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """Who an agent is: to the server by its identity, to its parent by its hop key."""

    deployment: bytes
    agent: bytes
    credential: str
    identity: SigningKey
    hop: SigningKey

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Reads keys and membership.

        Raises:
            NotEnrolled: they are not there, or do not belong together.
        """
        member = Membership.load(directory)
        try:
            identity, hop = (
                SigningKey.from_pem(read_private(directory / name, _SMALL))
                for name in ("identity.pem", "hop.pem")
            )
        except FileNotFoundError as error:
            raise NotEnrolled(f"{error.filename} is missing") from None
        if identity.public.agent_id != member.agent:
            raise NotEnrolled(f"{directory / 'identity.pem'} is another agent's key")
        return cls(member.deployment, member.agent, member.credential, identity, hop)
