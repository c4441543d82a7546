# SPDX-License-Identifier: Apache-2.0
"""``upseal doctor`` on a real agent, relays and server: well, and with each thing gone wrong."""

import datetime
import json
import os
import shutil
import sqlite3
import threading
from contextlib import closing, contextmanager
from email.utils import formatdate
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fleet_nodes import eventually
from fleet_world import make_world

from upseal import PrivateKey
from upseal.cli import main
from upseal.fleet.admin.deployment import Deployment
from upseal.fleet.server.store import Store, StoreError

BAD, WARNED = 1, 8


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A server, a decrypting and a passing relay, and one agent that has reported."""
    agents = {"must": "required"}
    with make_world(tmp_path_factory.mktemp("doctor") / "world", agents=agents) as made:
        made.report(3)
        must = made.members["must"]
        eventually(lambda: not must.depth, "receipts")
        yield made


@pytest.fixture
def look(capsys):
    """Runs it; gives the exit code and the lines by check."""

    def looked(*arguments):
        capsys.readouterr()
        code = main(["doctor", "--json", "--timeout", "5", *map(str, arguments)])
        out = capsys.readouterr()
        assert not out.err
        found = {}
        for line in json.loads(out.out)["lines"]:
            found.setdefault(line["check"], []).append(line)
        return code, found

    return looked


@pytest.fixture
def agent(world, tmp_path):
    """A copy of the agent's folder, for a test to break; no process runs from it."""
    folder = tmp_path / "agent"
    source = world.members["must"].folder
    folder.mkdir(mode=0o700)
    for name in ("agent.toml", "enrolment.json", "hop.pem", "identity.pem", "spool.pem",
                 "trust.json", "parent.json"):  # fmt: skip
        shutil.copy(source / name, folder / name)
    return folder


def worst(lines):
    order = ["ok", "unknown", "warn", "fail"]
    return max((line["state"] for line in lines), key=order.index)


def said(lines, state):
    """What the lines of that state say, and that each of them says what to do."""
    chosen = [line for line in lines if line["state"] == state]
    assert chosen, lines
    assert all(line["do"] for line in chosen)
    return " ".join(f"{line['what']} {line['do']}" for line in chosen)


def parent_is(folder, url):
    path = folder / "agent.toml"
    lines = path.read_text().splitlines()
    lines[:] = [f'parent = "{url}"' if one.startswith("parent = ") else one for one in lines]
    path.write_text("\n".join(lines) + "\n")


def snapshot(folder):
    """Every file with its bytes, mode and time: sockets and the like there are none."""
    return {
        path: (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# -- all is well -----------------------------------------------------------------------


def test_all_is_well_with_an_agent_a_relay_and_a_server_that_run(world, look, monkeypatch):
    monkeypatch.delenv("UPSEAL_ENGINE", raising=False)
    monkeypatch.delenv("UPSEAL_BACKEND", raising=False)
    wanted = {
        "settings", "folder", "enrolment", "keys", "manifest", "certificate", "pinned-key",
        "parent", "clock", "parent-manifest", "capabilities", "process", "queue", "disk",
    }  # fmt: skip
    for role, name in (("agent", "must"), ("relay", "passing"), ("relay", "decrypting")):
        code, found = look(f"--{role}", world.folder / name)
        assert wanted <= set(found)
        bad = [one for check in wanted for one in found[check] if one["state"] != "ok"]
        # They have not been asked for a while: `queue` counts what is on its way.
        assert not bad, (name, bad)
        assert code in (0, WARNED)
    _, found = look("--server", world.deployment)
    for check in ("settings", "folder", "keys", "database", "manifest", "certificate", "disk"):
        assert worst(found[check]) == "ok", found[check]
    assert any("keys/1-" in line["what"] for line in found["keys"])


def test_it_changes_nothing_and_says_no_secret(world, agent, look, capsys):
    secrets = [
        line
        for path in (*agent.glob("*.pem"), *world.deployment.rglob("*.pem"))
        if b"PRIVATE" in path.read_bytes()
        for line in path.read_text().splitlines()
        if not line.startswith("-----")
    ]
    assert len(secrets) > 5
    secrets.append(json.loads((agent / "enrolment.json").read_text())["credential"])
    before = snapshot(agent)
    code, _ = look("--agent", agent)
    assert snapshot(agent) == before
    main(["doctor", "--agent", str(agent)])
    main(["doctor", "--server", str(world.deployment), "--json"])
    text = capsys.readouterr().out
    assert "identity.pem" in text and code == WARNED
    assert not [secret for secret in secrets if secret in text]


# -- an agent's folder ------------------------------------------------------------------


def test_a_key_that_others_may_read(agent, look):
    assert worst(look("--agent", agent)[1]["keys"]) == "ok"
    os.chmod(agent / "identity.pem", 0o644)
    code, found = look("--agent", agent)
    assert code == BAD
    assert f"chmod 600 {agent}/identity.pem" in said(found["keys"], "fail")
    (agent / "identity.pem").chmod(0o600)
    (agent / "hop.pem").write_text("no key")
    (agent / "spool.pem").unlink()
    text = said(look("--agent", agent)[1]["keys"], "fail")
    assert "hop.pem holds no signing key" in text and "spool.pem is missing" in text


def test_a_folder_that_others_may_write(agent, look):
    agent.chmod(0o777)
    code, found = look("--agent", agent)
    assert code == BAD and "chmod 700" in said(found["folder"], "fail")
    agent.chmod(0o755)
    assert worst(look("--agent", agent)[1]["folder"]) == "warn"


def test_settings_that_are_broken_leave_the_rest_to_be_looked_at(agent, look):
    (agent / "agent.toml").write_text("parent = 7\n")
    code, found = look("--agent", agent)
    assert code == BAD
    assert "parent must be text" in said(found["settings"], "fail")
    assert worst(found["keys"]) == "ok"
    for check in ("parent", "clock", "disk", "queue"):
        assert [line["do"] for line in found[check]] == ["see `settings`"]


def test_a_folder_that_is_no_agents(tmp_path, look):
    code, found = look("--agent", tmp_path / "nowhere")
    assert code == BAD
    assert "upseal agent enrol" in said(found["settings"], "fail")
    assert worst(found["enrolment"]) == worst(found["folder"]) == "fail"


def test_what_is_believed_is_damaged(agent, look):
    text = (agent / "trust.json").read_text()
    (agent / "trust.json").write_text(text[: len(text) // 2])
    assert "damaged" in said(look("--agent", agent)[1]["manifest"], "fail")


def test_no_process_and_reports_that_wait(world, agent, look):
    _, found = look("--agent", agent)
    assert "no process runs" in said(found["process"], "warn")
    assert found["queue"][0]["what"] == "nothing was ever kept here"
    spool = agent / "spool.db"
    member = world.members["must"]
    with closing(sqlite3.connect(member.folder / "spool.db")) as db:
        db.execute(f"VACUUM INTO '{spool}'")

    def change(words, *values):
        with closing(sqlite3.connect(spool)) as db, db:
            db.execute(words, values)

    assert worst(look("--agent", agent)[1]["queue"]) == "ok"
    now = int(time() * 1000)
    change("INSERT INTO reports (made, sealed) VALUES (?, x'00')", now)
    change("UPDATE state SET made = made + 1, bytes = 1")
    assert "nobody sends" in said(look("--agent", agent)[1]["queue"], "warn")
    change("UPDATE reports SET made = ?", now - 3_600_000)
    code, found = look("--agent", agent)
    assert code == BAD and "nothing goes up" in said(found["queue"], "fail")
    change("DELETE FROM reports")
    change("UPDATE state SET bytes = ?", 250 << 20)
    assert "soon full" in said(look("--agent", agent)[1]["queue"], "warn")
    change("UPDATE state SET bytes = ?", 256 << 20)
    assert "nothing more is taken" in said(look("--agent", agent)[1]["queue"], "fail")
    assert not list(agent.glob("spool.db-*"))


def test_a_disk_without_the_room_that_is_to_stay_free(agent, look):
    with open(agent / "agent.toml", "a") as file:
        file.write(f"[uploads]\nmin_free = {1 << 59}\n")
    code, found = look("--agent", agent)
    assert code == BAD and "make room" in said(found["disk"], "fail")


def test_fips_keys_without_fips_mode(agent, look, monkeypatch):
    monkeypatch.delenv("UPSEAL_FIPS", raising=False)
    path = agent / "agent.toml"
    path.write_text(path.read_text().replace("fips = false", "fips = true"))
    assert "UPSEAL_FIPS=1" in said(look("--agent", agent)[1]["fips"], "warn")


# -- its parent -------------------------------------------------------------------------


def test_a_parent_that_is_down(agent, look):
    with ThreadingHTTPServer(("127.0.0.1", 0), Clockwise) as gone:
        port = gone.server_address[1]
    parent_is(agent, f"http://127.0.0.1:{port}")
    code, found = look("--agent", agent)
    assert code == BAD
    assert f"127.0.0.1:{port} does not answer" in said(found["parent"], "fail")
    assert worst(found["clock"]) == worst(found["parent-manifest"]) == "unknown"
    assert worst(found["keys"]) == "ok"


class Clockwise(BaseHTTPRequestHandler):
    """Passes requests on to a real server, with its clock set wrong."""

    protocol_version = "HTTP/1.1"
    target, off = None, 0

    def do_GET(self):
        with closing(HTTPConnection(*self.target, timeout=10)) as upstream:
            upstream.request("GET", self.path)
            answer = upstream.getresponse()
            body = answer.read()
        self.send_response_only(answer.status)
        self.send_header("Date", formatdate(time() + self.off, usegmt=True))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def clock_off(node, seconds):
    handler = type("Off", (Clockwise,), {"target": node.address(), "off": seconds})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("off", "state", "words"),
    [
        (0, "ok", "as the parent's"),
        (3600, "fail", "60 min behind"),
        (-3600, "fail", "60 min ahead of"),
        (-100, "warn", "s ahead of"),
    ],
)
def test_a_clock_that_is_off(world, agent, look, off, state, words):
    with clock_off(world.nodes["passing"], off) as url:
        parent_is(agent, url)
        (agent / "parent.json").unlink()
        _, found = look("--agent", agent)
    assert [line["state"] for line in found["clock"]] == [state]
    assert words in found["clock"][0]["what"]
    assert worst(found["parent"]) == worst(found["parent-manifest"]) == "ok"


def test_another_relay_than_the_one_that_is_believed(world, agent, look):
    pin = agent / "parent.json"
    said_of = json.loads(pin.read_text())
    other = json.loads((world.folder / "decrypting" / "enrolment.json").read_text())["agent"]
    pin.write_text(json.dumps({**said_of, "relay": other}))
    code, found = look("--agent", agent)
    assert code == BAD and "forget-parent" in said(found["capabilities"], "fail")
    assert json.loads(pin.read_text())["relay"] == other


def test_a_parent_of_another_deployment_is_not_believed(world, agent, look, tmp_path):
    with make_world(tmp_path / "other", agents={}, relays=False) as other:
        parent_is(agent, other.url)
        code, found = look("--agent", agent)
    assert code == BAD
    assert "signed by no key that is pinned here" in said(found["parent-manifest"], "fail")


# -- the server -------------------------------------------------------------------------


def init(folder, days_ago=0):
    """A deployment as it lies on the disk, made so many days ago."""
    Deployment.init(folder, name="site", clock=lambda: int((time() - days_ago * 86400) * 1000))
    return folder


@pytest.fixture
def site(tmp_path):
    return init(tmp_path / "site")


@pytest.mark.parametrize(
    ("days", "state", "words"),
    [(0, "ok", "until"), (80, "warn", "expires"), (100, "warn", "stale since")],
)
def test_a_manifest_that_expires(tmp_path, look, days, state, words):
    _, found = look("--server", init(tmp_path / "site", days))
    assert [line["state"] for line in found["manifest"]] == [state]
    assert words in found["manifest"][0]["what"]
    assert (found["manifest"][0]["do"] or "").startswith("`upseal admin renew`" if days else "")
    assert "generate-key" in said(found["certificate"], "warn")


def test_a_database_that_is_not_there_or_another_ones(site, look, tmp_path):
    before = snapshot(site)
    assert worst(look("--server", site)[1]["database"]) == "ok"
    assert snapshot(site) == before
    with closing(sqlite3.connect(site / "server.db")) as db, db:
        db.execute("UPDATE meta SET value = '9' WHERE name = 'schema'")
    code, found = look("--server", site)
    assert code == BAD and "version 9" in said(found["database"], "fail")
    (site / "server.db").write_bytes(b"not a database at all" * 100)
    assert "not a database" in said(look("--server", site)[1]["database"], "fail")
    (site / "server.db").unlink()
    _, found = look("--server", site)
    assert "there is no file" in said(found["database"], "fail")
    assert worst(found["manifest"]) == worst(found["alarms"]) == "unknown"
    assert worst(found["keys"]) == "ok"
    assert not (site / "server.db").exists()
    text = (site / "deployment.toml").read_text()
    url = "postgresql://ada:s3cr3t@127.0.0.1:1/upseal"
    (site / "deployment.toml").write_text(text.replace("sqlite:///server.db", url))
    code, found = look("--server", site)
    assert code == BAD and "s3cr3t" not in json.dumps(found)
    assert "check `database`" in said(found["database"], "fail")


@pytest.mark.parametrize("rest", ["s3cr@t:w0rd@127.0.0.1:1/upseal", "s3cr3t@127.0.0.1:p0rt/upseal"])
def test_a_database_whose_url_is_none_is_not_repeated(site, look, rest):
    path = site / "deployment.toml"
    url = f"postgresql://ada:{rest}"
    path.write_text(path.read_text().replace("sqlite:///server.db", url))
    code, found = look("--server", site)
    assert code == BAD and "is no URL" in said(found["database"], "fail")
    words = json.dumps(found)
    assert "s3cr" not in words and "w0rd" not in words
    with pytest.raises(StoreError, match="no database URL"):
        Store.open(url)


def test_a_key_that_is_kept_elsewhere_is_not_missing(world, look, tmp_path):
    site = tmp_path / "copy"
    shutil.copytree(world.deployment, site, ignore=shutil.ignore_patterns("*.db*", "address"))
    with closing(sqlite3.connect(world.deployment / "server.db")) as db:
        db.execute(f"VACUUM INTO '{site}/server.db'")
    for path in (site / "keys").glob("*.pem"):
        public = PrivateKey.from_pem(path.read_bytes()).public_key
        path.with_suffix(".ref").write_bytes(b"unix:/run/keys.sock\n" + public.to_pem())
        path.unlink()
    _, found = look("--server", site)
    assert worst(found["keys"]) == "ok", found["keys"]
    assert public.key_id.hex() in json.dumps(found["keys"])
    path.with_suffix(".ref").write_bytes(b"nowhere\n")
    assert "names no key" in said(look("--server", site)[1]["keys"], "fail")


def test_a_key_that_is_missing_and_an_alarm(world, look, tmp_path):
    site = tmp_path / "copy"
    site.mkdir(mode=0o700)
    for name in ("deployment.toml", "enrol.pem", "receipt.pem", "ca.pem"):
        shutil.copy(world.deployment / name, site / name)
    with closing(sqlite3.connect(world.deployment / "server.db")) as db:
        db.execute(f"VACUUM INTO '{site}/server.db'")
    _, found = look("--server", site)
    assert "dead letters" in said(found["keys"], "fail")
    assert worst(found["alarms"]) == worst(found["dead-letters"]) == "ok"
    with closing(sqlite3.connect(site / "server.db")) as db, db:
        now = int(time() * 1000)
        db.execute(
            "INSERT INTO alarms (kind, subject, first, last, times, details) "
            "VALUES ('bad-signature', x'', ?, ?, 1, '{}')", (now, now),
        )  # fmt: skip
    assert "bad-signature" in said(look("--server", site)[1]["alarms"], "warn")


@pytest.mark.parametrize(("days", "state"), [(-1, "fail"), (5, "warn"), (100, "ok")])
def test_a_certificate_for_tls(site, look, tmp_path, days, state):
    key = ec.generate_private_key(ec.SECP256R1())
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name)
        .public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - 9 * day).not_valid_after(now + days * day)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (site / "tls.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (site / "tls.key").write_bytes(pem)
    (site / "tls.key").chmod(0o600)
    with open(site / "deployment.toml", "a") as file:
        file.write('[server]\ntls_certificate = "tls.pem"\ntls_key = "tls.key"\n')
    own = [line for line in look("--server", site)[1]["tls"] if "tls.pem" in line["what"]]
    assert [line["state"] for line in own] == [state]
    (site / "tls.key").chmod(0o644)
    assert "chmod 600" in said(look("--server", site)[1]["tls"], "fail")
    (site / "tls.key").write_bytes(init(tmp_path / "x").joinpath("enrol.pem").read_bytes())
    assert "cannot be used" in said(look("--server", site)[1]["tls"], "fail")
