# SPDX-License-Identifier: Apache-2.0
"""A whole fleet that logs all it can: its logs and metrics hold no report and no key; a report can
be followed through them by its unit's and bodies' names; and the manual names every metric.
"""

import json
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from fleet_nodes import eventually, forms
from fleet_support import readings
from fleet_world import make_world

from upseal import PrivateKey
from upseal.cli import main
from upseal.core import header as headers
from upseal.fleet.credentials import Token
from upseal.fleet.http.client import Client
from upseal.fleet.trail import body_name
from upseal.fleet.units import body_id

ROOT = Path(__file__).parents[2]
PAGES = ("/metrics", "/healthz", "/readyz")


class Watched:
    """A fleet that has done its work, and all that it said of it."""

    def __init__(self, world):
        self.world = world
        self.texts = {}  # where -> what was said there
        self.tokens = []
        self.metrics = {}  # process -> name -> labels -> value

    def look(self):
        world = self.world
        for name, node in world.nodes.items():
            if node.role == "agent":
                # Port 0: the log says which.
                url = node.events("serving")[-1]["address"]
            else:
                host, port = node.address()
                url = f"http://{host}:{port}"
            with Client(url, 20.0) as client:
                for page in PAGES:
                    self.texts[f"{name}{page}"] = client.request("GET", page).body
            self.metrics[name] = parsed(self.texts[f"{name}/metrics"].decode())
            self.texts[f"{name}'s log"] = node.log.read_bytes()
        self.texts["the textfile"] = (world.folder / "agent.prom").read_bytes()
        self.metrics["the textfile"] = parsed(self.texts["the textfile"].decode())


def parsed(text):
    found = {}
    for each, value in readings(text).items():
        name, _, labels = each.partition("{")
        found.setdefault(name, {})[labels.rstrip("}")] = value
    return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    agents = {"must": "required", "plain": "none"}
    with make_world(folder, agents={}) as world:
        found = Watched(world)
        real = world.token

        def token(role):
            found.tokens.append(real(role))
            return found.tokens[-1]

        world.token = token
        for name, level in agents.items():
            member = world.add_agent(name, level, world.url)
            extra = '\n[metrics]\ninterval = 0.1\ntextfile = "{}"\n'.format(folder / "agent.prom")
            member.configure(extra if name == "must" else "")
            settings = member.folder / "agent.toml"
            settings.write_text('listen = "127.0.0.1:0"\n' + settings.read_text())
        world.start_agents()
        world.report(30)
        for member in world.members.values():
            eventually(lambda m=member: world.arrived(m), f"the receipts of {member.name}")
        # Rotated, so that there is an old key; somebody without a token; a full circle of beacons.
        world.enable()
        with world.admin() as admin, admin.view() as view:
            serial = view.manifest.serial
        for node in (world.members["must"].node, world.nodes["decrypting"]):
            eventually(lambda n=node: n.events("new manifest")[-1]["serial"] == serial, "the key")
        world.report(5)
        for member in world.members.values():
            eventually(lambda m=member: world.arrived(m), f"the receipts of {member.name}")
        found.files = {name: upload(world, member) for name, member in world.members.items()}
        with Client(world.proxies["server"].url, 20.0) as client:
            client.request("POST", "/v1/enrol", b"USL\x01garbage")
            client.request("POST", "/v1/units", b"garbage", {"authorization": "Upseal ey.ey.x"})
        eventually(lambda: "upseal_agent" in (folder / "agent.prom").read_text(), "the textfile")
        eventually(lambda: drained_to_new_key(world) >= 10, "gauges")
        found.look()
        yield found


def drained_to_new_key(world):
    found = parsed(metrics_of(world))["upseal_server_key_reports_last_hour"]
    return found.get('generation="2",state="active"', 0)


def upload(world, member):
    """A whole file of the agent's, stored; gives the mark in it."""
    mark = world.marker(secret=True)
    path = world.folder / "file of nobody's business"
    path.write_bytes((mark + bytes(1000)) * 200)
    member.agent.upload(path)
    path.unlink()
    eventually(lambda: not member.agent.status()["uploads"]["waiting"], "the upload's receipt")
    return mark


def metrics_of(world):
    host, port = world.nodes["server"].address()
    with Client(f"http://{host}:{port}", 20.0) as client:
        return client.request("GET", "/metrics").body.decode()


# -- no secret --------------------------------------------------------------------------------


def encodings(data):
    """How bytes may show up in a text."""
    yield from forms(data)
    yield data.hex().upper().encode()
    yield str(int.from_bytes(data, "big")).encode()
    yield repr(data)[2:-1].encode()


def scalars(pem):
    """The secret numbers of a private key."""
    key = serialization.load_pem_private_key(pem, None)
    if hasattr(key, "private_bytes_raw"):
        return [key.private_bytes_raw()]
    numbers = key.private_numbers()
    secret = [getattr(numbers, name) for name in ("private_value", "d", "p", "q") if
              hasattr(numbers, name)]  # fmt: skip
    return [number.to_bytes((number.bit_length() + 7) // 8, "big") for number in secret]


def bodies(world):
    """Everything sealed that passed any wire, found by how it begins."""
    for proxy in world.proxies.values():
        for data in proxy.sent_up():
            for match in re.finditer(rb"USL\x01", data):
                yield data[match.start() :]


def secrets(found):
    """What nobody may find: (what it is, bytes)."""
    world = found.world
    for path in sorted(world.folder.rglob("*")):
        if path.suffix in (".pem", ".key") and path.is_file():
            data = path.read_bytes()
            if b"PRIVATE KEY" not in data:
                continue
            yield f"text of {path.name}", b"".join(data.splitlines()[1:-1])[:40]
            for secret in scalars(data):
                yield f"key in {path.name}", secret
    for text in found.tokens:
        yield "a token", text.encode()[20:]
        yield "a token's secret", Token.decode(text).secret
    for path in world.folder.rglob("enrolment.json"):
        credential = json.loads(path.read_text())["credential"]
        for part in credential.split(".")[1:]:
            yield f"credential in {path.parent.name}", part.encode()
    opened = 0
    keys = {}
    for path in [*world.folder.rglob("keys/*.pem")]:
        key = PrivateKey.from_pem(path.read_bytes())
        keys[key.key_id] = key
    for body in bodies(world):
        try:
            entries = headers.parse(body[: 1 << 16]).entries
        except Exception:  # what begins so and is none
            continue
        for entry in entries:
            if entry.key_id in keys:
                opened += 1
                yield "a session's secret", keys[entry.key_id].unwrap(entry.wrapped)
    assert opened > 3, "sessions were looked at"
    for member in world.members.values():
        for marker in set(member.made.values()):
            yield f"a report of {member.name}", marker
    for name, mark in found.files.items():
        yield f"a file of {name}", mark


def test_neither_logs_nor_metrics_hold_reports_or_keys(watched):
    known = list(secrets(watched))
    kinds = {what.split()[0] for what, _ in known}
    assert {"text", "key", "a", "credential"} <= kinds
    assert len([what for what, _ in known if what.startswith("key in")]) >= 12
    needles = {form: what for what, secret in known for form in encodings(secret) if len(form) > 7}
    for where, text in watched.texts.items():
        assert len(text) > 5, where
        for needle, what in needles.items():
            assert needle not in text, f"{what} is in {where}"


def test_the_search_finds_what_is_there(watched):
    """A line as somebody might add it by mistake, with each secret in each form."""
    for what, secret in secrets(watched):
        for form in encodings(secret):
            line = b'{"event": "oops", "value": "' + form + b'"}\n'
            found = [f for f in encodings(secret) if len(f) > 7 and f in line]
            assert found, (what, form)


# -- following ----------------------------------------------------------------------------------


def events(watched, node, name):
    return watched.world.nodes[node].events(name)


def test_a_report_is_followed_from_agent_to_store(watched, capsys):
    """By names in logs alone: unit, body, the body it was repackaged into, report ids; `trace`."""
    world = watched.world
    for agent in ("must", "plain"):
        sent = [e for e in events(watched, agent, "unit sent") if e["count"] == 5][-1]
        stored = {e["unit"]: e for e in events(watched, agent, "unit stored")}
        unit, body = sent["unit"], sent["body"]
        assert stored[unit]["count"] == sent["count"]
        assert sent["how"] == ("sealed" if agent == "must" else "clear")
        # The passing relay has the body as it is; the decrypting one makes another of it.
        for relay in ("passing", "decrypting"):
            assert body in {e["body"] for e in events(watched, relay, "body taken")}, relay
            assert body in {e["body"] for e in events(watched, relay, "body answered")}, relay
        assert body in {e["body"] for e in events(watched, "passing", "body passed on")}
        (made,) = {
            e["body"] for e in events(watched, "decrypting", "bodies repackaged")
            if body in e["bodies"]
        }  # fmt: skip
        units = [e for e in events(watched, "decrypting", "units repackaged") if e["body"] == made]
        assert unit in {name for e in units for name in e["units"]}
        assert made in {e["body"] for e in events(watched, "decrypting", "body passed on")}
        (kept,) = [
            e for e in events(watched, "server", "units stored")
            if e["body"] == made and unit in e["units"]
        ]  # fmt: skip
        span = kept["reports"][kept["units"].index(unit)]
        first, last = map(int, span.split("-"))
        assert last - first + 1 == sent["count"]
        for text in (unit, str(first), str(last)):
            assert main(["server", "trace", text, "--json", "-d", str(world.deployment)]) == 0
            (known,) = json.loads(capsys.readouterr().out)["units"]
            assert (known["unit"], known["client"]) == (unit, agent)
            assert known["reports"] == {"first": first, "last": last, "count": sent["count"]}
            assert known["arrived"] == "sealed", "the last hop is"
            assert known["sealed"] == (agent == "must")
            if text != unit:
                assert known["report"]["position"] == int(text) - first
                assert known["report"]["bytes"] in map(len, world.members[agent].made)
        assert main(["server", "trace", unit, "-d", str(world.deployment)]) == 0
        shown = capsys.readouterr().out
        assert unit in shown
        assert agent in shown


@pytest.mark.parametrize(
    ("what", "code"), [("99999999", 1), ("0", 1), ("abcdefabcdef-1", 1), ("nonsense", 2),
                       ("abc-1", 2), (f"abcdefab-{10**19 - 1}", 2)],
)  # fmt: skip
def test_nothing_to_trace(watched, capsys, what, code):
    assert main(["server", "trace", what, "-d", str(watched.world.deployment)]) == code
    assert what in capsys.readouterr().err


def test_bodies_are_named_by_the_beginning_of_their_id(watched):
    from upseal.fleet.units import MalformedUnits, body_kind

    world = watched.world
    seen = set()
    for data in world.proxies["passing"].sent_up():
        for request in data.split(b"POST /v1/units HTTP/1.1\r\n")[1:]:
            head, _, rest = request.partition(b"\r\n\r\n")
            size = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
            try:
                if body_kind(rest[:size]) != "bundle":
                    seen.add(body_name(body_id(rest[:size])))
            except MalformedUnits:
                continue
    named = {e["body"] for agent in ("must", "plain") for e in events(watched, agent, "unit sent")}
    assert named <= seen


# -- metrics ------------------------------------------------------------------------------------


def test_metrics_tell_what_happened(watched):
    world, metrics = watched.world, watched.metrics
    server, relay = metrics["server"], metrics["decrypting"]
    assert server["upseal_server_reports_total"]['how="sealed"'] >= 35
    assert server["upseal_server_clear_reports_total"]['reason="level-none"'] >= 35
    assert server["upseal_server_client_reasons"]['actual="sealed",reason="sealed"'] == 1
    assert server["upseal_server_client_reasons"]['actual="clear",reason="level-none"'] == 1
    drain = server["upseal_server_key_reports_last_hour"]
    assert drain['generation="1",state="draining"'] >= 60
    assert 'generation="2",state="active"' in drain
    opened, known = (
        server[f"upseal_server_{name}"][""]
        for name in ("bodies_opened_total", "session_hits_total")
    )
    assert 0 < opened <= known + server["upseal_server_unwraps_total"][""], "with those of files"
    assert relay["upseal_relay_unwraps_total"][""] >= 1
    assert relay["upseal_relay_sessions"][""] >= 1
    agent = metrics["must"]
    assert agent["upseal_agent_decision"] == {'actual="sealed",wanted="required",why="sealed"': 1}
    assert agent["upseal_agent_units_sent_total"]['how="sealed"'] >= 1
    assert agent["upseal_agent_receipt_seconds_count"][""] >= 1
    assert agent["upseal_agent_spool_age_seconds"][""] == 0
    assert agent["upseal_agent_reports_stored_total"][""] == 36, "the announcement of a file too"
    assert set(metrics["the textfile"]) <= set(agent) | {
        name for name in metrics["the textfile"] if name.startswith("upseal_agent_http")
    }
    assert "upseal_agent_decision" in metrics["the textfile"]
    names = {member.id.hex() for member in world.members.values()} | set(world.members)
    for where, text in watched.texts.items():
        if where.endswith("/metrics"):
            assert not [name for name in names if f'"{name}"'.encode() in text], where


def exported(text):
    """Names by their ``# TYPE`` lines, without what each kind adds."""
    found = set()
    for line in text.decode().splitlines():
        if line.startswith("# TYPE upseal_"):
            name, kind = line.split()[2:4]
            if not name.endswith("_created"):
                found.add(name if kind != "counter" else name.removesuffix("_total") + "_total")
    return found


def documented():
    page = (ROOT / "docs/administration.md").read_text()
    section = page.partition("### All metrics")[2].partition("\n## ")[0].partition("\n### ")[0]
    rooms = {}
    for line in section.splitlines():
        if match := re.match(r"\| `(upseal_(agent|relay|server|ROOM)_\w+)(\{[\w,]*\})?` \|", line):
            names = [match[1]]
            if match[2] == "ROOM":
                names = [match[1].replace("ROOM", room) for room in ("agent", "relay", "server")]
            for name in names:
                assert name not in rooms, f"{name} stands there twice"
                rooms[name] = sorted((match[3] or "{}").strip("{}").split(","))
    return rooms


def test_the_manual_names_every_metric_and_no_other(watched):
    there = set()
    for where, text in watched.texts.items():
        if where.endswith("/metrics") or where == "the textfile":
            there |= exported(text)
    said = set(documented())
    assert there - said == set(), "not in docs/administration.md"
    assert said - there == set(), "only in docs/administration.md"


def test_the_manual_has_the_labels(watched):
    said = documented()
    for metrics in watched.metrics.values():
        for name, series in metrics.items():
            base = re.sub(r"_(bucket|sum|count|created)$", "", name)
            wanted = said.get(name, said.get(base))
            if wanted is None or name.endswith("_created"):
                continue
            for labels in series:
                keys = sorted(set(re.findall(r'(\w+)="', labels)) - {"le"})
                assert keys == [w for w in wanted if w], name
