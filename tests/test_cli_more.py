# SPDX-License-Identifier: Apache-2.0
"""Certificates, the demo, the bench, completion, version, and the parser itself."""

from __future__ import annotations

import datetime
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from test_cli import UPSEAL, upseal

from upseal.cli import common, inventory, main, measure, parser, tree
from upseal.fleet.agent import inventory as host


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for kind in ("x25519", "p256", "mlkem768-x25519", "rsa2048"):
        upseal("keygen", "-t", kind, "-o", folder / f"{kind}.pem")
    args = ("--subject", "Test CA", "-o", folder / "ca.pem", "--ca-key-out", folder / "ca.key")
    upseal("cert", "--new-ca", *args)
    return folder


def round_trip(certificate, key):
    sealed = upseal("seal", "-r", certificate, data=b"by certificate")
    assert upseal("open", "-i", key, data=sealed.stdout).stdout == b"by certificate"
    return sealed


# -- cert -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["x25519", "p256", "rsa2048"])
@pytest.mark.parametrize("half", ["pem", "pub.pem"])
def test_certificate_of_a_ca(keys, tmp_path, kind, half):
    out = tmp_path / "leaf.pem"
    ca = ("--ca-key", keys / "ca.key", "--ca-cert", keys / "ca.pem")
    args = ("-k", keys / f"{kind}.{half}", "--subject", "server", "-o", out)
    facts = json.loads(upseal("cert", *args, *ca, "--json").stdout)
    assert facts["suite"] == kind
    assert (facts["subject"], facts["issuer"]) == ("CN=server", "CN=Test CA")
    assert facts["certificate"] == str(out)
    leaf = x509.load_pem_x509_certificate(out.read_bytes())
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate((keys / "ca.pem").read_bytes()))
    assert round_trip(out, keys / f"{kind}.pem").stderr == b""
    der = tmp_path / "leaf.der"
    der.write_bytes(leaf.public_bytes(serialization.Encoding.DER))
    round_trip(der, keys / f"{kind}.pem")
    upseal("cert", *args, *ca, code=4)


@pytest.mark.parametrize("kind", ["p256", "rsa2048"])
def test_self_signed_certificate(keys, tmp_path, kind):
    done = upseal("cert", "-k", keys / f"{kind}.pem", "--subject", "server", "--days", 1)
    out = tmp_path / "c.pem"
    out.write_bytes(done.stdout)
    assert round_trip(out, keys / f"{kind}.pem").stderr == b""


def test_certificates_that_cannot_be(keys, tmp_path):
    name = ("--subject", "server")
    assert b"--ca-key" in upseal("cert", "-k", keys / "x25519.pem", *name, code=2).stderr
    done = upseal("cert", "-k", keys / "mlkem768-x25519.pem", *name, code=2)
    assert b"hybrid" in done.stderr
    assert b"cannot sign" in upseal("cert", "-k", keys / "p256.pub.pem", *name, code=2).stderr
    upseal("cert", *name, code=2)
    upseal("cert", "-k", keys / "p256.pem", *name, "--ca-key", keys / "ca.key", code=2)
    upseal("cert", "-k", keys / "p256.pem", *name, "--days", "99999999", code=2)
    upseal("cert", "-k", keys / "p256.pem", "--subject", "x" * 65, code=2)
    upseal("cert", "--new-ca", *name, code=2)
    ca = ("--ca-key", keys / "p256.pem", "--ca-cert", keys / "ca.pem")
    assert b"belong together" in (
        upseal("cert", "-k", keys / "x25519.pem", *name, *ca, code=2).stderr
    )
    ca = ("--ca-key", keys / "ca.key", "--ca-cert", keys / "ca.key")
    upseal("cert", "-k", keys / "x25519.pem", *name, *ca, code=1)


def test_new_ca_is_whole_or_not_at_all(tmp_path):
    args = ("cert", "--new-ca", "--subject", "CA", "--ca-key-out", tmp_path / "ca.key")
    upseal(*args, "-o", tmp_path / "no/such", code=4)
    assert not list(tmp_path.iterdir())
    upseal(*args, "-o", tmp_path / "ca.pem", "--passphrase", env={"UPSEAL_PASSPHRASE": "s"})
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in (tmp_path / "ca.key").read_bytes()
    upseal(*args, "-o", tmp_path / "other.pem", code=4)


def other_certificate(path, usages=(), days=(-1, 1), encipher=True):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "other")])
    now = datetime.datetime.now(datetime.UTC)
    flags = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
         "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.KeyUsage(key_agreement=encipher, **flags), critical=True)
    )
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path


def test_certificates_that_are_refused(tmp_path):
    tls = other_certificate(tmp_path / "a", [x509.ExtendedKeyUsageOID.SERVER_AUTH])
    assert b"TLS" in upseal("seal", "-r", tls, data=b"x", code=1).stderr
    signing = other_certificate(tmp_path / "b", encipher=False)
    assert b"keyAgreement" in upseal("seal", "-r", signing, data=b"x", code=1).stderr


def test_dates_are_warned_of(tmp_path):
    old = other_certificate(tmp_path / "old", days=(-9, -1))
    assert b"expired" in upseal("seal", "-r", old, data=b"x").stderr
    early = other_certificate(tmp_path / "early", days=(1, 9))
    assert b"is valid from" in upseal("seal", "-r", early, data=b"x").stderr


# -- demo -----------------------------------------------------------------------------


def test_demo(tmp_path):
    env = {"TMPDIR": str(tmp_path)}
    args = ("demo", "--skip-fleet", "--json", "--reports", 1500, "--upload-mib", 2)
    done = upseal(*args, env=env)
    assert done.stderr == b""
    facts = json.loads(done.stdout)
    assert facts["match"] is facts["core"]["match"] is True
    assert facts["engine"] in ("native", "portable")
    assert facts["reports"] is facts["clients"] is None, "the fleet's"
    assert facts["plaintext_on_disk"] is facts["checks"] is None
    reports = facts["core"]["reports"]
    assert reports["made"] == reports["opened"] == 1500
    assert sum(reports["properties"].values()) == 1500
    assert reports["batches"]["batches"] == 2
    assert reports["envelopes"]["overhead_per_report"] == 171
    upload = facts["core"]["upload"]
    assert upload["sha256_match"] is True
    assert upload["bytes"] >= 2 << 20
    assert upload["pipe"]["overhead"] == upload["file"]["overhead"] > 0
    assert not list(tmp_path.iterdir()), "cleaned"


def test_demo_in_words_and_kept(tmp_path):
    kept = tmp_path / "kept"
    args = ("demo", "--skip-fleet", "--reports", 300, "--upload-mib", 1, "--keep", kept)
    done = upseal(*args, "-t", "p256")
    assert b"everything as it should be: yes" in done.stdout
    lines = done.stderr.decode().splitlines()
    assert len(lines) > 5
    assert all(line.startswith("upseal demo: ") for line in lines)
    opened = upseal("open", "-i", kept / "key.pem", kept / "batch-001.sealed").stdout
    assert opened == (kept / "reports.ndjson").read_bytes()
    opened = upseal("open", "-i", kept / "key.pem", kept / "tree.tar.sealed").stdout
    assert opened == (kept / "tree.tar").read_bytes()
    upseal("demo", "--keep", kept, code=4)


def test_demo_stopped_cleans_up(tmp_path):
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    args = [*UPSEAL, "demo", "--reports", "200"]
    with subprocess.Popen(args, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        for line in child.stderr:
            if b"pipe" in line:
                time.sleep(0.2)
                child.send_signal(signal.SIGTERM)
                break
        child.communicate(timeout=60)
    assert child.returncode == 143
    assert not list(tmp_path.iterdir())


def test_demo_says_when_there_is_no_room(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    assert main(["demo", "--reports", "1"]) == 4
    assert "TMPDIR" in capsys.readouterr().err


def test_demo_without_psutil(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert main(["demo"]) == 2
    assert "pip install upseal[demo]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [("--agents", "2"), ("--skip-core", "--skip-fleet"), ("--seconds", "-1")]
)
def test_demo_refuses_what_makes_no_sense(options):
    assert main(["demo", *options]) == 2


def test_demo_notices_a_difference(monkeypatch, capsys):
    from upseal import Opener

    monkeypatch.setattr(Opener, "open_many", lambda self, blobs: [b"wrong"] * len(blobs))
    options = ("--skip-fleet", "--json", "--reports", "3", "--upload-mib", "0")
    assert main(["demo", *options]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["match"] is facts["core"]["match"] is False
    assert facts["core"]["reports"]["opened"] == 0


def test_reports_are_real_json_of_one_thing_each():
    reports = inventory.gather(400, lambda done, total: None)
    facts = [json.loads(report) for report in reports]
    assert len(facts) == 400
    assert all(isinstance(fact["property"], str) for fact in facts)
    assert not any("cmdline" in fact or "environ" in fact for fact in facts)


def test_packages_from_dpkg_or_else_python(monkeypatch, tmp_path):
    status = tmp_path / "status"
    status.write_text(
        "Package: a\nStatus: install ok installed\nVersion: 1\nDescription: x\n more: y\n\n"
        "Package: b\nStatus: deinstall ok config-files\nVersion: 2\n\n"
    )
    monkeypatch.setattr(host, "DPKG_STATUS", status)
    (found,) = host.packages()
    assert (found["name"], found["version"], found["summary"]) == ("a", "1", "x")
    monkeypatch.setattr(host, "DPKG_STATUS", tmp_path / "none")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    names = {found["name"] for found in host.packages()}
    assert "cryptography" in names


def test_tar_that_fails(tmp_path):
    with (
        pytest.raises(common.Failure, match="tar failed"),
        tree.tar_stream(["/no/such/file"], tmp_path) as stream,
    ):
        stream.readall()


def test_choose_says_when_there_is_too_little():
    with pytest.raises(common.Failure, match="--upload-mib"):
        tree_everywhere = tree._EVERYWHERE
        try:
            tree._EVERYWHERE, prefix = (), sys.prefix
            sys.prefix = "/no/such"
            tree.choose(1 << 20)
        finally:
            tree._EVERYWHERE, sys.prefix = tree_everywhere, prefix


# -- bench ----------------------------------------------------------------------------


def test_bench():
    facts = json.loads(upseal("bench", "--json", "--seconds", "0.05").stdout)
    assert facts["machine"]["cpu"]
    assert facts["machine"]["cores"] >= 1
    rows = facts["rows"]
    assert len(rows) == 12
    assert all(row["seal"] > 0 and row["open"] > 0 for row in rows)
    overhead = {(row["what"], row["size"]): row["overhead"] for row in rows}
    assert overhead["envelope, one by one", 1024] == 171
    assert 20 < overhead["batch of 1000", 1024] < 21


def test_bench_in_words(capsys, monkeypatch):
    from upseal.cli import bench

    monkeypatch.setattr(bench, "MEASURES", [bench._batch])
    assert main(["bench", "--seconds", "0.01", "--cipher", "both"]) == 0
    out = capsys.readouterr().out
    assert "chacha20-poly1305" in out
    assert "aes-256-gcm" in out


def test_rate_is_of_the_amount():
    rate = measure.per_second(lambda: time.sleep(0.002), 10, 0.02)
    assert 1000 < rate <= 5000


# -- completion --------------------------------------------------------------------------

BASH = shutil.which("bash")


def complete(words):
    """What bash would offer for the last word."""
    script = upseal("completion", "bash").stdout.decode()
    asked = " ".join(f"'{word}'" for word in words)
    script += f"\nCOMP_WORDS=({asked}); COMP_CWORD={len(words) - 1}; _upseal\n"
    script += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run([BASH, "-c", script], capture_output=True, check=True, timeout=60)
    assert done.stderr == b""
    return done.stdout.decode().split()


@pytest.mark.skipif(BASH is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["upseal", ""], list(parser.COMMANDS)),
        (["upseal", "se"], ["seal", "server"]),
        (["upseal", "--ver"], ["--version"]),
        (["upseal", "keygen", "-t", "rsa"], ["rsa2048", "rsa3072", "rsa4096"]),
        (["upseal", "seal", "--allow"], ["--allow-mixed"]),
        (["upseal", "seal", "--cipher", "c"], ["chacha20-poly1305"]),
        (["upseal", "seal", "-r", ""], []),
        (["upseal", "completion", ""], ["bash", "zsh", "fish"]),
    ],
)
def test_bash_completion(words, offered):
    assert complete(words) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_valid_and_whole(shell, tmp_path):
    script = upseal("completion", shell).stdout
    for command in parser.COMMANDS:
        assert command.encode() in script
    assert b"passphrase-file" in script
    program = shutil.which(shell)
    if program is not None:
        (tmp_path / "script").write_bytes(script)
        flag = "--no-execute" if shell == "fish" else "-n"
        subprocess.run([program, flag, tmp_path / "script"], check=True, timeout=60)


# -- the parser, and what is shared ----------------------------------------------------------


def test_version():
    words = upseal("--version").stdout.decode()
    assert words.startswith("upseal 0.1.0 (")
    assert "backend" in words
    facts = json.loads(upseal("--version", "--json").stdout)
    assert facts.keys() == {"version", "engine", "backend", "backend_version", "reason"}


def test_help_names_exit_codes_and_all_commands():
    words = upseal("--help").stdout.decode()
    assert "exit codes" in words
    assert "UPSEAL_PASSPHRASE" in words
    for command in parser.COMMANDS:
        assert command in words
        assert upseal(command, "--help").stdout.decode().startswith("usage: upseal " + command)


def test_the_command_line_imports_little():
    """Of its own accord: the package `upseal` itself is another matter."""
    code = (
        "import sys, types\n"
        "package = types.ModuleType('upseal'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['upseal'] = package\n"
        "from upseal.cli import main\n"
        "main(['--help'])\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'cryptography', 'nacl', 'cffi', 'psutil', 'tempfile'}, loaded\n"
        "assert 'upseal.core' not in sys.modules and 'upseal.engine' not in sys.modules\n"
    )
    package = Path(common.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", code, package], check=True, stdout=subprocess.DEVNULL, timeout=60
    )


def test_kinds_agree_with_the_library():
    from upseal import Cipher
    from upseal.cli import keygen, seal
    from upseal.core import keys

    assert keygen.KINDS == keys.KINDS
    assert tuple(map(str, Cipher)) == seal.CIPHERS


def test_exit_codes_are_documented():
    page = (Path(__file__).parents[1] / "docs/cli.md").read_text()
    for code in range(6):
        assert f"| {code} |" in page
    for command in parser.COMMANDS:
        assert f"upseal {command}" in page


def test_an_unexpected_error_is_one_line(monkeypatch, capsys):
    def broken(arguments):
        raise RuntimeError("two\nlines")

    monkeypatch.delenv("UPSEAL_DEBUG", raising=False)
    monkeypatch.setattr(parser, "run", broken)
    assert main(["bench"]) == common.BUG
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "UPSEAL_DEBUG=1" in err


def test_prefixed_pipe_gives_everything_once():
    source = common.Prefixed(b"abc", io.BytesIO(b"defg"))
    assert source.read(2) == b"ab"
    assert source.readall() == b"cdefg"


def test_output_that_cannot_be_encoded():
    env = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    assert upseal("bench", "--seconds", "0.01", env=env).stdout.isascii()


def test_progress_on_a_terminal_only(monkeypatch, capsys):
    from upseal.cli import progress

    monkeypatch.setattr(progress, "_PATIENCE", -1)
    shown = progress.Progress("sealed")
    shown(1, 2)
    shown.clear()
    assert capsys.readouterr().err == ""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.Progress("sealed") as shown:
        shown(1 << 20, 2 << 20)
        assert "sealed 1.0 MiB of 2.0 MiB, 50 %" in sys.stderr.getvalue()
    assert sys.stderr.getvalue().endswith("\r")


def test_temporary_folder_is_named_when_it_cannot_be_made(monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    assert main(["bench"]) == 4
    assert "temporary folder" in capsys.readouterr().err


def test_a_file_with_two_names_is_counted_once_as_tar_does(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(1000))
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c").write_bytes(bytes(900))
    monkeypatch.setattr(tree, "_EVERYWHERE", (str(tmp_path),))
    files, size, _ = tree.choose(1850)
    assert (len(files), size) == (2, 1900)
