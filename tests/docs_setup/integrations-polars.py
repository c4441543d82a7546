# SPDX-License-Identifier: Apache-2.0
import polars as pl

from upseal import Opener, PrivateKey, Sealer

key = PrivateKey.generate("x25519")
sealer, opener = Sealer([key.public_key]), Opener([key])
frame = pl.DataFrame({"id": [1, 2], "report": ['{"disk": 41}', None]})
schema = pl.Struct({"disk": pl.Int64})
