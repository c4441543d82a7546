# SPDX-License-Identifier: Apache-2.0
"""``upseal server uploads``: lists what is stored, and copies it out."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fleet_server_support import Site
from fleet_server_uploads_support import Upload, content, rows, send

from upseal.cli import main
from upseal.cli.parser import build
from upseal.fleet.server.settings import Limits, read_settings
from upseal.fleet.settings import SettingsError

NAME = "report ä\n\x1b[31m".encode()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("site") / "deployment")
    made.enable()
    with made.running():
        made.web, made.db = made.enrol("web-1"), made.enrol("rack/db")
        made.one = Upload.make(made, os.urandom(3_000_000), name=NAME)
        made.two = Upload.make(made, b"", "clear", name=b"\xff")
        send(made.web, made.one)
        send(made.db, made.two)
    return made


@pytest.fixture
def ask(site, capsysbinary):
    def run(*arguments, code=0):
        assert main(["server", "uploads", *arguments, "-d", str(site.folder)]) == code
        out = capsysbinary.readouterr()
        assert bool(out.err) == bool(code)
        return (out.err if code else out.out).decode()

    return run


def which(sender, file):
    return f"{sender.name}/{file.announcement.upload.hex()}"


def test_for_machines(ask, site):
    one, two = map(json.loads, ask("--json").splitlines())
    (row,) = rows(site, site.web.agent)
    assert one == {
        "client": "web-1", "agent": site.web.agent.hex(), "upload": row.upload.hex(),
        "encoding": "utf-8", "name": NAME.decode(), "size": 3_000_000, "sha256": row.sha256.hex(),
        "modified": 1_700_000_000_000, "received": row.received, "sealed": True,
        "suite": row.suite, "key_id": row.key_id.hex(),
        "path": str(site.folder / "uploads" / "stored" / row.path), "deleted": None,
    }  # fmt: skip
    assert Path(one["path"]).read_bytes() == site.one.data
    assert (two["encoding"], base64.b64decode(two["name"])) == ("base64", b"\xff")
    assert (two["client"], two["size"], two["sealed"]) == ("rack/db", 0, False)
    assert (two["suite"], two["key_id"]) == (None, None)


def test_for_people(ask, site):
    one, two = ask().splitlines()
    assert "web-1  sealed  2.9 MiB" in one
    assert one.endswith("report ä??[31m")
    assert two.endswith(f"rack/db  clear  0 bytes  {site.two.announcement.upload.hex()}  \ufffd")


def test_some_of_them(ask, site):
    def names(*how):
        return [json.loads(line)["client"] for line in ask("--json", *how).splitlines()]

    assert names("--client", "web-1") == names("--client", site.web.agent.hex()[:8]) == ["web-1"]
    assert names("--since", "1h") == ["web-1", "rack/db"]
    assert names("--since", "2100-01-01") == []
    assert "no client" in ask("--client", "nobody", code=1)


def test_copying_out(ask, site, tmp_path):
    target = tmp_path / "copy"
    known = site.one.announcement.upload.hex()
    for name in (f"web-1/{known}", f"{site.web.agent.hex()}/{known}"):
        assert ask("--get", name, "-o", str(target)) == ""
        assert target.read_bytes() == site.one.data
    assert ask("--get", which(site.db, site.two), "-o", str(target)) == ""
    assert target.read_bytes() == b""
    command = [sys.executable, "-m", "upseal", "server", "uploads", "-d", str(site.folder)]
    done = subprocess.run(
        [*command, "--get", which(site.web, site.one)], capture_output=True, timeout=60, check=True
    )
    assert done.stdout == site.one.data


def test_what_cannot_be_copied(ask, site, tmp_path):
    target = tmp_path / "copy"
    known = site.one.announcement.upload.hex()
    assert "CLIENT/UPLOAD" in ask("--get", known, code=2)
    assert "CLIENT/UPLOAD" in ask("--get", "web-1/12", code=2)
    assert "no upload" in ask("--get", "web-1/" + "0" * 32, code=1)
    assert "no upload" in ask("--get", f"rack/db/{known}", code=1)
    assert "no client" in ask("--get", f"nobody/{known}", code=1)
    assert "--get" in ask("-o", str(target), code=2)
    assert "--json" in ask("--get", f"web-1/{known}", "--json", code=2)
    assert "cannot" in ask("--get", f"web-1/{known}", "-o", str(tmp_path / "no" / "x"), code=4)
    (row,) = rows(site, site.web.agent)
    path = site.settings.uploads / "stored" / row.path
    data = content(site, row)
    try:
        path.write_bytes(data[:-1] + b"?")
        assert "SHA-256" in ask("--get", f"web-1/{known}", "-o", str(target), code=1)
        path.unlink()
        assert "cannot read" in ask("--get", f"web-1/{known}", "-o", str(target), code=4)
    finally:
        path.write_bytes(data)
    assert not list(tmp_path.iterdir())


def test_the_page_names_the_act_and_every_setting():
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "cli.md").read_text().partition("## upseal server")[2].partition("\n## ")[0]
    (commands,) = (a for a in build(["server"])._actions if isinstance(a.choices, dict))
    (acts,) = (a for a in commands.choices["server"]._actions if isinstance(a.choices, dict))
    assert "uploads" in acts.choices
    for act in acts.choices:
        assert f"`{act}`" in page, act
    administration = (docs / "administration.md").read_text()
    for name in Limits.__dataclass_fields__:
        if name.startswith("upload"):
            assert f"\n{name} = " in page, name
            assert f"| `{name}` |" in administration, name


def test_settings(tmp_path):
    made = Site(tmp_path / "deployment")
    assert made.settings.uploads == made.folder / "uploads"
    made.configure('[server]\nuploads_folder = "../other"\nupload_rate = 0')
    assert made.settings.uploads == made.folder / "../other"
    page = made.folder / "deployment.toml"
    before = page.read_text()
    for line in ("upload_bytes = 0", "uploads_hop_share = -0.5", "upload_size = 1.5"):
        page.write_text(f"{before}\n{line}")
        with pytest.raises(SettingsError, match="must be"):
            read_settings(made.folder)
    page.write_text(f"{before}\nuploads_hop_share = 1.5")
    made.settings = read_settings(made.folder)
    with pytest.raises(SettingsError, match="uploads"), made.running():
        pass
    page.write_text(before.replace("../other", "deployment.toml"))
    made.settings = read_settings(made.folder)
    with pytest.raises(SettingsError, match="cannot use the folder"), made.running():
        pass
