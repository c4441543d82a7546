# SPDX-License-Identifier: Apache-2.0
"""Opens reports with a key that another process keeps.

On a real host that process runs as a user of its own, started by systemd; see
docs/integrations/keys.md. Here it is started by this script, which is why --same-user is needed.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from upseal import Opener, PrivateKey, Sealer
from upseal.integrations.keys import open_key


def main() -> None:
    """Starts the process, seals, opens, stops it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "server.pem").touch(0o600)
        (folder / "server.pem").write_bytes(PrivateKey.generate().to_pem())
        path = folder / "keys.sock"
        serve = ["keys", "serve", "--socket", str(path), "--same-user"]
        command = [sys.executable, "-m", "upseal", *serve, "-i", str(folder / "server.pem")]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603
        try:
            while not path.exists():
                time.sleep(0.05)
            (folder / "server.pem").unlink()  # nobody else has it from here on
            key = open_key(f"unix:{path}")
            envelope = Sealer([key.public_key]).seal(b"disk 41%")
            print("opened by the key process:", Opener([key]).open(envelope).decode())
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
