# SPDX-License-Identifier: Apache-2.0
"""The core under faults: files sealed and opened, writers, single reports, key files."""

import argparse
import contextlib
import io
import os

from cryptography.exceptions import InternalError
from faults_driver import Gave, Scenario

from upseal import Opener, OpenError, PrivateKey, Sealer, open_file, seal_file
from upseal.cli.common import Failure
from upseal.engine.types import EngineError
from upseal.fleet.files import write_new_private, write_private
from upseal.fleet.identity import SigningKey, load_or_make

KEY = PrivateKey.generate()
CONTEXT = b"faults"
DATA = bytes(i * 7 % 251 for i in range(251)) * 10_500  # 2.6 MB: three pieces of a file
OLD = b"what was there before"


def leftovers(folder, run, *wanted):
    """Nothing but what is wanted lies in a folder, unless what would remove it had to fail."""
    others = set(os.listdir(folder)) - set(wanted)
    if others and not (run.may_leave() and all(name.endswith(".part") for name in others)):
        raise Gave(f"left over: {others}")


def sealed(data):
    out = io.BytesIO()
    seal_file(io.BytesIO(data), out, [KEY.public_key], CONTEXT)
    return out.getvalue()


def opened(path):
    out = io.BytesIO()
    open_file(path, out, [KEY], CONTEXT)
    return out.getvalue()


class Core(Scenario):
    errors = (OSError, EngineError, MemoryError)


class SealFile(Core):
    """From path to path, over an older file."""

    def __init__(self, threads):
        self.threads = threads

    def prepare(self, folder):
        (folder / "plain").write_bytes(DATA)
        (folder / "sealed").write_bytes(sealed(OLD))

    def work(self, folder, run):
        sealer = Sealer([KEY.public_key])  # the same for all tries, as in a program that goes on
        run.step(lambda: seal_file(
            folder / "plain", folder / "sealed", sealer, CONTEXT, threads=self.threads
        ))  # fmt: skip
        run.ack("sealed")

    def recover(self, folder, run):
        leftovers(folder, run, "plain", "sealed")
        found = opened(folder / "sealed")
        if found not in ((DATA,) if run.acked("sealed") else (OLD, DATA)):
            raise Gave("what stands under the name is neither the old file nor the new one")


class OpenFile(Core):
    """From path to path, over an older file; or into a file object."""

    def __init__(self, threads, into="path"):
        self.threads, self.into = threads, into
        if into != "path":
            self.nameless = ("read", "write")  # one of the two is the caller's own object

    def prepare(self, folder):
        (folder / "sealed").write_bytes(sealed(DATA))
        (folder / "plain").write_bytes(OLD)

    def work(self, folder, run):
        opener = Opener([KEY])

        def once():
            if self.into == "path":
                open_file(
                    folder / "sealed", folder / "plain", opener, CONTEXT, threads=self.threads
                )
                return
            with open(folder / "object", "wb", buffering=0) as target:
                open_file(folder / "sealed", target, opener, CONTEXT, threads=self.threads)

        run.step(once)
        run.ack("opened")

    def recover(self, folder, run):
        if self.into == "path":
            leftovers(folder, run, "plain", "sealed")
            found = (folder / "plain").read_bytes()
            if found not in ((DATA,) if run.acked("opened") else (OLD, DATA)):
                raise Gave("what stands under the name is neither the old file nor the new one")
            return
        with contextlib.suppress(FileNotFoundError):
            found = (folder / "object").read_bytes()
            # On an error its caller throws it away; what is there is a true beginning all the same.
            if not DATA.startswith(found) or (run.acked("opened") and found != DATA):
                raise Gave("bytes came out that are not the file's")


class Writer(Core):
    """A writer over a file of the caller's, in pieces."""

    nameless = ("write",)  # the file is the caller's, who knows its name

    def data(self):
        return DATA[:800_000]

    def work(self, folder, run):
        sealer = Sealer([KEY.public_key])

        def once():
            data = self.data()
            with open(folder / "out", "wb", buffering=0) as file, sealer.writer(file, CONTEXT) as w:
                for at in range(0, len(data), 100_001):
                    w.write(data[at : at + 100_001])
                    if at > 300_000:
                        w.flush()

        run.step(once)
        run.ack("written")

    def recover(self, folder, run):
        leftovers(folder, run, "out")
        try:
            whole = opened(folder / "out") == self.data()
        except (OpenError, FileNotFoundError):
            whole = None
        if whole is False or (whole is None and run.acked("written")):
            raise Gave("a cut-off upload opens, or a whole one does not")


class Reports(Core):
    """Single reports, many at once, batches: nothing of them touches a disk."""

    def work(self, folder, run):
        sealer, opener = Sealer([KEY.public_key]), Opener([KEY])
        reports = [bytes([i]) * 50 for i in range(20)]
        for number in range(3):
            one = run.step(lambda number=number: sealer.seal(reports[number], CONTEXT))
            many = run.step(lambda: sealer.seal_many(reports, CONTEXT))
            batch = run.step(lambda: sealer.seal_batch(reports, CONTEXT))
            if run.step(lambda one=one: opener.open(one, CONTEXT)) != reports[number]:
                raise Gave("another report")
            if run.step(lambda many=many: opener.open_many(many, CONTEXT)) != reports:
                raise Gave("other reports")
            if list(run.step(lambda batch=batch: opener.open_batch(batch, CONTEXT))) != reports:
                raise Gave("another batch")

    def recover(self, folder, run):
        leftovers(folder, run)


class KeyFiles(Core):
    """Keys and state: a new key's file, one that is made once, one that is replaced."""

    errors = (OSError, Failure, InternalError)  # the last one of `cryptography`, which makes keys

    def prepare(self, folder):
        write_private(folder / "state.json", OLD)

    def work(self, folder, run):
        from upseal.cli import keygen

        args = argparse.Namespace(
            type="x25519", output=str(folder / "key.pem"), public=str(folder / "key.pub"),
            passphrase=False, passphrase_file=None, source=None, json=False,
        )  # fmt: skip

        def generate():
            for name in ("key.pem", "key.pub"):
                if run.fault.kind == "gone":  # the one that could not be taken back
                    (folder / name).unlink(missing_ok=True)
            keygen.run(args)

        run.step(generate)
        run.ack("keygen")
        key = run.step(lambda: load_or_make(folder / "identity" / "hop.pem"))
        run.ack("hop", id=key.public.key_id.hex())
        if not run.step(lambda: write_new_private(folder / "once", b"first")):
            run.say("once was there")  # a try before this one has made it, and then failed
        run.ack("once")
        run.step(lambda: write_private(folder / "state.json", DATA[:100_000]))
        run.ack("state")

    def recover(self, folder, run):
        if run.fault.error == "KILL" and not run.acked("keygen"):
            # Killed in the middle, the command has said nothing. It writes no file twice.
            for name in ("key.pem", "key.pub"):
                (folder / name).unlink(missing_ok=True)
        names = ("key.pem", "key.pub", "identity", "once", "state.json")
        leftovers(folder, run, *names)
        if (folder / "identity").is_dir():
            leftovers(folder / "identity", run, "hop.pem")
        state = (folder / "state.json").read_bytes()
        if state not in ((DATA[:100_000],) if run.acked("state") else (OLD, DATA[:100_000])):
            raise Gave("a state that nobody has written")
        for name, promise in (("key.pem", "keygen"), ("once", "once")):
            if run.acked(promise) and not (folder / name).exists():
                raise Gave(f"{name} is lost")
        if (folder / "key.pem").exists() and (folder / "key.pub").exists():
            private = PrivateKey.from_pem((folder / "key.pem").read_bytes())
            if (folder / "key.pub").read_bytes() != private.public_key.to_pem():
                raise Gave("two halves of different keys")
            if os.stat(folder / "key.pem").st_mode & 0o777 != 0o600:
                raise Gave("a private key that others can read")
        elif run.acked("keygen"):
            raise Gave("a key is lost")
        if (folder / "once").exists() and (folder / "once").read_bytes() != b"first":
            raise Gave("half a file")
        key = load_or_make(folder / "identity" / "hop.pem")
        if any(said["id"] != key.public.key_id.hex() for said in run.acked("hop")):
            raise Gave("another key than was promised")
        if not isinstance(key, SigningKey):
            raise Gave("no key")
