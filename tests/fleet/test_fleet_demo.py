# SPDX-License-Identifier: Apache-2.0
"""``upseal demo``'s fleet: a small one from end to end, and that its search finds what there is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter

import psutil
import pytest

from upseal.cli.common import Failure
from upseal.cli.demo_fleet.findings import _doubled
from upseal.cli.demo_fleet.processes import Processes
from upseal.cli.demo_fleet.search import Found, Search, Stored
from upseal.cli.demo_fleet.wire import HOST, Wire
from upseal.cli.demo_fleet.words import in_words

DEMO = [sys.executable, "-m", "upseal", "demo", "--skip-core", "--agents", "3", "--seconds", "0"]


def test_a_small_fleet_end_to_end(tmp_path):
    env = {**os.environ, "TMPDIR": str(tmp_path), "UPSEAL_LEVEL": "none"}
    done = subprocess.run([*DEMO, "--json"], env=env, capture_output=True, check=False, timeout=240)
    assert (done.returncode, done.stderr) == (0, b"")
    facts = json.loads(done.stdout)
    assert facts["match"] is True and all(facts["checks"].values())
    assert facts["core"] is None
    reports, plain = facts["reports"], facts["plaintext_on_wire"]
    assert reports["made"] == reports["stored"] > 100
    assert reports["lost"] == reports["doubled"] == reports["refused"] == 0
    assert plain["sealed_clients"] == 0 < plain["clear_clients"]
    assert plain["clear_reports_found"] == plain["clear_reports"] > 0
    assert facts["plaintext_on_disk"]["sealed_clients"] == 0
    assert all(hop["bytes"] > 1000 for hop in facts["wire"].values())
    required, optional, none = facts["clients"]
    assert [client["wanted"] for client in facts["clients"]] == ["required", "optional", "none"]
    assert {required["parent"], optional["parent"]} == {"passing", "decrypting"}
    assert [client["actual"] for client in facts["clients"]] == ["sealed", "sealed", "clear"]
    assert required["while_disabled"] == {"actual": "withheld", "why": "encryption-disabled"}
    assert optional["while_disabled"] == {"actual": "clear", "why": "encryption-disabled"}
    assert required["clear_reports"] == none["sealed_reports"] == 0
    assert 0 < optional["clear_reports"] < optional["stored"]
    assert facts["rotation"]["clients"] == 2 and facts["rotation"]["seconds"] > 0
    assert facts["rotation"]["key_id"] != facts["rotation"]["old_key_id"]
    assert facts["orphans"]["foretold"] == [required["name"]]
    assert [orphan["name"] for orphan in facts["orphans"]["withheld"]] == [required["name"]]
    assert facts["orphans"]["withheld_reports"] > 0
    assert not list(tmp_path.iterdir()), "cleaned"
    words = in_words(facts, each=False)
    assert required["name"] in words and "withheld (encryption-disabled)" in words
    many = {**facts, "clients": [dict(c) for c in facts["clients"] * 5]}
    assert "\n      5  " in in_words(many, each=False)
    assert "NOT SO" not in words


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_in_the_middle_it_leaves_nothing(tmp_path, how):
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        DEMO, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as child:
        for line in child.stderr:
            if b"enrolling" in line:
                break
        below = psutil.Process(child.pid).children(recursive=True)
        child.send_signal(how)
        child.communicate(timeout=60)
    assert len(below) >= 3, "server and relays"
    _, left = psutil.wait_procs(below, timeout=60)
    assert not left
    if how == signal.SIGTERM:
        assert child.returncode == 143
        assert not list(tmp_path.iterdir())


# -- its parts -------------------------------------------------------------------------


def test_a_process_that_ends_is_named_with_its_last_words(tmp_path, capfd):
    with Processes(tmp_path, tmp_path) as processes:
        processes.start("oops", "server", "run", "-d", str(tmp_path / "nothing"))
        with pytest.raises(Failure, match=r"oops ended with exit code \d"):
            processes.until("never", lambda: False)
    assert "oops: upseal: cannot read" in capfd.readouterr().err


def report(client, number, sealed, *, received=5, extra=""):
    body = f'{{"property":"cpu","number":{number}{extra},"client":"{client}","time":1.5}}'.encode()
    return Stored(client, body, sealed, number, received)


REQUIRED, OPTIONAL = "demo-abc-000", "demo-abc-001"
SEALED = [report(REQUIRED, 1, True), report(OPTIONAL, 2, True)]
CLEAR = [report(OPTIONAL, 3, False), report(OPTIONAL, 4, False)]


def search():
    return Search("demo-abc", [*SEALED, *CLEAR], [REQUIRED])


def looked(*streams, sealed_until=0):
    found = Found()
    search().wire("hop", streams, found, sealed_until=sealed_until)
    return found.sealed, found.clear, len(found.distinct), found.early


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"nothing demo-abd-000 here", (0, 0, 0, 0)),
        (b"..." + SEALED[0].body + b"...", (1, 0, 0, 0)),
        (b"..." + SEALED[1].body + SEALED[1].body, (2, 0, 0, 0)),
        (CLEAR[0].body + b"\0" + CLEAR[1].body + CLEAR[1].body, (0, 3, 2, 0)),
        (b"x" + SEALED[0].body[20:], (1, 0, 0, 0)),  # the bare name of one that must seal
        (b"from " + REQUIRED.encode(), (1, 0, 0, 0)),
        (CLEAR[0].body[:-8], (0, 0, 0, 0)),  # cut off: it stands whole elsewhere
        (json.dumps(SEALED[0].body.decode()).encode(), (1, 0, 0, 0)),
    ],
)
def test_the_search(stream, expected):
    assert looked(bytearray(stream)) == expected


def test_the_search_knows_when_nothing_may_be_clear():
    assert looked(CLEAR[0].body, sealed_until=5)[3] == 0
    assert looked(CLEAR[0].body, sealed_until=6)[3] == 1


def test_the_search_of_files(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "spool.db").write_bytes(b"\0" * 100 + SEALED[1].body + b"\0" * 9)
    (tmp_path / "agent.toml").write_text(f'name = "{REQUIRED}"')
    (tmp_path / "queue.db").write_bytes(CLEAR[0].body)
    found = Found()
    assert search().files([tmp_path], found) == 3
    assert (found.sealed, found.clear) == (1, 1)
    assert found.examples == [f"{OPTIONAL} at spool.db"]


def test_reports_without_a_name_are_searched_for_whole():
    odd = Stored(REQUIRED, b"no JSON at all", True, 1, 1)
    found = Found()
    Search("demo-abc", [odd], [REQUIRED]).wire("hop", [b"..no JSON at all.."], found)
    assert found.sealed == 1


def test_doubles_are_counted_across_units_alone():
    one, two = report(OPTIONAL, 7, True), report(OPTIONAL, 8, True)
    assert _doubled([one, two]) == 0
    assert _doubled([one, one]) == 0, "a host may have two equal things"
    assert _doubled([one, one._replace(unit=99)]) == 1
    assert _doubled([one, one, one._replace(unit=99), two]) == 1


def test_the_wire_keeps_every_byte():
    sent, echoed = os.urandom(300_000), bytearray()

    async def talk(port):
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(sent)
        writer.write_eof()
        while piece := await reader.read(1 << 16):
            echoed.extend(piece)
        writer.close()
        await writer.wait_closed()

    async def upper(reader, writer):
        while piece := await reader.read(1 << 16):
            writer.write(piece[::-1])
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def both(wire):
        server = await asyncio.start_server(upper, HOST, 0)
        wire["hop"].target = server.sockets[0].getsockname()[:2]
        await asyncio.gather(*(talk(wire["hop"].port) for _ in range(3)))
        server.close()
        await server.wait_closed()

    with Wire("hop", "other") as wire:
        with socket.create_connection((HOST, wire["other"].port)) as nobody:
            assert nobody.recv(1) == b"", "nothing stands above it yet"
        asyncio.run(both(wire))
    up, down = wire["hop"].streams[::2], wire["hop"].streams[1::2]
    assert [bytes(stream) for stream in up] == [sent] * 3
    assert Counter(b"".join(down)) == Counter(echoed) and len(echoed) == 3 * len(sent)
    assert wire["hop"].bytes == 6 * len(sent) and wire["other"].bytes == 0
