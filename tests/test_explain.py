# SPDX-License-Identifier: Apache-2.0
"""explain() says without a key what a blob is, and where its public part is wrong."""

import io
import os
import tempfile
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Pipe, blob, key, load, plaintext, valid, vector

from upseal import Truncated, UnknownRecipient, UnsupportedFormat, explain
from upseal.core.explain import Explanation

CIPHERS = {1: "aes-256-gcm", 2: "chacha20-poly1305"}
HOSTILE = load("hostile")["vectors"]


def named(vectors):
    return [pytest.param(v, id=v["name"]) for v in vectors]


@pytest.mark.parametrize("v", named(valid()))
def test_a_valid_vector_is_described_in_full(v):
    data = blob(v)
    found = explain(data)
    assert (found.problem, found.offset) == (None, None)
    assert (found.kind, found.padded, found.cipher) == (
        v["kind"],
        v["padded"],
        CIPHERS[v["cipher"]],
    )
    assert found.recipients == [
        {"suite": load("keys")[n]["suite"], "key_id": load("keys")[n]["key_id"]}
        for n in v["recipients"]
    ]
    assert found.size == len(data)
    assert found.header_size == len(v["header"]) // 2
    assert found.overhead == found.size - found.plaintext_size
    truth = plaintext(v)
    if v["kind"] == "batch":
        assert found.count == len(truth)
        truth = b"".join(truth)
    else:
        assert found.count == (1 if v["kind"] == "envelope" else None)
    if v["padded"]:
        assert len(truth) < found.plaintext_size
    else:
        assert len(truth) == found.plaintext_size


@pytest.mark.parametrize("v", named(HOSTILE))
def test_a_fault_in_the_public_part_is_named_with_its_place(v):
    data = blob(v)
    found = explain(data)
    assert found.size == len(data)
    assert (found.problem is None) == (found.offset is None)
    if found.problem is not None:
        assert 0 <= found.offset <= len(data)
    if v["error"] in (Truncated.__name__, UnsupportedFormat.__name__):
        assert found.problem is not None
    if v["error"] == UnknownRecipient.__name__:
        assert found.problem is None
        ours = {key(n).key_id.hex() for n in v["keys"]}
        assert not ours & {
            r["key_id"]
            for r in found.recipients
            if r["suite"] in {load("keys")[n]["suite"] for n in v["keys"]}
        }


@pytest.mark.parametrize(
    ("name", "offset", "word"),
    [
        ("header-version-2", 3, "version"),
        ("header-cipher-3", 4, "cipher"),
        ("header-recipients-17", 5, "recipients"),
        ("header-suite-0011", 6, "suite"),
        ("header-x25519-length-79", 16, "79"),
        ("header-duplicate-entry", 98, "twice"),
        ("kind-04", 130, "kind"),
        ("batch-count-0", 155, "records"),
        ("header-magic-pem", 0, "USL"),
    ],
)
def test_the_place_is_the_very_byte(name, offset, word):
    (v,) = [v for v in HOSTILE if v["name"] == name]
    found = explain(blob(v))
    assert found.offset == offset
    assert word in found.problem


def test_the_same_is_said_of_bytes_files_and_pipes(tmp_path):
    for v in valid():
        data = blob(v)
        path = tmp_path / "blob"
        path.write_bytes(data)
        with open(path, "rb") as buffered, open(path, "rb", buffering=0) as raw:
            assert explain(data) == explain(buffered) == explain(raw)
        for other in (bytearray(data), memoryview(data), io.BytesIO(data), Pipe(data)):
            assert explain(other) == explain(data)


def test_a_pipe_may_give_a_few_bytes_at_a_time():
    # A raw pipe or socket returns what is there: a short read is not the end.
    for name in ("envelope-worked-example", "batch-5-aes", "upload-nonce-ones-aes"):
        data = blob(vector(name))
        assert explain(Pipe(data, 10)) == explain(data)


def test_a_file_is_described_from_where_it_stands():
    data = blob(vector("batch-5-aes"))
    file = io.BytesIO(b"12345" + data)
    file.seek(5)
    assert explain(file) == explain(data)


def test_of_a_large_upload_only_the_front_is_read(key):
    class Counting(io.BytesIO):
        count = 0

        def read(self, size=-1):
            got = super().read(size)
            self.count += len(got)
            return got

    front = blob(vector("upload-length-0-aes"))[:-16]
    file = Counting(front + bytes(50 * 16400 + 20))
    found = explain(file)
    assert (found.plaintext_size, found.problem) == (50 * 16384 + 4, None)
    assert file.count <= 1 << 16


def test_an_upload_through_a_pipe_is_counted_and_not_kept():
    front = blob(vector("upload-length-0-aes"))[:-16]
    reading, writing = os.pipe()

    def feed():
        with open(writing, "wb") as pipe:
            pipe.write(front)
            for _ in range(100):
                pipe.write(bytes(16400))
            pipe.write(bytes(16))

    thread = threading.Thread(target=feed)
    thread.start()
    with open(reading, "rb") as pipe:
        found = explain(pipe)
    thread.join()
    assert (found.plaintext_size, found.size) == (100 * 16384, len(front) + 100 * 16400 + 16)


def test_a_mapped_file_is_described_as_bytes_are():
    import mmap

    data = blob(vector("batch-5-aes"))
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        with mmap.mmap(file.fileno(), 0) as mapped:
            assert explain(mapped) == explain(data)


def test_as_dict_is_ready_for_json():
    import json

    found = explain(blob(vector("envelope-worked-example"))).as_dict()
    assert json.loads(json.dumps(found)) == found


@given(st.binary(max_size=400))
def test_random_bytes_never_make_it_raise(data):
    for given_data in (data, b"USL\x01" + data, io.BytesIO(data)):
        assert isinstance(explain(given_data), Explanation)


@given(st.sampled_from(valid()), st.data())
def test_changed_vectors_never_make_it_raise(v, draws):
    data = bytearray(blob(v)[:3000])
    for _ in range(draws.draw(st.integers(1, 4))):
        data[draws.draw(st.integers(0, min(len(data), 220) - 1))] = draws.draw(st.integers(0, 255))
    cut = draws.draw(st.integers(0, len(data)))
    assert explain(bytes(data)).size == len(data)
    assert explain(bytes(data[:cut])).size == cut
