# SPDX-License-Identifier: Apache-2.0
"""The fleet part of ``upseal demo``: a whole deployment of real processes on this machine.

`acts.play` runs it. `site` makes the deployment and starts the processes, `wire` stands in every
hop and keeps each byte, `search` looks through what was kept, `words` says what came of it.
"""
