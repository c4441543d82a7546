# SPDX-License-Identifier: Apache-2.0
"""FIPS mode: with a real provider in both OpenSSLs, with one that is broken, and without any."""

import json
import os
import subprocess
import sys

import pytest
from fips_support import Fips, python

from upseal import Opener, PrivateKey, Sealer

ENGINES = ("native", "portable")
USE = """
import sys
from upseal import *
from upseal.engine import choose
engine, reason = choose()
for kind in ("p256", "rsa2048"):
    key = PrivateKey.generate(kind)
    sealer, opener = Sealer([key.public_key]), Opener([key])
    assert sealer.cipher is Cipher.AES_256_GCM
    for report in (b"", b"r" * 70000):
        assert opener.open(sealer.seal(report, b"c"), b"c") == report
    assert list(opener.open_batch(sealer.seal_batch([b"a", b"b" * 999]))) == [b"a", b"b" * 999]
    assert opener.open_many(sealer.seal_many([b"a"] * 99)) == [b"a"] * 99
    import io
    out = io.BytesIO()
    with sealer.writer(out) as writer:
        writer.write(b"x" * 99999)
    out.seek(0)
    assert opener.reader(out).read() == b"x" * 99999
print(engine.describe())
"""


@pytest.fixture(scope="module")
def fips(tmp_path_factory):
    return Fips(tmp_path_factory.mktemp("fips"))


def refused(done, *words):
    assert done.returncode, done.stdout
    last = done.stderr.strip().splitlines()[-1]
    for word in ("EngineError", *words):
        assert word in last, done.stderr


# -- with a provider ------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_all_of_it_works_in_a_provider(fips, engine):
    done = fips.python(USE, UPSEAL_ENGINE=engine)
    assert done.returncode == 0, done.stderr
    if engine == "native":
        assert "OpenSSL FIPS Provider" in done.stdout and "'backend': 'openssl'" in done.stdout


def test_the_native_engine_is_taken_by_itself_and_not_ippcp(fips):
    done = fips.python(USE)
    assert "'engine': 'native', 'backend': 'openssl'" in done.stdout, done.stderr
    refused(fips.python(USE, UPSEAL_BACKEND="ippcp"), "ippcp", "is not usable here")


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_sealed_there_opens_elsewhere_and_the_other_way_round(fips, engine, tmp_path):
    key = PrivateKey.generate("p256")
    (tmp_path / "key.pem").write_bytes(key.to_pem())
    ours = Sealer([key.public_key], cipher="aes-256-gcm").seal(b"from outside")
    (tmp_path / "ours").write_bytes(ours)
    code = """
import sys
from pathlib import Path
from upseal import *
here = Path(sys.argv[1])
key = PrivateKey.from_pem((here / "key.pem").read_bytes())
assert Opener([key]).open((here / "ours").read_bytes()) == b"from outside"
(here / "theirs").write_bytes(Sealer([key.public_key]).seal(b"from a provider"))
"""
    done = fips.python(code, tmp_path, UPSEAL_ENGINE=engine)
    assert done.returncode == 0, done.stderr
    assert Opener([key]).open((tmp_path / "theirs").read_bytes()) == b"from a provider"


@pytest.mark.parametrize("engine", ENGINES)
def test_other_algorithms_are_refused_and_say_why(fips, engine, tmp_path):
    key = PrivateKey.generate("p256")
    (tmp_path / "key.pem").write_bytes(key.to_pem())
    (tmp_path / "x25519.pem").write_bytes(PrivateKey.generate().public_key.to_pem())
    chacha = Sealer([key.public_key], cipher="chacha20-poly1305")
    (tmp_path / "chacha").write_bytes(chacha.seal(b"r"))
    genuine = Sealer([key.public_key], cipher="aes-256-gcm").seal(b"r")
    (tmp_path / "genuine").write_bytes(genuine)
    code = """
import sys
from pathlib import Path
from upseal import *
from upseal.core.session import SessionKeys
from upseal.engine import choose
from upseal.engine.types import EngineError
here = Path(sys.argv[1])
def error(kind, act, *words):
    try:
        act()
    except kind as found:
        assert all(word in str(found) + str(getattr(found, "problem", "")) for word in words), found
        return
    raise AssertionError("taken")
for kind in ("x25519", "mlkem768-x25519"):
    error(ValueError, lambda: PrivateKey.generate(kind), kind, "UPSEAL_FIPS=1", "p256")
error(ValueError, lambda: PublicKey.from_pem((here / "x25519.pem").read_bytes()))
key = PrivateKey.from_pem((here / "key.pem").read_bytes())
error(ValueError, lambda: Sealer([key.public_key], cipher="chacha20-poly1305"), "not for FIPS mode")
opener = Opener([key])
error(UnsupportedFormat, lambda: opener.open((here / "chacha").read_bytes()), "in FIPS mode")
engine = choose().engine
def chacha():
    keys = SessionKeys(engine, Cipher.CHACHA20_POLY1305, bytes(96))
    engine.sealing(keys.report, b"", False)(bytes(24), b"", b"report")
error(EngineError, chacha)
genuine = (here / "genuine").read_bytes()
assert opener.open(genuine) == b"r"
taken = 0
for place in range(len(genuine)):
    forged = genuine[:place] + bytes([genuine[place] ^ 0x41]) + genuine[place + 1:]
    error(OpenError, lambda: Opener([key]).open(forged))
"""
    done = fips.python(code, tmp_path, UPSEAL_ENGINE=engine)
    assert done.returncode == 0, done.stderr


def test_openssl_has_no_errors_left_over_that_the_next_tls_read_would_take_for_its_own(fips):
    code = """
import ctypes
from upseal import *
from upseal.engine import _native
from upseal.engine.backends import fips_provider
left = ctypes.CDLL(_native.__file__).ERR_peek_error
left.restype = ctypes.c_ulong
fips_provider()
assert not left(), "of looking for a provider"
key = PrivateKey.generate("p256")
Opener([key]).open(Sealer([key.public_key]).seal(b"r"))
assert not left(), "of a work space"
"""
    done = fips.python(code)
    assert done.returncode == 0, done.stderr
    looked = code.partition("key =")[0]
    done = python(looked, UPSEAL_FIPS="0")  # there is none to be found
    assert done.returncode == 0, done.stderr


def test_where_openssl_alone_is_told_so_its_backend_still_works(fips):
    strict = {"TEST_FIPS_CONFIGURATION": str(fips.configuration)}
    assert fips.python(USE, **strict).returncode == 0
    done = fips.python(USE, UPSEAL_FIPS="0", UPSEAL_BACKEND="openssl", **strict)
    assert done.returncode == 0, done.stderr
    assert "FIPS Provider" not in done.stdout  # nobody has asked upseal to look


# -- without, or with a broken one -------------------------------------------------------------


def test_without_a_provider_nothing_is_done():
    for engine in ("", *ENGINES):
        refused(
            python(USE, UPSEAL_FIPS="1", UPSEAL_ENGINE=engine),
            "UPSEAL_FIPS=1", "OpenSSL", "FIPS provider", "docs/fips.md",
        )  # fmt: skip
    for engine in ENGINES:  # also where no key has been made or read before
        code = f"from upseal.engine import choose; choose({engine!r})"
        refused(python(code, UPSEAL_FIPS="1"), "FIPS provider")
    code = "from upseal import PrivateKey; PrivateKey.generate('p256')"
    refused(python(code, UPSEAL_FIPS="1"), "does not work in a FIPS provider")
    code = "from upseal.fleet.identity import SigningKey; SigningKey.generate('p256')"
    refused(python(code, UPSEAL_FIPS="1"), "does not work in a FIPS provider")
    assert python(USE, UPSEAL_FIPS="0").returncode == 0
    refused(python(USE, UPSEAL_FIPS="yes"), "UPSEAL_FIPS is 1 or 0")


def test_the_command_says_so_and_leaves_nothing(tmp_path):
    for act in (["keygen", "-t", "p256", "-o", tmp_path / "k.pem"], ["--version"]):
        done = python(None, *act, UPSEAL_FIPS="1")
        assert done.returncode == 5, done.stderr
        assert "does not work in a FIPS provider" in done.stderr
    assert not list(tmp_path.iterdir())


def test_public_key_work_without_a_provider_is_refused_though_bulk_work_has_one(fips, tmp_path):
    (tmp_path / "none").mkdir()
    done = fips.python(USE, TEST_FIPS_FIRST=tmp_path / "none")
    refused(done, "cryptography", "fails its known-answer test")


def test_bulk_work_without_a_provider_is_refused_though_public_key_work_has_one(fips, tmp_path):
    (tmp_path / "none").mkdir()
    done = fips.python(USE, TEST_FIPS_SECOND=tmp_path / "none", UPSEAL_ENGINE="native")
    refused(done, "the OpenSSL under the C core has none")


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_provider_that_fails_its_integrity_check_is_refused(fips, tmp_path, which):
    data = bytearray((getattr(fips, which) / "fips.so").read_bytes())
    place = data.index(b"FIPS Provider")  # in a message: it would load, and is not what was signed
    data[place] ^= 0x20
    (tmp_path / "fips.so").write_bytes(data)
    done = fips.python(USE, UPSEAL_ENGINE="native", **{f"TEST_FIPS_{which.upper()}": str(tmp_path)})
    refused(done, "FIPS mode is on")


def test_one_copy_for_two_openssls_is_never_taken_for_two(fips):
    # Whoever comes second gets nothing from it: https://docs/fips.md, "Two OpenSSLs".
    refused(fips.python(USE, TEST_FIPS_SECOND=str(fips.first), UPSEAL_ENGINE="native"), "FIPS mode")


def test_a_wrong_known_answer_is_refused(fips):
    code = "from upseal.core import fips; fips._SECRET = bytes(32)\n" + USE
    refused(fips.python(code), "fails its known-answer test")
    code = "from upseal.core import fips; fips._WRAPPED = fips._WRAPPED[:-1] + b'x'\n" + USE
    refused(fips.python(code), "fails its known-answer test (InvalidTag)")
    code = "from upseal.engine import portable; portable._KNOWN = bytes(28)\n" + USE
    refused(fips.python(code, UPSEAL_ENGINE="portable"), "fails its known-answer test")


# -- as a system has it ----------------------------------------------------------------------


def _namespace():
    """Whether this process may have mounts of its own."""
    try:
        done = subprocess.run(["unshare", "-m", "true"], capture_output=True)
    except FileNotFoundError:
        return False
    return done.returncode == 0


needs_mounts = pytest.mark.skipif(not _namespace(), reason="needs root, for mounts of its own")


def in_namespace(script, *arguments, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("UPSEAL_", "OPENSSL_"))}
    return subprocess.run(
        ["unshare", "-m", "sh", "-euc", script, "sh", *map(str, arguments)],
        env={**kept, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@needs_mounts
def test_the_kernel_turns_it_on(tmp_path):
    (tmp_path / "crypto").mkdir()
    script = 'mount --bind "$1" /proc/sys; exec "$2" -c "$3"'  # not every kernel has such a file
    for word in ("1\n", "0\n"):
        (tmp_path / "crypto" / "fips_enabled").write_text(word)
        done = in_namespace(script, tmp_path, sys.executable, USE)
        if word == "1\n":
            refused(done, "fips_enabled is 1", "cryptography")
            done = in_namespace(script, tmp_path, sys.executable, USE, UPSEAL_FIPS="0")
        assert done.returncode == 0, done.stderr


@needs_mounts
def test_as_the_page_says(fips, tmp_path):
    """No variable but UPSEAL_FIPS: each OpenSSL has a configuration and a copy of its own."""
    where = subprocess.run(["openssl", "version", "-d"], capture_output=True, text=True).stdout
    system = os.path.realpath(where.split('"')[1] + "/openssl.cnf")
    text = fips.configuration.read_text()
    module = fips.module.read_text()
    for name, copy in (("wheel", fips.first), ("system", fips.second)):
        told = module.replace("[fips_sect]", f"[fips_sect]\nmodule = {copy}/fips.so")
        (tmp_path / f"{name}-module.cnf").write_text(told)
        (tmp_path / f"{name}.cnf").write_text(
            text.replace(str(fips.module), str(tmp_path / f"{name}-module.cnf"))
        )
    script = """
mount -t tmpfs none /opt
mkdir -p /opt/pyca/cryptography/openssl
cp "$1/wheel.cnf" /opt/pyca/cryptography/openssl/openssl.cnf
mount --bind "$1/system.cnf" "$2"
exec "$3" -m upseal doctor --fips --json
"""
    done = in_namespace(script, tmp_path, system, sys.executable, UPSEAL_FIPS="1")
    lines = {line["check"]: line for line in json.loads(done.stdout)["lines"]}
    for check in ("fips", "fips-bulk", "fips-public-key", "engine"):
        assert lines[check]["state"] == "ok", lines[check]
    assert "OpenSSL FIPS Provider" in lines["engine"]["what"]


# -- what doctor says -------------------------------------------------------------------------


def doctor(done):
    found = {}
    for line in json.loads(done.stdout)["lines"]:
        found.setdefault(line["check"], []).append(line)
    return found


def test_doctor_where_all_is_well(fips):
    done = python(None, "doctor", "--fips", "--json", **fips.environment())
    found = doctor(done)
    for check in ("fips", "fips-bulk", "fips-public-key", "engine", "backends"):
        assert [line["state"] for line in found[check]] == ["ok"] * len(found[check]), found[check]
    assert "self-tests passed" in found["fips-bulk"][0]["what"]
    assert any("is no FIPS provider" in line["what"] for line in found["backends"])


def test_doctor_where_it_is_wanted_and_is_not():
    for environment in ({}, {"UPSEAL_FIPS": "0"}, {"UPSEAL_FIPS": "1"}, {"UPSEAL_FIPS": "yes"}):
        done = python(None, "doctor", "--fips", "--json", **environment)
        assert done.returncode == 1, done.stderr
        found = doctor(done)
        wanted = "fips-public-key" if environment == {"UPSEAL_FIPS": "1"} else "fips"
        (line,) = found[wanted]
        assert line["state"] == "fail" and line["do"]
    assert "fips-bulk" not in doctor(python(None, "doctor", "--json"))
