# SPDX-License-Identifier: Apache-2.0
"""``upseal demo``'s fleet: a small one from end to end, and that its search finds what there is."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter

import psutil
import pytest

from upseal.cli import main
from upseal.cli.common import Failure
from upseal.cli.demo_fleet import uploads as demo_uploads
from upseal.cli.demo_fleet.findings import _doubled
from upseal.cli.demo_fleet.processes import Processes
from upseal.cli.demo_fleet.search import Found, Search, Stored, called, count_marks, mark
from upseal.cli.demo_fleet.uploads import Given, right
from upseal.cli.demo_fleet.wire import HOST, Wire
from upseal.cli.demo_fleet.words import how_to_look, in_words

DEMO = [
    sys.executable, "-m", "upseal", "demo", "--skip-core", "--agents", "3", "--seconds", "0",
    "--fleet-upload-mib", "8",
]  # fmt: skip


def test_a_small_fleet_end_to_end(tmp_path):
    env = {**os.environ, "TMPDIR": str(tmp_path), "UPSEAL_LEVEL": "none"}
    done = subprocess.run([*DEMO, "--json"], env=env, capture_output=True, check=False, timeout=400)
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
    _files_and_page(facts)
    assert not list(tmp_path.iterdir()), "cleaned"
    words = in_words(facts, each=False)
    assert required["name"] in words and "withheld (encryption-disabled)" in words
    many = {**facts, "clients": [dict(c) for c in facts["clients"] * 5]}
    assert "\n      5  " in in_words(many, each=False)
    assert "NOT SO" not in words
    assert "3 made, 3 stored, 0 damaged; 16.2 MiB" in words and "4 kills of relays" in words
    assert "password" not in facts["page"] and "shows 3 of 3 files" in words
    kept = {**facts, "page": {**facts["page"], "password": "secret"}}
    assert "-d 'x y', then http://127.0.0.1:8450/admin as demo, password secret" in how_to_look(
        kept, "'x y'"
    )


def _files_and_page(facts):
    uploads, page = facts["uploads"], facts["page"]
    assert uploads["made"] == uploads["stored"] == 3 and uploads["damaged"] == 0
    assert uploads["relay_kills"] == len(uploads["kills"]) == 4
    assert Counter(kill["relay"] for kill in uploads["kills"]) == {"passing": 2, "decrypting": 2}
    assert all(kill["of"] // 8 <= kill["bytes"] < kill["of"] for kill in uploads["kills"])
    assert [kill["doing"] for kill in uploads["kills"] if kill["relay"] == "passing"] == [
        "receiving", "sending",
    ]  # fmt: skip
    assert [file["form"] for file in uploads["files"]] == ["sealed", "sealed", "clear"]
    assert [file["bytes"] for file in uploads["files"]] == [8 << 20, 8 << 20, 256 << 10]
    assert uploads["plaintext_meanwhile"]["sealed_clients"] == 0
    assert uploads["plaintext_meanwhile"]["bytes"] > 16 << 20, "the spools alone are as much"
    assert facts["plaintext_on_wire"]["clear_marks_found"] == 4
    assert facts["wire"]["decrypting -> server"]["bytes"] > 16 << 20
    assert (page["status"], page["uploads_shown"]) == (200, 3)
    assert page["coverage"] == {
        "sealed": 2, "clear": 1, "withheld": 0, "silent": 0, "orphaned": 0,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "when"), [(signal.SIGTERM, b"files go up"), (signal.SIGKILL, b"enrolling")]
)
def test_stopped_in_the_middle_it_leaves_nothing(tmp_path, how, when):
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        DEMO, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as child:
        for line in child.stderr:
            if when in line:
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


REQUIRED, OPTIONAL, NONE = "demo-abc-000", "demo-abc-001", "demo-abc-002"
SEALED = [report(REQUIRED, 1, True), report(OPTIONAL, 2, True)]
CLEAR = [report(OPTIONAL, 3, False), report(OPTIONAL, 4, False)]
ANNOUNCED = [
    Stored(client, b"UPU\x01 " + bytes([number] * 70) + called(client).encode(), sealed, 9, 5)
    for number, (client, sealed) in enumerate([(OPTIONAL, True), (NONE, False)])
]


def search():
    stored = [*SEALED, *CLEAR, *ANNOUNCED]
    return Search("demo-abc", stored, [REQUIRED], {NONE: 5})


def looked(tmp_path, *streams, sealed_until=0):
    found, paths = Found(), []
    for number, stream in enumerate(streams):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(stream)
    search().wire("hop", paths, found, sealed_until=sealed_until)
    return found


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"", (0, 0, 0, 0)),
        (b"nothing demo-abd-000 here", (0, 0, 0, 0)),
        (b"..." + SEALED[0].body + b"...", (1, 0, 0, 0)),
        (b"..." + SEALED[1].body + SEALED[1].body, (2, 0, 0, 0)),
        (CLEAR[0].body + b"\0" + CLEAR[1].body + CLEAR[1].body, (0, 3, 2, 0)),
        (b"x" + SEALED[0].body[20:], (1, 0, 0, 0)),  # the bare name of one that must seal
        (b"from " + REQUIRED.encode(), (1, 0, 0, 0)),
        (CLEAR[0].body[:-8], (0, 0, 0, 0)),  # cut off: it stands whole elsewhere
        (json.dumps(SEALED[0].body.decode()).encode(), (1, 0, 0, 0)),
        (mark(REQUIRED, 0) + mark(OPTIONAL, 17), (2, 0, 0, 0)),
        (b"x" * 99 + mark(NONE, 0) + mark(NONE, 3) + mark(NONE, 3), (0, 3, 0, 2)),
        (b"a name: " + called(OPTIONAL).encode() + b".", (1, 0, 0, 0)),
        (ANNOUNCED[0].body, (1, 0, 0, 0)),
        (b"xx" + ANNOUNCED[1].body + b"xx", (0, 1, 1, 0)),
        (ANNOUNCED[1].body[1:], (0, 1, 0, 0)),  # what was cut off is no report
    ],
)
def test_the_search(tmp_path, stream, expected):
    found = looked(tmp_path, stream)
    assert (found.sealed, found.clear, len(found.distinct), len(found.marks)) == expected


@pytest.mark.parametrize("stream", [CLEAR[0].body, mark(NONE, 1)])
def test_the_search_knows_when_nothing_may_be_clear(tmp_path, stream):
    assert looked(tmp_path, stream, sealed_until=5).early == 0
    assert looked(tmp_path, stream, sealed_until=6).early == 1


def test_the_search_of_files(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "spool.db").write_bytes(b"\0" * 100 + SEALED[1].body + b"\0" * 9)
    (tmp_path / "agent.toml").write_text(f'name = "{REQUIRED}"')
    (tmp_path / "queue.db").write_bytes(CLEAR[0].body)
    (tmp_path / "empty").touch()
    found = Found()
    assert search().files([tmp_path], found) == 4
    assert (found.sealed, found.clear) == (1, 1)
    assert found.examples == [f"{OPTIONAL} at spool.db"]
    (tmp_path / "body.part").write_bytes(bytes(1 << 20) + mark(REQUIRED, 5))
    search().files([tmp_path], found := Found())
    assert found.sealed == 2


def test_marks_are_counted_in_files_of_some_clients(tmp_path):
    (tmp_path / "one.part").write_bytes(bytes(5000) + mark(OPTIONAL, 1) + mark(NONE, 1))
    (tmp_path / "two.whole").write_bytes(mark(OPTIONAL + "0", 1) + OPTIONAL.encode())
    (tmp_path / "empty").touch()
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert count_marks([tmp_path], [REQUIRED, OPTIONAL]) == (1, 3, size)
    assert count_marks([tmp_path / "nothing"], [REQUIRED]) == (0, 0, 0)


def test_reports_without_a_name_are_searched_for_whole(tmp_path):
    odd = Stored(REQUIRED, b"no JSON at all", True, 1, 1)
    (tmp_path / "stream").write_bytes(b"..no JSON at all..")
    found = Found()
    Search("demo-abc", [odd], [REQUIRED]).wire("hop", [tmp_path / "stream"], found)
    assert found.sealed == 1


def test_doubles_are_counted_across_units_alone():
    one, two = report(OPTIONAL, 7, True), report(OPTIONAL, 8, True)
    assert _doubled([one, two]) == 0
    assert _doubled([one, one]) == 0, "a host may have two equal things"
    assert _doubled([one, one._replace(unit=99)]) == 1
    assert _doubled([one, one, one._replace(unit=99), two]) == 1


def test_files_have_their_size_and_their_marks(tmp_path):
    (tmp_path / "host").write_bytes(os.urandom(70_001))
    given = Given(OPTIONAL, tmp_path / "file", 1_000_001, 100_000, sealed=True)
    data = b"".join(demo_uploads._blocks([str(tmp_path / "host"), "/nowhere"], given))
    assert len(data) == given.size and given.marks == 11
    for number in range(11):
        line = mark(OPTIONAL, number)
        assert data[number * 100_000 :][: len(line)] == line[: given.size - number * 100_000]
    assert data.count(called(OPTIONAL).encode()) == 10, "the last one is cut off"
    with pytest.raises(Failure, match="none of this host's files"):
        list(demo_uploads._blocks(["/nowhere"], given))


def test_what_lies_on_a_shelf(tmp_path):
    assert demo_uploads._bodies(tmp_path / "nothing") == {}
    for name, kind, size in (("a", ".part", 7), ("b", ".whole", 9), ("c", "", 0)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"upload": name, "size": 9}))
        if kind:
            (tmp_path / f"{name}{kind}").write_bytes(bytes(size))
    (tmp_path / "d.json").write_text("{")
    assert demo_uploads._bodies(tmp_path) == {"a": (False, 7, 9), "b": (True, 9, 9)}


FILE = {"match": True, "receipts": 1, "wanted": "required", "form": "sealed"}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"made": 2}, False),
        ({"stored": 2}, False),
        ({"damaged": 1}, False),
        ({"files": [{**FILE, "match": False}]}, False),
        ({"files": [{**FILE, "receipts": 0}]}, False),
        ({"files": [{**FILE, "form": "clear"}]}, False),
        ({"files": [{**FILE, "wanted": "none"}]}, False),
        ({"files": [{**FILE, "wanted": "none", "form": "clear"}]}, True),
    ],
)
def test_when_the_uploads_are_right(changed, expected):
    assert right({"made": 1, "stored": 1, "damaged": 0, "files": [FILE], **changed}) is expected


def test_it_says_when_the_disk_has_no_room(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    free = shutil._ntuple_diskusage(1 << 40, 1 << 40, 8 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    assert main(["demo", "--skip-core"]) == 4
    said = capsys.readouterr().err
    assert "needs 8.5 GiB" in said and "--fleet-upload-mib" in said and "TMPDIR" in said
    assert not list(tmp_path.iterdir())


def test_the_wire_keeps_every_byte(tmp_path):
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

    with Wire("hop", "an -> other", folder=tmp_path / "wire") as wire:
        with socket.create_connection((HOST, wire["an -> other"].port)) as nobody:
            assert nobody.recv(1) == b"", "nothing stands above it yet"
        asyncio.run(both(wire))
    up, down = wire["hop"].streams[::2], wire["hop"].streams[1::2]
    assert [path.name for path in up] == ["0000-up", "0001-up", "0002-up"]
    assert [path.read_bytes() for path in up] == [sent] * 3
    assert Counter(b"".join(path.read_bytes() for path in down)) == Counter(echoed)
    assert len(echoed) == 3 * len(sent)
    assert wire["hop"].bytes == 6 * len(sent) and wire["an -> other"].bytes == 0
    assert {path.name for path in (tmp_path / "wire").iterdir()} == {"1-hop", "2-an-to-other"}
