# SPDX-License-Identifier: Apache-2.0
"""Bodies on the disk of a hop: quotas, crashes at every step, full and lying disks."""

import errno
import json
import os
import resource
import shutil
import subprocess
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fleet_uploads_support import AGENT, OTHER, RELAY, limits, ticket_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upseal.fleet.uploads import quotas, shelf
from upseal.fleet.uploads.shelf import (
    Contradiction,
    Gone,
    Locked,
    NoRoom,
    Shelf,
    ShelfError,
    TooLarge,
    WrongOffset,
)
from upseal.fleet.uploads.words import Ticket

DATA = os.urandom(300_000)


@contextmanager
def opened(folder, **changes):
    with Shelf(Path(folder), limits(**changes)) as found:
        yield found


def put(there, data=DATA, hop=AGENT, role="agent", piece=100_000):
    """A body with all its bytes; not verified."""
    held = there.create(hop, role, ticket_of(data))
    for at in range(0, len(data), piece):
        assert there.append(held, at, data[at : at + piece]) == min(len(data), at + piece)
    return held


def names(folder):
    """The kinds of files there, without the lock."""
    return sorted(Path(name).suffix for name in os.listdir(folder) if name != "lock")


def numbers(there):
    use = there.usage()
    return use.bodies, use.held, use.reserved, use.open


class TestOneBody:
    def test_from_creation_to_removal(self, tmp_path):
        with opened(tmp_path) as there:
            ticket = ticket_of(DATA)
            held = there.create(AGENT, "agent", ticket)
            assert (held.offset, held.state, held.ticket) == (0, "open", ticket)
            assert numbers(there) == (1, 0, len(DATA), 1)
            assert there.find(AGENT, ticket.body_id) is held
            assert there.by_body(ticket.body_id) == [held]
            assert there.append(held, 0, DATA[:1000]) == 1000
            assert there.append(held, 1000, memoryview(DATA)[1000:]) == len(DATA)
            assert held.state == "checking" and there.unchecked() == [held]
            assert numbers(there) == (1, len(DATA), len(DATA), 0)
            assert there.complete(held) and held.state == "whole"
            assert there.whole() == [held] and not there.unchecked()
            assert held.path.read_bytes() == DATA and names(tmp_path) == [".json", ".whole"]
            assert there.complete(held), "once more is no harm"
            there.remove(held)
            assert there.find(AGENT, ticket.body_id) is None
            assert not there.by_body(ticket.body_id) and not there.whole()
            assert numbers(there) == (0, 0, 0, 0) and there.usage().oldest is None
            assert names(tmp_path) == []
            there.remove(held)
            with pytest.raises(Gone):
                there.append(held, 0, b"x")
            with pytest.raises(Gone):
                there.complete(held)

    def test_files_are_private(self, tmp_path):
        folder = tmp_path / "new" / "uploads"
        with opened(folder) as there:
            held = put(there)
            there.complete(held)
            assert folder.stat().st_mode & 0o777 == 0o700
            for file in folder.iterdir():
                assert file.stat().st_mode & 0o777 == 0o600

    def test_nothing_of_the_network_is_in_a_name(self, tmp_path):
        with opened(tmp_path) as there:
            held = put(there)
            expected = f"{AGENT.hex()}-{held.ticket.body_id.hex()}"
            assert {Path(n).stem for n in os.listdir(tmp_path)} == {"lock", expected}

    def test_the_same_again_is_the_same(self, tmp_path):
        with opened(tmp_path) as there:
            ticket = ticket_of(DATA)
            held = there.create(AGENT, "agent", ticket)
            there.append(held, 0, DATA[:10])
            assert there.create(AGENT, "agent", ticket) is held
            assert held.offset == 10 and numbers(there) == (1, 10, len(DATA), 1)
            for other in ({"size": 5}, {"form": "clear"}):
                said = {"form": ticket.form, "size": ticket.size, **other}
                wrong = Ticket(ticket.upload, ticket.body_sha256, said["form"], said["size"])
                with pytest.raises(Contradiction):
                    there.create(AGENT, "agent", wrong)

    def test_the_same_body_of_two_hops_are_two(self, tmp_path):
        with opened(tmp_path) as there:
            ticket = ticket_of(DATA)
            one, other = (there.create(hop, "agent", ticket) for hop in (AGENT, OTHER))
            there.append(one, 0, DATA[:7])
            assert (one.offset, other.offset) == (7, 0)
            assert there.by_body(ticket.body_id) == [one, other]
            there.remove(one)
            assert there.by_body(ticket.body_id) == [other]

    def test_zero_bytes(self, tmp_path):
        with opened(tmp_path) as there:
            held = there.create(AGENT, "agent", ticket_of(b""))
            assert held.state == "checking" and numbers(there) == (1, 0, 0, 0)
            assert there.complete(held) and held.path.read_bytes() == b""
        with opened(tmp_path) as there:
            assert len(there.whole()) == 1

    def test_bytes_must_follow(self, tmp_path):
        with opened(tmp_path) as there:
            held = there.create(AGENT, "agent", ticket_of(DATA))
            there.append(held, 0, DATA[:100])
            for wrong in (0, 99, 101, len(DATA)):
                with pytest.raises(WrongOffset) as caught:
                    there.append(held, wrong, b"x")
                assert caught.value.offset == 100
            with pytest.raises(ValueError, match="more bytes"):
                there.append(held, 100, DATA[99:])
            assert held.path.read_bytes() == DATA[:100] and held.offset == 100
            assert there.append(held, 100, b"") == 100
            there.append(held, 100, DATA[100:])
            assert there.append(held, len(DATA), b"") == len(DATA)
            with pytest.raises(WrongOffset):
                there.append(held, len(DATA), b"x")

    def test_it_is_not_verified_before_it_is_there(self, tmp_path):
        with opened(tmp_path) as there:
            held = there.create(AGENT, "agent", ticket_of(DATA))
            with pytest.raises(ValueError, match="missing"):
                there.complete(held)

    def test_other_bytes_than_declared(self, tmp_path):
        with opened(tmp_path) as there:
            held = there.create(AGENT, "agent", ticket_of(DATA))
            there.append(held, 0, bytes([DATA[0] ^ 1]) + DATA[1:])
            assert there.complete(held) is False
            assert there.find(AGENT, held.body_id) is None and names(tmp_path) == []
            assert numbers(there) == (0, 0, 0, 0)

    def test_what_was_seen_is_not_read_again(self, tmp_path, monkeypatch):
        read, real = [], os.read
        monkeypatch.setattr(os, "read", lambda *given: read.append(given) or real(*given))
        with opened(tmp_path) as there:
            assert there.complete(put(there)) and not read
            waiting = put(there)
        with opened(tmp_path) as there:
            (held,) = there.unchecked()
            assert held.body_id == waiting.body_id
            assert there.complete(held) and read

    def test_long_ones_are_synced_on_the_way(self, tmp_path, monkeypatch):
        synced = []
        monkeypatch.setattr(shelf, "_SYNC_EVERY", 150_000)
        monkeypatch.setattr(os, "fdatasync", lambda file: synced.append(os.fstat(file).st_size))
        with opened(tmp_path) as there:
            put(there, piece=50_000)
        assert synced == [150_000, 300_000]


# -- crashes ---------------------------------------------------------------------------


class Steps:
    """Copies the folder before and after each thing that is done to the disk."""

    DONE = ("open", "unlink", "replace", "fsync", "fdatasync", "ftruncate")

    def __init__(self, folder, to, monkeypatch):
        self.folder, self.to, self.promised = folder, to, {"offset": 0}
        self.copies, self.busy = [], False
        for name in self.DONE:
            monkeypatch.setattr(os, name, self.copying(getattr(os, name)))
        pwrite = os.pwrite
        halves = self.copying(lambda file, data, at: pwrite(file, data[: len(data) // 2 + 1], at))
        monkeypatch.setattr(os, "pwrite", halves)

    def copying(self, real):
        def call(*args, **named):
            self.copy()
            try:
                return real(*args, **named)
            finally:
                self.copy()

        return call

    def copy(self):
        if self.busy:
            return
        self.busy = True
        try:
            here = self.to / str(len(self.copies))
            shutil.copytree(self.folder, here)
            self.copies.append((here, dict(self.promised)))
        finally:
            self.busy = False


def after_a_crash(folder, promised, ticket, data):
    """What must hold, whatever was under way."""
    with opened(folder) as there:
        held = there.find(AGENT, ticket.body_id)
        if held is None:
            assert not promised.get("created") or promised.get("going")
            assert names(folder) == [] and numbers(there) == (0, 0, 0, 0)
            return "none"
        state = held.state
        content = held.path.read_bytes()
        assert content == data[: held.offset] and held.offset == len(content)
        assert held.offset >= promised["offset"] and held.ticket == ticket
        assert state == "whole" or not promised.get("whole")
        assert names(folder) == sorted([".json", ".whole" if state == "whole" else ".part"])
        if state == "open":
            there.append(held, held.offset, data[held.offset :])
        assert there.complete(held) and held.path.read_bytes() == data
        assert numbers(there) == (1, len(data), len(data), 0)
        return state


class TestCrashes:
    @pytest.mark.parametrize("data", [DATA[:2000], b""], ids=["bytes", "empty"])
    def test_at_every_step(self, tmp_path, monkeypatch, data):
        folder, to = tmp_path / "shelf", tmp_path / "copies"
        folder.mkdir()
        to.mkdir()
        ticket = ticket_of(data)
        with monkeypatch.context() as patched, opened(folder) as there:
            patched.setattr(shelf, "_SYNC_EVERY", 1000)
            steps = Steps(folder, to, patched)
            held = there.create(AGENT, "agent", ticket)
            steps.promised["created"] = True
            for at in range(0, len(data), 500):
                steps.promised["offset"] = there.append(held, at, data[at : at + 500])
            assert there.complete(held)
            steps.promised["whole"] = True
            steps.copy()
            steps.promised["going"] = True
            there.remove(held)
        found = [after_a_crash(copy, said, ticket, data) for copy, said in steps.copies]
        wanted = {"none", "whole", "checking"} | ({"open"} if data else set())
        assert set(found) == wanted
        assert len(found) > 30 or not data

    def test_while_a_wrong_one_is_thrown_away(self, tmp_path, monkeypatch):
        folder, to = tmp_path / "shelf", tmp_path / "copies"
        folder.mkdir()
        to.mkdir()
        with monkeypatch.context() as patched, opened(folder) as there:
            held = there.create(AGENT, "agent", ticket_of(DATA))
            there.append(held, 0, DATA[::-1])
            steps = Steps(folder, to, patched)
            assert not there.complete(held)
        assert len(steps.copies) > 4
        for copy, _ in steps.copies:
            with opened(copy) as there:
                for again in there.unchecked():
                    assert not there.complete(again)
                assert not there.whole() and names(copy) == []

    def test_two_processes_do_not_share_it(self, tmp_path):
        with opened(tmp_path), pytest.raises(ShelfError, match="another process"):
            Shelf(tmp_path, limits())
        with opened(tmp_path):
            pass

    def test_order_and_time_are_kept(self, tmp_path):
        with opened(tmp_path) as there:
            made = [put(there, DATA[:n]) for n in (30, 10, 20)]
            for number, held in enumerate(made):
                held.received -= 1000 * number  # the last one is the oldest
                held.named(".json").write_bytes(held.card())
                assert there.complete(held)
            said = [held.received for held in made]
        with opened(tmp_path) as there:
            assert [held.received for held in there.whole()] == sorted(said)
            assert there.usage().oldest == min(said)
            assert {held.role for held in there.whole()} == {"agent"}

    def test_close_ends_a_check(self, tmp_path, monkeypatch):
        with opened(tmp_path) as there:
            put(there)
        with monkeypatch.context() as patched:
            there = Shelf(tmp_path, limits())
            (held,) = there.unchecked()
            real = os.read
            patched.setattr(os, "read", lambda *a: there.close() or real(*a))
            with pytest.raises(Gone):
                there.complete(held)
            with pytest.raises(Gone):
                there.create(AGENT, "agent", ticket_of(b"x"))
        with opened(tmp_path) as there:
            assert there.complete(*there.unchecked())

    def test_close_waits_for_whoever_is_at_work(self, tmp_path, monkeypatch):
        there = Shelf(tmp_path, limits())
        held = there.create(AGENT, "agent", ticket_of(DATA))
        begun, go = threading.Event(), threading.Event()
        real = os.pwrite

        def slow(*args):
            begun.set()
            assert go.wait(20)
            return real(*args)

        monkeypatch.setattr(os, "pwrite", slow)
        threads = [
            threading.Thread(target=there.append, args=(held, 0, DATA)),
            threading.Thread(target=there.close),
        ]
        threads[0].start()
        assert begun.wait(20)
        threads[1].start()
        with pytest.raises(ShelfError):
            Shelf(tmp_path, limits())
        go.set()
        for thread in threads:
            thread.join()
        with opened(tmp_path) as there:
            assert there.complete(*there.unchecked())


class TestDamage:
    @pytest.fixture
    def left(self, tmp_path):
        """A folder with a part, a body that is unchecked, and a whole one."""
        with opened(tmp_path) as there:
            part = there.create(AGENT, "agent", ticket_of(DATA))
            there.append(part, 0, DATA[:1000])
            full = put(there, hop=OTHER)
            whole = put(there, DATA[:5000])
            assert there.complete(whole)
        return tmp_path, part, full, whole

    def found(self, folder):
        with opened(folder) as there:
            return sorted(held.state for held in there._bodies.values()), names(folder)

    def test_a_changed_byte_is_found(self, left):
        folder, _, full, _ = left
        raw = bytearray(full.path.read_bytes())
        raw[12_345] ^= 1
        full.path.write_bytes(raw)
        with opened(folder) as there:
            (held,) = there.unchecked()
            assert there.complete(held) is False
            assert there.find(OTHER, full.body_id) is None

    def test_a_part_without_its_card_is_cleared_away(self, left):
        folder, part, *_ = left
        part.named(".json").unlink()
        assert self.found(folder) == (["checking", "whole"], [".json"] * 2 + [".part", ".whole"])

    def test_a_card_without_bytes_is_at_the_beginning(self, left):
        folder, part, *_ = left
        part.named(".part").unlink()
        with opened(folder) as there:
            held = there.find(AGENT, part.body_id)
            assert (held.offset, held.state) == (0, "open")
            there.append(held, 0, DATA)
            assert there.complete(held)

    @pytest.mark.parametrize(
        "card",
        [b"", b"{}", b"[]", b"x" * 5000, b'{"version":1}', b"\xff\xfe", b"{" * 3000,
         {"size": -1}, {"size": "5"}, {"size": True}, {"size": 2**63}, {"form": "open"},
         {"hop": "../../.."}, {"hop": OTHER.hex()}, {"upload": "00" * 16}, {"sha256": "00" * 32},
         {"role": "server"}, {"received": None}, {"version": 2}, {"hop": None}],
    )  # fmt: skip
    def test_a_card_that_is_none(self, left, card):
        folder, part, *_ = left
        path = part.named(".json")
        if isinstance(card, dict):
            card = json.dumps({**json.loads(path.read_bytes()), **card}).encode()
        path.write_bytes(card)
        assert self.found(folder)[0] == ["checking", "whole"]
        assert not path.exists() and not part.named(".part").exists()

    def test_a_whole_one_of_another_length(self, left):
        folder, _, _, whole = left
        with open(whole.named(".whole"), "ab") as file:
            file.write(b"x")
        assert self.found(folder)[0] == ["checking", "open"]

    def test_a_part_beside_a_whole_one(self, left):
        folder, _, _, whole = left
        whole.named(".part").write_bytes(b"of an earlier life")
        with opened(folder) as there:
            assert there.find(AGENT, whole.body_id).path.read_bytes() == DATA[:5000]
        assert not whole.named(".part").exists()

    def test_a_part_that_is_too_long(self, left):
        folder, part, *_ = left
        with open(part.named(".part"), "ab") as file:
            file.truncate(len(DATA) + 1)
        assert self.found(folder)[0] == ["checking", "whole"]

    def test_what_is_not_ours_is_let_be(self, left):
        folder, part, *_ = left
        temporary = folder / f".{part.named('.json').name}.{'0' * 16}.part"
        temporary.write_bytes(b"half")
        others = [folder / "README", folder / f"{part.named('.part').name}~", folder / "x.part"]
        for other in others:
            other.write_bytes(b"mine")
        with opened(folder):
            assert not temporary.exists() and all(other.exists() for other in others)

    def test_a_part_that_was_cut_while_we_live(self, tmp_path):
        with opened(tmp_path) as there:
            held = there.create(AGENT, "agent", ticket_of(DATA))
            there.append(held, 0, DATA[:1000])
            os.truncate(held.path, 400)
            with pytest.raises(WrongOffset) as caught:
                there.append(held, 1000, DATA[1000:])
            assert caught.value.offset == held.offset == 400
            assert numbers(there) == (1, 400, len(DATA), 1)
            there.append(held, 400, DATA[400:])
            assert there.complete(held) and held.path.read_bytes() == DATA

    def test_a_part_that_is_longer_than_it_was(self, tmp_path):
        """A cut that failed after a write that failed."""
        with opened(tmp_path) as there:
            held = there.create(AGENT, "agent", ticket_of(DATA))
            there.append(held, 0, DATA[:1000])
            with open(held.path, "ab") as file:
                file.write(b"half of a piece")
            there.append(held, 1000, DATA[1000:])
            assert there.complete(held) and held.path.read_bytes() == DATA

    def test_files_that_somebody_deleted(self, tmp_path):
        with opened(tmp_path) as there:
            held = there.create(AGENT, "agent", ticket_of(DATA))
            held.path.unlink()
            with pytest.raises(Gone):
                there.append(held, 0, DATA)
            assert numbers(there) == (0, 0, 0, 0)
            held = put(there)
            held.path.unlink()
            with pytest.raises(OSError, match="No such file"):
                there.complete(held)
            assert numbers(there) == (0, 0, 0, 0) and names(tmp_path) == []


# -- full disks ------------------------------------------------------------------------


def no_space(*_args, **_named):
    raise OSError(errno.ENOSPC, "No space left on device")


class TestFullDisk:
    def test_a_piece_is_there_whole_or_not_at_all(self, tmp_path, monkeypatch):
        real = os.pwrite
        left = [150]

        def some(file, data, at):
            done = real(file, data[: left[0]], at) if left[0] else no_space()
            left[0] -= done
            return done

        with opened(tmp_path) as there:
            held = there.create(AGENT, "agent", ticket_of(DATA[:200]))
            with monkeypatch.context() as patched:
                patched.setattr(os, "pwrite", some)
                there.append(held, 0, DATA[:100])
                with pytest.raises(OSError, match="No space"):
                    there.append(held, 100, DATA[100:200])
            assert held.offset == 100 and held.path.read_bytes() == DATA[:100]
            assert numbers(there) == (1, 100, 200, 1)
            there.append(held, 100, DATA[100:200])
            assert there.complete(held)

    def test_also_if_it_cannot_be_cut(self, tmp_path, monkeypatch):
        real = os.pwrite

        def half(file, data, at):
            real(file, data[:50], at)
            no_space()

        with opened(tmp_path) as there:
            held = there.create(AGENT, "agent", ticket_of(DATA[:200]))
            with monkeypatch.context() as patched:
                patched.setattr(os, "pwrite", half)
                patched.setattr(os, "ftruncate", no_space)
                with pytest.raises(OSError, match="No space"):
                    there.append(held, 0, DATA[:200])
            assert held.offset == 0
            there.append(held, 0, DATA[:200])
            assert there.complete(held) and held.path.read_bytes() == DATA[:200]

    @pytest.mark.parametrize("what", ["write_private", "open"])
    def test_a_creation_leaves_nothing(self, tmp_path, monkeypatch, what):
        with opened(tmp_path) as there:
            ticket = ticket_of(DATA)
            with monkeypatch.context() as patched:
                patched.setattr(shelf if what == "write_private" else os, what, no_space)
                with pytest.raises(OSError, match="No space"):
                    there.create(AGENT, "agent", ticket)
            assert there.find(AGENT, ticket.body_id) is None
            assert numbers(there) == (0, 0, 0, 0) and names(tmp_path) == []
            assert there.create(AGENT, "agent", ticket).offset == 0

    @pytest.mark.parametrize("what", ["fsync", "replace"])
    def test_a_sync_that_fails_is_not_tried_again(self, tmp_path, monkeypatch, what):
        """After it the system may call pages clean that never reached the disk."""
        with opened(tmp_path) as there:
            held = put(there)
            with monkeypatch.context() as patched:
                patched.setattr(os, what, no_space)
                with pytest.raises(OSError, match="No space"):
                    there.complete(held)
            assert there.find(AGENT, held.body_id) is None and names(tmp_path) == []
            assert numbers(there) == (0, 0, 0, 0)

    def test_also_on_the_way(self, tmp_path, monkeypatch):
        monkeypatch.setattr(shelf, "_SYNC_EVERY", 1000)
        with opened(tmp_path) as there:
            held = there.create(AGENT, "agent", ticket_of(DATA))
            with monkeypatch.context() as patched:
                patched.setattr(os, "fdatasync", no_space)
                with pytest.raises(OSError, match="No space"):
                    there.append(held, 0, DATA[:1000])
            assert there.find(AGENT, held.body_id) is None and names(tmp_path) == []

    def test_a_file_that_cannot_be_deleted_is_given_to_nobody(self, tmp_path, monkeypatch):
        with opened(tmp_path) as there:
            held = put(there)
            with monkeypatch.context() as patched:
                patched.setattr(os, "unlink", no_space)
                there.remove(held)
            assert there.find(AGENT, held.body_id) is None and numbers(there) == (0, 0, 0, 0)

    def test_a_limit_on_files(self, tmp_path):
        """A real one, of the kernel."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        with opened(tmp_path) as there:
            held = there.create(AGENT, "agent", ticket_of(DATA))
            resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, before[1]))
            try:
                there.append(held, 0, DATA[:100_000])
                with pytest.raises(OSError, match="too large"):
                    there.append(held, 100_000, DATA[100_000:])
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert held.offset == 100_000 == held.path.stat().st_size
            there.append(held, 100_000, DATA[100_000:])
            assert there.complete(held)

    def test_a_small_disk(self, tmp_path):
        """Really full."""
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)],
            capture_output=True,
            check=False,
        )
        if mounted.returncode:
            pytest.skip("no file system can be mounted here")
        try:
            with opened(tmp_path, min_free=100_000) as there:
                with pytest.raises(NoRoom, match="disk"):
                    there.create(AGENT, "agent", ticket_of(bytes(2 << 20)))
                data = bytes(1 << 20)
                held = there.create(AGENT, "agent", ticket_of(data))
                with pytest.raises(NoRoom, match="disk"):  # it is promised to the first one
                    there.create(AGENT, "agent", ticket_of(data))
                (tmp_path / "other").write_bytes(bytes(1_200_000))
                there.append(held, 0, data[:500_000])
                with pytest.raises(NoRoom, match="disk"):
                    there.append(held, 500_000, data[500_000:])
            with opened(tmp_path) as there:
                held = there.find(AGENT, held.body_id)
                with suppress(NoRoom), pytest.raises(OSError, match="No space"):
                    there.append(held, 500_000, data[500_000:])
                assert held.offset == 500_000
                (tmp_path / "other").unlink()
                there.append(held, 500_000, data[500_000:])
                assert there.complete(held)
        finally:
            subprocess.run(["umount", str(tmp_path)], check=True)


# -- quotas ----------------------------------------------------------------------------


def of_size(size, upload=None):
    return Ticket(upload or os.urandom(16), bytes(32), "sealed", size)


class TestQuotas:
    def refused(self, there, hop, role, size):
        with pytest.raises(NoRoom) as caught:
            there.create(hop, role, of_size(size))
        return caught.value.own

    def test_what_is_declared_is_reserved(self, tmp_path):
        with opened(tmp_path, max_bytes=1000, hop_share=0.6) as there:
            first = there.create(AGENT, "agent", of_size(600))
            assert self.refused(there, AGENT, "agent", 1), "its own share"
            there.create(OTHER, "agent", of_size(400))
            assert not self.refused(there, RELAY, "relay", 1), "all of it"
            there.create(RELAY, "relay", of_size(0))
            assert numbers(there) == (3, 0, 1000, 2)
            there.remove(first)
            there.create(RELAY, "relay", of_size(600))

    def test_a_share_is_of_agents(self, tmp_path):
        with opened(tmp_path, max_bytes=1000, hop_share=0.5, max_size=900) as there:
            with pytest.raises(TooLarge) as caught:  # it would never fit: no reason to wait
                there.create(AGENT, "agent", of_size(501))
            assert caught.value.most == 500
            with pytest.raises(TooLarge) as caught:
                there.create(RELAY, "relay", of_size(901))
            assert caught.value.most == 900
            there.create(RELAY, "relay", of_size(900))

    def test_so_many_may_be_open(self, tmp_path):
        with opened(tmp_path, open_per_hop=2, relay_factor=2) as there:
            data = DATA[:10]
            made = [there.create(AGENT, "agent", ticket_of(data)) for _ in range(2)]
            assert self.refused(there, AGENT, "agent", 10)
            there.create(AGENT, "agent", of_size(0))  # complete as it is
            there.create(OTHER, "agent", of_size(10))
            for _ in range(4):
                there.create(RELAY, "relay", of_size(10))
            assert self.refused(there, RELAY, "relay", 10)
            there.append(made[0], 0, data)
            there.create(AGENT, "agent", of_size(10))
            assert self.refused(there, AGENT, "agent", 10)

    def test_so_many_bodies(self, tmp_path):
        """Empty ones cost a file each as well."""
        with opened(tmp_path, max_bodies=6, hop_share=0.5) as there:
            for _ in range(3):
                there.create(AGENT, "agent", of_size(0))
            assert self.refused(there, AGENT, "agent", 0)
            for _ in range(3):
                there.create(RELAY, "relay", of_size(0))
            assert not self.refused(there, RELAY, "relay", 0)

    def test_so_many_bodies_of_one_agent(self, tmp_path):
        """Two with empty files would fill the shelf by number; a relay brings those of many."""
        with opened(tmp_path, bodies_per_hop=3) as there:
            for _ in range(3):
                there.create(AGENT, "agent", of_size(0))
            assert self.refused(there, AGENT, "agent", 0)
            there.create(OTHER, "agent", of_size(0))
            for _ in range(4):
                there.create(RELAY, "relay", of_size(0))

    def test_the_disk_has_to_have_it(self, tmp_path, monkeypatch):
        free = [1_000_000]
        monkeypatch.setattr(shelf, "free_bytes", lambda folder: free[0])
        with opened(tmp_path, min_free=100_000) as there:
            most = 900_000 - quotas._OVERHEAD
            assert not self.refused(there, AGENT, "agent", most + 1)
            held = there.create(AGENT, "agent", of_size(most - 1000))
            assert not self.refused(there, AGENT, "agent", 1001), "owed to the first"
            there.append(held, 0, bytes(800_000))
            free[0] -= 800_000
            assert not self.refused(there, AGENT, "agent", 1001), "as before"
            there.create(AGENT, "agent", of_size(1000))
            free[0] = 100_010
            with pytest.raises(NoRoom):
                there.append(held, 800_000, bytes(11))
            assert there.append(held, 800_000, bytes(10)) == 800_010

    def test_what_is_sealed_again_takes_room_twice(self, tmp_path):
        clear = ticket_of(DATA, "clear")
        bounds = {"hop_share": 1.0, "sealed_again": True}
        with opened(tmp_path / "a", max_bytes=len(DATA) * 2, **bounds) as there:
            with pytest.raises(TooLarge):  # it would never fit
                there.create(AGENT, "agent", clear)
            there.create(AGENT, "agent", ticket_of(DATA))
        with opened(tmp_path / "b", max_bytes=len(DATA) * 3, **bounds) as there:
            held = there.create(AGENT, "agent", clear)
            reserved = there.usage().reserved
            assert 2 * len(DATA) < reserved < 2.1 * len(DATA)
            assert not self.refused(there, OTHER, "agent", len(DATA)), "all of it"
            there.append(held, 0, DATA)
            assert there.complete(held)
            assert numbers(there) == (1, len(DATA), reserved, 0)
        with opened(tmp_path / "b", max_bytes=len(DATA) * 3, **bounds) as there:
            assert numbers(there) == (1, len(DATA), reserved, 0)
            there.remove(*there.whole())
            assert numbers(there) == (0, 0, 0, 0)

    def test_what_was_left_counts(self, tmp_path):
        with opened(tmp_path) as there:
            held = there.create(AGENT, "agent", ticket_of(DATA))
            there.append(held, 0, DATA[:1000])
            assert there.complete(put(there, hop=RELAY, role="relay"))
            before = numbers(there)
        with opened(tmp_path, open_per_hop=1) as there:
            assert numbers(there) == before == (2, 301_000, 600_000, 1)
            assert self.refused(there, AGENT, "agent", 1)

    def test_nothing_of_a_refusal_stays(self, tmp_path):
        with opened(tmp_path, max_bytes=1000) as there:
            for _ in range(50):
                with pytest.raises(TooLarge):
                    there.create(AGENT, "agent", of_size(5000))
            assert numbers(there) == (0, 0, 0, 0) and names(tmp_path) == []

    def test_expiry(self, tmp_path):
        with opened(tmp_path, expires=100) as there:
            idle, busy = (there.create(AGENT, "agent", ticket_of(DATA)) for _ in range(2))
            full = put(there, DATA[:10])
            now = max(idle.touched, full.touched)
            assert there.expire(now + 99) == 0
            busy.touched = now + 50
            assert there.expire(now + 101) == 1
            assert there.find(AGENT, idle.body_id) is None
            assert there.find(AGENT, busy.body_id) is busy
            assert there.expire(now + 10_000) == 1, "a body with all its bytes stays"
            assert there.unchecked() == [full] and names(tmp_path) == [".json", ".part"]

    def test_expiry_goes_by_the_last_byte_over_restarts(self, tmp_path):
        with opened(tmp_path) as there:
            held = there.create(AGENT, "agent", ticket_of(DATA))
            there.append(held, 0, DATA[:10])
        os.utime(held.path, (1_000_000, 1_000_000))
        with opened(tmp_path, expires=100) as there:
            assert there.expire(1_000_099) == 0
            assert there.expire(1_000_101) == 1

    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(
        st.sampled_from(["create", "append", "complete", "remove", "expire", "wrong"]),
        st.integers(0, 3), st.integers(0, 40),
    ), max_size=30))  # fmt: skip
    def test_the_books_are_right_after_anything(self, tmp_path_factory, acts):
        folder = tmp_path_factory.mktemp("shelf")
        tickets = [ticket_of(DATA[:size]) for size in (0, 1, 20, 40)]
        with opened(folder, max_bytes=70, open_per_hop=2) as there:
            for act, which, count in acts:
                hop = (AGENT, OTHER)[count % 2]
                held = there.find(hop, tickets[which].body_id)
                with suppress(ShelfError, ValueError):
                    if act == "create":
                        there.create(hop, "agent", tickets[which])
                    elif held is None:
                        continue
                    elif act == "append":
                        at = held.offset
                        there.append(held, at, DATA[at : at + count][: held.ticket.size - at])
                    elif act == "wrong":
                        there.append(held, held.offset, bytes(count))
                    elif act == "complete":
                        there.complete(held)
                    elif act == "remove":
                        there.remove(held)
                    else:
                        there.expire(held.touched + 3601)
            before = numbers(there)
            assert before[2] <= 70
        with opened(folder) as there:
            assert numbers(there) == before


# -- several at once -------------------------------------------------------------------


class TestAtOnce:
    def test_one_of_two_pieces_is_taken(self, tmp_path):
        with opened(tmp_path) as there:
            for _ in range(20):
                held = there.create(AGENT, "agent", ticket_of(DATA))
                gate = threading.Barrier(4)
                came = []

                def send(gate=gate, came=came, held=held):
                    gate.wait()
                    try:
                        came.append(there.append(held, 0, DATA))
                    except (WrongOffset, Locked) as error:
                        came.append(error)

                threads = [threading.Thread(target=send) for _ in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert [one for one in came if one == len(DATA)] == [len(DATA)]
                assert there.complete(held) and held.path.read_bytes() == DATA
                there.remove(held)

    def test_who_is_at_work_is_not_disturbed(self, tmp_path, monkeypatch):
        begun, go = threading.Event(), threading.Event()
        real = os.pwrite

        def slow(*args):
            begun.set()
            assert go.wait(20)
            return real(*args)

        with opened(tmp_path) as there:
            held = there.create(AGENT, "agent", ticket_of(DATA))
            monkeypatch.setattr(os, "pwrite", slow)
            thread = threading.Thread(target=there.append, args=(held, 0, DATA))
            thread.start()
            assert begun.wait(20)
            with pytest.raises(Locked):
                there.append(held, 0, DATA)
            with pytest.raises(Locked):
                there.remove(held)
            assert there.expire(held.touched + 10_000) == 0
            assert there.create(AGENT, "agent", held.ticket) is held, "that does not wait"
            assert numbers(there) == (1, 0, len(DATA), 1)
            go.set()
            thread.join()
            assert there.complete(held)

    def test_work_of_an_owner(self, tmp_path):
        with opened(tmp_path) as there:
            held = put(there)
            assert there.complete(held)
            refused = []

            def other():
                try:
                    there.remove(held)
                except Locked as error:
                    refused.append(error)

            with there.working(held):
                thread = threading.Thread(target=other)
                thread.start()
                thread.join()
                assert refused and held.path.exists()
                there.remove(held)
            with pytest.raises(Gone), there.working(held):
                pass

    def test_a_check_waits_for_whoever_is_at_work(self, tmp_path):
        with opened(tmp_path) as there:
            held, came = put(there), []
            thread = threading.Thread(target=lambda: came.append(there.complete(held)))
            with there.working(held):
                thread.start()
                thread.join(0.1)
                assert thread.is_alive()
                asked = threading.Thread(
                    target=lambda: came.append(there.append(held, len(DATA), b""))
                )
                asked.start()  # by a client that has not heard the last answer: it need not wait
                asked.join()
                assert came.pop() == len(DATA)
            thread.join()
            assert came == [True]

    def test_two_creations_are_one(self, tmp_path, monkeypatch):
        """The second one is answered when the first one is durable, not before."""
        begun, go = threading.Event(), threading.Event()
        real = shelf.write_private

        def slow(*args):
            begun.set()
            assert go.wait(20)
            real(*args)

        ticket, made = ticket_of(DATA), []
        with opened(tmp_path) as there:
            monkeypatch.setattr(shelf, "write_private", slow)

            def create():
                made.append(there.create(AGENT, "agent", ticket))

            threads = [threading.Thread(target=create) for _ in range(3)]
            threads[0].start()
            assert begun.wait(20)
            for thread in threads[1:]:
                thread.start()
            with pytest.raises(Locked):
                there.append(there.find(AGENT, ticket.body_id), 0, DATA)
            assert not made
            go.set()
            for thread in threads:
                thread.join()
            assert len(made) == 3 and len(set(made)) == 1
            assert numbers(there) == (1, 0, len(DATA), 1)

    def test_a_second_creation_does_not_hang_on_a_first_that_failed(self, tmp_path, monkeypatch):
        begun, go = threading.Event(), threading.Event()
        real, calls = shelf.write_private, []

        def failing(*args):
            calls.append(args)
            if len(calls) > 1:
                return real(*args)
            begun.set()
            assert go.wait(20)
            return no_space()

        ticket, made = ticket_of(DATA), []
        with opened(tmp_path) as there:
            monkeypatch.setattr(shelf, "write_private", failing)

            def create():
                try:
                    made.append(there.create(AGENT, "agent", ticket))
                except OSError as error:
                    made.append(error)

            threads = [threading.Thread(target=create) for _ in range(2)]
            threads[0].start()
            assert begun.wait(20)
            threads[1].start()
            go.set()
            for thread in threads:
                thread.join()
            kinds = sorted(type(one).__name__ for one in made)
            assert kinds == ["Held", "OSError"]
            assert numbers(there) == (1, 0, len(DATA), 1)
            assert shelf.free_bytes(tmp_path) > 0
