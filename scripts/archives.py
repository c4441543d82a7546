# SPDX-License-Identifier: Apache-2.0
"""Sdists and wheels with nothing in them of when, where and by whom they were made.

``archives.py sdist IN OUT SECONDS`` writes an sdist again, its time that many seconds after 1970.
``archives.py compare A B`` says where two archives differ, and fails if they do.
"""

import gzip
import io
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SHOWN = 20


class Member(NamedTuple):
    """A file of an archive: what of it can differ."""

    content: bytes
    mode: int
    mtime: object
    owner: object
    packing: object


def write_sdist(source: Path, target: Path, seconds: int) -> None:
    """Writes the sdist again: files sorted, owned by root, of one time and of two modes."""
    plain = io.BytesIO()
    with (
        tarfile.open(source) as old,
        tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda one: one.name):
            if not (member.isfile() or member.isdir()):
                raise ValueError(f"{source}: {member.name} is neither a file nor a folder")
            fresh = tarfile.TarInfo(member.name)
            fresh.type, fresh.size, fresh.mtime = member.type, member.size, seconds
            fresh.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            new.addfile(fresh, old.extractfile(member) if member.isfile() else None)
    with target.open("wb") as out, gzip.GzipFile("", "wb", 9, out, mtime=seconds) as packed:
        packed.write(plain.getvalue())


def write_wheel(members: dict[str, tuple[bytes, bool]], target: Path, seconds: int) -> None:
    """Writes a wheel: for each name its content and whether it is a program.

    The files are sorted, those of the .dist-info folder last, as the format recommends.
    """
    when = time.gmtime(max(seconds, 315_532_800))[:6]  # a zip knows no time before 1980
    order = sorted(members, key=lambda name: (".dist-info/" in name, name))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name in order:
            content, program = members[name]
            info = zipfile.ZipInfo(name, when)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3  # Unix: so that the mode counts
            info.external_attr = (0o100755 if program else 0o100644) << 16
            wheel.writestr(info, content)


def read_members(path: Path) -> list[tuple[str, Member]]:
    """All files of a wheel or an sdist, in their order."""
    found = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            for info in wheel.infolist():
                packing = info.compress_type, info.compress_size, info.create_system, info.extra
                mode = info.external_attr >> 16
                member = Member(wheel.read(info), mode, info.date_time, None, packing)
                found.append((info.filename, member))
    else:
        with tarfile.open(path) as sdist:
            for entry in sdist.getmembers():
                content = sdist.extractfile(entry) if entry.isfile() else None
                owner = entry.uid, entry.gid, entry.uname, entry.gname
                kind = entry.type, tuple(sorted(entry.pax_headers.items()))
                data = content.read() if content else b""
                found.append((entry.name, Member(data, entry.mode, entry.mtime, owner, kind)))
    return found


def first_difference(one: bytes, other: bytes) -> str:
    """Where two contents part, and what stands there."""
    length = min(len(one), len(other))
    at = next((i for i in range(length) if one[i] != other[i]), length)
    part = slice(max(at - 8, 0), at + 24)
    return (
        f"{len(one)} and {len(other)} bytes, different from byte {at} on:"
        f" {one[part]!r} and {other[part]!r}"
    )


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two archives, a line each; empty if they are the same bytes."""
    if one.read_bytes() == other.read_bytes():
        return []
    left, right = read_members(one), read_members(other)
    found = [*_only(left, right, one), *_only(right, left, other)]
    if not found and [name for name, _ in left] != [name for name, _ in right]:
        found.append("the files stand in another order")
    others = dict(right)
    for name, member in left:
        twin = others.get(name)
        if twin is None:
            continue
        if member.content != twin.content:
            found.append(f"{name}: {first_difference(member.content, twin.content)}")
        for field in "mode", "mtime", "owner":
            ours, theirs = getattr(member, field), getattr(twin, field)
            if ours != theirs:
                shown = (oct(ours), oct(theirs)) if field == "mode" else (ours, theirs)
                found.append(f"{name}: {field} {shown[0]} and {shown[1]}")
        if member.content == twin.content and member.packing != twin.packing:
            found.append(f"{name}: packed {member.packing} and {twin.packing}")
    return found or [f"the container: {first_difference(one.read_bytes(), other.read_bytes())}"]


def _only(
    left: Iterable[tuple[str, Member]], right: Iterable[tuple[str, Member]], path: Path
) -> list[str]:
    there = {name for name, _ in right}
    return [f"{name}: only in {path}" for name, _ in left if name not in there]


def main(arguments: list[str]) -> None:
    """What is in the module's docstring."""
    match arguments:
        case ["sdist", source, target, seconds]:
            write_sdist(Path(source), Path(target), int(seconds))
        case ["compare", one, other]:
            found = differences(Path(one), Path(other))
            for line in found[:SHOWN]:
                print(f"  {line}")
            if found[SHOWN:]:
                print(f"  and {len(found) - SHOWN} more")
            sys.exit(bool(found))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
