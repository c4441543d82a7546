# SPDX-License-Identifier: Apache-2.0
"""How keys reach the workers of a distributed engine: a job names them, each worker gets them.

What a job is made of (functions, plans, settings) is pickled, sent, logged and kept, so no private
key may be in it. A job has *references* instead::

    file:/etc/upseal/server.pem       a PEM file on every worker
    env:UPSEAL_KEY                    PEM in every worker's environment
    unix:/run/upseal/keys.sock        the key process there (`upseal.integrations.keyprocess`)
    pkcs11:token=vault;object=server  a token there (`upseal.integrations.pkcs11`)
    ourkeys:find                      your own function, called there: a key, or several

In each worker process there is one opener for the same references, however many tasks it runs: it
remembers sessions, and a task that had to unwrap all of them again would do little else.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import threading
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, TypeAlias

from upseal.core.forks import renew_in_children
from upseal.core.keys import PrivateKey, PublicKey
from upseal.core.known import KeyOpener
from upseal.core.opener import Opener
from upseal.core.options import Padding
from upseal.core.sealer import Sealer
from upseal.errors import KeyUnavailable

__all__ = [
    "References",
    "environment_names",
    "opener",
    "public_pems",
    "references",
    "sealer",
]

References: TypeAlias = "str | Sequence[str]"

_KINDS = "file:/path, env:NAME, unix:/path, pkcs11:... or module:function"
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)
_ENVIRONMENT = re.compile(r"env:[A-Za-z_]\w*", re.ASCII)
_WITH_FILE = "?passphrase-file="
_VARIABLE = "UPSEAL_PASSPHRASE"
"""What opens an encrypted key file, unless `_WITH_FILE` and a path end its reference."""
_FILE_MAX = 1 << 20
_BYTES = (bytes, bytearray, memoryview)
_SECRET = (
    "this is a private key, and what a job is given is pickled, sent and logged: put the key where "
    f"each worker finds it, and give a reference ({_KINDS})"
)


def references(keys: References) -> tuple[str, ...]:
    """What a job may carry, checked before there is a job. Looks nothing up.

    Messages never repeat what was given: it may be a key.

    Args:
        keys: a reference, or several.

    Raises:
        TypeError: a private key, PEM, or something else that is not text.
        ValueError: no reference; or one that has a secret in it.
    """
    given = [keys] if isinstance(keys, (str, *_BYTES, KeyOpener)) else keys
    if not isinstance(given, Iterable):
        raise TypeError(f"keys are references ({_KINDS}), not {type(keys).__name__}")
    found = tuple(_checked(reference) for reference in given)
    if not found:
        raise ValueError(f"no key is named; give a reference ({_KINDS})")
    return found


def environment_names(found: Iterable[str]) -> list[str]:
    """The variables that these references name."""
    return [name for kind, _, name in (ref.partition(":") for ref in found) if kind == "env"]


def _checked(reference: object) -> str:
    if isinstance(reference, (*_BYTES, KeyOpener)):
        raise TypeError(_SECRET)
    if not isinstance(reference, str):
        raise TypeError(f"a key reference is text, not {type(reference).__name__}: {_KINDS}")
    if "-----BEGIN" in reference:
        raise TypeError(_SECRET)
    kind, _, rest = reference.partition(":")
    if kind in ("file", "unix"):
        if rest.startswith("/"):
            return reference
        raise ValueError(f"a reference to a {kind} has the whole path: {kind}:/etc/upseal/...")
    if kind == "pkcs11":
        if "pin-value" in rest:
            raise ValueError("pin-value would be logged with the job: use pin-source=file:/path")
        return reference
    if kind == "env" and _ENVIRONMENT.fullmatch(reference):
        return reference
    if kind != "env" and _FUNCTION.fullmatch(reference):
        return reference
    if reference.startswith("/"):
        raise ValueError("a path is no key reference: write file: before it")
    raise ValueError(f"not a key reference: give {_KINDS}")


def public_pems(recipients: PublicKey | bytes | Sequence[PublicKey | bytes]) -> tuple[bytes, ...]:
    """Public keys as a job carries them.

    Args:
        recipients: keys, or their PEM.

    Raises:
        TypeError: a private key, or something else.
        ValueError: PEM of something else.
    """
    given = [recipients] if isinstance(recipients, PublicKey | bytes | KeyOpener) else recipients
    pems = []
    for key in given:
        if isinstance(key, KeyOpener):
            raise TypeError("recipients are public keys: give its public_key")
        if isinstance(key, bytes):
            key = PublicKey.from_pem(key)
        if not isinstance(key, PublicKey):
            raise TypeError(f"a recipient is a PublicKey or its PEM, not {type(key).__name__}")
        pems.append(key.to_pem())
    return tuple(pems)


# -- in the worker ---------------------------------------------------------------------


class _Held:
    """The openers and sealers of this process."""

    def __init__(self) -> None:
        self.after_fork()
        renew_in_children(self)

    def after_fork(self) -> None:
        self.lock = threading.Lock()
        self.openers: dict[tuple[str, ...], tuple[Opener, object]] = {}
        self.sealers: dict[tuple[tuple[bytes, ...], Padding | None], Sealer] = {}


_held = _Held()


def opener(found: tuple[str, ...]) -> Opener:
    """The opener of this process for these references.

    A key file that was replaced since is read again; sessions of keys that stay stay known.

    Raises:
        KeyUnavailable: a key is not there, or not safe to use. Says on which machine, and why.
    """
    with _held.lock:
        stamp = _stamp(found)
        held = _held.openers.get(found)
        if held is not None and held[1] == stamp:
            return held[0]
        keys = [key for reference in found for key in _resolve(reference)]
        if held is None:
            new = Opener(keys)
        else:
            new = held[0]
            for key in keys:
                new.add_key(key)
            for key_id in {*new.key_ids} - {bytes(key.key_id) for key in keys}:
                new.remove_key(key_id)
        _held.openers[found] = new, stamp
        return new


def sealer(pems: tuple[bytes, ...], padding: Padding | None = None) -> Sealer:
    """The sealer of this process to these recipients."""
    with _held.lock:
        held = _held.sealers.get((pems, padding))
        if held is None:
            keys = [PublicKey.from_pem(pem) for pem in pems]
            held = _held.sealers[pems, padding] = Sealer(keys, padding=padding)
        return held


def _stamp(found: tuple[str, ...]) -> tuple[object, ...]:
    """Another one as soon as a key file is another one."""
    stamps: list[object] = []
    for reference in found:
        if reference.startswith("file:"):
            path = reference.removeprefix("file:").partition(_WITH_FILE)[0]
            try:
                status = os.stat(path)
            except OSError as error:
                raise _unavailable(f"the key file {path}", error.strerror) from error
            stamps.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(stamps)


def _resolve(reference: str) -> list[KeyOpener]:
    kind, _, rest = reference.partition(":")
    if kind == "file":
        path, _, passphrase_file = rest.partition(_WITH_FILE)
        return [_pem_key(_read(path), f"the key file {path}", passphrase_file)]
    if kind == "env":
        pem = os.environb.get(rest.encode())
        if pem is None:
            raise _unavailable(f"the environment variable {rest}", "it is not set")
        return [_pem_key(pem, f"the environment variable {rest}", "")]
    if kind in ("unix", "pkcs11"):
        from upseal.integrations.keys import open_keys

        try:
            return [*open_keys(reference)]
        except (OSError, ValueError, TypeError, KeyUnavailable) as error:
            raise _unavailable(f"the key at {reference}", error) from error
    module, _, name = reference.partition(":")
    return _called(reference, getattr(import_module(module), name)())


def _called(reference: str, given: Any) -> list[KeyOpener]:
    keys = [given] if isinstance(given, KeyOpener) else given
    if not isinstance(keys, Iterable):
        raise TypeError(f"{reference} gave {type(given).__name__}; a key, or several, is wanted")
    return [*keys]


def _pem_key(pem: bytes, what: str, passphrase_file: str) -> PrivateKey:
    passphrase: bytes | None = None
    if b"ENCRYPTED" in pem:
        if passphrase_file:
            passphrase = _read(passphrase_file).split(b"\n", 1)[0].removesuffix(b"\r")
        else:
            passphrase = os.environb.get(_VARIABLE.encode())
        if not passphrase:
            raise _unavailable(
                what, f"it is encrypted: add {_WITH_FILE}/path, or set {_VARIABLE} there"
            )
    try:
        return PrivateKey.from_pem(pem, passphrase)
    except (ValueError, TypeError) as error:
        raise _unavailable(what, error) from error


def _read(path: str) -> bytes:
    """A secret file: as with ssh, none that others may read or write."""
    what = f"the key file {path}"
    try:
        # Not to wait at a FIFO.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _unavailable(what, "it is not a file")
            _check_private(what, status)
            data = file.read(_FILE_MAX + 1)
    except OSError as error:
        raise _unavailable(what, error.strerror) from error
    if len(data) > _FILE_MAX:
        raise _unavailable(what, "it is far too long for a key")
    return data


def _check_private(what: str, status: os.stat_result) -> None:
    """A group may read what root, or another user, gave to it: so services and pods get keys."""
    ours = status.st_uid == os.geteuid() != 0
    if status.st_mode & (0o077 if ours else 0o037):
        mode = stat.S_IMODE(status.st_mode)
        raise _unavailable(what, f"others may read or write it (mode {mode:04o}): chmod 600 it")


def _unavailable(what: str, why: object) -> KeyUnavailable:
    return KeyUnavailable(f"{what} cannot be used by the worker on {socket.gethostname()}: {why}")
