# SPDX-License-Identifier: Apache-2.0
"""What is left of keys in a process's memory when nothing uses them any more.

A process seals and opens, and tells its session secrets as they come, by a pipe and without a copy.
Then all of its memory that can be written to is searched for them and for all that is made of them:
first while they are in use, so that it is known that they can be found, and then after the end.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import reference
import support
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from support import ROOT, python

from upseal import Opener, OpenError, Sealer
from upseal.core import header as headers
from upseal.core.bodies import Kind

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

NATIVE = ["native[ippcp]", "native[openssl]"]
CHILD = r"""
import gc, hashlib, io, os, sys
from pathlib import Path
import upseal
from upseal import OpenError, Opener, Padding, PrivateKey, Sealer
from upseal.core import session

name, cipher, suite, pipe, folder, without = sys.argv[1:]
pipe, folder = int(pipe), Path(folder)
if name == "portable":
    from upseal.engine.portable import PortableEngine
    engine = PortableEngine()
else:
    from upseal.engine import keys
    from upseal.engine.native import NativeEngine
    if without == "wiping":
        keys.Keys.wipe = lambda self, secret: None
    if without == "scrubbing":
        keys._scrubber = lambda idle: lambda: None
    if without == "freeing":
        keys._ending = lambda scrub: lambda key: None
    engine = NativeEngine(name[7:-1])

derive = session.derive
def told(secret, bound, *others):
    os.write(pipe, secret)
    os.write(pipe, hashlib.sha512(bound).digest())
    return derive(secret, bound, *others)
session.derive = told

def work(sealer, opener, part):
    reports = [b"report %d" % i * 30 for i in range(500)]
    envelope = sealer.seal(reports[0], b"context")
    assert opener.open(envelope, b"context") == reports[0]
    forged = bytearray(envelope)
    forged[-1] ^= 1
    try:
        opener.open(forged, b"context")
    except OpenError:
        pass
    else:
        sys.exit("a forgery was opened")
    many = sealer.seal_many(reports)
    assert opener.open_many(many) == reports
    batch = sealer.seal_batch(reports)
    assert list(opener.open_batch(batch)) == reports
    size, count = 4096, 2500  # 10 MB: threads take shares of it
    offsets = b"".join((i * size).to_bytes(8, sys.byteorder) for i in range(count + 1))
    packed = sealer.seal_packed(bytes(size * count), memoryview(offsets).cast("q"))
    opener.open_packed(packed)
    upload = io.BytesIO()
    with sealer.writer(upload, b"context") as writer:
        writer.write(bytes(300_000))
    upload.seek(0)
    with opener.reader(upload, b"context") as reader:
        assert len(reader.read()) == 300_000
    blobs = (envelope, many[0], batch, packed[:5000], upload.getvalue()[:5000])
    for kind, blob in enumerate(blobs):
        (folder / f"{part}-{kind}").write_bytes(blob)

def wait(where):
    print(where, flush=True)
    sys.stdin.readline()

private = PrivateKey.generate(suite)
sealer = Sealer([private.public_key], cipher=cipher, engine=engine)
padding = Sealer([private.public_key], padding=Padding.PADME, cipher=cipher, engine=engine)
opener = Opener([private], engine=engine)
work(sealer, opener, "plain")
work(padding, opener, "padded")
wait("in use")
del sealer, padding, opener
# One more, and nothing after it that might by chance write over what it left.
assert Opener([private], engine=engine).open(
    Sealer([private.public_key], cipher=cipher, engine=engine).seal(b"report")
) == b"report"
gc.collect()
wait("closed")
os._exit(0)
"""


def sbox():
    """AES's, from its definition (FIPS 197, 5.1.1)."""

    def times(a, b):
        product = 0
        while b:
            product ^= a * (b & 1)
            a, b = a << 1 ^ 0x11B * (a >> 7), b >> 1
        return product

    inverse = [0] + [next(b for b in range(256) if times(a, b) == 1) for a in range(1, 256)]
    return bytes(b ^ b << 1 & 255 ^ b >> 7 ^ b << 2 & 255 ^ b >> 6 ^ b << 3 & 255 ^ b >> 5
                 ^ b << 4 & 255 ^ b >> 4 ^ 0x63 for b in inverse)  # fmt: skip


SBOX = sbox()


def round_keys(key):
    """The first two round keys of AES-256 that are not the key itself (FIPS 197, 5.2)."""
    words = [key[i : i + 4] for i in range(0, 32, 4)]
    for i in range(8, 16):
        word = words[-1]
        if i == 8:
            word = word[1:] + word[:1]
        if i in (8, 12):
            word = word.translate(SBOX)
        if i == 8:
            word = bytes([word[0] ^ 1]) + word[1:]
        words.append(reference.xor(words[i - 8], word))
    return b"".join(words[8:12]), b"".join(words[12:16])


def test_round_keys_are_those_of_fips_197():
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    found = [k.hex() for k in round_keys(key)]
    assert found == ["9ba354118e6925afa51a8b5f2067fcde", "a8b09c1a93d194cdbe49846eb75d5b9a"]


def needles(secrets, blobs, first=0):
    """What must not be found, by its name: 16 bytes each, so that half a key counts as well."""
    found = {}
    sessions = {}

    def add(name, key, schedule):
        found[f"{name}, first half"], found[f"{name}, second half"] = key[:16], key[16:32]
        if schedule:
            found[f"{name}, round key 2"], found[f"{name}, round key 3"] = round_keys(key)

    for number, (secret, digest) in enumerate(secrets, first):
        okm = reference.hkdf_expand(secret, b"upseal/v1 keys" + digest, 128)
        sessions[okm[96:]] = okm
        add(f"session secret {number}", secret, False)
        for i, name in enumerate(("report", "batch", "upload")):
            add(f"{name} key {number}", okm[32 * i : 32 * i + 32], True)
    for part, blob in blobs:
        header = headers.parse(blob)
        okm, rest, aes = sessions[header.commitment], blob[len(header.raw) :], header.cipher == 1
        kind, nonce = Kind(rest[0]), rest[1:25]
        if kind is Kind.UPLOAD:
            name = b"AEAD_AES_256_GCM" if aes else b"AEAD_CHACHA20_POLY1305"
            info = b"c2sp.org/chunked-encryption@v1+" + name + b"\0" + nonce + b"\3context"
            add(f"chunk key, {part}", reference.hkdf_expand(okm[64:96], info, 32), aes)
        else:
            key = okm[:32] if kind.name.endswith("ENVELOPE") else okm[32:64]
            made = reference.xaes_subkey(key, nonce[:12])
            if not aes:
                made = reference.hchacha20(key, nonce[:16])
            add(f"subkey, {part}", made, aes)
    return found


def search(pid, wanted):
    """In how many places each is found, of what the process can write to."""
    found = Counter()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span, access, *rest = line.split()
            if not access.startswith("rw") or rest[-1] in ("[vvar]", "[vsyscall]"):
                continue
            start, end = (int(x, 16) for x in span.split("-"))
            for at in range(start, end, 1 << 18):
                memory.seek(at)
                data = memory.read(min(end - at, (1 << 18) + 15))
                if data.count(0) < len(data):
                    found.update(name for name, needle in wanted.items() if needle in data)
    return found


@contextmanager
def process(name, cipher, suite, folder, without=""):
    """The child, when it has sealed and opened, and what to look for in it."""
    support.engine(name)  # skips where there is none
    receiving, sending = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, name, cipher, suite, str(sending), folder, without],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[sending],
    ) as child:
        os.close(sending)
        child.pipe = receiving
        try:
            assert child.stdout.readline() == "in use\n"
            blobs = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
            yield child, needles(secrets(receiving, 2), blobs)
        finally:
            child.kill()
            os.close(receiving)


def secrets(pipe, sessions):
    """Of the sessions since the last time: (secret, what it is bound to)."""
    told = os.read(pipe, 1 << 16)
    found = {told[i : i + 32]: told[i + 32 : i + 96] for i in range(0, len(told), 96)}
    assert len(told) == 2 * sessions * 96 and len(found) == sessions  # the sealer's, the opener's
    return found.items()


def close(child, wanted):
    """Lets the child go on to its end; what to look for now."""
    child.stdin.write("go on\n")
    child.stdin.flush()
    assert child.stdout.readline() == "closed\n"
    return {**wanted, **needles(secrets(child.pipe, 1), [], 2)}


@pytest.mark.parametrize("suite", ["x25519", "p256", "mlkem768-x25519", "rsa2048"])
@pytest.mark.parametrize("cipher", ["aes-256-gcm", "chacha20-poly1305"])
@pytest.mark.parametrize("name", NATIVE)
def test_nothing_is_left_of_a_closed_session(tmp_path, name, cipher, suite):
    with process(name, cipher, suite, tmp_path) as (child, wanted):
        used = search(child.pid, wanted)
        assert used["report key 0, first half"] and used["batch key 1, second half"], used
        wanted = close(child, wanted)
        left = search(child.pid, wanted)
        if suite == "rsa2048":  # cryptography gives back the memory of an RSA plaintext as it is
            left = {found for found in left if not found.startswith("session secret")}
        assert not left, left


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize(
    ("without", "seen"),
    [
        ("wiping", "session secret 2, first half"),
        ("scrubbing", "round key 2"),
        ("freeing", "report key 0, first half"),
    ],
)
def test_without_its_wiping_something_is_left(tmp_path, name, without, seen):
    with process(name, "aes-256-gcm", "x25519", tmp_path, without) as (child, wanted):
        wanted = close(child, wanted)
        left = search(child.pid, wanted)
        assert any(seen in found for found in left), left


@pytest.mark.parametrize("cipher", ["aes-256-gcm", "chacha20-poly1305"])
def test_what_the_portable_engine_leaves(tmp_path, cipher):
    """Keys are bytes there, which Python frees as they are; it is said so in docs/security.md."""
    with process("portable", cipher, "x25519", tmp_path) as (child, wanted):
        used = search(child.pid, wanted)
        assert used["report key 0, first half"]
        left = search(child.pid, close(child, wanted))
        print(sorted(left))
        # What libraries made of them in memory of their own is wiped.
        assert not any("round key" in found for found in left), left


@pytest.mark.parametrize("length", [1, 63, 64, 65, 76, 128, 16320])
def test_expansion_is_that_of_another_library(engine, length):
    secret, info = bytes(range(32)), b"what it is for" * 300
    expected = HKDFExpand(SHA512(), length, info).derive(secret)
    found = engine.expand(secret, info, length)
    assert found == expected
    engine.wipe(found)
    assert found == bytes(length)


def test_no_expansion_is_longer_than_hkdf_gives(native):
    with pytest.raises(ValueError):
        native.expand(bytes(32), b"", 16321)
    with pytest.raises(ValueError):
        native.expand(bytes(31), b"", 32)


def test_wiping_reaches_bytes(native):
    secret = os.urandom(32)
    native.wipe(secret)
    assert secret == bytes(32)


@pytest.fixture(params=NATIVE)
def native(request):
    """A native engine of the test's own, so that nobody else has keys in it."""
    support.engine(request.param)
    from upseal.engine.native import NativeEngine

    return NativeEngine(request.param[7:-1])


def test_keys_are_locked_as_far_as_the_limit_goes(native):
    assert native.key_memory() == (0, 0, 0)
    keys = [native.record_key(1, bytes(32)) for _ in range(3000)]
    used, size, locked = native.key_memory()
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    assert 3000 * 64 <= used <= size
    assert locked == size if limit < 0 or limit >= 2 * size else locked <= size
    del keys
    assert native.key_memory().used == 0
    assert native.key_memory().size == size  # kept: the next keys are wiped in no new pages


LIMITED = """
import os, resource, sys
from pathlib import Path
from upseal.engine.native import NativeEngine

limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
if os.getuid() == 0:  # root need not keep to it
    os.setgroups([]), os.setgid(65534), os.setuid(65534)

def locked():
    return int(Path("/proc/self/status").read_text().split("VmLck:")[1].split()[0]) * 1024

engine = NativeEngine()
sessions = [engine.session_key(1, bytes(96)) for _ in range(65_536)]
used, size, said = engine.key_memory()
print(used, size, said, locked())
assert said == locked() <= limit
pid = os.fork()
if not pid:  # has the keys, and locks of its own
    good = engine.key_memory().locked == locked() == said
    mine = engine.record_key(1, bytes(32))
    os._exit(0 if good and engine.key_memory().used > used else 1)
assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.parametrize("kib", [0, 64, 100, 1024, 8192])
def test_65536_sessions_under_any_limit(kib):
    done = python(LIMITED, kib * 1024)
    assert done.returncode == 0, done.stderr
    used, size, said, _ = map(int, done.stdout.split())
    assert 65_536 * 64 <= used <= size <= 16 << 20
    # The kernel counts whole pages, and nobody else here locks any.
    assert said >= min(size, kib * 1024 // 8192 * 8192)


def test_keys_stay_out_of_core_dumps(native):
    key = native.record_key(1, bytes(32))
    ffi = pytest.importorskip("upseal.engine._native").ffi
    at = int(ffi.cast("uintptr_t", key))
    flags = ""
    inside = False
    with open("/proc/self/smaps") as maps:
        for line in maps:
            if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                inside = int(span[1], 16) <= at < int(span[2], 16)
            elif inside and line.startswith("VmFlags:"):
                flags = line
    assert " dd" in flags  # do not include the area in a core dump (proc(5))


def test_sessions_of_a_key_that_keeps_its_secret_go_on(engine, key):
    """What an opener wipes is its own copy, unless the key says that nobody else has it."""
    report, sealer = b"report", Sealer([key.public_key], engine=engine)
    sealed = [sealer.seal(report), Sealer([key.public_key], engine=engine).seal(report)]
    first = headers.parse(sealed[0]).entries[0]

    class Keeps:
        suite, key_id = key.suite, key.key_id
        secret = key.unwrap(first.wrapped)

        def unwrap(self, wrapped):
            return self.secret

    secret = bytes(bytearray(Keeps.secret))
    for _ in range(2):
        assert Opener([Keeps()], engine=engine).open(sealed[0]) == report
    assert Keeps.secret == secret
    with pytest.raises(OpenError):
        Opener([Keeps()], engine=engine).open(sealed[1])


NOT_A_SECRET = """
import os
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.hashes import SHA256
from upseal import Opener, OpenError, PrivateKey
from upseal.core import header as headers
from upseal.core.header import Entry

key = PrivateKey.generate("rsa2048")
oaep = OAEP(MGF1(SHA256()), SHA256(), None)
for number in range(256):
    wrapped = key.public_key._hpke.encrypt(bytes([number]), oaep)
    entry = Entry(key.public_key.suite, key.public_key.key_id, wrapped)
    blob = headers.encode(1, [entry]) + bytes(32) + b"\\1" + bytes(64)
    try:
        Opener([key]).open(blob)
    except OpenError:
        pass
    else:
        raise SystemExit("it opens")
left = [number for number in range(256) if bytes([number])[0] != number]
raise SystemExit(f"changed for the whole process: {left}" if left else 0)
"""


def test_what_is_no_secret_is_not_wiped():
    """OAEP carries what a sender likes, and Python has one object for all bytes of length 1."""
    done = python(NOT_A_SECRET)
    assert done.returncode == 0, done.stderr


def left_on_the_stack(native, folder, backend="openssl"):
    """What native/ct/stack.c says of that copy of native/, built as the product is."""
    if not shutil.which("gcc") or not Path("/usr/include/openssl/evp.h").exists():
        pytest.skip("needs gcc and OpenSSL's headers")
    sources = [path for path in native.glob("*.c") if path.name != "aead_ippcp.c"]
    flags, objects = ["-std=c11", "-O2", "-Wl,-z,now", "-DUPSEAL_NO_PROBES", f"-I{native}"], []
    if backend == "ippcp":
        sys.path.insert(0, str(ROOT / "native"))
        import build_ffi

        found = build_ffi.ippcp()
        if found is None:
            pytest.skip("ippcp is not installed here")
        sources, objects = [*sources, native / "aead_ippcp.c"], [found[0]]
        flags += ["-DUPSEAL_WITH_IPPCP=1", f"-isystem{found[1]}"]
    program = folder / "stack"
    subprocess.run(
        ["gcc", *flags, ROOT / "native/ct/stack.c", *sources, *objects, "-o", program, "-lcrypto"],
        check=True,
    )
    done = subprocess.run([program, backend], capture_output=True, text=True, timeout=60)
    if done.returncode == 3:
        pytest.skip(done.stdout)
    assert done.returncode in (0, 9), done.stderr
    return set(re.findall("left on the stack: (.*?),", done.stdout))


@pytest.mark.parametrize("backend", ["openssl", "ippcp"])
def test_nothing_is_left_on_the_stack(tmp_path, backend):
    assert not left_on_the_stack(ROOT / "native", tmp_path, backend)


@pytest.mark.parametrize(
    ("wiped", "left"),
    [
        ("    upseal_wipe(block, sizeof block);\n", "upload key"),
        ("        upseal_wipe(derived, sizeof derived);\n", "chunk key"),
    ],
)
def test_without_its_wiping_something_is_left_on_the_stack(tmp_path, wiped, left):
    native = tmp_path / "native"
    shutil.copytree(ROOT / "native", native)
    source = (native / "derive.c").read_text()
    assert source.count(wiped) == 1
    (native / "derive.c").write_text(source.replace(wiped, ""))
    assert left in left_on_the_stack(native, tmp_path)
