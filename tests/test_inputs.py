# SPDX-License-Identifier: Apache-2.0
"""Every kind of buffer is taken; what is no buffer, or not contiguous, is refused plainly."""

import ctypes
import io
import mmap
from array import array

import pytest
from support import Opener, Sealer, drain, key, upload

NUMBERS = array("i", [1, -2, 3])
BUFFERS = {
    "bytes": b"some bytes",
    "bytearray": bytearray(b"some bytes"),
    "memoryview": memoryview(b"xsome bytesx")[1:-1],
    "array of integers": NUMBERS,
    "array of doubles": array("d", [1.5, 2.5]),
    "two dimensions": memoryview(bytes(range(12))).cast("B", (3, 4)),
    "ctypes bytes": (ctypes.c_uint8 * 5)(1, 2, 3, 4, 5),
    "ctypes integers": (ctypes.c_int * 3)(1, 2, 3),
    "empty": memoryview(b""),
}


class Mine(bytes):
    """A subclass must not come through as itself."""


BUFFERS["subclass of bytes"] = Mine(b"mine")


def plain(buffer):
    return bytes(memoryview(buffer).tobytes())


@pytest.mark.parametrize("name", BUFFERS)
def test_any_contiguous_buffer_is_sealed_as_its_bytes(sealer, opener, name):
    data = BUFFERS[name]
    want = plain(data)
    assert opener.open(sealer.seal(data)) == want
    assert opener.open_many(sealer.seal_many([data, b"", data])) == [want, b"", want]
    assert list(opener.open_batch(sealer.seal_batch([data, b"x"]))) == [want, b"x"]
    assert type(opener.open(sealer.seal(data))) is bytes
    out = io.BytesIO()
    with sealer.writer(out) as writer:
        assert writer.write(data) == len(want)
    assert drain(opener, out.getvalue()) == (want, None)


@pytest.mark.parametrize("name", BUFFERS)
def test_any_contiguous_buffer_is_a_context(sealer, opener, name):
    context = BUFFERS[name]
    assert opener.open(sealer.seal(b"r", context), plain(context)) == b"r"
    assert opener.open(sealer.seal(b"r", plain(context)), context) == b"r"
    assert list(opener.open_batch(sealer.seal_batch([b"r"], context), context)) == [b"r"]
    assert drain(opener, upload(sealer, b"r", context), context) == (b"r", None)


@pytest.mark.parametrize("form", [bytearray, memoryview, lambda d: array("B", d)])
def test_any_contiguous_buffer_is_opened(sealer, opener, form):
    envelope, batch = sealer.seal(b"r"), sealer.seal_batch([b"r", b"s"])
    assert opener.open(form(envelope)) == b"r"
    assert opener.open_many([form(envelope), envelope]) == [b"r", b"r"]
    assert list(opener.open_batch(form(batch))) == [b"r", b"s"]


def test_a_mapped_file_is_opened(tmp_path, sealer, opener):
    (tmp_path / "batch").write_bytes(sealer.seal_batch([b"mapped"] * 10))
    with open(tmp_path / "batch", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        batch = opener.open_batch(mapped)
        mapped.close()  # nothing holds on to it
    assert list(batch) == [b"mapped"] * 10


def test_what_was_opened_does_not_change_with_its_source(sealer, opener):
    data = bytearray(sealer.seal_batch([b"report"] * 3))
    batch = opener.open_batch(data)
    data[:] = bytes(len(data))
    assert list(batch) == [b"report"] * 3
    data.clear()  # the buffer is not held either


STRIDED = memoryview(bytes(20))[::2]
WRONG = [
    ("text", TypeError),
    (17, TypeError),
    (None, TypeError),
    (["bytes"], TypeError),
    (STRIDED, ValueError),
]


@pytest.mark.parametrize(("wrong", "error"), WRONG, ids=lambda p: type(p).__name__)
def test_what_is_no_contiguous_buffer_is_refused_everywhere(sealer, opener, wrong, error):
    envelope, batch, stream = sealer.seal(b""), sealer.seal_batch([b""]), upload(sealer, b"")
    for call in (
        lambda: sealer.seal(wrong),
        lambda: sealer.seal(b"", wrong),
        lambda: sealer.seal_many([b"", wrong]),
        lambda: sealer.seal_many([b""], wrong),
        lambda: sealer.seal_batch([wrong, b""]),
        lambda: sealer.seal_batch([b""], wrong),
        lambda: sealer.seal_packed(wrong, array("q", [0, 0])),
        lambda: sealer.writer(io.BytesIO(), wrong),
        lambda: opener.open(wrong),
        lambda: opener.open(envelope, wrong),
        lambda: opener.open_many([envelope, wrong]),
        lambda: opener.open_many([envelope], wrong),
        lambda: opener.open_batch(wrong),
        lambda: opener.open_batch(batch, wrong),
        lambda: opener.reader(io.BytesIO(stream), wrong),
    ):
        with pytest.raises(error):
            call()
    # And all works as before.
    assert opener.open(sealer.seal(b"r")) == b"r"


def test_a_report_is_not_changed_by_sealing_it(engine):
    sealer = Sealer([key("x25519-a").public_key], engine=engine)
    report = bytearray(b"mine" * 1000)
    made = sealer.seal(report), sealer.seal_batch([report]), sealer.seal_many([report])
    assert report == b"mine" * 1000
    opener = Opener([key("x25519-a")], engine=engine)
    copies = [bytes(m) for m in (made[0], made[1], made[2][0])]
    assert (
        opener.open(made[0]) == opener.open_batch(made[1])[0] == opener.open(made[2][0]) == report
    )
    assert [made[0], made[1], made[2][0]] == copies
