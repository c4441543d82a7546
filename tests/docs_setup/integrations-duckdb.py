# SPDX-License-Identifier: Apache-2.0
import duckdb

from upseal import Opener, PrivateKey, Sealer
from upseal.integrations.duckdb import register as _register

key = PrivateKey.generate("x25519")
sealer, opener = Sealer([key.public_key]), Opener([key])
connection = duckdb.connect()
_other = duckdb.connect()
_register(_other, sealer=sealer, context=b"reports")
_other.sql(
    "SELECT i AS id, seal(encode(to_json({host: i % 2, disk: i}))) AS report FROM range(9) t(i)"
).write_parquet("reports.parquet")
