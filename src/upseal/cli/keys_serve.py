# SPDX-License-Identifier: Apache-2.0
"""``upseal keys serve`` and ``status``: the process, as an administrator runs it."""

from __future__ import annotations

import argparse
import ctypes
import grp
import logging
import os
import pwd
import resource
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from upseal.cli.common import IO, OK, USAGE, Failure, doing, say, say_json, shown, warn
from upseal.cli.keyfiles import openers

if TYPE_CHECKING:
    from upseal.integrations.keyprocess.server import Key, KeyServer, Policy

_PR_SET_DUMPABLE = 4
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_LISTEN_FD = 3
_BACKLOG = 128


def serve(args: argparse.Namespace) -> int:
    """Until SIGTERM or SIGINT; SIGHUP loads the keys again."""
    if any(name.startswith("unix:") for name in args.identity):
        raise Failure(USAGE, "a key process keeps keys itself; -i is a file or pkcs11:...")
    policy = _policy(args)
    _keep_memory()
    load = _loader(args.identity, args.passphrase_file)
    from upseal.fleet.notify import Notifier
    from upseal.integrations.keyprocess.server import KeyServer

    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="upseal: %(levelname)s %(message)s".lower()
    )
    with _listening(args) as listener:
        try:
            server = KeyServer(listener, load, policy)
        except ValueError as error:
            raise Failure(USAGE, f"cannot keep these keys: {error}; change -i") from error
        with _signals(server):
            manager = Notifier()
            manager.say(READY=1)
            server.serve()
            manager.say(STOPPING=1)
    return OK


def status(args: argparse.Namespace) -> int:
    """What the process says of itself."""
    from upseal.integrations.keyprocess import KeyProcess

    try:
        process = KeyProcess(f"unix:{os.path.abspath(args.socket)}")
    except ValueError as error:
        raise Failure(USAGE, str(error)) from error
    with process:
        found = process.status()
    if args.json:
        say_json(found)
        return OK
    lines = [f"key {key['key_id']}: {key['type']}" for key in found.pop("keys")]
    lines += [f"{name}: {value}" for name, value in found.items()]
    say("\n".join(lines) + "\n")
    return OK


def _loader(names: Sequence[str], passphrase_file: str | None) -> Callable[[], Sequence[Key]]:
    """A key file that was encrypted is decrypted by the same passphrase when loaded again."""

    def load() -> Sequence[Key]:
        try:
            return openers(list(names), passphrase_file)
        except Failure as failure:
            if started:
                raise ValueError(str(failure)) from failure
            raise
        finally:
            started.append(True)

    started: list[bool] = []
    return load


def _policy(args: argparse.Namespace) -> Policy:
    from upseal.integrations.keyprocess.server import Policy

    uids = {_id(name, lambda n: pwd.getpwnam(n).pw_uid, "user") for name in args.allow_user}
    gids = {_id(name, lambda n: grp.getgrnam(n).gr_gid, "group") for name in args.allow_group}
    own = os.geteuid()
    if args.same_user:
        uids.add(own)
    elif own in uids:
        raise Failure(
            USAGE,
            "this runs as a user that may use the keys, so its other processes could read them "
            "from the files or from memory; run it as a user of its own, or add --same-user",
        )
    if not uids and not gids:
        raise Failure(USAGE, "nobody may use the keys; add --allow-user or --allow-group")
    return Policy(frozenset(uids), frozenset(gids), float(args.rate), args.connections)


def _id(name: str, find: Callable[[str], int], kind: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return find(name)
    except KeyError:
        raise Failure(USAGE, f"there is no {kind} {name!r} here") from None


# -- the socket -------------------------------------------------------------------------


@contextmanager
def _listening(args: argparse.Namespace) -> Iterator[socket.socket]:
    """Systemd's socket, or one of our own, which is removed at the end."""
    given = os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS")
    if given:
        if args.socket or args.mode is not None:
            raise Failure(USAGE, "systemd has made the socket; leave --socket and --mode away")
        if given != "1":
            raise Failure(USAGE, f"systemd gives {given} sockets, and it takes one")
        with doing("use systemd's socket"):
            sock = socket.socket(fileno=_LISTEN_FD)
        with sock:
            if sock.family != socket.AF_UNIX or not sock.getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            ):
                raise Failure(USAGE, "systemd's socket must be a Unix socket: ListenStream=/path")
            yield sock
        return
    if not args.socket:
        raise Failure(USAGE, "name the socket by --socket PATH, or start it by systemd's")
    path = os.path.abspath(args.socket)
    with doing(f"listen at {shown(path)}"):
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with sock:
        before = os.umask(0o177)  # nobody connects before the mode is as wanted
        try:
            with doing(f"listen at {shown(path)}"):
                sock.bind(path)
        finally:
            os.umask(before)
        mine = os.stat(path)
        try:
            with doing(f"listen at {shown(path)}"):
                _open_to(path, args)
                sock.listen(_BACKLOG)
            yield sock
        finally:
            with suppress(OSError):  # another process may have put its own there
                if os.path.samestat(os.stat(path), mine):
                    os.unlink(path)


def _open_to(path: str, args: argparse.Namespace) -> None:
    """The kernel names whoever connects; the mode only keeps others from trying."""
    mode = args.mode
    if mode is None:
        mode = 0o666 if args.allow_user else 0o660 if args.allow_group else 0o600
    if args.allow_group and not args.allow_user:
        if len(args.allow_group) == 1:
            gid = _id(args.allow_group[0], lambda n: grp.getgrnam(n).gr_gid, "group")
            os.chown(path, -1, gid)
        elif args.mode is None:
            mode = 0o666
    os.chmod(path, mode)


def _remove_stale(path: str) -> None:
    """What a process that was killed has left behind; never anything else."""
    try:
        facts = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(facts.st_mode):
        raise Failure(IO, f"{shown(path)} is there, and is no socket; name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise Failure(IO, f"another process listens at {shown(path)}; stop it, or name another path")


# -- the process ------------------------------------------------------------------------


def _keep_memory() -> None:
    """No core dumps, no debugger of the same user, and no swap where that is allowed."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl") and libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        warn(f"other processes of this user may read this one: {os.strerror(ctypes.get_errno())}")
    everything = _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unbounded = soft == resource.RLIM_INFINITY or os.geteuid() == 0
    # With a bound, memory that is asked for later would be refused when it is reached.
    if not unbounded or libc.mlockall(everything):
        warn("memory may be swapped out; give this process LimitMEMLOCK=infinity, or have no swap")


@contextmanager
def _signals(server: KeyServer) -> Iterator[None]:
    """In place of those of every command, which would end it in the middle."""
    wanted = {
        signal.SIGTERM: lambda *_: server.stop(),
        signal.SIGINT: lambda *_: server.stop(),
        signal.SIGHUP: lambda *_: server.reload(),
    }
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    # A signal that comes to another thread, or just before the loop waits, would not wake it.
    woken = signal.set_wakeup_fd(server.wake.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
