# SPDX-License-Identifier: Apache-2.0
"""Who may look at the server's page. A password is made here, and shown once."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from upseal.fleet.admin.acting import Outcome, Plan, View, perform
from upseal.fleet.admin.refusals import Refused
from upseal.fleet.server.store import logins

if TYPE_CHECKING:
    from upseal.fleet.admin.opened import Opened

_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that looks like another
_GROUPS, _EACH = 5, 5
"""123 bits: nobody guesses them, whatever becomes of the database."""


def add(deployment: Opened, name: str, *, dry_run: bool) -> Outcome:
    """As `Deployment.add_login`."""
    logins.check_name(name)
    password = "-".join(
        "".join(secrets.choice(_LETTERS) for _ in range(_EACH)) for _ in range(_GROUPS)
    )
    secret = logins.nobody() if dry_run else logins.Secret.of(password)
    what = f"add the login {name!r}"

    def plan(view: View) -> Plan:
        if logins.find(view.db, name) is not None:
            raise Refused(
                what, "there is one of that name",
                f"for a new password remove it first: `upseal admin login remove {name}`",
            )  # fmt: skip
        return Plan(
            "login-add", what,
            write=lambda _: logins.add(view.db, name, secret, view.now),
            messages=(f"{name} may look at the server's page, /admin",),
            details={"login": name},
            result={"login": name, **({} if dry_run else {"password": password})},
        )  # fmt: skip

    return perform(deployment, plan, dry_run=dry_run, force=False)


def remove(deployment: Opened, name: str, *, dry_run: bool) -> Outcome:
    """As `Deployment.remove_login`."""
    what = f"remove the login {name!r}"

    def plan(view: View) -> Plan:
        if logins.find(view.db, name) is None:
            raise Refused(what, "there is none of that name", "see `upseal admin login list`")

        def write(_: object) -> None:
            logins.remove(view.db, name)

        return Plan(
            "login-remove", what, write=write,
            messages=(f"{name} may not look at the server's page any more",),
            details={"login": name},
            result={"login": name},
        )  # fmt: skip

    return perform(deployment, plan, dry_run=dry_run, force=False)


def listing(deployment: Opened) -> list[dict[str, Any]]:
    """As `Deployment.logins`."""
    with deployment.view() as view:
        return [
            {"name": login.name, "created": login.created, "last_login": login.last_login}
            for login in logins.listing(view.db)
        ]
