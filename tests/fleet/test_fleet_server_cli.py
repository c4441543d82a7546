# SPDX-License-Identifier: Apache-2.0
"""``upseal server``: the commands that look, and what they do where there is nothing to see."""

import base64
import json
import time

import pytest
from fleet_server_support import Site, clear, sealed

from upseal.cli import main
from upseal.fleet.policy import Reason
from upseal.fleet.server import upkeep
from upseal.fleet.server.store import Store, audit, deadletters


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("site") / "deployment")
    made.enable()
    with made.running():
        web, db = made.enrol("web-1"), made.enrol("db-1")
        web.send(sealed(made, web.unit("text ä\n\x1b[31m".encode(), b"\xff\0binary")))
        db.send(clear(db.unit(b"x" * 500, reason=Reason.NO_CERTIFICATE)))
        db.send(clear(db.unit(b"y", sequence=1)))
        made.web, made.db = web, db
    return made


@pytest.fixture
def ask(site, capsys):
    def run(*arguments, code=0):
        assert main(["server", *arguments, "-d", str(site.folder)]) == code
        out = capsys.readouterr()
        assert bool(out.err) == bool(code)
        return out.err if code else out.out

    return run


def test_reports_for_machines(ask, site):
    first, second, third = map(json.loads, ask("reports", "--json").splitlines())
    assert first.keys() == third.keys()
    assert (first["client"], first["agent"]) == ("web-1", site.web.agent.hex())
    assert (first["encoding"], first["body"]) == ("utf-8", "text ä\n\x1b[31m")
    assert second["encoding"] == "base64"
    assert base64.b64decode(second["body"]) == b"\xff\0binary"
    assert (first["position"], second["position"], second["sequence"]) == (0, 1, 1)
    assert (first["sealed"], first["reason"], first["level"]) == (True, "sealed", "optional")
    assert len(first["key_id"]) == 16
    assert (third["sealed"], third["reason"], third["key_id"]) == (False, "no-certificate", None)
    assert abs(first["received"] - time.time() * 1000) < 60_000


def test_reports_for_people(ask):
    first, second, third = ask("reports").splitlines()
    assert "web-1  sealed  text ä" in first
    assert "\x1b" not in first
    assert "(8 bytes)" in second
    assert third.endswith("...")


def test_reports_are_chosen(ask, site):
    def ids(*how):
        return [json.loads(line)["id"] for line in ask("reports", "--json", *how).splitlines()]

    everything = ids()
    assert ids("--client", "web-1") == ids("--client", site.web.agent.hex()[:8]) == everything[:2]
    assert ids("--limit", "2") == everything[:2]
    assert ids("--after", str(everything[0])) == everything[1:]
    assert ids("--since", "1h") == everything
    assert ids("--until", "1h") == ids("--since", "2100-01-01T00:00:00Z") == []
    assert ids("--until", "2100-01-01") == everything
    assert "no client" in ask("reports", "--client", "nobody", code=1)
    assert "no time" in ask("reports", "--since", "yesterday", code=2)


def test_alarms(ask, site):
    found = json.loads(ask("alarms", "--json"))["alarms"]
    # Said to be sealed, and sent in clear; and contradicting what was there.
    assert {alarm["kind"] for alarm in found} == {"contradiction", "arrived-clear"}
    assert {alarm["client"] for alarm in found} == {"db-1"}
    assert {alarm["subject"] for alarm in found} == {site.db.agent.hex()}
    assert "contradiction" in ask("alarms")
    assert ask("alarms", "--since", "2100-01-01") == "no alarms\n"
    assert json.loads(ask("alarms", "--json", "--limit", "1"))["alarms"][0]["times"] == 1


def test_dead_letters(ask, site):
    assert ask("deadletters") == "no dead letters\n"
    with Store.open(site.settings.database) as store, store.writing() as db:
        for n in (1, 2):
            deadletters.put(
                db, id=bytes([n]) * 32, body=b"sealed", hop=site.web.hop_id, role="agent",
                received=5, reason=deadletters.MISSING_KEY, key_id=b"k" * 8, total_quota=1000,
                hop_quota=1000,
            )  # fmt: skip
    assert ask("deadletters").count("missing-key") == 2
    shown = json.loads(ask("deadletters", "list", "--json"))["dead_letters"]
    assert [d["id"][:2] for d in shown] == ["01", "02"]
    assert (shown[0]["size"], shown[0]["replaying"]) == (6, False)
    assert json.loads(ask("deadletters", "replay", "--id", "0101", "--json"))["count"] == 1
    shown = json.loads(ask("deadletters", "--json"))["dead_letters"]
    assert [d["replaying"] for d in shown] == [True, False]
    assert "--all" in ask("deadletters", "drop", code=2)
    assert "no dead letter" in ask("deadletters", "drop", "--id", "ff", code=1)
    assert "2 dead letters" in ask("deadletters", "drop", "--id", "0", code=1)
    assert ask("deadletters", "drop", "--id", "02") == "1 dropped\n"
    assert ask("deadletters", "drop", "--all") == "1 dropped\n"
    with Store.open(site.settings.database) as store, store.reading() as db:
        acts = [e.act for e in audit.entries(db)]
        assert acts[-3:] == ["deadletters-replay", "deadletters-drop", "deadletters-drop"]
        assert audit.verify(db)


def test_where_there_is_no_deployment(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("UPSEAL_DEPLOYMENT", raising=False)
    monkeypatch.chdir(tmp_path)
    for act in ("reports", "alarms", "deadletters", "run"):
        assert main(["server", act]) == 1
        assert "-d" in capsys.readouterr().err
    (tmp_path / "deployment.toml").write_text(f'deployment = "{"00" * 16}"\n')
    assert main(["server", "reports"]) == 4
    assert "no database" in capsys.readouterr().err
    assert main(["server", "run"]) == 1
    assert "receipt.pem" in capsys.readouterr().err
    assert main(["server", "run", "--listen", "nowhere"]) == 2
    assert main(["server"]) == 2


def test_the_folder_may_come_from_the_environment(site, capsys, monkeypatch):
    monkeypatch.setenv("UPSEAL_DEPLOYMENT", str(site.folder))
    assert main(["server", "reports", "--limit", "1"]) == 0
    assert "web-1" in capsys.readouterr().out


def test_upkeep_looks_every_second():
    assert upkeep.EVERY == 1.0
