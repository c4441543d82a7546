# SPDX-License-Identifier: Apache-2.0
"""Whole files through the fleet: what agent, relay and server share (docs/protocol.md, "Uploads").

- `words`: announcements, tickets, and what a proof covers.
- `shelf`: bodies on the disk of a hop, under quotas.
- `tus`: tus 1.0 for an application of `upseal.fleet.http.apps`.
- `carrier`: the sending side.

Nothing is imported here: an agent needs no server, and a server no client.
"""
