# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL server for tests: its own cluster, a socket in a folder of its own, no network."""

import os
import pwd
import shutil
import subprocess
import tempfile
from itertools import count
from pathlib import Path

import pytest

_OPTIONS = (
    "-c listen_addresses='' -c fsync=off -c shared_buffers=16MB -c max_connections=40"
    " -c max_wal_senders=0 -c wal_level=minimal"
)


class PostgreSql:
    """Started by `start`; `database` makes a new empty one."""

    def __init__(self, folder, programs, user):
        self._folder, self._programs, self._user = folder, programs, user
        self._numbers = count(1)

    @classmethod
    def start(cls):
        pytest.importorskip("psycopg", reason="psycopg is not installed")
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not found and shutil.which("initdb"):
            found = [Path(shutil.which("initdb"))]
        if not found:
            pytest.skip("PostgreSQL is not installed")
        user = None
        if os.geteuid() == 0:  # PostgreSQL does not run as root
            try:
                user = pwd.getpwnam("postgres")
            except KeyError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        # Not tmp_path: a socket's path must be short, and the user must get there.
        folder = Path(tempfile.mkdtemp(prefix="upseal-pg-", dir="/tmp"))
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
        server = cls(folder, found[-1].parent, user)
        try:
            server._run("initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-N",
                        "--no-instructions", "-E", "UTF8", "--locale=C")  # fmt: skip
            server._run("pg_ctl", "-D", folder / "data", "-w", "-t", "60", "-l", folder / "log",
                        "-o", f"-k {folder} {_OPTIONS}", "start")  # fmt: skip
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return server

    def database(self):
        """The URL of a new database."""
        import psycopg

        name = f"test{next(self._numbers)}"
        with psycopg.connect(host=str(self._folder), user="postgres", autocommit=True) as db:
            db.execute(f"CREATE DATABASE {name}")
        return f"postgresql://postgres@/{name}?host={self._folder}"

    def stop(self):
        self._run("pg_ctl", "-D", self._folder / "data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(self._folder)

    def _run(self, program, *arguments):
        command = [self._programs / program, *arguments]
        who = {}
        if self._user is not None:
            who = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        done = subprocess.run(
            command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=120, text=True, errors="replace", **who,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
