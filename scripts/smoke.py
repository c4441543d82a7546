# SPDX-License-Identifier: Apache-2.0
"""Whether an installed upseal works: ``smoke.py native`` or ``smoke.py portable``."""

import io
import os
import sys
from importlib.metadata import version

import upseal
from upseal.engine import choose

assert "site-packages" in upseal.__file__, f"not the installed one: {upseal.__file__}"
assert upseal.__version__ == version("upseal")

key = upseal.PrivateKey.generate("x25519")
sealer, opener = upseal.Sealer([key.public_key]), upseal.Opener([key])
report, payload = b"uptime 4711", os.urandom(100_000)
assert opener.open(sealer.seal(report, b"c"), b"c") == report
assert list(opener.open_many(sealer.seal_many([report, b""]))) == [report, b""]
assert list(opener.open_batch(sealer.seal_batch([report, b"", payload]))) == [report, b"", payload]
sealed = io.BytesIO()
with sealer.writer(sealed) as writer:
    writer.write(payload)
assert opener.reader(io.BytesIO(sealed.getvalue())).read() == payload

engine, reason = choose()
print(f"Python {sys.version.split()[0]}: {engine.describe()} ({reason})")
assert engine.name == sys.argv[1], f"wanted the {sys.argv[1]} engine"
