# SPDX-License-Identifier: Apache-2.0
"""What `fleet.py` leaves out and a plan for a large fleet needs; `fleet_fit.py` reads it.

    python benchmarks/fleet_extras.py --json extras.json     # a minute

- `poll`: CPU time of a hop for one look at manifest and capabilities, on a connection that is kept;
- `sync`, `sync_byte`: how long a commit waits for the disk, with no CPU time used;
- `connection`: memory of a hop for a connection that is open and silent;
- `stored`: bytes of the database for a report, beyond the report;
- `handshake`: CPU time of who accepts a TLS 1.3 connection (P-256), without the network;
- `crypto`: new sessions and first contacts, as `upseal bench` measures them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import ssl
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import machine
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fleet_load import Load
from fleet_site import Process, Site
from machine import say

from upseal.cli import capacity
from upseal.cli.measure import Probe, interleave
from upseal.fleet.relay.groupcommit import GroupCommit, connect

HOPS = ("server", "passing")
ROUNDS = 5


async def _get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
    writer.write(f"GET {path} HTTP/1.1\r\nhost: benchmark\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    await reader.readexactly(int(fields.get("content-length", "0")))


def polls(process: Process, url: str, serial: int, count: int) -> float:
    """CPU seconds of one look: manifest (nothing new) and capabilities."""
    parts = urlsplit(url)

    async def one(looks: int) -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        for _ in range(looks):
            await _get(reader, writer, f"/v1/manifest?since={serial}")
            await _get(reader, writer, "/v1/capabilities")
        writer.close()

    async def all_of_it() -> None:
        await asyncio.gather(*(one(count // 8) for _ in range(8)))

    asyncio.run(all_of_it())
    found = []
    for _ in range(ROUNDS):
        before = process.cpu()
        asyncio.run(all_of_it())
        found.append((process.cpu() - before) / (count // 8 * 8))
    return median(found)


def connections(process: Process, url: str, count: int) -> float:
    """Bytes of a hop's memory for each connection that has made a request and is silent."""
    parts = urlsplit(url)

    async def hold() -> float:
        before, kept = process._process.memory_info().rss, []
        for _ in range(count):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            await _get(reader, writer, "/v1/capabilities")
            kept.append(writer)
        await asyncio.sleep(0.5)
        after = process._process.memory_info().rss
        for writer in kept:
            writer.close()
        return max(0.0, (after - before) / count)

    return asyncio.run(hold())


def sync(folder: Path) -> tuple[float, float]:
    """Seconds that a commit waits for the disk, and for each byte in it: time less CPU time.

    From commits of 64 KiB and of 4 MiB, SQLite's own tidying of its log among them.
    """
    connection = connect(folder / "sync.db", writer=True)
    connection.execute("CREATE TABLE bodies (body BLOB)")
    writer, found = GroupCommit(connection), []
    try:
        for size, count in ((1 << 16, 200), (4 << 20, 40)):
            body = os.urandom(size)
            begun, cpu = time.perf_counter(), time.process_time()
            for _ in range(count):
                writer.submit(partial(_insert, body)).result(60)
            waited = time.perf_counter() - begun - (time.process_time() - cpu)
            found.append(max(0.0, waited / count))
    finally:
        writer.close()
    each = max(0.0, (found[1] - found[0]) / ((4 << 20) - (1 << 16)))
    return max(0.0, found[0] - each * (1 << 16)), each


def _insert(body: bytes, db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO bodies VALUES (?)", (body,))


def handshake(folder: Path) -> float:
    """CPU seconds of the accepting side for one TLS 1.3 handshake."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = folder / "tls.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                          serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )  # fmt: skip
    accepting, asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    accepting.load_cert_chain(pem)
    asking.load_verify_locations(pem)
    found = []
    for _ in range(200):
        up, down, spent = ssl.MemoryBIO(), ssl.MemoryBIO(), 0.0
        client = asking.wrap_bio(down, up, server_hostname="localhost")
        server = accepting.wrap_bio(up, down, server_side=True)
        done = [False, False]
        while not all(done):
            for i, side in enumerate((client, server)):
                begun = time.thread_time()
                try:
                    side.do_handshake()
                    done[i] = True
                except ssl.SSLWantReadError:
                    pass
                spent += (time.thread_time() - begun) * i
        found.append(spent)
    return median(found)


def crypto(seconds: float) -> dict[str, float]:
    """As `upseal bench`, for units of 50 reports."""
    bench = capacity.Bench(capacity.Load(report_bytes=1000, agent_batch=50, batch=50))
    interleave(bench.probes, time.perf_counter() + seconds, rounds=9)
    return asdict(bench.costs())


def measure(folder: Path, count: int) -> dict[str, Any]:
    say("the disk, TLS, public keys")
    result: dict[str, Any] = {"handshake": handshake(folder)}
    result["sync"], result["sync_byte"] = sync(folder)
    result["crypto"] = crypto(3.0)
    spin = Probe(lambda: sum(range(20_000)), 20_000)
    interleave([spin], time.perf_counter() + 0.5)
    result["drift"] = spin.spread
    say("making the deployment")
    with Site(folder / "site", 100, 5.0) as site:
        serial, urls = site.manifest().serial, {"server": site.urls[""], **site.urls}
        for hop in HOPS:
            say(f"polls at {hop}")
            result.setdefault("poll", {})[hop] = polls(
                site.processes[hop], urls[hop], serial, count
            )
            result.setdefault("connection", {})[hop] = connections(
                site.processes[hop], urls[hop], min(1000, count)
            )
        say("stored bytes")
        load, before = Load(site, 1000, 50, 32), _database(site)
        load.turn("direct", 100, True, 20 * count, 60.0)
        result["stored"] = (_database(site) - before) / load.receipted - 1000
    return result


def _database(site: Site) -> int:
    """Bytes of the database, what is still in SQLite's log among them."""
    with site.admin.store.reading() as db:
        pages, free, size = (
            int(db.exec_driver_sql(f"PRAGMA {name}").scalar_one())
            for name in ("page_count", "freelist_count", "page_size")
        )
    return (pages - free) * size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the result to this file")
    parser.add_argument("--count", type=int, default=2000, help="polls, at least 64 (2000)")
    args = parser.parse_args()
    if not 64 <= args.count <= 100_000:
        parser.error("--count goes from 64 to 100000")
    with tempfile.TemporaryDirectory(prefix="upseal-extras-") as folder:
        (Path(folder) / "site").mkdir()
        result = measure(Path(folder), args.count)
    machine.save(args.json, "fleet-extras", **result)
    poll, each = result["poll"], result["connection"]
    print(f"a look costs the server {poll['server'] * 1e3:.2f} ms, a relay "
          f"{poll['passing'] * 1e3:.2f} ms; a connection {each['server'] / 1e3:.1f} and "
          f"{each['passing'] / 1e3:.1f} kB; a commit waits {result['sync'] * 1e3:.2f} ms and "
          f"{result['sync_byte'] * 1e9:.2f} s a GB; a report "
          f"takes {result['stored']:.0f} bytes more in the database than it has; a TLS handshake "
          f"{result['handshake'] * 1e3:.2f} ms; drift {result['drift']:.0%}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
