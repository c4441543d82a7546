# SPDX-License-Identifier: Apache-2.0
"""What the children of the misuse tests share: a Python of their own, without pytest.

python(FRONT + code, engine's name, folder, PYTHONPATH=...)
"""

import io
from array import array

from upseal import Limits, Opener, OpenError, PrivateKey, Sealer, open_file, seal_file

KEY = PrivateKey.generate()


def engine(name):
    if name == "portable":
        from upseal.engine.portable import PortableEngine

        return PortableEngine()
    from upseal.engine.native import NativeEngine

    return NativeEngine(name.removeprefix("native[").removesuffix("]"))


def pattern(length):
    """As in the tests' own tools."""
    unit = bytes((i * 7 + 13) % 251 for i in range(251))
    return (unit * (length // 251 + 1))[:length]


class Pipe(io.RawIOBase):
    """Reads from memory, and cannot be sought."""

    def __init__(self, data):
        super().__init__()
        self._data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, target):
        return self._data.readinto(target)


def must(true, what):
    """An assertion that -O leaves in."""
    if not true:
        raise SystemExit(what)


def everything(chosen, folder, padding=None):
    """A little of all there is."""
    sealer = Sealer([KEY.public_key], Limits(max_messages=7), padding, engine=chosen)
    opener = Opener([KEY], cache=2, engine=chosen)
    reports = [b"", b"one", pattern(3000)]
    must(opener.open(sealer.seal(b"r", b"c"), b"c") == b"r", "seal")
    must(opener.open_many(sealer.seal_many(reports)) == reports, "seal_many")
    must(list(opener.open_batch(sealer.seal_batch(reports))) == reports, "seal_batch")
    values, offsets = b"".join(reports), array("i", [0, 0, 3, 3003])
    with sealer.seal_packed(values, offsets, out=bytearray()) as batch:
        must(opener.open_packed(batch)[0] == values, "seal_packed")
    many = sealer.seal_many_packed(values, offsets)
    must(opener.open_many_packed(*many)[0] == values, "seal_many_packed")
    for sealed, call in (
        (sealer.seal(b"r"), opener.open),
        (sealer.seal_batch([b"r"]), opener.open_batch),
    ):
        forged = bytearray(sealed)
        forged[-1] ^= 1
        try:
            call(forged)
        except OpenError:
            continue
        raise SystemExit("a forgery was opened")
    truth = pattern(300_000)
    upload = io.BytesIO()
    with sealer.writer(upload) as writer:
        writer.write(truth)
    with opener.reader(io.BytesIO(upload.getvalue())) as reader:
        must(reader.read(10) + reader.read() == truth, "reader")
    with open(f"{folder}/plain", "wb") as file:
        file.write(truth)
    for threads in (1, 3):
        seal_file(f"{folder}/plain", f"{folder}/s", sealer, threads=threads)
        open_file(f"{folder}/s", f"{folder}/o", opener, threads=threads)
        with open(f"{folder}/o", "rb") as file:
            must(file.read() == truth, "open_file")
