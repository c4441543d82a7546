# SPDX-License-Identifier: Apache-2.0
"""The parts of observing: names in logs, an opener's memory, metrics in a file, levels of logs."""

import logging
import threading

import pytest
from fleet_agent_support import Site, agent_of, eventually
from fleet_server_support import Site as Deployment

from upseal import Opener, OpenError, PrivateKey, Sealer
from upseal.fleet.agent.metrics import written
from upseal.fleet.agent.settings import Settings as AgentSettings
from upseal.fleet.agent.tally import Tally
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.relay.settings import Settings as RelaySettings
from upseal.fleet.settings import SettingsError
from upseal.fleet.trail import LINE, body_name, in_lines, parse_unit, unit_name


def test_names():
    epoch = bytes(range(16))
    name = unit_name(epoch, 17)
    assert name == "000102030405-17"
    assert parse_unit(name) == parse_unit(f" {name.upper()}\n") == ("000102030405", 17)
    assert parse_unit(f"{epoch.hex()}-0") == (epoch.hex(), 0)
    for wrong in (
        "",
        "17",
        "0001-1",
        f"{epoch.hex()}0-1",
        f"{name}x",
        "000102030405-",
        "0x" + name,
    ):
        assert parse_unit(wrong) is None, wrong
    assert body_name(bytes(32)) == "0" * 16
    lines = list(in_lines(list(range(2 * LINE + 1))))
    assert [len(line) for line in lines] == [LINE, LINE, 1]
    assert list(in_lines([])) == []


def test_an_opener_says_how_well_it_remembers():
    key = PrivateKey.generate()
    first, second = Sealer([key.public_key]), Sealer([key.public_key])
    opener = Opener([key], cache=1)
    assert opener.sessions == (0, 0, 0)
    batches = [sealer.seal_batch([b"a"]) for sealer in (first, first, second, first)]
    for batch in batches:
        opener.open_batch(batch)
    assert opener.sessions == (1, 3, 1), "the second one took the first one's place"
    one = first.seal(b"x")
    for _ in range(5):
        opener.open(one)
    assert opener.sessions == (1, 3, 2), "looked for once"
    with pytest.raises(OpenError):
        opener.open(Sealer([PrivateKey.generate().public_key]).seal(b"x"))
    assert opener.sessions == (1, 3, 2)


def test_a_counter_that_somebody_else_keeps_is_not_seen_to_go_back():
    values = iter([3, 2, 5])
    metrics = Metrics("agent")
    metrics.counted("looks", "How often", lambda: next(values))
    for shown in (3, 3, 5):
        assert f"upseal_agent_looks_total {shown}.0" in metrics.render().decode()


def test_times_are_counted_in_buckets():
    tally = Tally()
    for seconds in (0.001, 0.01, 0.3, 1e9):
        tally.took(seconds)
    counts, total = tally.times()
    assert dict(counts)["0.01"] == 2
    assert dict(counts)["0.5"] == 3
    assert dict(counts)["3600.0"] == 3
    assert counts[-1] == ("+Inf", 4)
    assert total == pytest.approx(1e9 + 0.311)


def test_metrics_in_a_file(tmp_path, caplog):
    """Replaced as a whole; where that cannot be done, a line says so, once."""
    caplog.set_level(logging.WARNING, "upseal.agent")
    out = tmp_path / "out"
    site = Site()
    with agent_of(site, tmp_path, "http://127.0.0.1:1", started=False) as agent:
        with written(agent, out / "upseal.prom", 0.01):
            eventually(lambda: caplog.records)
            out.mkdir()
            eventually((out / "upseal.prom").exists)
            agent.report(b"x")
        text = (out / "upseal.prom").read_text()
        assert "upseal_agent_reports_made_total 1.0" in text, "at its end as well"
        assert "upseal_agent_spool_depth 1.0" in text
    said = [r.getMessage() for r in caplog.records]
    assert said == ["metrics cannot be written"]
    assert not [t for t in threading.enumerate() if t.name == "upseal-metrics"]
    assert [path.name for path in out.iterdir()] == ["upseal.prom"]


def test_levels_of_logs(tmp_path):
    for kind in (AgentSettings, RelaySettings):
        assert kind.parse({"parent": "http://x"}).log_level == "info"
        assert kind.parse({"parent": "http://x", "log_level": "error"}).log_level == "error"
        with pytest.raises(SettingsError, match="log_level is debug, info, warning or error"):
            kind.parse({"parent": "http://x", "log_level": "loud"})
    site = Deployment(tmp_path / "site")
    with pytest.raises(SettingsError, match="log_level"):
        site.configure('[server]\nlog_level = "loud"')
