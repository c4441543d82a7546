# SPDX-License-Identifier: Apache-2.0
"""The table of levels, cell by cell: whoever changes it changes a line here."""

import itertools
import pickle
import subprocess
import sys

import pytest

import upseal.fleet
from upseal import PrivateKey, Sealer
from upseal.fleet import (
    Absent,
    Certificate,
    Clear,
    Level,
    Parent,
    Reason,
    Seal,
    Withheld,
    Withhold,
    decide,
)

SERVER, ESCROW, RELAY = (PrivateKey.generate("x25519").public_key for _ in range(3))
HYBRID = PrivateKey.generate("mlkem768-x25519").public_key
FRESH, STALE = Certificate((SERVER, ESCROW)), Certificate((SERVER, ESCROW), stale=True)
TAKES, SILENT, REFUSES = Parent(True), Parent(None), Parent(False)

R, O, N = Level.REQUIRED, Level.OPTIONAL, Level.NONE  # noqa: E741
NEVER, OFF = Absent.NEVER_SEEN, Absent.DISABLED
SEALED, STALED = (
    Seal((SERVER, ESCROW), Reason.SEALED),
    Seal((SERVER, ESCROW), Reason.STALE_MANIFEST),
)
NO_CERT, DISABLED, REFUSED = (
    Reason.NO_CERTIFICATE, Reason.ENCRYPTION_DISABLED, Reason.PARENT_REFUSES_SEALED,
)  # fmt: skip
BY_LEVEL = Clear(Reason.LEVEL_NONE)

TABLE = {
    (R, FRESH, TAKES): SEALED,
    (R, FRESH, SILENT): SEALED,
    (R, FRESH, REFUSES): Withhold(REFUSED),
    (R, STALE, TAKES): STALED,
    (R, STALE, SILENT): STALED,
    (R, STALE, REFUSES): Withhold(REFUSED),
    (R, NEVER, TAKES): Withhold(NO_CERT),
    (R, NEVER, SILENT): Withhold(NO_CERT),
    (R, NEVER, REFUSES): Withhold(NO_CERT),
    (R, OFF, TAKES): Withhold(DISABLED),
    (R, OFF, SILENT): Withhold(DISABLED),
    (R, OFF, REFUSES): Withhold(DISABLED),
    (O, FRESH, TAKES): SEALED,
    (O, FRESH, SILENT): SEALED,
    (O, FRESH, REFUSES): Clear(REFUSED),
    (O, STALE, TAKES): STALED,
    (O, STALE, SILENT): STALED,
    (O, STALE, REFUSES): Clear(REFUSED),
    (O, NEVER, TAKES): Clear(NO_CERT),
    (O, NEVER, SILENT): Clear(NO_CERT),
    (O, NEVER, REFUSES): Clear(NO_CERT),
    (O, OFF, TAKES): Clear(DISABLED),
    (O, OFF, SILENT): Clear(DISABLED),
    (O, OFF, REFUSES): Clear(DISABLED),
    (N, FRESH, TAKES): BY_LEVEL,
    (N, FRESH, SILENT): BY_LEVEL,
    (N, FRESH, REFUSES): BY_LEVEL,
    (N, STALE, TAKES): BY_LEVEL,
    (N, STALE, SILENT): BY_LEVEL,
    (N, STALE, REFUSES): BY_LEVEL,
    (N, NEVER, TAKES): BY_LEVEL,
    (N, NEVER, SILENT): BY_LEVEL,
    (N, NEVER, REFUSES): BY_LEVEL,
    (N, OFF, TAKES): BY_LEVEL,
    (N, OFF, SILENT): BY_LEVEL,
    (N, OFF, REFUSES): BY_LEVEL,
}


def test_the_table_has_every_cell():
    cells = itertools.product(Level, (FRESH, STALE, *Absent), (TAKES, SILENT, REFUSES))
    assert set(TABLE) == set(cells)


@pytest.mark.parametrize("cell", TABLE, ids=lambda cell: None)
def test_each_cell(cell):
    assert decide(*cell) == TABLE[cell]


def test_a_client_that_must_seal_is_never_told_to_send_in_clear():
    for level, certificate, parent in TABLE:
        if level is Level.REQUIRED:
            assert not isinstance(decide(level, certificate, parent), Clear)


class TestRelayAsRecipient:
    def test_it_stands_last(self):
        assert decide(R, FRESH, Parent(True, RELAY)).recipients == (SERVER, ESCROW, RELAY)

    def test_it_stands_there_once(self):
        assert decide(R, FRESH, Parent(True, ESCROW)).recipients == (SERVER, ESCROW)

    def test_a_classical_relay_does_not_weaken_a_post_quantum_session(self):
        assert decide(R, Certificate((HYBRID,)), Parent(True, RELAY)).recipients == (HYBRID,)
        assert decide(R, FRESH, Parent(True, HYBRID)).recipients == (SERVER, ESCROW)

    def test_what_is_decided_can_be_sealed_to(self):
        for server, relay in itertools.product((SERVER, HYBRID), (RELAY, HYBRID, None)):
            decision = decide(R, Certificate((server,)), Parent(None, relay))
            assert Sealer(decision.recipients).seal(b"report")

    def test_a_session_has_room_for_sixteen(self):
        full = tuple(PrivateKey.generate("x25519").public_key for _ in range(16))
        decision = decide(R, Certificate(full), Parent(True, RELAY))
        assert decision.recipients == full
        assert Sealer(decision.recipients).seal(b"report")

    def test_it_does_not_stand_in_for_the_server(self):
        assert decide(R, Absent.DISABLED, Parent(True, RELAY)) == Withhold(DISABLED)


class TestLevel:
    def test_names_and_numbers(self):
        assert [(str(level), level.number) for level in Level] == [
            ("required", 2), ("optional", 1), ("none", 0),
        ]  # fmt: skip
        for level in Level:
            assert Level.parse(level) is Level.parse(level.value) is Level.parse(level.number)
            assert Level.parse(level.value) is level

    @pytest.mark.parametrize("text", ["Required", " REQUIRED ", "required\n"])
    def test_as_people_write_it(self, text):
        assert Level.parse(text) is Level.REQUIRED

    @pytest.mark.parametrize("value", ["", "always", "2", 3, -1, True, None, 2.0, b"none"])
    def test_anything_else_is_refused(self, value):
        with pytest.raises(ValueError, match="choose one of"):
            Level.parse(value)


def test_reasons_on_the_wire_stay_what_they_are():
    assert {str(reason): int(reason) for reason in Reason} == {
        "sealed": 0, "level-none": 1, "no-certificate": 2, "encryption-disabled": 3,
        "parent-refuses-sealed": 4, "stale-manifest": 5,
    }  # fmt: skip


@pytest.mark.parametrize("level", ["none", 0, None])
def test_a_level_that_is_none_is_a_mistake_and_not_clear_text(level):
    with pytest.raises(TypeError):
        decide(level, FRESH, TAKES)


@pytest.mark.parametrize("certificate", [None, False, (SERVER,), "disabled"])
def test_a_certificate_that_is_none_is_a_mistake_and_not_clear_text(certificate):
    with pytest.raises(TypeError):
        decide(O, certificate, TAKES)


def test_a_certificate_has_a_recipient():
    with pytest.raises(ValueError, match="Absent"):
        Certificate(())


def test_withheld_says_why():
    error = Withheld(Reason.NO_CERTIFICATE)
    assert error.reason is Reason.NO_CERTIFICATE
    assert "no-certificate" in str(error)
    assert pickle.loads(pickle.dumps(Reason.SEALED)) is Reason.SEALED


def test_the_table_alone_needs_nothing_of_the_fleet():
    code = (
        "import sys, upseal.fleet as fleet\n"
        "fleet.decide(fleet.Level.NONE, fleet.Absent.DISABLED, fleet.Parent())\n"
        "found = {'joserfc', 'starlette', 'urllib3', 'sqlalchemy', 'psutil', 'cryptography'}\n"
        "sys.exit(str(sorted(found & set(sys.modules))) if found & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_public_names():
    for name in upseal.fleet.__all__:
        assert getattr(upseal.fleet, name) is not None
    assert set(upseal.fleet.__all__) <= set(dir(upseal.fleet))
    with pytest.raises(AttributeError):
        upseal.fleet.nothing  # noqa: B018
