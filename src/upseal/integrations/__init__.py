# SPDX-License-Identifier: Apache-2.0
"""Neighbours: one file, or one folder, for each thing that people already run (docs/integrations).

Each imports what it fits into, and needs the extra of its name: ``pip install 'upseal[httpx]'``.
Nothing is imported here, and the core imports nothing of this folder.

`http` is what the HTTP neighbours share. `keys` finds a private key wherever it is kept: a file, a
token (`pkcs11`), a process (`keyprocess`).
"""
