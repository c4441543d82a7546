# SPDX-License-Identifier: Apache-2.0
"""``wheel_faults.py WHEEL...``: whether wheels are what their names say, and hold what they must.

For those with a C core: one shared object, for the machine of the tag and no newer C library than
it names, which looks for libraries nowhere but where the system does and shows no symbol but its
own entry. For all of them: licences, SBOM, no sources.
"""

import io
import re
import sys
from pathlib import Path

import sbom
from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parent.parent
LEGACY = {"manylinux2010": "manylinux_2_12", "manylinux2014": "manylinux_2_17"}
"""What older tags mean (PEP 600); a wheel may have both."""
MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
ENTRY = "PyInit__native"
# The first release with the interface; what a later one added would keep the core from loading.
OPENSSL = {"OPENSSL_3.0.0"}


def faults(path: Path) -> list[str]:
    """What is wrong with a wheel, a line each."""
    wheel = sbom.read_wheel(path)
    python, abi, platforms = path.stem.split("-")[-3:]
    shared = {name: data for name, (data, _) in wheel.members.items() if sbom.is_shared(name)}
    found = [*_tag_faults(wheel, python, abi, platforms), *_content_faults(wheel, bool(shared))]
    if platforms == "any":
        return [*found, *(f"{name} is in a wheel for any machine" for name in shared)]
    if len(shared) != 1:
        return [*found, f"has {len(shared)} shared objects, and should have one"]
    for name, data in shared.items():
        ending = ".abi3.so" if abi == "abi3" else f".cpython-{python.removeprefix('cp')}t-"
        if ending not in name:
            found.append(f"{name} is not of the tag's interface {abi}")
        if platforms.startswith("macosx"):
            continue  # delocate has looked at those
        for platform in platforms.split("."):
            found += [f"{name} {fault}" for fault in _elf_faults(data, platform)]
    return found


def _tag_faults(wheel: sbom.Wheel, python: str, abi: str, platforms: str) -> list[str]:
    text = wheel.members[f"{wheel.info}/WHEEL"][0].decode()
    inside = set(re.findall(r"^Tag: (\S+)$", text, re.M))
    named = {f"{python}-{abi}-{one}" for one in platforms.split(".")}
    pure = re.search(r"^Root-Is-Purelib: true$", text, re.M) is not None
    found = []
    if inside != named:
        found.append(f"says it is for {sorted(inside)} inside, and {sorted(named)} by its name")
    if pure != (platforms == "any"):
        found.append(f"says Root-Is-Purelib: {str(pure).lower()}")
    return found


def _content_faults(wheel: sbom.Wheel, native: bool) -> list[str]:
    found = [
        f"has {name}, which belongs to the sources"
        for name in wheel.members
        if name.endswith((".c", ".h", ".o", ".a")) or name.startswith(("tests/", "native/"))
    ]
    for name in "LICENSE", "NOTICE":
        held = wheel.members.get(f"{wheel.info}/licenses/{name}", (b"", False))[0]
        if held != (ROOT / name).read_bytes():
            found.append(f"has not the project's {name}")
    if native and any(one.ipp for one in wheel.shared()):
        name = f"{wheel.info}/licenses/{sbom.IPP_LICENCE}"
        if b"Apache License" not in wheel.members.get(name, (b"", False))[0]:
            found.append(f"has {sbom.IPP} in it, and not its licence")
    if "upseal/py.typed" not in wheel.members:
        found.append("has no upseal/py.typed")
    return found


def _elf_faults(data: bytes, platform: str) -> list[str]:
    elf = ELFFile(io.BytesIO(data))
    for name, meant in LEGACY.items():
        platform = re.sub(rf"^{name}_", f"{meant}_", platform)
    said = re.fullmatch(r"(manylinux|musllinux)_(\d+)_(\d+)_(\w+)", platform)
    if not said:
        return [f"is for {platform}, which no index takes"]
    found = []
    if elf["e_machine"] != MACHINES.get(said[4]):
        found.append(f"is for {elf['e_machine']}, and the tag for {said[4]}")
    one = sbom.read_shared(data)
    if one.searched:
        found.append(f"would look for libraries in {one.searched}")
    versions = {version for each in one.needed.values() for version in each}
    glibc = {
        tuple(map(int, number.split(".")))
        for number in re.findall(r"GLIBC_([\d.]+)", " ".join(versions))
    }
    most = (int(said[2]), int(said[3])) if said[1] == "manylinux" else (0,)
    found += [
        f"needs glibc {'.'.join(map(str, need))}, newer than the tag"
        for need in sorted(glibc)
        if need[:2] > most
    ]
    if strange := sorted({v for v in versions if v.startswith("OPENSSL_")} - OPENSSL):
        found.append(f"needs {', '.join(strange)}: not every OpenSSL 3 has it")
    return [*found, *_hardening_faults(elf)]


def _hardening_faults(elf: ELFFile) -> list[str]:
    found = []
    symbols = elf.get_section_by_name(".dynsym").iter_symbols()
    shown = {one.name for one in symbols if one.name and one["st_shndx"] != "SHN_UNDEF"}
    if shown - {"_init", "_fini"} != {ENTRY}:
        found.append(f"shows {sorted(shown)}, and should show {ENTRY} alone")
    segments = {one["p_type"]: one["p_flags"] for one in elf.iter_segments()}
    if "PT_GNU_RELRO" not in segments:
        found.append("can be written where it is only to be read (no RELRO)")
    if segments.get("PT_GNU_STACK", 0) & 1:
        found.append("asks for a stack that can be executed")
    tags = {
        one.entry.d_tag: one.entry.d_val for one in elf.get_section_by_name(".dynamic").iter_tags()
    }
    if not (tags.get("DT_FLAGS", 0) & 8 or tags.get("DT_FLAGS_1", 0) & 1 or "DT_BIND_NOW" in tags):
        found.append("is not bound at once: keys could be left on the stack")
    return found


def main(paths: list[str]) -> None:
    """What is in the module's docstring."""
    if not paths:
        sys.exit(__doc__)
    failed = False
    for path in map(Path, paths):
        found = [*faults(path), *(f"has an SBOM that {one}" for one in sbom.faults(path))]
        failed |= bool(found)
        for fault in found:
            print(f"{path.name}: {fault}", file=sys.stderr)
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1:])
