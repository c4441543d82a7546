# SPDX-License-Identifier: Apache-2.0
"""A place where a page's commands can be typed as they stand, and hurt nobody.

A shell and a Python with mounts, a network and processes of their own (namespaces, by ``unshare``
of util-linux): what is written to /srv, /etc, /var/lib and the like goes to a layer above the real
ones, ports of 127.0.0.1 are all free, and all of it is gone with the place, processes too.
"""

import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = ("/srv", "/etc", "/var/lib", "/var/log", "/var/backups", "/opt", "/run")
_LOOPBACK = """
import fcntl, socket, struct
with socket.socket() as s:  # SIOCSIFFLAGS, IFF_UP
    fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", 1))
"""
_ENTER = """
set -e
mount -t tmpfs none "$PLACE"
"$PYTHON" -c "$LOOPBACK"
for layer in $LAYERS; do
    [ -d "$layer" ] || continue
    mkdir -p "$PLACE/layers$layer/up" "$PLACE/layers$layer/work"
    mount -t overlay overlay -o \\
        "lowerdir=$layer,upperdir=$PLACE/layers$layer/up,workdir=$PLACE/layers$layer/work" "$layer"
done
mkdir "$PLACE/home" "$PLACE/tmp"
export HOME="$PLACE/home" TMPDIR="$PLACE/tmp"
unset PLACE LOOPBACK LAYERS
cd
set +e
"""
_PYTHON = """
import contextlib, io, json, sys, traceback
space = {"__name__": "__main__"}
for line in sys.stdin:
    asked, said, error = json.loads(line), io.StringIO(), ""
    try:
        code = compile("\\n" * asked["line"] + asked["code"], asked["page"], "exec")
        with contextlib.redirect_stdout(said):
            exec(code, space)
    except BaseException:
        error = traceback.format_exc()
    print(json.dumps({"said": said.getvalue(), "error": error}), flush=True)
"""


class Failed(AssertionError):
    """A command or some code did not do what its page says."""


def can_be_made() -> bool:
    """Whether this user may make namespaces here."""
    done = subprocess.run([*_unshare(), "true"], capture_output=True, check=False)
    return done.returncode == 0


def _unshare() -> list[str]:
    if not shutil.which("unshare"):
        return ["false"]
    mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
    kinds = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return ["unshare", *mapped, *kinds]


class Place:
    """One shell and one Python for one page.

    Args:
        folder: empty; what is exchanged with the shell stands there.
        env: variables beside those of this process that do not begin with ``UPSEAL_``.
    """

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        (folder / "place").mkdir()
        self._number = 0
        self._python: tuple[int, int] | None = None
        status, given = os.pipe()
        self._status = status
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("UPSEAL_", "PYTEST_"))}
        here = Path(sys.executable).parent
        ours = {
            "PLACE": str(folder / "place"), "LAYERS": " ".join(LAYERS), "LOOPBACK": _LOOPBACK,
            "PYTHON": sys.executable, "PATH": f"{here}:{os.environ['PATH']}",
            "REPOSITORY": str(ROOT), "COLUMNS": "200", "LC_ALL": "C.UTF-8",
        }  # fmt: skip
        with (folder / "shell").open("wb") as log:
            self._shell = subprocess.Popen(
                [*_unshare(), "bash", "--norc", "--noprofile"],
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, text=True,
                pass_fds=[given], start_new_session=True, cwd=folder, env=kept | ours | env,
            )  # fmt: skip
        os.close(given)
        self._given = given
        self.shell(_ENTER)

    def shell(self, command: str, timeout: float = 100) -> tuple[int, str]:
        """Types a command, and gives its exit code and all that it said.

        Raises:
            Failed: it takes longer than ``timeout`` seconds.
        """
        self._number += 1
        text, said = self.folder / f"in.{self._number}", self.folder / f"out.{self._number}"
        text.write_text(command + "\n")
        line = f". {text} >{said} 2>&1 {self._given}>&- </dev/null; echo $? >&{self._given}\n"
        assert self._shell.stdin
        self._shell.stdin.write(line)
        self._shell.stdin.flush()
        if not select.select([self._status], [], [], timeout)[0]:
            raise Failed(f"still runs after {timeout} s:\n{command}\n{said.read_text()}")
        code = os.read(self._status, 16)
        said_so = said.read_text(errors="replace") if said.exists() else ""
        return (int(code) if code.strip() else self._shell.wait(10)), said_so

    def until(self, command: str, timeout: float = 60) -> None:
        """Types it again and again, until it succeeds.

        Raises:
            Failed: it never does, in ``timeout`` seconds.
        """
        end = time.monotonic() + timeout
        while (done := self.shell(command))[0]:
            if time.monotonic() > end:
                raise Failed(f"never came about: {command}\n{done[1]}")
            time.sleep(0.1)

    def python(self, code: str, page: str, line: int, timeout: float = 100) -> str:
        """Runs code after what ran before on this page, and gives what it printed.

        Raises:
            Failed: it raises, or takes too long.
        """
        if self._python is None:
            (self.folder / "driver.py").write_text(_PYTHON)
            names = [self.folder / "py.in", self.folder / "py.out"]
            for name in names:
                os.mkfifo(name)
            to, back = (os.open(name, os.O_RDWR) for name in names)
            self._python = to, back
            where = " ".join(f"{way}{name}" for way, name in zip("<>", names, strict=True))
            self.shell(
                f'( "$PYTHON" -W error {self.folder}/driver.py {where} & )'
            )  # no job of the shell
        to, back = self._python
        os.write(to, (json.dumps({"code": code, "page": page, "line": line}) + "\n").encode())
        answer = b""
        while not answer.endswith(b"\n"):
            if not select.select([back], [], [], timeout)[0]:
                raise Failed(f"still runs after {timeout} s:\n{code}")
            answer += os.read(back, 1 << 16)
        told = json.loads(answer)
        if told["error"]:
            raise Failed(f"{told['said']}{told['error']}")
        return str(told["said"])

    def close(self) -> None:
        """Ends all that runs in the place."""
        self._shell.kill()  # and with it, by --kill-child, the first process of the namespace
        self._shell.wait(20)
        if self._shell.stdin:
            self._shell.stdin.close()
        for fd in (self._status, *(self._python or ())):
            os.close(fd)
