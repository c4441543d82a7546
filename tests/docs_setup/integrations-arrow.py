# SPDX-License-Identifier: Apache-2.0
import pyarrow

from upseal import Opener, PrivateKey, Sealer

key = PrivateKey.generate("x25519")
sealer, opener = Sealer([key.public_key]), Opener([key])
table = pyarrow.table({"id": [1, 2], "report": ["disk 41%", None]})
