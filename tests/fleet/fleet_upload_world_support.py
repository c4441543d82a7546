# SPDX-License-Identifier: Apache-2.0
"""Whole files in a world of real processes (`fleet_world`): made, given to agents, looked for.

Each block of a file begins with the file's own marker and the block's number, and is not like any
other: what is lost, doubled or in the wrong place is seen, and what is in clear is found.
"""

import hashlib
import os
import random
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fleet_nodes import eventually, forms
from fleet_world import make_world

BLOCK = 4096
QUICK = "retry = 0.05\nretry_most = 0.5"
"""Of an agent's `[send]`: nothing here is worth waiting for."""


def uploads(role, **settings):
    """Lines for the settings of a role."""
    if role == "server":
        return "".join(f"{name} = {value}\n" for name, value in settings.items())
    lines = "".join(f"{name} = {value}\n" for name, value in {"min_free": 0, **settings}.items())
    return f"\n[uploads]\n{lines}"


def files_extra(*, agent=None, relay=None, server=None):
    """`make_world`'s ``extra`` for worlds that files go through."""
    return {
        "agent": uploads("agent", **{"piece": 262_144, **(agent or {})}), "send": QUICK,
        "relay": uploads("relay", **{"piece": 262_144, **(relay or {})}),
        "server": uploads("server", **{"uploads_min_free": 1, **(server or {})}),
    }  # fmt: skip


@contextmanager
def files_world(folder, *, direct=True, **how):
    """A passing relay below a decrypting one; ``direct`` is an agent below the decrypting one."""
    with make_world(folder / "world", **how) as world:
        if direct:
            name = "direct"
            # To the proxy in front of it, as all the others.
            url = world.mode.url(world.proxies["decrypting"].url)
            world.add_agent(name, "required", url).node.start()
        world.sources = folder / "sources"
        world.sources.mkdir()
        world.given = []
        # The same for all files: what is searched for is all that ever passed, in many forms.
        world.secret_file = world.marker(secret=True)
        world.public_file = world.marker(secret=False)
        yield world


@dataclass
class Given:
    """A file that an agent was given."""

    member: object
    upload: str
    name: bytes
    size: int
    sha256: bytes


def content(marker, size, seed):
    """A file's bytes, block by block; ``seed`` as `random.Random` takes it."""
    pool = random.Random(seed).randbytes(BLOCK * 64)
    for number, at in enumerate(range(0, size, BLOCK)):
        head = b"%s %d %d " % (marker, seed, number)
        begin = number * 509 % (len(pool) - BLOCK)
        yield (head + pool[begin : begin + BLOCK - len(head)])[: size - at]


def make_file(world, member, size, chance, name=None):
    """A file for this agent that is not in the world's folder; its path."""
    marker = marker_of(world, member)
    name = name or f"file-{len(list(world.sources.iterdir()))}"
    path = world.sources / name
    with open(path, "wb") as file:
        for block in content(marker, size, chance.randrange(1 << 40)):
            file.write(block)
    return path


def marker_of(world, member):
    """What stands in each block of its files."""
    return world.public_file if member.level == "none" else world.secret_file


def sha256_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def taken(world, member, path, upload, digest=None):
    """A file that the agent has said it has, whoever gave it; it is to be stored once."""
    path = Path(path)
    size = path.stat().st_size
    given = Given(member, upload, os.fsencode(path.name), size, digest or sha256_of(path))
    world.given.append(given)
    return given


def give(world, member, path):
    """Gives it to the agent."""
    digest = sha256_of(path)
    return taken(world, member, path, member.agent.upload(path), digest)


def make_and_give(world, member, size, chance):
    """A new file."""
    return give(world, member, make_file(world, member, size, chance))


def counters(member):
    return member.agent.uploads.counters()


def rows(world, member):
    """What the server has of an agent: {upload: (name, size, digest, form, path)}."""
    found = world.query(
        "SELECT upload, name, size, sha256, form, path FROM uploads WHERE agent = ?", (member.id,)
    )
    return {bytes(row[0]).hex(): (bytes(row[1]), row[2], bytes(row[3]), *row[4:]) for row in found}


def stored_file(world, row):
    return world.deployment / "uploads" / "stored" / row[-1]


def nothing_waits(world):
    """Names of files that lie anywhere on the way; none is as it should be."""
    found = []
    for node in world.nodes.values():
        folder = node.folder / "uploads"
        folders = {
            "agent": [folder], "relay": [folder, node.folder / "uploads-sealed"],
            "server": [folder / "incoming", folder / "stored" / ".parts"],
        }[node.role]  # fmt: skip
        for each in folders:
            if each.is_dir():
                found += [str(path) for path in each.iterdir() if path.name != "lock"]
    return found


def check_files(world, *, unsure=(), wire=True, seconds=120):
    """Each file is stored once, as it was; nothing is left on the way, and nothing was shown.

    ``unsure``: digests of files that were perhaps taken.
    """
    for member in world.members.values():
        eventually(
            lambda m=member: not counters(m).waiting,
            f"the receipts for files of {member.name}",
            seconds,
        )
    world.check(wire=False)
    for member in world.members.values():
        found, mine = rows(world, member), [g for g in world.given if g.member is member]
        for given in mine:
            assert given.upload in found, (member.name, given)
            name, size, digest, *_ = found.pop(given.upload)
            assert (name, size, digest) == (given.name, given.size, given.sha256)
        rest = [digest for _, _, digest, *_ in found.values()]
        assert set(rest) <= set(unsure), (member.name, found)
        assert len(rest) == len(set(rest)), "one of them came twice"
        said = counters(member)
        assert (said.failed, said.cancelled, said.waiting) == (0, 0, 0)
        assert said.made == said.stored == len(mine) + len(rest)
        for upload, row in rows(world, member).items():
            assert sha256_of(stored_file(world, row)) == row[2], upload
    eventually(lambda: not nothing_waits(world), "empty folders on the way")
    stored = world.deployment / "uploads" / "stored"
    there = [path for path in stored.glob("*/*") if path.parent.name != ".parts"]
    assert len(there) == sum(len(rows(world, member)) for member in world.members.values())
    if wire:
        search_files(world)


def offset_at(node, given):
    """Bytes that a relay or the server has of one that is coming."""
    folder = node.folder / "uploads" / ("incoming" if node.role == "server" else "")
    for path in folder.glob("*.json"):
        with suppress(FileNotFoundError):
            if given.upload.encode() in path.read_bytes():
                return path.with_suffix(".part").stat().st_size
    return 0


def search_files(world):
    """Of sealed files nothing is anywhere but in the store; nor are clear ones beyond the relay
    that seals them, or on the disk of their agent."""
    secret, public = set(forms(world.secret_file)), set(forms(world.public_file))
    store, seen = str(world.deployment / "uploads" / "stored"), False
    for where, data in world.places():
        if where.startswith(store):
            continue
        beyond = where == "the wire to server" or where.startswith(str(world.deployment))
        agents = any(where.startswith(str(m.folder)) for m in world.members.values())
        for needle in secret | (public if beyond or agents else set()):
            assert needle not in data, f"{needle} is in {where}"
        seen = seen or world.public_file in data
    # The same search finds them where they belong: on the wire, and in the store.
    for given in world.given:
        stored = rows(world, given.member).get(given.upload)
        if stored is not None and given.name.startswith(b"file-"):
            marker = marker_of(world, given.member)
            assert given.size < BLOCK or holds(stored_file(world, stored), marker)
    assert seen or not any(g.member.level == "none" for g in world.given)


def holds(path, marker):
    """Whether a file has these bytes in it."""
    return subprocess.run(["grep", "-qsaF", "--", marker, path]).returncode == 0
