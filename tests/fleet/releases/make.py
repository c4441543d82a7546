# SPDX-License-Identifier: Apache-2.0
"""Makes the folders that a release leaves behind with its queues full: `make.py SOURCE NAME`.

SOURCE is the release's tree (`git archive TAG | tar x`), NAME the folder beside this file. The
release is used by its commands alone, and by the portable engine, which needs nothing built. What
comes out is text, and the keys in it are of no deployment but this one.

    server    has stored the first reports, and was stopped
    relay     decrypts; holds the second ones, sealed again or to be so, and was stopped
    seals, clear
              agents with the third ones in their spools, and the second, not receipted
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

HERE = Path(__file__).parent
AGENTS = {"seals": "required", "clear": "none"}
EACH = 5
_PASSING = (
    "lock", "-wal", "-shm", "-turn", "-door", ".turn", "address", "status.json", ".log", ".token",
)  # fmt: skip
_QUICK = {
    "agent": "\n[batch]\nreports = 3\nseconds = 0.1\n[send]\nrefresh = 0.3\nbeacon = 1\n"
    "[spool]\nmin_free = 0\n[gather]\ninterval = 0\n",
    "relay": "\n[queue]\nmin_free = 0\n[refresh]\nmanifest = 0.2\n[repackage]\nwindow = 0.05\n",
}


class Release:
    """Its commands, in a folder of their own."""

    def __init__(self, source, folder):
        self.folder, self.running = folder, {}
        environment = {k: v for k, v in os.environ.items() if not k.startswith("UPSEAL_")}
        self.environment = {
            **environment, "PYTHONPATH": str(source / "src"), "UPSEAL_ENGINE": "portable",
        }  # fmt: skip

    def do(self, *words, data=b""):
        command = [sys.executable, "-m", "upseal", *map(str, words)]
        return subprocess.run(
            command, input=data, env=self.environment, cwd=self.folder, check=True,
            stdout=subprocess.PIPE, timeout=120,
        ).stdout.decode()  # fmt: skip

    def admin(self, *words):
        return self.do("admin", *words, "-d", "server")

    def start(self, role, name):
        options = ["--listen", "127.0.0.1:0"] if role == "server" else []
        with open(self.folder / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "upseal", role, "run", "-d", name, *options],
                env=self.environment, cwd=self.folder, stdout=log, stderr=log,
            )  # fmt: skip
        address = self.folder / name / "address"
        return "http://" + wait(lambda: read(address)) if role != "agent" else None

    def stop(self, name):
        child = self.running.pop(name)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0, (self.folder / f"{name}.log").read_text()

    def enrol(self, role, name, url, *options):
        """Tries until the relays have heard of the act that made the token."""
        token = self.folder / f"{name}.token"
        token.write_text(self.admin("token", "--role", role))

        def attempt():
            try:
                return self.do(
                    role, "enrol", "--parent", url, "--token-file", token, "--name", name,
                    "-d", name, *options,
                ) or "done"  # fmt: skip
            except subprocess.CalledProcessError:
                return None

        wait(attempt)
        with open(self.folder / name / f"{role}.toml", "a") as file:
            file.write(_QUICK[role])

    def report(self, what):
        lines = {}
        for name in AGENTS:
            lines[name] = [f"{what} {name} {number}" for number in range(EACH)]
            data = "".join(f"{line}\n" for line in lines[name]).encode()
            self.do("agent", "report", "--lines", "-d", name, data=data)
        return lines


def read(path):
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def wait(look):
    end = time.monotonic() + 120
    while not (found := look()):
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.2)
    return found


def count(path, query):
    with closing(sqlite3.connect(path, timeout=30)) as db:
        return db.execute(query).fetchone()[0]


def fill(release):
    """Gives the reports of each step."""
    release.admin("init", "--name", "releases")
    settings = release.folder / "server" / "deployment.toml"
    text = settings.read_text()
    # The test of the year after next must find them good.
    for name in ("manifest_days", "certificate_days"):
        text = "\n".join(
            f"{name} = 3000" if line.startswith(name) else line for line in text.split("\n")
        )
    settings.write_text(text)
    url = release.start("server", "server")
    release.enrol("relay", "relay", url, "--decrypting", "--listen", "127.0.0.1:0")
    below = release.start("relay", "relay")
    release.admin("relays", "add", "relay", "--decrypts")
    release.admin("generate-key")
    release.admin("ready")
    release.admin("enable")
    for name, level in AGENTS.items():
        release.enrol("agent", name, below, "--level", level)
        release.start("agent", name)
    first = release.report("first")
    store, queue = release.folder / "server" / "server.db", release.folder / "relay" / "queue.db"
    done = len(AGENTS) * EACH
    wait(lambda: count(store, "SELECT count(*) FROM reports") == done)
    for name in AGENTS:
        path = release.folder / name / "spool.db"
        wait(lambda path=path: count(path, "SELECT stored FROM state") == EACH)
    release.stop("server")
    second = release.report("second")
    hops = "SELECT count(DISTINCT hop) FROM bodies WHERE done IS NULL"
    wait(lambda: count(queue, hops) == len(AGENTS))
    for name in AGENTS:
        release.stop(name)
    release.stop("relay")
    third = release.report("third")
    return {"first": first, "second": second, "third": third}


def keep(source, target):
    """Files as they are, databases as SQL."""
    for path in sorted(source.rglob("*")):
        if not path.is_file() or path.name.endswith(_PASSING):
            continue
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".db":
            shutil.copyfile(path, place)
            continue
        with closing(sqlite3.connect(path)) as db:
            pragmas = "".join(
                f"PRAGMA {name} = {db.execute(f'PRAGMA {name}').fetchone()[0]};\n"
                for name in ("auto_vacuum", "application_id", "user_version")
            )
            place.with_suffix(".db.sql").write_text(pragmas + "\n".join(db.iterdump()) + "\n")


def main():
    source, name = Path(sys.argv[1]).resolve(), sys.argv[2]
    target = HERE / name
    with tempfile.TemporaryDirectory() as folder:
        release = Release(source, Path(folder))
        os.mkdir(release.folder / "server", 0o700)
        try:
            made = fill(release)
        except BaseException:
            for log in release.folder.glob("*.log"):
                print(log.name, log.read_text()[-2000:], file=sys.stderr)
            raise
        finally:
            for child in release.running.values():
                child.kill()
                child.wait()
        shutil.rmtree(target, ignore_errors=True)
        for role in ("server", "relay", *AGENTS):
            keep(release.folder / role, target / role)
        (target / "reports.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
