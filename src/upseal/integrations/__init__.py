# SPDX-License-Identifier: Apache-2.0
"""Neighbours: one file for each thing that people already run (docs/integrations).

Each imports what it fits into, and needs the extra of its name: ``pip install 'upseal[httpx]'``.
Nothing is imported here, and the core imports nothing of this folder.

`http_bodies` is what the HTTP neighbours agree on; `http_sealing` is shared by the clients,
`http_opening` by the servers, and `http_manifest` is the policy that follows a deployment.
"""
