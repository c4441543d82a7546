# SPDX-License-Identifier: Apache-2.0
"""An agent in a process of its own for `fleet_uploads.py`, by the library as applications have it.

    python benchmarks/upload_agent.py FOLDER LEVEL

It sends, is told paths by its standard input, and says when each was taken and when it was stored,
with the CPU time of both.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from upseal.fleet.agent.agent import Agent
from upseal.fleet.agent.settings import Settings
from upseal.fleet.agent.uploads.rows import UploadState
from upseal.fleet.policy import Level

LOOK = 0.02


def main() -> None:
    settings = Settings.load(Path(sys.argv[1]) / "agent.toml")
    with Agent(settings, Level.parse(sys.argv[2])) as agent:
        agent.start()
        while agent.sender is None or not agent.sender.refreshed:
            time.sleep(LOOK)
        print(json.dumps({"agent": agent.member.agent.hex()}), flush=True)
        for line in sys.stdin:
            begin, used = time.perf_counter(), time.process_time()
            upload = agent.upload(line.strip())
            taken, used_then = time.perf_counter(), time.process_time()
            while agent.uploads.state(upload) is UploadState.WAITING:
                time.sleep(LOOK)
            print(json.dumps({
                "upload": upload, "state": str(agent.uploads.state(upload)),
                "taken": taken - begin, "sent": time.perf_counter() - taken,
                "taking_cpu": used_then - used, "sending_cpu": time.process_time() - used_then,
            }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
