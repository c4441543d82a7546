# SPDX-License-Identifier: Apache-2.0
"""``upseal agent``: joins a deployment, takes reports, sends them."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upseal.cli import health
from upseal.cli.common import (
    BAD,
    IO,
    OK,
    USAGE,
    Failure,
    complain,
    doing,
    input_name,
    read_all,
    reading,
    say_json,
)
from upseal.cli.configured import (
    add_configuration,
    asked_only,
    blaming,
    member_layers,
    service_of_process,
    show_or_check,
    tried,
)
from upseal.cli.members import (
    FORGET,
    LOG_LEVELS,
    Member,
    acts_of,
    add_json,
    enrolling,
    forget_parent,
    tls_of,
    token_of,
)

if TYPE_CHECKING:
    from upseal.fleet.agent.agent import Agent
    from upseal.fleet.agent.settings import Settings
    from upseal.fleet.configuration import Layers
    from upseal.fleet.notify import Service
    from upseal.fleet.policy import Level

# As upseal.fleet.agent.settings has them, which takes longer to import.
MEMBER = Member("agent", "client", "/var/lib/upseal", "agent.toml")
LEVELS = ("required", "optional", "none")
_ONCE_SECONDS = 300.0
_NOTE = """\
examples:
  upseal agent enrol --parent https://relay.example:8443 --token-file token -d /var/lib/upseal
  upseal agent run -d /var/lib/upseal
  uptime | upseal agent report
  upseal agent upload /var/log/app.log.1 --wait
  upseal agent status
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    act = acts_of(parser, _NOTE)

    enrol = act("enrol", "join a deployment by a token")
    MEMBER.add_joining(enrol, "the relay, or the server")
    _add_level(enrol, "the level in its settings (default: optional)")

    run = act("run", "gather and send, until told to stop")
    MEMBER.add_settings(run)
    _add_level(run, "for this process, in place of settings and manifest")
    run.add_argument("--once", action="store_true", help="gather once, send what there is, and end")
    run.add_argument("--log-level", choices=LOG_LEVELS)
    add_configuration(run)

    report = act("report", "put reports into the spool; they are on the disk when it ends")
    report.add_argument("file", metavar="FILE", nargs="?", help="default: standard input")
    report.add_argument("--lines", action="store_true", help="each line is a report")
    MEMBER.add_settings(report)
    add_json(report)

    from upseal.cli import agent_uploads

    agent_uploads.arguments(act)

    status = act("status", "say what is wanted, what is done, and why")
    MEMBER.add_settings(status)
    add_json(status)

    MEMBER.add_settings(act(*FORGET))

    healthy = act(*health.ABOUT)
    MEMBER.add_settings(healthy)
    health.add_ready(healthy)

    gather = act("gather", "show what would be reported about this host")
    gather.add_argument("--what", metavar="NAME", action="append", help="this source alone")
    MEMBER.add_settings(gather)
    gather.add_argument("--json", action="store_true", help="the reports themselves, one a line")


def _add_level(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--level", choices=LEVELS, help=about)


def run(args: argparse.Namespace) -> int:
    """Does one of them."""
    try:
        from upseal.fleet import agent
    except ImportError as error:
        raise _missing(error) from error
    acts = {
        "enrol": _enrol, "run": _run, "report": _report, "forget-parent": _forget,
        "health": _health,
    }  # fmt: skip
    try:
        if args.act in acts:
            return acts[args.act](args)
        if args.act in ("upload", "uploads", "cancel"):
            from upseal.cli import agent_uploads

            return agent_uploads.run(args)
        from upseal.cli.agent_status import show_gathered, show_status

        return show_status(args) if args.act == "status" else show_gathered(args)
    except ImportError as error:
        raise _missing(error) from error
    except agent.SettingsError as error:
        raise Failure(USAGE, f"the settings cannot be used: {error}") from error
    except agent.NotEnrolled as error:
        raise Failure(USAGE, f"{error}; `upseal agent enrol` makes one") from error
    except agent.SpoolDamaged as error:
        raise Failure(
            BAD, f"{error}; move it away and look at it: it is never written over"
        ) from error
    except agent.SpoolFull as error:
        hint = "make room, or raise max_bytes of [spool] or [uploads]"
        raise Failure(IO, f"not taken: {error}; {hint}") from error
    except agent.SpoolError as error:
        raise Failure(IO, f"{error}; try again") from error
    except agent.AlreadySending as error:
        raise Failure(IO, f"{error}; stop it first") from error


def _missing(error: ImportError) -> Failure:
    return Failure(USAGE, f"{error.name} is not installed; pip install upseal[fleet]")


def settings_of(args: argparse.Namespace) -> Settings:
    """Those of ``-c`` or ``-d``, of the environment, and of ``run``'s options."""
    return _configured(args)[0]


def _configured(args: argparse.Namespace) -> tuple[Settings, Layers, Path | None]:
    from upseal.fleet.agent.settings import Settings, schema

    path, layers = member_layers(MEMBER, schema(), args, {"log_level": "log_level"})
    with blaming(layers):
        return replace(Settings.parse(layers.table), source=path), layers, path


def _looked_at(args: argparse.Namespace) -> int:
    from upseal.fleet.agent.parent import client_for

    settings, layers, path = _configured(args)
    http = settings.http
    files = (http.ca, http.certificate, http.key)
    tried("http", files, lambda: client_for(settings.parent, http).close())
    show_or_check(args, layers, path)
    return OK


def open_agent(args: argparse.Namespace) -> Agent:
    """The agent of that folder."""
    from upseal.fleet.agent.agent import Agent

    return Agent(settings_of(args), _level(getattr(args, "level", None)))


def _level(name: str | None) -> Level | None:
    from upseal.fleet.policy import Level

    return None if name is None else Level.parse(name)


def _forget(args: argparse.Namespace) -> int:
    return forget_parent(settings_of(args).directory)


def _health(args: argparse.Namespace) -> int:
    with open_agent(args) as agent:
        return health.sending(agent, ready=args.ready)


# -- enrol ------------------------------------------------------------------------------


def _enrol(args: argparse.Namespace) -> int:
    from upseal.fleet.agent.enrolment import enrol
    from upseal.fleet.agent.settings import Http, Settings
    from upseal.fleet.policy import Level
    from upseal.fleet.settings import host_name

    level = _level(args.level)
    directory = MEMBER.folder(args)
    settings = Settings(
        parent=args.parent,
        directory=directory,
        level=level if level is not None else Level.OPTIONAL,
        name=args.name or host_name(),
        fips=args.fips,
        http=Http(**tls_of(args)),
    )
    token = token_of(args)
    with enrolling(directory):
        member = enrol(settings, token)
    if args.json:
        say_json(
            {
                "agent": member.agent.hex(),
                "deployment": member.deployment.hex(),
                "name": settings.name,
                "level": settings.level.value,
                "directory": str(directory),
            }
        )
    return OK


# -- run --------------------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    from upseal.fleet.http import logs

    if asked_only(args):
        return _looked_at(args)
    logs.setup(level=settings_of(args).log_level)
    from upseal.fleet.agent.signs import told

    stop = threading.Event()
    service = service_of_process()
    with open_agent(args) as agent, _signals(agent, args, stop, service):
        if args.once:
            return _once(agent, stop)
        with _watched(agent), told(agent, service):
            agent.run(stop)
    return OK


@contextmanager
def _watched(agent: Agent) -> Iterator[None]:
    """Health and metrics, as far as the settings want any: what that imports is half of all."""
    with ExitStack() as stack:
        said = agent.settings.metrics
        if said.textfile is not None:
            from upseal.fleet.agent.metrics import written

            stack.enter_context(written(agent, Path(said.textfile), said.interval))
        if agent.settings.listen is not None:
            from upseal.fleet.agent.watching import watched

            stack.enter_context(doing("serve health and metrics"))
            stack.enter_context(watched(agent))
        yield


def _once(agent: Agent, stop: threading.Event) -> int:
    from upseal.fleet.agent.agent import AlreadySending
    from upseal.fleet.agent.gathering import Gatherer

    if agent.one.holder() is not None:  # that one gathers, too: the host would be reported twice
        raise AlreadySending("another process sends from this folder")
    if agent.settings.gather.interval > 0:
        Gatherer(agent.settings.gather, agent.settings.name, agent.report_many).look(stop)
    left = agent.send_all(_ONCE_SECONDS, stop)
    files = agent.uploads.counters().waiting
    if not left and not files:
        return OK
    found = agent.status()
    why = found["why"] if found["actual"] == "withheld" else "the parent has not receipted them"
    some = f"{left} reports" + (f" and {files} files" if files else "")
    complain(f"{some} remain in the spool: {why}")
    return IO


@contextmanager
def _signals(
    agent: Agent, args: argparse.Namespace, stop: threading.Event, service: Service
) -> Iterator[None]:
    """SIGTERM and SIGINT end it in good order; SIGHUP has the settings read again."""
    told = False

    def end(number: int, frame: object) -> None:
        # Once: a second signal may come while the first is inside `set`, whose lock is not one
        # that its own thread can take again.
        nonlocal told
        if not told:
            told = True
            stop.set()

    def again(number: int, frame: object) -> None:
        # In a thread of its own: a handler must not wait for locks that it has interrupted.
        threading.Thread(target=_reload, args=(agent, args, service), daemon=True).start()

    handlers: dict[int, Any] = {signal.SIGTERM: end, signal.SIGINT: end, signal.SIGHUP: again}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _reload(agent: Agent, args: argparse.Namespace, service: Service) -> None:
    from upseal.fleet.agent.signs import status_of

    service.reloading()
    try:
        if not agent.reload(settings_of(args)):
            complain("warning: only level and batch are read again; restart for the rest")
    except (Failure, ValueError, OSError) as error:
        complain(f"warning: the settings stay as they were: {error}")
    finally:
        service.reloaded(status_of(agent))


# -- report -----------------------------------------------------------------------------


def _report(args: argparse.Namespace) -> int:
    from upseal.fleet.agent.settings import REPORT_MAX

    name = input_name(args)
    with open_agent(args) as agent, reading(name) as file:
        numbers: list[int] = []
        try:
            if args.lines:
                for lines in _lines(file, REPORT_MAX):
                    numbers.extend(agent.report_many(lines))
            else:
                data = read_all(file, REPORT_MAX)
                numbers.append(agent.report(data))
        except ValueError as error:
            raise Failure(BAD, f"{error}; {len(numbers)} reports before it were taken") from error
        finally:
            if args.json:
                first, last = (numbers[0], numbers[-1]) if numbers else (None, None)
                say_json({"made": len(numbers), "first": first, "last": last})
    return OK


def _lines(file: Any, most: int) -> Iterator[list[bytes]]:
    """Lines as they come, so that those of a slow pipe are safe at once; empty ones are none."""
    rest = b""
    while piece := file.read(1 << 16):
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > most:
            raise ValueError("a report is longer than 1 MiB")
        if lines := [line for line in whole if line]:
            yield lines
    if rest:
        yield [rest]
