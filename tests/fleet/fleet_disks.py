# SPDX-License-Identifier: Apache-2.0
"""Disks that are full: a small tmpfs in place of a folder, for who may mount one."""

import shutil
import subprocess
from contextlib import suppress

import pytest


class SmallDisk:
    """A folder on a tmpfs of its own, with what was in it, and with room for so many bytes more.

    Its process is stopped for it; whoever asks starts it again. Skips where nobody may mount.
    """

    def __init__(self, world, node, room, folder=None):
        folder = folder or node.folder
        self.folder, self.filler = folder, folder / "filler"
        kept = folder.with_name(f"{folder.name}.kept")
        node.stop()
        folder.mkdir(exist_ok=True)
        shutil.copytree(folder, kept)
        there = sum(path.stat().st_size + 4096 for path in kept.rglob("*"))
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={there + room},mode=0700", "tmpfs", folder],
            capture_output=True,
        )
        if mounted.returncode:
            shutil.rmtree(kept)
            node.start()
            pytest.skip("needs a root who may mount a tmpfs")
        world.stack.callback(
            lambda: subprocess.run(["umount", "-l", folder], check=True, capture_output=True)
        )
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        shutil.rmtree(kept)

    def fill(self):
        with open(self.filler, "ab", buffering=0) as file:
            for size in (1 << 16, 4096, 1):  # to the last byte
                with suppress(OSError):
                    while True:
                        file.write(b"x" * size)

    def empty(self):
        """There is room again, for all that may come."""
        self.filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=1g", self.folder], check=True)
