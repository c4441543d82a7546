# SPDX-License-Identifier: Apache-2.0
"""``upseal --version``: the release, and what does the work on this machine."""

from __future__ import annotations

from upseal.cli.common import ENGINE, OK, complain, say, say_json


def engine_facts() -> dict[str, str]:
    """Engine, backend, its version, and why it was chosen; or ``error``."""
    from upseal.engine import choose
    from upseal.engine.types import EngineError

    try:
        engine, reason = choose()
    except (EngineError, ValueError) as error:
        return {"error": str(error)}
    facts = engine.describe()
    return {
        "engine": facts["engine"],
        "backend": facts.get("backend", ""),
        "backend_version": facts.get("version", ""),
        "reason": reason,
    }


def show(*, for_machines: bool) -> int:
    """Prints it; exit code 5 if no engine runs."""
    from upseal import __version__

    facts = engine_facts()
    if for_machines:
        say_json({"version": __version__, **facts})
    elif "error" in facts:
        say(f"upseal {__version__} (no engine)\n")
        complain(f"{facts['error']}; unset UPSEAL_ENGINE and UPSEAL_BACKEND to let upseal choose")
    else:
        say(
            f"upseal {__version__} ({facts['engine']} engine, "
            f"backend {facts['backend']}: {facts['reason']})\n"
        )
    return ENGINE if "error" in facts else OK
