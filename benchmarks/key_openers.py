# SPDX-License-Identifier: Apache-2.0
"""What it costs to unwrap a session where the key is kept: here, in a key process, in a token.

``python benchmarks/key_openers.py [--seconds 3]``. For each place and kind of key: unwraps a second
and microseconds of one, alone and by four threads, and the ratio to the key in this process. Needs
python-pkcs11 and SoftHSM2 for the token.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from upseal import PrivateKey
from upseal.integrations.keys import open_keys

SECRET = bytes(32)
KINDS = ("x25519", "p256", "mlkem768-x25519", "rsa3072")


def one_thread(key, wrapped, seconds):
    """Median microseconds of an unwrap."""
    taken, end = [], time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        key.unwrap(wrapped)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken) * 1e6


def four_threads(key, wrapped, seconds):
    """Unwraps a second."""
    counts, end = [0] * 4, time.perf_counter() + seconds

    def work(i):
        while time.perf_counter() < end:
            key.unwrap(wrapped)
            counts[i] += 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def token(folder):
    """A P-256 key in SoftHSM2; None where there is none."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "integrations"))
    try:
        from keys_support import Tokens
    except ImportError as error:
        print(f"no token: {error}")
        return None
    return Tokens(folder).uri()


def main():
    """Prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as name:
        folder, here = Path(name), {}
        path = folder / "keys.sock"
        command = [
            sys.executable, "-m", "upseal", "keys", "serve", "--same-user", "--socket", str(path),
            "--rate", "1000000",
        ]  # fmt: skip
        for kind in KINDS:
            key = here[kind] = PrivateKey.generate(kind)
            (folder / kind).write_bytes(key.to_pem())
            os.chmod(folder / kind, 0o600)
            command += ["-i", str(folder / kind)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            while not path.exists():
                time.sleep(0.05)
            places = [("in this process", key) for key in here.values()]
            places += [("key process", key) for key in open_keys(f"unix:{path}")]
            if (uri := token(folder)) is not None:
                places += [("SoftHSM2", key) for key in open_keys(uri)]
            base = {}
            print(f"{'where':16} {'key':16} {'us':>9} {'ratio':>7} {'4 threads/s':>12}")
            for where, key in places:
                wrapped = key.public_key.wrap(SECRET)
                kind = key.public_key.name
                cost = one_thread(key, wrapped, seconds)
                rate = four_threads(key, wrapped, seconds)
                ratio = cost / base.setdefault(kind, cost)
                print(f"{where:16} {kind:16} {cost:9.1f} {ratio:7.2f} {rate:12.0f}")
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
