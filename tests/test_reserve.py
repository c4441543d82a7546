# SPDX-License-Identifier: Apache-2.0
"""Space for whole files is asked for first: what that may change, and what it may not."""

import errno
import io
import os

import pytest

from upseal import PrivateKey, open_file, seal_file
from upseal.core import reserve as room

SIZE = 3 << 20


@pytest.fixture
def key():
    return PrivateKey.generate("x25519")


@pytest.fixture
def always(monkeypatch):
    """Every file is worth it, and every file system does it."""
    monkeypatch.setattr(room, "_WORTH", 0)
    monkeypatch.setattr(room, "_file_system", lambda device: "ext4")


@pytest.mark.parametrize("size", [0, 1, 16384, SIZE, SIZE + 1])
def test_reserved_files_have_the_size_and_content_of_others(tmp_path, key, always, size):
    plain, sealed, opened = (tmp_path / name for name in ("plain", "sealed", "opened"))
    plain.write_bytes(os.urandom(size))
    streamed = io.BytesIO()  # nothing is reserved there
    seal_file(plain, streamed, [key.public_key])
    assert seal_file(plain, sealed, [key.public_key]) == size
    assert sealed.stat().st_size == len(streamed.getvalue())
    assert open_file(sealed, opened, [key]) == size
    assert opened.read_bytes() == plain.read_bytes()


def test_space_is_reserved_before_anything_is_written(tmp_path, key, always, monkeypatch):
    asked = []
    monkeypatch.setattr(
        os, "posix_fallocate", lambda fd, at, size: asked.append((os.fstat(fd).st_size, at, size))
    )
    plain, sealed = tmp_path / "plain", tmp_path / "sealed"
    plain.write_bytes(bytes(SIZE))
    seal_file(plain, sealed, [key.public_key])
    open_file(sealed, tmp_path / "opened", [key])
    (before, at, size), of_open = asked
    assert (before, at, size) == (0, 0, sealed.stat().st_size)
    assert of_open == (0, 0, SIZE)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_without_room_is_told_at_once_and_nothing_is_left(
    tmp_path, key, always, monkeypatch, number
):
    plain, sealed = tmp_path / "plain", tmp_path / "sealed"
    plain.write_bytes(bytes(SIZE))
    seal_file(plain, sealed, [key.public_key])

    def full(fd, at, size):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match=os.strerror(number)):
        seal_file(plain, tmp_path / "other", [key.public_key])
    with pytest.raises(OSError, match=os.strerror(number)):
        open_file(sealed, tmp_path / "opened", [key])
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_system_that_cannot_is_written_to_all_the_same(tmp_path, key, always, monkeypatch):
    def cannot(fd, at, size):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    plain, sealed, opened = (tmp_path / name for name in ("plain", "sealed", "opened"))
    plain.write_bytes(os.urandom(SIZE))
    seal_file(plain, sealed, [key.public_key])
    open_file(sealed, opened, [key])
    assert opened.read_bytes() == plain.read_bytes()


def test_small_files_and_other_file_systems_are_left_alone(tmp_path, monkeypatch):
    def never(fd, at, size):
        raise AssertionError("reserved")

    monkeypatch.setattr(os, "posix_fallocate", never)
    with open(tmp_path / "file", "wb") as file:
        room.reserve(file.fileno(), room._WORTH - 1)
        monkeypatch.setattr(room, "_file_system", lambda device: "tmpfs")
        room.reserve(file.fileno(), room._WORTH)


def test_the_type_of_a_file_system_is_read_from_the_mounts():
    if not os.path.exists("/proc/self/mountinfo"):
        pytest.skip("no /proc")
    assert room._file_system(os.stat("/proc").st_dev) == "proc"
    assert room._file_system(os.makedev(4095, 77)) == ""
