# SPDX-License-Identifier: Apache-2.0
"""What is said about a file on its way up: announcements, tickets, and what a proof covers."""

import base64
import hashlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from upseal.fleet.uploads.words import (
    NAME_MAX,
    SIZE_MAX,
    UPLOADS,
    Announcement,
    Ticket,
    covered,
    is_announcement,
    parse_number,
    path_of,
    proven,
    upload_body_id,
)

UPLOAD, DIGEST = bytes(range(16)), hashlib.sha256(b"body").digest()
DEPLOYMENT, AGENT = b"d" * 16, b"a" * 16
PLAIN = Announcement(UPLOAD, "sealed", 5, 99, DIGEST, 1_700_000_000_000, b"r\xe9port \n\xff.txt")

sizes = st.integers(0, SIZE_MAX)
names = (
    st.binary(min_size=1, max_size=NAME_MAX)
    .map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"_"))
    .filter(lambda name: name not in (b".", b".."))
)
digests, uploads = st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16)


@st.composite
def announcements(draw):
    form = draw(st.sampled_from(["clear", "sealed"]))
    size = draw(sizes)
    body = size if form == "clear" else draw(sizes)
    return Announcement(draw(uploads), form, size, body, draw(digests), draw(sizes), draw(names))


class TestAnnouncement:
    def test_its_bytes(self):
        assert PLAIN.encode() == (
            b"UPU\x01" + UPLOAD + b"\x01" + struct.pack(">QQ", 5, 99) + DIGEST
            + struct.pack(">QH", 1_700_000_000_000, 13) + b"r\xe9port \n\xff.txt"
        )  # fmt: skip
        clear = replace(PLAIN, form="clear", body_size=5)
        assert clear.encode()[20:21] == b"\x00"

    @given(announcements())
    def test_there_and_back(self, said):
        data = said.encode()
        assert Announcement.decode(data) == said
        assert Announcement.decode(memoryview(data)) == said
        assert is_announcement(data)

    @given(st.binary(max_size=200))
    def test_what_is_none(self, data):
        with pytest.raises(ValueError):
            Announcement.decode(data)
        with pytest.raises(ValueError):
            Announcement.decode(b"UPU\x01" + data[:70])

    @given(announcements(), st.data())
    def test_what_is_taken_is_written_so(self, said, data):
        """One spelling: whatever parses after a change gives the changed bytes again."""
        raw = bytearray(said.encode())
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] ^= data.draw(st.integers(1, 255))
        try:
            found = Announcement.decode(raw)
        except ValueError:
            return
        assert found.encode() == bytes(raw)

    def test_cut_or_longer(self):
        data = PLAIN.encode()
        for wrong in (data[:-1], data + b"x", data[:4], b"", data[:20] + b"\x02" + data[21:]):
            with pytest.raises(ValueError):
                Announcement.decode(wrong)

    @pytest.mark.parametrize(
        "change",
        [
            {"upload": b"x" * 15}, {"body_sha256": b"x" * 31}, {"form": "open"}, {"size": -1},
            {"size": SIZE_MAX + 1}, {"body_size": SIZE_MAX + 1}, {"modified": SIZE_MAX + 1},
            {"modified": -1}, {"name": b""}, {"name": b"x" * (NAME_MAX + 1)}, {"name": b"a\0b"},
            {"name": b"a/b"}, {"name": b"."}, {"name": b".."}, {"form": "clear"},
        ],
    )  # fmt: skip
    def test_out_of_range(self, change):
        with pytest.raises(ValueError):
            replace(PLAIN, **change)

    @pytest.mark.parametrize(
        ("at", "value"),
        [(21, b"\x80"), (29, b"\x80"), (69, b"\x80"), (79, b"/"), (80, b"\0")],
    )
    def test_bytes_out_of_range(self, at, value):
        data = PLAIN.encode()
        assert data[79:] == PLAIN.name
        with pytest.raises(ValueError):
            Announcement.decode(data[:at] + value + data[at + 1 :])

    @pytest.mark.parametrize("name", [b"..", b"."])
    def test_names_that_are_folders(self, name):
        data = PLAIN.encode()[:77] + struct.pack(">H", len(name)) + name
        with pytest.raises(ValueError):
            Announcement.decode(data)

    def test_its_digest_is_for_one_agent_of_one_deployment(self):
        expected = hashlib.sha256(
            b"upseal/v1 upload\0" + DEPLOYMENT + AGENT + PLAIN.encode()
        ).digest()
        assert PLAIN.digest(DEPLOYMENT, AGENT) == expected
        others = {
            PLAIN.digest(AGENT, DEPLOYMENT),
            replace(PLAIN, name=b"x").digest(DEPLOYMENT, AGENT),
            replace(PLAIN, body_sha256=b"x" * 32).digest(DEPLOYMENT, AGENT),
        }
        assert len(others | {expected}) == 4
        for wrong in ((b"d", AGENT), (DEPLOYMENT, b"a" * 17)):
            with pytest.raises(ValueError):
                PLAIN.digest(*wrong)

    def test_what_is_meant_as_one(self):
        assert is_announcement(b"UPU\x01") and is_announcement(memoryview(PLAIN.encode()))
        for other in (b"", b"UPU", b"UPU\x02...", b"UPC\x01", b"report"):
            assert not is_announcement(other)

    def test_its_body(self):
        expected = hashlib.sha256(b"upseal/v1 upload body\0" + UPLOAD + DIGEST).digest()
        assert PLAIN.body_id == upload_body_id(UPLOAD, DIGEST) == expected
        assert path_of(expected) == "/v1/uploads/" + expected.hex()
        with pytest.raises(ValueError):
            upload_body_id(UPLOAD + b"x", DIGEST)


TICKET = Ticket(UPLOAD, DIGEST, "sealed", 99)


def pair(key, value):
    return f"{key} {base64.b64encode(value).decode()}"


class TestTicket:
    @given(uploads, digests, st.sampled_from(["clear", "sealed"]), sizes)
    def test_there_and_back(self, upload, digest, form, size):
        ticket = Ticket(upload, digest, form, size)
        assert Ticket.parse(str(size), ticket.metadata()) == ticket
        assert ticket.body_id == upload_body_id(upload, digest)

    def test_other_keys_and_another_order(self):
        said = [
            pair("form", b"sealed"), "is_confidential", pair("filename", b"../../etc/passwd"),
            pair("sha256", DIGEST), pair("upload", UPLOAD),
        ]  # fmt: skip
        assert Ticket.parse("99", ",".join(said)) == TICKET
        assert Ticket.parse("99", ", ".join(said)) == TICKET

    @pytest.mark.parametrize("length", [None, "", "-1", "+1", " 1", "1 ", "01", "1.0", "0x1",
                                        "1e3", "١", str(SIZE_MAX + 1), "9" * 40])  # fmt: skip
    def test_lengths_that_are_none(self, length):
        with pytest.raises(ValueError):
            Ticket.parse(length, TICKET.metadata())

    @pytest.mark.parametrize(
        "metadata",
        [
            None, "", ",", "upload", TICKET.metadata() + "," + pair("form", b"clear"),
            TICKET.metadata() + ",", ",".join([pair("upload", UPLOAD), pair("form", b"sealed")]),
            TICKET.metadata().replace("form c2VhbGVk", pair("form", b"open")),
            TICKET.metadata().replace("form c2VhbGVk", "form sealed!"),
            TICKET.metadata().replace("form c2VhbGVk", "form c2VhbGVk c2VhbGVk"),
            ",".join([pair("upload", b"short"), pair("sha256", DIGEST), pair("form", b"clear")]),
            TICKET.metadata() + ",x " + "A" * 5000, TICKET.metadata() + ",\xe9 AA==",
        ],
    )  # fmt: skip
    def test_metadata_that_is_none(self, metadata):
        with pytest.raises(ValueError):
            Ticket.parse("99", metadata)

    @given(st.text(max_size=100))
    def test_anything(self, text):
        with pytest.raises(ValueError):
            Ticket.parse("1", text)

    def test_numbers(self):
        assert parse_number("0", "x") == 0
        assert parse_number(str(SIZE_MAX), "x") == SIZE_MAX


said = st.dictionaries(
    st.sampled_from(["upload-offset", "upload-length", "upload-metadata"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126)),
)


class TestProof:
    def test_elsewhere_it_is_the_body(self):
        assert proven("/v1/units", {"upload-offset": "5"}, b"body") == b"body"
        assert proven("/v1/uploadsx", {}, b"body") == b"body"

    def test_its_bytes(self):
        headers = {
            "Upload-Offset": " 5\t", "upload-metadata": "a b", "UPLOAD-LENGTH": "7",
            "content-type": "x", "Upload-Checksum": "sha1 x",
        }  # fmt: skip
        expected = f"{DIGEST.hex()}\nupload-length: 7\nupload-metadata: a b\nupload-offset: 5\n"
        assert proven(UPLOADS, headers, b"body") == expected.encode()
        assert proven(UPLOADS + "/x", {}, b"body") == f"{DIGEST.hex()}\n".encode()
        assert covered({}, DIGEST) == proven(UPLOADS, {}, b"body")

    @pytest.mark.parametrize("name", ["upload-offset", "upload-length", "upload-metadata"])
    def test_each_counts(self, name):
        found = {proven(UPLOADS, {name: value}, b"body") for value in ("5", "6", "")}
        assert len(found | {proven(UPLOADS, {}, b"body"), proven(UPLOADS, {name: "5"}, b"")}) == 5

    @given(said, said)
    def test_no_two_requests_are_the_same(self, one, other):
        assert (proven(UPLOADS, one, b"") == proven(UPLOADS, other, b"")) == (one == other)

    def test_a_header_there_twice_is_refused(self):
        """Whoever reads the first one and whoever reads the last would not mean the same."""
        twice = Headers(raw=[(b"upload-offset", b"1"), (b"upload-offset", b"2")])
        with pytest.raises(ValueError):
            covered(twice, DIGEST)
