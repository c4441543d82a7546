# SPDX-License-Identifier: Apache-2.0
"""The Debian package: built from a wheel, installed beside nothing, removed without a trace."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEBIAN = ROOT / "packaging" / "debian"
PATIENCE = 280

pytestmark = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg is not here")


def run(*command, **how):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=PATIENCE, **how
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("script", ["postinst", "prerm", "postrm"])
def test_what_dpkg_runs_is_shell(script):
    run("sh", "-n", DEBIAN / script)
    assert os.access(DEBIAN / script, os.X_OK)


def test_purging_leaves_a_deployment_alone(tmp_path):
    """Its keys are nowhere else. The script, on folders of the test's own."""
    text = (DEBIAN / "postrm").read_text().replace("/var/lib", str(tmp_path))
    assert text.count(str(tmp_path)) == 5
    for name in ("upseal", "upseal-relay", "upseal-server"):
        (tmp_path / name).mkdir()
    (tmp_path / "upseal-server" / "deployment.toml").write_text("")
    text = text.replace("/run/systemd/system", "/nonexistent")
    run("sh", "-c", text, "postrm", "remove")
    assert len([*tmp_path.iterdir()]) == 3, "removing keeps all"
    run("sh", "-c", text, "postrm", "purge")
    assert [path.name for path in tmp_path.iterdir()] == ["upseal-server"]
    (tmp_path / "upseal-server" / "deployment.toml").unlink()
    run("sh", "-c", text, "postrm", "purge")
    assert not [*tmp_path.iterdir()]


def test_the_lock_has_all_that_is_needed_with_hashes():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import locked_closure
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    found = locked_closure.blocks(locked_closure.LOCK.read_text())
    for name in ("sqlalchemy", "uvicorn", "cryptography", "psycopg-binary", "cffi"):
        assert "--hash=sha256:" in found[name]
    assert "--hash" not in locked_closure.constraints(locked_closure.LOCK.read_text())


def interpreter():
    """The environment's Python where it is of the system's version, as the package needs it."""
    say = "import sys; print(sys.version_info[:2])"
    ours, system = (run(python, "-c", say) for python in (sys.executable, "/usr/bin/python3"))
    if ours != system:
        pytest.skip(f"the system's Python is {system.strip()}")
    return sys.executable


@pytest.mark.slow
def test_it_is_built_installed_removed_and_purged(tmp_path):
    """Into a root of its own, as far as that needs no other packages there."""
    if os.geteuid():
        pytest.skip("dpkg installs as root")
    wheels = tmp_path / "wheels"
    run(ROOT / "scripts" / "build", interpreter(), wheels)
    (wheel,) = wheels.glob("*.whl")
    made = ROOT / run(ROOT / "scripts" / "deb", sys.executable, wheel, cwd=ROOT).split()[-1]
    first = made.read_bytes()
    run(ROOT / "scripts" / "deb", sys.executable, wheel, cwd=ROOT)
    assert made.read_bytes() == first, "the same wheel and lock give the same bytes"

    lint = subprocess.run(
        ["lintian", "--fail-on", "error", made], capture_output=True, text=True, timeout=PATIENCE
    )
    assert lint.returncode == 0, lint.stdout

    tree = tmp_path / "tree"
    run("dpkg-deb", "-x", made, tree)
    files = {str(path.relative_to(tree)) for path in tree.rglob("*") if not path.is_dir()}
    assert {"usr/bin/upseal", "lib/systemd/system/upseal-agent.service"} <= files
    assert all(
        name.startswith(("usr/", "lib/systemd/", "etc/default/upseal-")) for name in files
    ), "nothing is in another package's way"
    assert not [name for name in files if str(tmp_path) in name or name.endswith(".pyc")]
    # The tree's own interpreter and packages, though it lies elsewhere.
    home = tree / "usr/lib/upseal"
    python = home / "bin" / "python3"
    assert os.readlink(python).startswith("../../../bin/python3.")
    python.unlink()
    python.symlink_to("/usr/bin/python3")
    said = run(python, "-I", "-m", "upseal", "--version", env={"PATH": "/nonexistent"})
    assert "native" in said and str(tree) in run(
        python, "-I", "-c", "import upseal; print(upseal.__file__)"
    )

    admin, root = tmp_path / "admin", tmp_path / "root"
    for folder in (admin / "info", admin / "updates", root):
        folder.mkdir(parents=True)
    (admin / "status").touch()
    # Maintainer scripts need a root with a shell; the chroot of docs/installing.md has run them.
    dpkg = ["dpkg", f"--root={root}", f"--admindir={admin}", "--force-all"]
    bare = tmp_path / "bare"
    run("dpkg-deb", "-R", made, bare)
    for script in ("postinst", "prerm", "postrm"):
        (bare / "DEBIAN" / script).unlink()
    run("dpkg-deb", "--root-owner-group", "-Znone", "-b", bare, tmp_path / "bare.deb")
    run(*dpkg, "-i", tmp_path / "bare.deb")
    assert (root / "usr/bin/upseal").is_symlink()
    run(*dpkg, "--remove", "upseal")
    left = sorted(path.name for path in root.rglob("*") if not path.is_dir())
    assert left == ["upseal-agent", "upseal-relay", "upseal-server"], "the conffiles"
    run(*dpkg, "--purge", "upseal")
    assert not [path for path in root.rglob("*") if not path.is_dir()]


@pytest.mark.parametrize("restarts", [True, False])
def test_configuring_makes_the_folders_and_does_not_fail_with_a_service(tmp_path, restarts):
    """Its users may make none in /var/lib, and have to join before a service runs there."""
    bin_, lib = tmp_path / "bin", tmp_path / "lib"
    for folder in (bin_, lib, tmp_path / "system"):
        folder.mkdir()
    (lib / "upseal-relay").mkdir(mode=0o755)
    for name, does in {
        "systemd-sysusers": "", "python3": "", "systemctl": "",
        "deb-systemd-invoke": "" if restarts else "exit 1",
        "install": f'echo "$@" >> {tmp_path}/made; exec /usr/bin/install -d -m "$3" "$8"',
    }.items():  # fmt: skip
        (bin_ / name).write_text(f"#!/bin/sh\n{does}\n")
        (bin_ / name).chmod(0o755)
    text = (DEBIAN / "postinst").read_text()
    for there, here in {
        "/usr/lib/upseal/bin/python3": "python3", "/var/lib": str(lib),
        "/run/systemd/system": str(tmp_path / "system"),
    }.items():  # fmt: skip
        assert there in text
        text = text.replace(there, here)
    run("sh", "-c", text, "postinst", "configure", "0.0.1", env={"PATH": f"{bin_}:/usr/bin:/bin"})
    assert (tmp_path / "made").read_text().splitlines() == [
        f"-d -m 0700 -o upseal-agent -g upseal-agent {lib}/upseal",
        f"-d -m 0700 -o upseal-server -g upseal-server {lib}/upseal-server",
    ]
    assert (lib / "upseal").stat().st_mode & 0o777 == 0o700
