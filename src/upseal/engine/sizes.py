# SPDX-License-Identifier: Apache-2.0
"""Numbers of the format that both engines and the core share; all but the ciphers in bytes."""

AES_256_GCM = 1
CHACHA20_POLY1305 = 2

TAG = 16
NONCE = 24
RECORD_MAX = 1 << 24
"""Longest report, with its padding."""
CHUNK = 16384
SEALED_CHUNK = CHUNK + TAG
CHUNKS_MAX = 1 << 38
"""How many of them one upload may have."""
