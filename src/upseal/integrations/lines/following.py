# SPDX-License-Identifier: Apache-2.0
"""Reads files that grow, through rotation: renamed and made anew, or copied and truncated.

Looks at the files (no inotify: that misses what network file systems do), so it works wherever they
can be read. Which file it was is told by device and inode, and by what stands at its beginning and
just before the place read so far: an inode is used again, and a file truncated and written anew
may soon be as long as it was.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

from upseal.integrations.lines.log_files import (
    EDGE,
    digest,
    edges,
    fits,
    identity,
    identity_at,
    is_prefix,
    is_rotated,
    open_regular,
    open_sibling,
    siblings,
)


class Followed:
    """One file, wherever its name has gone.

    Args:
        path: the name it was given by, and goes by.
        descriptor: open for reading; closed by `close`.
        mark: from `mark`, to go on where that was; None for its beginning.
    """

    def __init__(self, path: str, descriptor: int, mark: dict[str, Any] | None = None) -> None:
        status = os.fstat(descriptor)
        self.path = path
        self.device, self.inode = status.st_dev, status.st_ino
        self.descriptor: int | None = descriptor
        self.file: str = mark["file"] if mark else secrets.token_hex(8)
        self.offset: int = mark["offset"] if mark else 0
        self._head, self._tail = edges(descriptor, self.offset)
        self.held = bytearray()
        self.since = 0.0
        self.rotated = False
        self.quiet = time.monotonic()
        self._looked: tuple[int, int] | None = None

    @property
    def position(self) -> int:
        """Where reading stands: `offset` and what is held."""
        return self.offset + len(self.held)

    def mark(self) -> dict[str, Any]:
        """For the state file: where the next batch begins."""
        return {
            "path": self.path,
            "file": self.file,
            "device": self.device,
            "inode": self.inode,
            "offset": self.offset,
            "edges": digest(self._head, self._tail),
            "done": False,
        }

    def read(self, most: int) -> bool:
        """Reads on until so many bytes are held.

        Returns:
            False: the file was truncated, and nothing more of it can be had here.
        """
        if self.descriptor is None or len(self.held) >= most:
            return True
        status = os.fstat(self.descriptor)
        look = (status.st_size, status.st_mtime_ns)
        if look == self._looked and status.st_size == self.position:
            return True
        data = b""
        if status.st_size > self.position:
            data = os.pread(self.descriptor, most - len(self.held), self.position)
        # Behind the reading: what was read before a truncation is good.
        if not self._same(self.descriptor):
            return False
        self._looked = look
        if data:
            if not self.held:
                self.since = time.monotonic()
            self.held += data
            self.quiet = time.monotonic()
        return True

    def take(self, count: int) -> bytes:
        """The first so many bytes held; `mark` is behind them then."""
        data = bytes(self.held[:count])
        del self.held[:count]
        self._head = (self._head + data)[:EDGE]
        self._tail = (self._tail + data)[-EDGE:]
        self.offset += count
        if self.held:
            self.since = time.monotonic()
        return data

    def move(self, descriptor: int | None) -> None:
        """Goes on in a copy of the file (None: there is none)."""
        if self.descriptor is not None:
            os.close(self.descriptor)
        self.descriptor, self._looked = descriptor, None
        if descriptor is not None:
            status = os.fstat(descriptor)
            self.device, self.inode = status.st_dev, status.st_ino

    def is_copy(self, descriptor: int) -> bool:
        """Whether that file begins as this one, up to where reading stands."""
        return self._same(descriptor)

    def may_be_of(self, descriptor: int) -> bool:
        """Whether that file may be a copy of this one, truncated since or not."""
        if self.position and self._same(descriptor):
            return True
        return self.descriptor is not None and is_prefix(descriptor, self.descriptor)

    def close(self) -> None:
        """Closes the file."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def _same(self, descriptor: int) -> bool:
        head = (self._head + bytes(self.held[:EDGE]))[:EDGE]
        tail = (self._tail + bytes(self.held[-EDGE:]))[-EDGE:]
        if os.fstat(descriptor).st_size < self.position:
            return False
        return edges(descriptor, self.position) == (head, tail)


class Follower:
    """Follows files by name.

    Args:
        paths: names of the files; one that does not exist yet is waited for.
        marks: of an earlier `Follower`, from the state file.
        saved: when they were saved, unix time in seconds; files of ours that were begun later and
            rotated away meanwhile are read as well. None if there are no marks.
        rotate_wait: seconds that a renamed file must be quiet before its last, unfinished line
            counts as finished.
        warn: is told what was lost.
    """

    def __init__(
        self,
        paths: list[str],
        marks: list[dict[str, Any]],
        saved: float | None,
        rotate_wait: float,
        warn: Callable[[str], None],
    ) -> None:
        self._paths = paths
        self._wait = rotate_wait
        self._warn = warn
        self._seen = saved
        self._changed: dict[str, int] = {}
        self.files: list[Followed] = []
        self._done: list[dict[str, Any]] = []
        for path in paths:
            ours = [mark for mark in marks if mark["path"] == path]
            for mark in ours:
                if not mark["done"]:
                    self._resume(path, mark)
            self._done += [mark for mark in ours if mark["done"]]
            if not ours:
                self._ignore_older(path)
        self._others = [mark for mark in marks if mark["path"] not in paths]
        self.look()

    def look(self) -> None:
        """Finds out what was rotated, and what is new."""
        now = time.time()
        for path in self._paths:
            descriptor = open_regular(path)
            if descriptor is None:
                continue
            changed = os.stat(os.path.dirname(path) or ".").st_mtime_ns
            new_names = changed != self._changed.get(path)
            self._changed[path] = changed
            which = identity(descriptor)
            same = [f for f in self._of(path) if _identity_of(f) == which]
            if same:
                same[0].rotated = False
                os.close(descriptor)
                if new_names:
                    self._find_between(path, which)
                continue
            for file in self._of(path):
                if not file.rotated:
                    file.rotated, file.quiet = True, time.monotonic()
            self._find_between(path, which)
            self.files.append(Followed(path, descriptor))
        self._seen = now

    def truncated(self, file: Followed) -> None:
        """Goes on with the copy, if there is one; the name begins anew."""
        descriptor = file.descriptor
        if descriptor is None:
            return
        begun = None if file.rotated else Followed(file.path, os.dup(descriptor))
        copy = next(self._copies(file), None)
        if copy is None:
            self._warn(
                f"{file.path!r} was truncated at or behind byte {file.position}, and there is no "
                "copy of it: what was not read by then is lost"
            )
        file.move(copy)
        file.rotated, file.quiet = True, time.monotonic()
        if begun is not None:
            self._find_between(file.path, _identity_of(begun))
            self.files.append(begun)

    def finished(self, file: Followed) -> bool:
        """Whether nothing will be added to it any more."""
        if not file.rotated:
            return False
        return file.descriptor is None or time.monotonic() - file.quiet >= self._wait

    def drop(self, file: Followed) -> None:
        """A finished file whose bytes are all taken."""
        if file.descriptor is not None:
            self._done.append({**file.mark(), "done": True})
        file.close()
        self.files.remove(file)

    def marks(self) -> list[dict[str, Any]]:
        """For the state file."""
        paths = {path: {e for e, _ in siblings(path)} for path in self._paths}
        self._done = [
            m for m in self._done if (m["device"], m["inode"]) in paths.get(m["path"], ())
        ]
        return [*self._others, *self._done, *(f.mark() for f in self.files)]

    def close(self) -> None:
        """Closes all files."""
        for file in self.files:
            file.close()

    # -- which file is which

    def _of(self, path: str) -> list[Followed]:
        return [file for file in self.files if file.path == path]

    def _resume(self, path: str, mark: dict[str, Any]) -> None:
        """Opens again what a mark is of: by inode, else a copy of it."""
        wanted = (mark["device"], mark["inode"])
        candidates = sorted(siblings(path), key=lambda s: s[0] != wanted)
        for which, name in candidates:
            if which != wanted and not mark["offset"]:
                break  # nothing was read of it, so any file would look like its copy
            descriptor = open_sibling(path, name)
            if descriptor is None:
                continue
            if identity(descriptor) == which and fits(descriptor, mark):
                file = Followed(path, descriptor, mark)
                file.rotated = name != path
                self.files.append(file)
                return
            os.close(descriptor)
        self._warn(
            f"the file {path!r} that was read up to byte {mark['offset']} is gone: if more came "
            "behind that, it is lost"
        )

    def _find_between(self, path: str, current: tuple[int, int]) -> None:
        """Files that had this name since we last looked, and have lost it already."""
        if self._seen is None:
            return
        found = []
        for which, name in siblings(path):
            if which == current or not is_rotated(path, name):
                continue
            descriptor = open_sibling(path, name)
            if descriptor is None:
                continue
            modified = os.fstat(descriptor).st_mtime
            copied = any(f.may_be_of(descriptor) for f in self._of(path))
            if self._known(path, descriptor) or copied or modified < int(self._seen):
                os.close(descriptor)
            else:
                found.append((modified, descriptor))
        for _, descriptor in sorted(found):
            file = Followed(path, descriptor)
            file.rotated = True
            newest = [f for f in self._of(path) if not f.rotated and not f.position]
            self.files.insert(self.files.index(newest[0]) if newest else len(self.files), file)

    def _copies(self, file: Followed) -> Iterator[int]:
        if not file.position:
            return
        for _, name in siblings(file.path):
            descriptor = open_sibling(file.path, name)
            if descriptor is None:
                continue
            if not self._known(file.path, descriptor) and file.is_copy(descriptor):
                yield descriptor
                return
            os.close(descriptor)

    def _known(self, path: str, descriptor: int) -> bool:
        """Whether it is followed, or has been read to its end."""
        which = identity(descriptor)
        if any(_identity_of(file) == which for file in self._of(path)):
            return True
        return any(
            (mark["device"], mark["inode"]) == which and fits(descriptor, mark)
            for mark in self._done
            if mark["path"] == path
        )

    def _ignore_older(self, path: str) -> None:
        """What was rotated before we came is not for us."""
        for which, name in siblings(path):
            descriptor = open_sibling(path, name)
            if descriptor is None:
                continue
            try:
                offset = os.fstat(descriptor).st_size
                if is_rotated(path, name) and which != identity_at(path):
                    seen = digest(*edges(descriptor, offset))
                    self._done.append(
                        {
                            "path": path,
                            "file": "",
                            "device": which[0],
                            "inode": which[1],
                            "offset": offset,
                            "edges": seen,
                            "done": True,
                        }
                    )
            finally:
                os.close(descriptor)


def _identity_of(file: Followed) -> tuple[int, int]:
    return file.device, file.inode
