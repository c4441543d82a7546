# SPDX-License-Identifier: Apache-2.0
"""Says what a wheel consists of: a CycloneDX document in its .dist-info/sboms/ (PEP 770).

``sbom.py embed WHEEL FOLDER`` writes the wheel again with the document in it; the time is
SOURCE_DATE_EPOCH. ``sbom.py check WHEEL`` compares the document with the wheel around it,
``sbom.py show WHEEL`` prints it.
"""

import base64
import csv
import datetime
import email
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import sys
import tempfile
import uuid
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

import archives
import lock
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from elftools.elf.elffile import ELFFile
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
IPP = "ipp-crypto-static"
# What every part of that library says of itself, so what shows that it is inside.
IPP_MARK = re.compile(rb"Cryptography Primitives Library \(\w+\) \(ver: ([\w.]+ [^)]*\) \(\w+\))")
# What a native wheel may ask the system for: whose it is, and under which licence.
SYSTEM = {
    "libcrypto.so.3": ("openssl", "Apache-2.0"),
    "libc.so.6": ("glibc", "LGPL-2.1-or-later"),
    "libpthread.so.0": ("glibc", "LGPL-2.1-or-later"),
    "ld-linux-x86-64.so.2": ("glibc", "LGPL-2.1-or-later"),
    "ld-linux-aarch64.so.1": ("glibc", "LGPL-2.1-or-later"),
    "libc.so": ("musl", "MIT"),
    "libc.musl-x86_64.so.1": ("musl", "MIT"),
    "libc.musl-aarch64.so.1": ("musl", "MIT"),
    "libcrypto.3.dylib": ("openssl", "Apache-2.0"),
    "libSystem.B.dylib": ("macos", "LicenseRef-Apple"),
}
# Where its licence goes, below licenses/.
IPP_LICENCE = f"{IPP}/LICENSE.txt"


class Shared(NamedTuple):
    """What a shared object says of itself."""

    needed: dict[str, list[str]]
    searched: list[str]  # folders besides the system's where the loader looks for them
    compilers: list[str]
    ipp: str | None


class Wheel(NamedTuple):
    """A wheel's files, and what its metadata says."""

    members: dict[str, tuple[bytes, bool]]
    info: str
    metadata: Message

    @property
    def sbom(self) -> str:
        """Where the document goes."""
        return f"{self.info}/sboms/{self.metadata['Name']}.cdx.json"

    def shared(self) -> list[Shared]:
        """The shared objects in it."""
        return [read_shared(data) for name, (data, _) in self.members.items() if is_shared(name)]


def is_shared(name: str) -> bool:
    """Whether a file of a wheel is a shared object, by its name."""
    return name.endswith((".so", ".dylib", ".pyd")) or ".so." in name


def read_wheel(path: Path) -> Wheel:
    """Reads a wheel whole."""
    with zipfile.ZipFile(path) as packed:
        members = {
            one.filename: (packed.read(one), bool(one.external_attr >> 16 & 0o100))
            for one in packed.infolist()
            if not one.is_dir()
        }
    (metadata,) = [name for name in members if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
    return Wheel(
        members, metadata.rpartition("/")[0], email.message_from_bytes(members[metadata][0])
    )


def read_shared(data: bytes) -> Shared:
    """What a shared object needs and what it was compiled with."""
    if data[:4] == b"\xcf\xfa\xed\xfe":
        return read_macho(data)
    elf = ELFFile(io.BytesIO(data))
    dynamic = elf.get_section_by_name(".dynamic")
    needed = {tag.needed: [] for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"}
    paths = {"DT_RPATH": "rpath", "DT_RUNPATH": "runpath"}
    found = [(tag, paths.get(tag.entry.d_tag)) for tag in dynamic.iter_tags()]
    searched = [getattr(tag, name) for tag, name in found if name]
    versions = elf.get_section_by_name(".gnu.version_r")
    for library, symbols in versions.iter_versions() if versions else ():
        needed.setdefault(library.name, []).extend(sorted(one.name for one in symbols))
    comment = elf.get_section_by_name(".comment")
    compilers = sorted({one.decode() for one in comment.data().split(b"\0") if one})
    ipp = IPP_MARK.search(data)
    return Shared(needed, searched, compilers, ipp[1].decode() if ipp else None)


def read_macho(data: bytes) -> Shared:
    """The same of one for macOS; of compilers those say nothing."""
    from macholib.mach_o import LC_LOAD_DYLIB, LC_LOAD_WEAK_DYLIB, LC_RPATH
    from macholib.MachO import MachO  # delocate brings it, where there is anything to read

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        commands = MachO(file.name).headers[0].commands
    needed: dict[str, list[str]] = {}
    searched = []
    for command, said, rest in commands:
        if command.cmd in (LC_LOAD_DYLIB, LC_LOAD_WEAK_DYLIB):
            path = rest[said.name - 24 :].rstrip(b"\0").decode()
            needed[path.rpartition("/")[2]] = []
        elif command.cmd == LC_RPATH:
            searched.append(rest.rstrip(b"\0").decode())
    return Shared(needed, searched, [], None)


def properties(**named: str) -> list[Property]:
    """Properties in our own namespace."""
    return [
        Property(name=f"upseal:{name.replace('_', '-')}", value=value)
        for name, value in named.items()
    ]


def python_component(requirement: Requirement, tested: dict[str, str]) -> Component:
    """A package that pip brings: not in the wheel, so with a range where a version would be."""
    name = canonicalize_name(requirement.name)
    marker = str(requirement.marker or "")
    said = {"linkage": "none, installed beside it", "version_range": str(requirement.specifier)}
    if name in tested:
        said["tested_version"] = tested[name]
    if marker:
        said["marker"] = marker
    return Component(
        name=name,
        type=ComponentType.LIBRARY,
        bom_ref=f"pypi:{name}",
        purl=PackageURL("pypi", None, name),
        scope=ComponentScope.OPTIONAL if "extra" in marker else ComponentScope.REQUIRED,
        properties=properties(**said),
    )


def system_components(shared: list[Shared]) -> list[Component]:
    """The system's libraries that the wheel is linked to; ValueError for one nobody named."""
    found: dict[str, dict[str, set[str]]] = {}
    for one in shared:
        for library, symbols in one.needed.items():
            if library not in SYSTEM:
                raise ValueError(f"the wheel needs {library}: name it in scripts/sbom.py")
            found.setdefault(SYSTEM[library][0], {}).setdefault(library, set()).update(symbols)
    licences = dict(SYSTEM.values())
    return [
        Component(
            name=name,
            type=ComponentType.LIBRARY,
            bom_ref=f"system:{name}",
            scope=ComponentScope.REQUIRED,
            licenses=[LicenseExpression(licences[name])],
            properties=[
                *properties(linkage="dynamic, the system's"),
                *(one for soname in sorted(sonames) for one in properties(soname=soname)),
                *properties(symbol_versions=", ".join(sorted(set().union(*sonames.values())))),
            ],
        )
        for name, sonames in sorted(found.items())
    ]


def ipp_pinned() -> str:
    """The SHA-256 of the only libippcp.a that a build links."""
    source = (ROOT / "native/build_ffi.py").read_text()
    return re.search(r'^IPPCP_SHA256 = "([0-9a-f]{64})"$', source, re.M)[1]


def ipp_component(reported: str) -> Component:
    """The library that is linked into the wheel; ValueError if the one here is not the pinned."""
    package = importlib.metadata.distribution(IPP)
    library = next(one for one in package.files or () if one.name == "libippcp.a")
    found = hashlib.sha256(Path(str(library.locate())).read_bytes()).hexdigest()
    if found != ipp_pinned():
        raise ValueError(f"{library.locate()} is not the pinned release")
    return Component(
        name=IPP,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"pypi:{IPP}",
        publisher=package.metadata["Author"],
        description=package.metadata["Summary"],
        purl=PackageURL("pypi", None, IPP, package.version),
        scope=ComponentScope.REQUIRED,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=found)],
        licenses=[LicenseExpression("Apache-2.0")],
        properties=properties(
            linkage="static, inside upseal/engine/_native",
            hashed_file=library.name,
            reported_version=reported,
        ),
    )


def ipp_licence(wheel: Wheel) -> dict[str, tuple[bytes, bool]]:
    """The licence that came with what is linked in, and the metadata that names the file."""
    files = importlib.metadata.distribution(IPP).files or ()
    (licence,) = [one for one in files if one.name == "LICENSE.txt"]
    name, line = f"{wheel.info}/METADATA", f"License-File: {IPP_LICENCE}\n".encode()
    metadata = wheel.members[name][0]
    if line not in metadata:
        metadata = metadata.replace(b"Requires-Dist: ", line + b"Requires-Dist: ", 1)
    text = Path(str(licence.locate())).read_bytes()
    return {f"{wheel.info}/licenses/{IPP_LICENCE}": (text, False), name: (metadata, False)}


def describe(wheel: Wheel, seconds: int) -> str:
    """The document, the same for the same wheel, time and build environment."""
    tested = {
        canonicalize_name(pin.requirement.name): next(iter(pin.requirement.specifier)).version
        for pin in lock.pins((ROOT / "requirements/setup.txt").read_text())
    }
    shared = wheel.shared()
    name, version = wheel.metadata["Name"], wheel.metadata["Version"]
    compiled = sorted({one for each in shared for one in each.compilers})
    root = Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=f"pypi:{name}",
        purl=PackageURL("pypi", None, name, version),
        description=wheel.metadata["Summary"],
        licenses=[LicenseExpression(wheel.metadata["License-Expression"])],
        properties=[
            *properties(python=platform.python_version()),
            *properties(setuptools=importlib.metadata.version("setuptools")),
            *properties(cffi=importlib.metadata.version("cffi")),
            *(one for compiler in compiled for one in properties(compiler=compiler)),
        ],
    )
    parts = system_components(shared)
    for reported in {one.ipp for one in shared if one.ipp}:
        parts.append(ipp_component(reported))
    for line in wheel.metadata.get_all("Requires-Dist", []):
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) != name:
            parts.append(python_component(requirement, tested))
    parts = list({part.bom_ref.value: part for part in reversed(parts)}.values())
    tool = Component(
        name="cyclonedx-python-lib",
        version=importlib.metadata.version("cyclonedx-python-lib"),
        type=ComponentType.APPLICATION,
        bom_ref="tool:cyclonedx-python-lib",
    )
    bom = Bom(components=parts, serial_number=uuid.UUID(int=0))
    bom.metadata.timestamp = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    bom.metadata.component = root
    bom.metadata.tools.components.add(tool)
    bom.register_dependency(root, parts)
    # Not a random number: the same document has the same name.
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_OID, JsonV1Dot6(bom).output_as_string())
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def record(members: dict[str, tuple[bytes, bool]], info: str) -> bytes:
    """The RECORD of these files."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    for name in sorted(members, key=lambda name: (".dist-info/" in name, name)):
        if name != f"{info}/RECORD":
            content = members[name][0]
            hashed = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            writer.writerow([name, f"sha256={hashed.decode()}", len(content)])
    writer.writerow([f"{info}/RECORD", "", ""])
    return lines.getvalue().encode()


def embed(path: Path, folder: Path, seconds: int) -> Path:
    """Writes the wheel into the folder, with the document in it."""
    wheel = read_wheel(path)
    members = {**wheel.members, wheel.sbom: (describe(wheel, seconds).encode(), False)}
    if any(one.ipp for one in wheel.shared()):
        members |= ipp_licence(wheel)
    members[f"{wheel.info}/RECORD"] = record(members, wheel.info), False
    archives.write_wheel(members, folder / path.name, seconds)
    return folder / path.name


def faults(path: Path) -> list[str]:
    """What is wrong with a wheel's document, a line each."""
    wheel = read_wheel(path)
    if wheel.sbom not in wheel.members:
        return ["has no SBOM"]
    text = wheel.members[wheel.sbom][0].decode()
    invalid = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text, all_errors=True)
    found = [f"not CycloneDX 1.6: {error}" for error in invalid or ()]
    document = json.loads(text)
    if document.get("specVersion") != "1.6":  # which the schema itself leaves open
        found.append("not CycloneDX 1.6")
    if found:
        return found
    if wheel.members[f"{wheel.info}/RECORD"][0] != record(wheel.members, wheel.info):
        found.append("RECORD does not fit the files")
    about = document["metadata"]["component"]
    if (about["name"], about["version"]) != (wheel.metadata["Name"], wheel.metadata["Version"]):
        found.append("is about another release")
    components = {part["name"]: part for part in document.get("components", [])}
    sonames = {value for part in components.values() for value in said(part, "soname")}
    shared = wheel.shared()
    found += [
        f"does not name {library}, which the wheel needs"
        for library in sorted({library for one in shared for library in one.needed} - sonames)
    ]
    inside = any(one.ipp for one in shared)
    hashes = [one["content"] for one in components.get(IPP, {}).get("hashes", [])]
    if inside != (IPP in components):
        found.append(f"is wrong about {IPP}, which is {'' if inside else 'not '}in the wheel")
    if inside and hashes != [ipp_pinned()]:
        found.append(f"has not the pinned hash of {IPP}")
    for line in wheel.metadata.get_all("Requires-Dist", []):
        name = canonicalize_name(Requirement(line).name)
        if name not in {*components, wheel.metadata["Name"]}:
            found.append(f"does not name {name}, which the wheel requires")
    return found


def said(part: dict[str, Any], name: str) -> list[str]:
    """The values of one of our properties."""
    return [one["value"] for one in part.get("properties", []) if one["name"] == f"upseal:{name}"]


def main(arguments: list[str]) -> None:
    """What is in the module's docstring."""
    match arguments:
        case ["embed", wheel, folder]:
            embed(Path(wheel), Path(folder), int(os.environ["SOURCE_DATE_EPOCH"]))
        case ["check", wheel]:
            found = faults(Path(wheel))
            if found:
                sys.exit("\n".join(f"{wheel}: the SBOM {fault}" for fault in found))
            count = len(json.loads(sbom_of(Path(wheel)))["components"])
            print(f"SBOM: valid CycloneDX 1.6, {count} components, fits the wheel")
        case ["show", wheel]:
            print(sbom_of(Path(wheel)), end="")
        case _:
            sys.exit(__doc__)


def sbom_of(path: Path) -> str:
    """The document in a wheel."""
    wheel = read_wheel(path)
    return wheel.members[wheel.sbom][0].decode()


if __name__ == "__main__":
    main(sys.argv[1:])
