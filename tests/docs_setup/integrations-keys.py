# SPDX-License-Identifier: Apache-2.0
from upseal import PrivateKey

key = PrivateKey.generate("x25519")
