# SPDX-License-Identifier: Apache-2.0
"""Seals a log that is rotated meanwhile, in lines that any log shipper can carry.

python examples/lines/example.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path


def upseal(*args: object) -> bytes:
    """Runs the command line."""
    command = [sys.executable, "-m", "upseal", *map(str, args)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout  # noqa: S603 - our own


with tempfile.TemporaryDirectory() as folder:
    here = Path(folder)
    log, sealed = here / "app.log", here / "sealed.log"
    upseal("keygen", "-o", here / "server.pem")  # server.pub.pem goes to the machines with logs

    # A cron job would do this; a service says --follow and stays.
    seal = ("lines", "-r", here / "server.pub.pem", "--state", here / "state", "-o", sealed, log)
    log.write_text("user ada logs in\nuser bob logs in\n")
    upseal(*seal)

    with log.open("a") as file:
        file.write("user ada logs out\n")
    log.rename(here / "app.log.1")  # logrotate
    log.write_text("user bob logs out\n")
    upseal(*seal)  # goes on in the renamed file, then with the new one

    print(f"{sealed.name}: {len(sealed.read_text().splitlines())} lines for the shipper, such as")
    print(sealed.read_text()[:72] + "...")
    opened = upseal("lines", "--open", "-i", here / "server.pem", sealed)
    written = (here / "app.log.1").read_bytes() + log.read_bytes()
    assert opened == written
    assert b"ada" not in sealed.read_bytes()
    print(f"opened: {len(opened)} bytes, the same bytes that were logged")
