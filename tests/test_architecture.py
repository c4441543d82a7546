# SPDX-License-Identifier: Apache-2.0
"""The rooms of the house keep to docs/architecture.md: who imports whom, and what nobody knows.

Each rule is also shown to fail where it is broken, on a copy of the source with one line more.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import architecture

SOURCE = ROOT / "src"
LONGEST = 400
LONGER: dict[str, str] = {}
"""Files of more than so many lines, each with the reason."""

CORE_PACKAGES = {"cryptography", "_openssl", "nacl", "_cffi_backend"}
"""What `pip install upseal` brings, by the names that it is imported by."""
NETWORK = {
    *("socket", "ssl", "select", "selectors", "asyncio", "http", "urllib", "socketserver"),
    *("ftplib", "smtplib", "poplib", "imaplib", "telnetlib", "xmlrpc", "wsgiref"),
}
PUBLIC_KEY = (
    *("cryptography.hazmat.primitives.asymmetric", "cryptography.hazmat.primitives.hpke"),
    *("cryptography.hazmat.primitives.serialization", "cryptography.x509", "nacl.public"),
    *("nacl.signing", "nacl.bindings.crypto_box", "nacl.bindings.crypto_sign"),
    *("nacl.bindings.crypto_scalarmult", "nacl.bindings.crypto_core", "nacl.bindings.crypto_kx"),
)
"""Where the public-key work of our dependencies is."""
HEADERS = {
    *("stddef.h", "stdint.h", "string.h", "stdlib.h", "stdatomic.h", "ippcp.h"),
    "stdio.h",  # snprintf: the version of OpenSSL as text
    *("openssl/core_names.h", "openssl/crypto.h", "openssl/evp.h", "openssl/params.h"),
    "openssl/provider.h",
    "openssl/err.h",
    *("sys/mman.h", "unistd.h"),  # pages for keys
    *("asm/hwcap.h", "sys/auxv.h", "intrin.h"),  # what the CPU can do
    *("sys/sdt.h", "valgrind/memcheck.h"),  # for tools
    *("sanitizer/asan_interface.h", "sanitizer/msan_interface.h"),
}
"""All that the C core includes: no Python, no file, no clock, no thread, no random numbers."""


@pytest.fixture(scope="module")
def graph():
    return architecture.graph_of(SOURCE)


# -- the rules: each gives what is wrong, so that it can be shown to see it --------------------


def rooms(graph: grimp.ImportGraph) -> list[str]:
    """Imports go down."""
    return architecture.wrong(architecture.imports(graph))


def placed(graph: grimp.ImportGraph) -> list[str]:
    """Every module is in a room."""
    return [
        module
        for module in graph.modules
        if module.split(".")[0] == "upseal"
        and module not in architecture.OUTSIDE
        and architecture.room_of(module) is None
    ]


def of_room(graph: grimp.ImportGraph, *names: str) -> list[str]:
    return [
        module
        for module in sorted(graph.modules)
        if (room := architecture.room_of(module)) is not None and room.name in names
    ]


def packages(graph: grimp.ImportGraph, modules: list[str]) -> dict[str, list[str]]:
    """Packages that are not ours and what of ours imports each itself."""
    found: dict[str, list[str]] = {}
    for module in modules:
        for other in graph.find_modules_directly_imported_by(module):
            if other.split(".")[0] != "upseal":
                found.setdefault(other, []).append(module)
    return found


def optional(graph: grimp.ImportGraph) -> list[str]:
    """`import upseal`, core and engine import what they require, and no more."""
    inside = ["upseal", "upseal.errors", *of_room(graph, "core", "engine")]
    allowed = CORE_PACKAGES | set(sys.stdlib_module_names)
    return [
        f"{', '.join(users)} import {package}"
        for package, users in packages(graph, inside).items()
        if package not in allowed
    ]


def neighbours(graph: grimp.ImportGraph) -> list[str]:
    """What is there for one integration alone is imported by integrations alone."""
    theirs = set(packages(graph, of_room(graph, "integrations")))
    known = CORE_PACKAGES | set(sys.stdlib_module_names) | FLEET_PACKAGES
    others = [m for m in graph.modules if m.startswith("upseal") and not in_integrations(m)]
    return [
        f"{', '.join(users)} import {package}"
        for package, users in packages(graph, others).items()
        if package in theirs - known
    ]


def in_integrations(module: str) -> bool:
    room = architecture.room_of(module)
    return room is not None and room.name == "integrations"


FLEET_PACKAGES = {
    *("sqlalchemy", "starlette", "uvicorn", "urllib3", "joserfc", "jinja2", "psutil"),
    *("prometheus_client", "httptools", "uvloop"),
}


def no_network(graph: grimp.ImportGraph) -> list[str]:
    """Core and engine open no socket."""
    inside = ["upseal", "upseal.errors", *of_room(graph, "core", "engine")]
    return [
        f"{', '.join(users)} import {package}"
        for package, users in packages(graph, inside).items()
        if package in NETWORK
    ]


def no_listening(graph: grimp.ImportGraph) -> list[str]:
    """Nothing of the administrator's serves anybody."""
    return [
        f"{', '.join(users)} import {package}"
        for package, users in packages(graph, of_room(graph, "fleet/admin")).items()
        if package in NETWORK - {"urllib"} | {"uvicorn", "starlette"}
    ]


def no_database(graph: grimp.ImportGraph) -> list[str]:
    """Agents and relays come to the server's database by no way at all; the words need none."""
    chains = [
        graph.find_shortest_chain(f"upseal.fleet.{room}", package, as_packages=True)
        for room in ("agent", "relay", "uploads", "http")
        for package in ("sqlalchemy", "jinja2")
    ]
    words = packages(graph, of_room(graph, "fleet"))
    return [
        *(" > ".join(chain) for chain in chains if chain is not None),
        *(f"{module} imports it" for module in words.get("sqlalchemy", [])),
    ]


def no_opening(source: Path) -> list[str]:
    """What carries and what speaks HTTP has nothing that seals or opens."""
    rooms = ("keys", "opener", "sealer", "reader", "writer", "session", "files")
    sealing = (
        *(f"upseal.core.{name}" for name in rooms),
        *(f"upseal.{name}" for name in ("Opener", "Sealer", "PrivateKey", "open_file")),
        *("upseal.engine.native", "upseal.engine.portable", "cryptography.hazmat", "nacl"),
    )
    return [
        f"{path.stem} imports {name}"
        for folder in ("uploads", "http")
        for path in sorted((source / "upseal" / "fleet" / folder).rglob("*.py"))
        for name in imported(path)
        if any(name == one or name.startswith(one + ".") for one in sealing)
    ]


def no_public_keys(source: Path) -> list[str]:
    """Engine imports no public-key module."""
    found = []
    for path in sorted((source / "upseal" / "engine").rglob("*.py")):
        for name in imported(path):
            if any(name == one or name.startswith(one + ".") for one in PUBLIC_KEY):
                found.append(f"{path.name} imports {name}")
    return found


def imported(path: Path) -> list[str]:
    """All names that a file imports, in full."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def core_alone(graph: grimp.ImportGraph) -> list[str]:
    """The C core is asked by engine alone."""
    return [
        module
        for module in graph.find_modules_that_directly_import("upseal.engine._native")
        if not module.startswith("upseal.engine.")
    ]


def no_headers(folder: Path) -> list[str]:
    """The C core includes what is listed, and its own."""
    found = []
    for path in sorted([*folder.glob("*.c"), *folder.glob("*.h")]):
        for name in re.findall(r"^\s*#\s*include\s*[<\"]([^>\"]+)", path.read_text(), re.M):
            if name not in HEADERS and not (folder / name).is_file():
                found.append(f"{path.name} includes {name}")
    return found


def too_long(root: Path) -> list[str]:
    """No file over 400 lines; setup.py at most 40."""
    files = [
        path
        for folder in ("src", "native")
        for path in sorted((root / folder).rglob("*"))
        # cffi writes the first of them while it builds.
        if path.suffix in {".py", ".pyi", ".c", ".h"} and path.name != "_native.c"
    ]
    assert files
    found = []
    for path in [*files, *root.glob("setup.py")]:
        lines = path.read_text().count("\n")
        name = path.relative_to(root).as_posix()
        if name not in LONGER and lines > (40 if name == "setup.py" else LONGEST):
            found.append(f"{name}: {lines} lines")
    return found


RULES = [
    *(rooms, placed, optional, neighbours, no_network, no_listening, no_database, core_alone),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_imports_keep_to_the_rules(graph, rule):
    assert rule(graph) == []


def test_the_engine_sees_no_public_key():
    assert no_public_keys(SOURCE) == []


def test_what_carries_and_what_speaks_http_opens_nothing():
    assert no_opening(SOURCE) == []


def test_the_c_core_includes_no_more_than_it_needs():
    assert no_headers(ROOT / "native") == []


def test_no_file_is_too_long():
    assert too_long(ROOT) == []


def test_every_exception_is_still_needed(graph):
    there = set(architecture.imports(graph))
    assert [pair for pair in architecture.EXCEPTIONS if pair not in there] == []
    assert [name for name in LONGER if not (ROOT / name).is_file()] == []


def test_the_picture_is_what_the_imports_are(graph):
    picture = architecture.draw(architecture.imports(graph))
    assert architecture.PICTURE.read_text() == picture, "run scripts/architecture.py"


def test_the_page_names_every_room():
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert [room.name for room in architecture.ROOMS if f"| `{room.name}` |" not in page] == []


# -- what a process does, not what a file says -------------------------------------------------

ALL = """
import json, sys
before = set(sys.modules)
import upseal
for name in upseal.__all__:
    getattr(upseal, name)
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""
WORK = """
import sys
sys.addaudithook(lambda event, _: heard.append(event) if event.startswith("socket.") else None)
heard = []
import io, upseal
key = upseal.PrivateKey.generate("x25519")
sealer, opener = upseal.Sealer([key.public_key]), upseal.Opener([key])
assert opener.open(sealer.seal(b"a report")) == b"a report"
assert list(opener.open_batch(sealer.seal_batch([b"1", b"2"]))) == [b"1", b"2"]
file = io.BytesIO()
with sealer.writer(file) as writer:
    writer.write(b"x" * 100_000)
assert opener.reader(io.BytesIO(file.getvalue())).read() == b"x" * 100_000
assert not heard, heard
import socket
socket.socket().close()
assert heard
"""


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    ).stdout


def test_all_of_upseal_loads_what_it_requires_and_no_more():
    loaded = set(json.loads(python(ALL)))
    assert loaded - set(sys.stdlib_module_names) - CORE_PACKAGES - {"upseal"} == set()


def test_nothing_is_sealed_or_opened_over_a_socket():
    python(WORK)


# -- each rule sees what breaks it -------------------------------------------------------------

BROKEN = {
    "engine goes up to core": (rooms, "engine/padding.py", "import upseal.core.keys"),
    "core goes up to fleet": (rooms, "core/batch.py", "import upseal.fleet.policy"),
    "core goes up to integrations": (rooms, "core/batch.py", "import upseal.integrations.lines"),
    "fleet goes up to the command line": (rooms, "fleet/chain.py", "import upseal.cli.common"),
    "fleet goes up to an integration": (rooms, "fleet/chain.py", "import upseal.integrations.asgi"),
    "integrations go up to the command line": (
        rooms,
        "integrations/asgi.py",
        "import upseal.cli.common",
    ),
    "an agent knows the server": (rooms, "fleet/agent/pace.py", "import upseal.fleet.server.app"),
    "a server knows an agent": (rooms, "fleet/server/enrol.py", "import upseal.fleet.agent.spool"),
    "a relay knows more of the server": (
        rooms,
        "fleet/relay/turns.py",
        "def later():\n    import upseal.fleet.server.intake",
    ),
    "the server knows the administrator": (
        rooms,
        "fleet/server/enrol.py",
        "import upseal.fleet.admin.signing",
    ),
    "http goes up to uploads": (rooms, "fleet/http/tls.py", "import upseal.fleet.uploads.tus"),
    "a room that nobody has heard of": (placed, "attic.py", ""),
    "core wants an optional package": (optional, "core/batch.py", "import pyarrow"),
    "the fleet wants an integration's package": (neighbours, "fleet/chain.py", "import pyarrow"),
    "core opens a socket": (no_network, "core/batch.py", "def f():\n    import socket"),
    "the administrator listens": (no_listening, "fleet/admin/people.py", "import uvicorn"),
    "a relay has the database": (no_database, "fleet/relay/turns.py", "import sqlalchemy"),
    "an agent has it by a detour": (no_database, "+fleet/policy.py", "import sqlalchemy"),
    "somebody else asks the C core": (
        core_alone,
        "core/batch.py",
        "from upseal.engine._native import lib",
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The source, to spoil."""
    target = tmp_path_factory.mktemp("source")
    for path in SOURCE.rglob("*.py"):
        there = target / path.relative_to(SOURCE)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(path.read_bytes())
    return target


SPOILT = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import test_architecture as rules
graph = rules.architecture.graph_of(rules.Path(sys.argv[3]))
print(json.dumps({rule.__name__: rule(graph) for rule in rules.RULES}))
"""


def judged(source: Path) -> dict[str, list[str]]:
    """What the rules say of another source: in a process of its own, where upseal is that one."""
    out = subprocess.run(
        [sys.executable, "-c", SPOILT, str(ROOT / "tests"), str(source), str(source)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return json.loads(out.stdout)


def test_each_rule_sees_what_breaks_it(copy):
    assert not any(judged(copy).values())
    # All at once, each in a file of its own, so that it can be told which line was seen.
    marks = {}
    for number, (what, (rule, path, line)) in enumerate(BROKEN.items()):
        there = copy / "upseal" / path.removeprefix("+")
        if path.startswith("+"):  # a file that others import
            line = f"{there.read_text()}\n{line}"
        elif not what.startswith("a room"):
            there = there.with_name(f"spoilt{number}.py")
        module = ".".join(there.relative_to(copy).with_suffix("").parts)
        there.write_text(line + "\n")
        marks[what] = (rule.__name__, module)
    found = judged(copy)
    unseen = [
        what
        for what, (rule, module) in marks.items()
        if not any(re.search(rf"\b{re.escape(module)}\b", line) for line in found[rule])
    ]
    assert unseen == []


@pytest.mark.parametrize(
    "line",
    [
        "from cryptography.hazmat.primitives.asymmetric import x25519",
        "from cryptography.hazmat.primitives import hpke",
        "import nacl.public",
        "def f():\n    from cryptography import x509",
    ],
)
def test_a_public_key_in_the_engine_is_seen(copy, line):
    there = copy / "upseal" / "engine" / "spoilt_by_a_key.py"
    there.write_text(line + "\n")
    assert no_public_keys(copy) != []
    there.unlink()
    assert no_public_keys(copy) == []


@pytest.mark.parametrize(
    "line",
    [
        "from upseal.core import opener",
        "from upseal import Opener",
        "from cryptography.hazmat.primitives.ciphers.aead import AESGCM",
        "def f():\n    import nacl.bindings",
    ],
)
@pytest.mark.parametrize("room", ["uploads", "http"])
def test_an_opener_where_none_belongs_is_seen(copy, room, line):
    there = copy / "upseal" / "fleet" / room / "spoilt_by_an_opener.py"
    there.write_text(line + "\n")
    assert no_opening(copy) != []
    there.unlink()
    assert no_opening(copy) == []


@pytest.mark.parametrize("name", ["Python.h", "sys/socket.h", "pthread.h", "time.h", "fcntl.h"])
def test_a_header_too_many_is_seen(tmp_path, name):
    (tmp_path / "own.h").write_text("")
    (tmp_path / "core.c").write_text('#include "own.h"\n#include <string.h>\n')
    assert no_headers(tmp_path) == []
    (tmp_path / "core.c").write_text(f"#if 1\n#  include <{name}>\n#endif\n")
    assert no_headers(tmp_path) == [f"core.c includes {name}"]


def test_a_file_too_long_is_seen(tmp_path):
    for name, lines in {
        "src/a.py": 401,
        "native/b.c": 401,
        "src/c.py": 400,
        "setup.py": 41,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n" * lines)
    assert [line.split(":")[0] for line in too_long(tmp_path)] == [
        "src/a.py",
        "native/b.c",
        "setup.py",
    ]


def test_a_picture_of_yesterday_is_seen(graph):
    pairs = architecture.imports(graph)
    more = ("upseal.cli.common", "upseal.engine._native")
    assert architecture.draw(pairs) != architecture.draw([*pairs, more])
