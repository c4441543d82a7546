# SPDX-License-Identifier: Apache-2.0
"""Real tokens for the tests: SoftHSM2, and NSS's soft token by a shim; and a key process."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pkcs11
from pkcs11.util.ec import encode_named_curve_parameters

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "fleet"))
SOFTHSM = next(
    (
        str(path.resolve())  # as we load it: two names are two libraries to python-pkcs11
        for folder in ("/usr/lib/softhsm", "/usr/lib64/softhsm", "/usr/lib64/pkcs11")
        if (path := Path(folder, "libsofthsm2.so")).exists()
    ),
    None,
)
PIN = "8642-vault"
# softokn3 must be told its folder in C_Initialize, which python-pkcs11 calls without arguments. The
# shim does so, and lets C_Decrypt fail as often as a file says: all else is NSS's own.
SHIM = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
enum { INITIALIZE = 0, DECRYPT = 34, FUNCTIONS = 68 };
static struct { unsigned char version[8]; void *f[FUNCTIONS]; } list;
static unsigned long (*initialize)(void *);
static unsigned long (*decrypt)(unsigned long, void *, unsigned long, void *, unsigned long *);
static unsigned long my_initialize(void *ignored) {
    struct { void *mutex[4]; unsigned long flags; char *parameters; void *reserved; } args = {
        {0}, 2, getenv("UPSEAL_TEST_NSS"), 0};
    return (void)ignored, initialize(&args);
}
static unsigned long my_decrypt(unsigned long session, void *in, unsigned long length, void *out,
                                unsigned long *room) {
    int left = 0;
    FILE *file = fopen(getenv("UPSEAL_TEST_FAIL"), "r+");
    if (file) {
        if (fscanf(file, "%d", &left) != 1) left = 0;
        if (left > 0) { rewind(file); fprintf(file, "%-9d", left - 1); }
        fclose(file);
    }
    unsigned long status = decrypt(session, in, length, out, room);
    return left > 0 ? 0x30 : status; /* CKR_DEVICE_ERROR */
}
unsigned long C_GetFunctionList(void **out) {
    void *so = dlopen("libsoftokn3.so", RTLD_NOW), *theirs;
    unsigned long (*get)(void **);
    if (!so) return 5;
    *(void **)&get = dlsym(so, "NSC_GetFunctionList");
    if (!get || get(&theirs)) return 5;
    memcpy(&list, theirs, sizeof list);
    *(void **)&initialize = list.f[INITIALIZE];
    *(void **)&decrypt = list.f[DECRYPT];
    list.f[INITIALIZE] = (void *)my_initialize;
    list.f[DECRYPT] = (void *)my_decrypt;
    *out = &list;
    return 0;
}
"""


def quote(path):
    return str(path).replace(" ", "%20")


class Tokens:
    """A SoftHSM2 with a token of its own, and keys in it."""

    def __init__(self, folder):
        assert SOFTHSM, "SoftHSM2 is not installed: apt-get install softhsm2"
        self.folder, self.pin_file = folder / "tokens", folder / "pin"
        self.folder.mkdir()
        self.pin_file.write_text(PIN + "\n")
        (folder / "softhsm2.conf").write_text(
            f"directories.tokendir = {self.folder}\nobjectstore.backend = file\nlog.level = ERROR\n"
            "library.reset_on_fork = true\n"  # a child that goes on without C_Initialize is noticed
        )
        os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", "vault", "--so-pin", "87654321",
             "--pin", PIN],
            check=True, capture_output=True,
        )  # fmt: skip
        with session_of(SOFTHSM, "vault") as session:
            make_ec(session, "server", b"\x01")
            make_ec(session, "other", b"\x02")
            session.generate_keypair(pkcs11.KeyType.RSA, 2048, store=True, label="rsa", id=b"\x03")

    def uri(self, name="server", *, pin=None):
        source = pin or self.pin_file
        return (
            f"pkcs11:token=vault;object={name};type=private?module-path={SOFTHSM}"
            f"&pin-source=file:{quote(source)}"
        )

    @contextmanager
    def unplugged(self):
        away = self.folder.with_name("away")
        self.folder.rename(away)
        self.folder.mkdir()
        try:
            yield
        finally:
            self.folder.rmdir()
            away.rename(self.folder)


@contextmanager
def session_of(module, label):
    library = pkcs11.lib(module)
    if library.initialized:  # by a test before, for another folder
        library.reinitialize()
    try:
        with library.get_token(token_label=label).open(user_pin=PIN, rw=True) as session:
            yield session
    finally:
        library.finalize()


def make_ec(session, label, name):
    parameters = session.create_domain_parameters(
        pkcs11.KeyType.EC,
        {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")},
        local=True,
    )
    parameters.generate_keypair(store=True, label=label, id=name)


class Nss:
    """NSS's soft token, which does RSA-OAEP with SHA-256."""

    def __init__(self, folder):
        os.environ["NSS_MAX_MP_PBE_ITERATION_COUNT"] = "1"  # it derives from the PIN at every use
        source, self.module = folder / "shim.c", folder / "libshim.so"
        source.write_text(SHIM)
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-o", self.module, source, "-ldl"], check=True
        )
        self.fail, self.pin_file = folder / "fail", folder / "pin"
        self.pin_file.write_text(PIN + "\n")
        subprocess.run(
            ["certutil", "-N", "-d", f"sql:{folder}", "-f", self.pin_file],
            check=True, capture_output=True,
        )  # fmt: skip
        os.environ["UPSEAL_TEST_FAIL"] = str(self.fail)
        os.environ["UPSEAL_TEST_NSS"] = (
            f"configdir='sql:{folder}' certPrefix='' keyPrefix='' secmod='secmod.db' flags="
        )
        with session_of(str(self.module), "NSS Certificate DB") as session:
            session.generate_keypair(
                pkcs11.KeyType.RSA, 2048, store=True, label="server", id=b"\x01"
            )
            make_ec(session, "curve", b"\x02")

    def uri(self, name="server"):
        return (
            f"pkcs11:token=NSS%20Certificate%20DB;object={name}?module-path={quote(self.module)}"
            f"&pin-source=file:{quote(self.pin_file)}"
        )

    @contextmanager
    def failing(self, times):
        self.fail.write_text(f"{times:<9d}")
        try:
            yield
        finally:
            self.fail.unlink()


def again(call, error, seconds=20.0):
    """What ``call`` gives once it no longer raises ``error``."""
    end = time.monotonic() + seconds
    while True:
        try:
            return call()
        except error:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


class Process:
    """``upseal keys serve``, in a process of its own."""

    def __init__(self, folder, *keys, options=("--same-user",), environment=None):
        self.path = folder / "keys.sock"
        self.address = f"unix:{self.path}"
        command = [sys.executable, "-m", "upseal", "keys", "serve", *options]
        for key in keys:
            command += ["-i", str(key)]
        if environment is None:
            command += ["--socket", str(self.path)]
        self.errors = open(folder / "keys.log", "ab")  # noqa: SIM115 - closed by stop
        self.process = subprocess.Popen(command, stderr=self.errors, env=environment)

    def ready(self):
        end = time.monotonic() + 20
        while not self.path.exists() or not _listens(self.path):
            assert self.process.poll() is None, Path(self.errors.name).read_text()
            assert time.monotonic() < end
            time.sleep(0.02)
        return self

    def log(self):
        return Path(self.errors.name).read_text()

    def stop(self, kill=False):
        if self.process.poll() is None:
            (self.process.kill if kill else self.process.terminate)()
        code = self.process.wait(20)
        self.errors.close()
        return code

    def __enter__(self):
        return self.ready()

    def __exit__(self, *exc):
        self.stop()


def _listens(path):
    import socket

    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def upseal(*arguments, code=0, **options):
    done = subprocess.run(
        [sys.executable, "-m", "upseal", *map(str, arguments)], capture_output=True, timeout=60,
        **options,
    )  # fmt: skip
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done
