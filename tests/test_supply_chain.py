# SPDX-License-Identifier: Apache-2.0
"""What is built from is pinned, what is built says what is in it and comes out the same twice.

Each check is also shown to fail where what it checks is broken.
"""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from support import ROOT

import upseal.engine

sys.path.insert(0, str(ROOT / "scripts"))
import archives
import lock
import sbom

SECONDS = 1_790_000_000
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))


# ---- locks ---------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """pyproject.toml and the locks, to be damaged."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    return tmp_path


def edit(path, old, new):
    text = path.read_text()
    assert re.search(old, text, flags=re.M), old
    path.write_text(re.sub(old, new, text, count=1, flags=re.M))


def test_locks_fit_pyproject():
    assert lock.faults(ROOT) == [], "`make lock` writes the locks anew"


@pytest.mark.parametrize(
    "file, old, new, fault",
    [
        ("setup", r"^cryptography==\S+", "cryptography==49.0.0", "not met by 49.0.0"),
        ("setup", r"^pynacl==\S+", "pynacl>=1.6", "not one version"),
        ("setup", r"^cffi==([\d.]+)", r"cffi==\1.*", "not one version"),
        ("setup", r"^pytest==[^#]*", "", "pytest>=8.1 is missing"),
        ("core", r"( \\\n +--hash=\S+)+", "", "has no hash"),
        ("core", r"sha256:[0-9a-f]{64}", "md5:" + 32 * "0", "is no SHA-256"),
        ("core", r"sha256:[0-9a-f]{64}", "sha256:" + 63 * "0", "is no SHA-256"),
        ("build", r"^--require-hashes\n", "", "does not say --require-hashes"),
        ("build", r"^--only-binary :all:\n", "", "does not say --only-binary"),
        ("pip", r"\Z", "--index-url https://example.org/simple\n", "names an address"),
        ("pip", r"\Z", "--find-links wheels\n", "names an address"),
        ("bench", r"^psutil==[\d.]+", "psutil==99.0", "the locks disagree"),
    ],
)
def test_damaged_lock_is_seen(tree, file, old, new, fault):
    edit(tree / f"requirements/{file}.txt", old, new)
    assert any(fault in found for found in lock.faults(tree)), lock.faults(tree)


@pytest.mark.parametrize(
    "old, new, fault",
    [
        (r'"cryptography>=50"', '"cryptography>=999"', "not met by"),
        (r'"pynacl>=1.5"', '"pynacl>=1.5", "left-over>=1"', "left-over>=1 is missing"),
        (r'"pynacl>=1.5", ', "", "written for other requirements"),
        (r'"setuptools>=[\d.]+"', '"setuptools>=999"', "setup.txt: setuptools>=999 is not met"),
        (r"^lock = .*", "", "pyproject.toml has no such group"),
        (r"^lock = .*", 'lock = ["uv>=0.9"]\nother = ["uv>=0.9"]', "other.txt: is missing"),
    ],
)
def test_stale_lock_is_seen(tree, old, new, fault):
    edit(tree / "pyproject.toml", old, new)
    assert any(fault in found for found in lock.faults(tree)), lock.faults(tree)


def test_pip_refuses_a_file_that_the_lock_does_not_know(tmp_path):
    """The hashes are what decides: a wheel of the right name and version, but other content."""
    pin = next(p for p in lock.pins((ROOT / "requirements/core.txt").read_text()))
    name, version = pin.requirement.name, next(iter(pin.requirement.specifier)).version
    forged = tmp_path / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    tags = b"Wheel-Version: 1.0\nGenerator: forger\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members = {f"{info}/METADATA": (metadata, False), f"{info}/WHEEL": (tags, False)}
    members[f"{info}/RECORD"] = sbom.record(members, info), False
    archives.write_wheel(members, forged, SECONDS)
    hashes = " ".join(f"--hash={one}" for one in sorted(pin.hashes))
    (tmp_path / "lock.txt").write_text(f"{name}=={version} {hashes}\n")
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--isolated", "--no-index", "--no-deps"),
            *("--find-links", str(tmp_path), "--target", str(tmp_path / "out")),
            *("--require-hashes", "-r", str(tmp_path / "lock.txt")),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode != 0
    assert "DO NOT MATCH THE HASHES" in ran.stderr
    assert not (tmp_path / "out").exists()


def unlocked(text):
    """Lines that have pip install something that no lock names."""
    text = text.replace("\\\n", " ")
    calls = re.findall(r"^.*(?:\bpip\b|\$\(PIP\)|pip\[@\]}\"?).* install\b.*$", text, flags=re.M)
    calls += re.findall(r"^.*(?:\$\(PIP\)|pip\[@\]}\"?) install\b.*$", text, flags=re.M)
    calls += re.findall(r"^(?!.*pip).*\bnpm (?:install|i|add)\b.*$", text, flags=re.M)
    allowed = "--require-hashes", "--no-deps", "echo "
    return sorted({call for call in calls if not any(word in call for word in allowed)})


def test_nothing_is_installed_but_from_locks():
    paths = [ROOT / "Makefile", ROOT / ".ci/run", *WORKFLOWS, *ROOT.glob("scripts/*")]
    for path in paths:
        if path.is_file():
            assert unlocked(path.read_text()) == [], path
    assert unlocked("\t$(PIP) install --group fuzz\n")
    assert unlocked("python -m pip install -q \\\n  atheris\n")
    assert unlocked('"${pip[@]}" install -q dist/*.whl\n')
    assert unlocked("npm install --silent thing\n")


def test_packages_of_node_are_locked():
    locked = json.loads((ROOT / "requirements/package-lock.json").read_text())
    packages = {name: one for name, one in locked["packages"].items() if name}
    assert packages
    for name, one in packages.items():
        assert re.match(r"sha512-[\w+/]{86}==$", one["integrity"]), name
        assert "resolved" not in one, name
    wanted = json.loads((ROOT / "requirements/package.json").read_text())["dependencies"]
    assert locked["packages"][""]["dependencies"] == wanted


# ---- SBOM ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def core():
    """The shared object of the C core."""
    found = [*Path(upseal.engine.__file__).parent.glob("_native*.so")]
    if not found:
        pytest.skip("the C core is not built")
    return found[0].read_bytes()


METADATA = """\
Metadata-Version: 2.4
Name: upseal
Version: 0.1.0
Summary: Message-level encryption
License-Expression: Apache-2.0
Requires-Dist: cryptography>=50
Requires-Dist: pynacl>=1.5
Requires-Dist: joserfc>=1.4; extra == "fleet"
Requires-Dist: upseal[fleet]; extra == "demo"
"""


@pytest.fixture
def wheel(tmp_path, core):
    """A wheel with an SBOM in it, around the C core that is installed."""
    info = "upseal-0.1.0.dist-info"
    members = {
        "upseal/__init__.py": (b"", False),
        "upseal/engine/_native.abi3.so": (core, True),
        f"{info}/METADATA": (METADATA.encode(), False),
        f"{info}/RECORD": (b"", False),
    }
    plain = tmp_path / "upseal-0.1.0-cp311-abi3-linux_x86_64.whl"
    archives.write_wheel(members, plain, SECONDS)
    assert sbom.faults(plain) == ["has no SBOM"]
    out = tmp_path / "out"
    out.mkdir()
    return sbom.embed(plain, out, SECONDS)


def test_sbom_is_valid_and_fits_the_wheel(wheel):
    assert sbom.faults(wheel) == []
    document = json.loads(sbom.sbom_of(wheel))
    parts = {part["name"]: part for part in document["components"]}
    assert {"cryptography", "pynacl", "joserfc", "openssl", "glibc"} <= set(parts)
    assert parts["joserfc"]["scope"] == "optional"
    assert "version" not in parts["cryptography"]  # a range: what is installed is not ours to say
    assert sbom.said(parts["cryptography"], "version-range") == [">=50"]
    assert sbom.said(parts["openssl"], "soname") == ["libcrypto.so.3"]
    assert sbom.said(parts["openssl"], "linkage") == ["dynamic, the system's"]
    depends = {one["ref"]: one.get("dependsOn") for one in document["dependencies"]}
    assert sorted(depends["pypi:upseal"]) == sorted(part["bom-ref"] for part in parts.values())


def test_sbom_names_the_library_that_is_linked_in(wheel, core):
    parts = {part["name"]: part for part in json.loads(sbom.sbom_of(wheel))["components"]}
    inside = sbom.read_shared(core).ipp
    assert (sbom.IPP in parts) == bool(inside)
    if inside:
        part = parts[sbom.IPP]
        assert part["licenses"] == [{"expression": "Apache-2.0"}]
        assert part["hashes"] == [{"alg": "SHA-256", "content": sbom.ipp_pinned()}]
        project = (ROOT / "pyproject.toml").read_text()
        assert f"{sbom.IPP}=={part['version']};" in project


def test_sbom_is_the_same_twice(wheel, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    twice = sbom.embed(wheel, again, SECONDS)  # of a wheel that has one: it is replaced
    assert archives.differences(wheel, twice) == []


def rewritten(wheel, change):
    """The wheel with its document, or another file, changed, and a RECORD that fits."""
    opened = sbom.read_wheel(wheel)
    members = dict(opened.members)
    document = json.loads(members[opened.sbom][0])
    change(document, members)
    if opened.sbom in members:
        members[opened.sbom] = json.dumps(document).encode(), False
    members[f"{opened.info}/RECORD"] = sbom.record(members, opened.info), False
    archives.write_wheel(members, wheel, SECONDS)
    return wheel


def drop(name):
    def change(document, _members):
        document["components"] = [p for p in document["components"] if p["name"] != name]
        kept = {p["bom-ref"] for p in document["components"]} | {"pypi:upseal"}
        document["dependencies"] = [d for d in document["dependencies"] if d["ref"] in kept]

    return change


@pytest.mark.parametrize(
    "change, fault",
    [
        (drop("openssl"), "does not name libcrypto.so.3"),
        (drop("pynacl"), "does not name pynacl"),
        (lambda d, _: d["metadata"]["component"].update(version="0.0.9"), "another release"),
        (lambda d, _: d.update(specVersion="1.0"), "not CycloneDX 1.6"),
        (lambda d, _: d["components"][0].pop("name"), "not CycloneDX 1.6"),
        (lambda d, _: d["components"][0].update(type="cat"), "not CycloneDX 1.6"),
    ],
)
def test_wrong_sbom_is_seen(wheel, change, fault):
    found = sbom.faults(rewritten(wheel, change))
    assert any(fault in one for one in found), found


def test_wrong_word_about_the_linked_library_is_seen(wheel, core):
    if not sbom.read_shared(core).ipp:
        found = sbom.faults(rewritten(wheel, _claim_ipp))
        assert any(f"wrong about {sbom.IPP}" in one for one in found), found
        return

    def other_hash(document, _members):
        (part,) = [one for one in document["components"] if one["name"] == sbom.IPP]
        part["hashes"][0]["content"] = 64 * "0"

    assert f"has not the pinned hash of {sbom.IPP}" in sbom.faults(rewritten(wheel, other_hash))
    found = sbom.faults(rewritten(wheel, drop(sbom.IPP)))
    assert any(f"wrong about {sbom.IPP}" in one for one in found), found


def _claim_ipp(document, _members):
    document["components"].append({"type": "library", "name": sbom.IPP, "bom-ref": "claimed"})


def test_record_that_does_not_fit_is_seen(wheel):
    opened = sbom.read_wheel(wheel)
    members = {**opened.members, "upseal/__init__.py": (b"import this", False)}
    archives.write_wheel(members, wheel, SECONDS)
    assert sbom.faults(wheel) == ["RECORD does not fit the files"]


def test_library_that_nobody_named_is_refused(wheel, tmp_path, monkeypatch):
    monkeypatch.delitem(sbom.SYSTEM, "libcrypto.so.3")
    with pytest.raises(ValueError, match=r"needs libcrypto\.so\.3"):
        sbom.embed(wheel, tmp_path, SECONDS)


def test_other_library_than_the_pinned_is_refused(wheel, tmp_path, core, monkeypatch):
    if sbom.read_shared(core).ipp:
        monkeypatch.setattr(sbom, "ipp_pinned", lambda: 64 * "0")
        with pytest.raises(ValueError, match="not the pinned release"):
            sbom.embed(wheel, tmp_path, SECONDS)


# ---- the same bytes twice --------------------------------------------------------


def make_sdist(folder, names, mode, mtime, owner):
    folder.mkdir()
    path = folder / "upseal-0.1.0.tar.gz"
    with tarfile.open(path, "w:gz") as sdist:
        for name in names:
            source = folder / "content"
            source.write_text(name)
            info = sdist.gettarinfo(source, f"upseal-0.1.0/{name}")
            info.mode, info.mtime, info.uname = mode, mtime, owner
            with source.open("rb") as content:
                sdist.addfile(info, content)
    return path


def test_sdist_says_nothing_of_where_it_was_made(tmp_path):
    one = make_sdist(tmp_path / "one", ["a", "b", "c"], 0o644, 1_700_000_000.5, "ann")
    other = make_sdist(tmp_path / "other", ["c", "a", "b"], 0o600, 1_600_000_000, "bob")
    found = "\n".join(archives.differences(one, other))
    assert "0o644 and 0o600" in found and "mtime" in found and "bob" in found
    for path in one, other:
        archives.write_sdist(path, path.with_suffix(".new"), SECONDS)
    assert one.with_suffix(".new").read_bytes() == other.with_suffix(".new").read_bytes()
    with tarfile.open(one.with_suffix(".new")) as sdist:
        assert [(m.name[-1], m.mode, m.mtime, m.uname) for m in sdist.getmembers()] == [
            (name, 0o644, SECONDS, "") for name in "abc"
        ]


def test_sdist_with_a_link_is_refused(tmp_path):
    path = tmp_path / "upseal-0.1.0.tar.gz"
    with tarfile.open(path, "w:gz") as sdist:
        link = tarfile.TarInfo("upseal-0.1.0/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        sdist.addfile(link)
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        archives.write_sdist(path, tmp_path / "new", SECONDS)


MEMBERS = {"b.py": (b"b" * 100, False), "a.so": (b"a" * 100, True), "x.dist-info/R": (b"", False)}


@pytest.mark.parametrize(
    "changed, fault",
    [
        ({"b.py": (b"b" * 50 + b"c" + b"b" * 49, False)}, "b.py: 100 and 100 bytes, .* byte 50"),
        ({"b.py": (b"b" * 101, False)}, "b.py: 100 and 101 bytes, .* byte 100"),
        ({"b.py": (b"b" * 100, True)}, "b.py: mode 0o100644 and 0o100755"),
        ({"c.py": (b"", False)}, r"c.py: only in .*other.whl"),
    ],
)
def test_changed_wheel_is_seen(tmp_path, changed, fault):
    one, other = tmp_path / "one.whl", tmp_path / "other.whl"
    archives.write_wheel(MEMBERS, one, SECONDS)
    archives.write_wheel({**MEMBERS, **changed}, other, SECONDS)
    (found,) = archives.differences(one, other)
    assert re.search(fault, found)
    ran = subprocess.run(
        [sys.executable, str(ROOT / "scripts/archives.py"), "compare", str(one), str(other)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1 and re.search(fault, ran.stdout)


def test_wheels_of_other_times_orders_and_containers_differ(tmp_path):
    one, other = tmp_path / "one.whl", tmp_path / "other.whl"
    archives.write_wheel(MEMBERS, one, SECONDS)
    archives.write_wheel(dict(reversed(MEMBERS.items())), other, SECONDS)
    assert archives.differences(one, other) == []
    archives.write_wheel(MEMBERS, other, SECONDS + 100)
    assert any("mtime" in found for found in archives.differences(one, other))
    with zipfile.ZipFile(one) as opened:
        infos = opened.infolist()
        assert [info.filename for info in infos] == ["a.so", "b.py", "x.dist-info/R"]
        with zipfile.ZipFile(other, "w") as shuffled:
            for info in reversed(infos):
                shuffled.writestr(info, opened.read(info))
    assert archives.differences(one, other) == ["the files stand in another order"]
    other.write_bytes(one.read_bytes()[:-2] + b"\x01\x00!")  # a comment at the archive's end
    (found,) = archives.differences(one, other)
    assert found.startswith("the container: ")


# ---- workflows -------------------------------------------------------------------


def uses(text):
    return re.findall(r"^\s*(?:- )?uses:\s*(.+)$", text, flags=re.M)


def test_actions_are_pinned_by_commit():
    pins = {}
    for path in WORKFLOWS:
        for used in uses(path.read_text()):
            found = re.fullmatch(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)", used)
            assert found, f"{path.name}: {used}"
            pins.setdefault(found[1], set()).add(found.group(2, 3))
    assert all(len(versions) == 1 for versions in pins.values()), pins


def test_workflows_have_no_more_rights_than_they_need():
    rights = {}
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] in ({}, {"contents": "read"}), path.name
        for name, job in workflow["jobs"].items():
            for right, level in job.get("permissions", {}).items():
                if level != "read":
                    rights.setdefault(f"{path.name}: {name}", {})[right] = level
        assert "secrets." not in path.read_text(), path.name
        assert "pull_request_target" not in path.read_text(), path.name
    assert rights == {"release.yml: publish": {"id-token": "write", "attestations": "write"}}
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    assert set(release["jobs"]["publish"]["needs"]) == set(release["jobs"]) - {"publish"}


def zizmor(*paths):
    return subprocess.run(
        [
            *(str(Path(sys.executable).with_name("zizmor")), "--offline", "--no-progress"),
            *("--no-config", "--persona", "pedantic", "--format", "plain", *map(str, paths)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_zizmor_finds_nothing_in_the_workflows(tmp_path):
    ran = zizmor(*WORKFLOWS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    text = (ROOT / ".github/workflows/release.yml").read_text()
    for old, new in (
        ("          persist-credentials: false\n", ""),
        ("permissions: {}\n", "permissions: write-all\n"),
        ("@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1", "@main"),
        ('test "$TAG"', 'test "${{ github.ref_name }}"'),
    ):
        assert old in text
        damaged = tmp_path / ".github/workflows/release.yml"
        damaged.parent.mkdir(parents=True, exist_ok=True)
        damaged.write_text(text.replace(old, new))
        assert zizmor(damaged).returncode != 0, old
