# SPDX-License-Identifier: Apache-2.0
"""HTTP for the fleet: what agent, relay and server share, and nothing that knows about sealing.

- `problems`: refusals that both sides understand (RFC 9457).
- `client`: one parent, by a pool of connections; and how long to wait after a failure.
- `results`: the answers of ``POST /v1/units`` and ``POST /v1/results``.
- `prefer`: ``Prefer: wait=N`` (RFC 7240).
- `apps`: an ASGI application with the common routes, bounded bodies and clean refusals.
- `serving`: runs one, in the main thread or another.
- `protocol`, `crowd`: bound what a connection can cost, and how many there are.
- `rates`: bounds what a hop or an address may ask for.
- `tls`: contexts that follow their files.
- `metrics`, `logs`, `seldom`: what an operator sees.

Nothing is imported here: an agent needs no server, and a server no client.
"""
