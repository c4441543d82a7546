# SPDX-License-Identifier: Apache-2.0
"""Targets: units and the bodies they travel in, statements, receipts, announcements."""

from functools import cache

from upfuzz import world
from upfuzz.harness import Target, attempt, check, same
from upfuzz.resign import mutate_rows, sign_statement
from upseal import Opener, OpenError, Sealer
from upseal.fleet.policy import Level, Reason
from upseal.fleet.statements import (
    RECEIPT_LEN,
    STATEMENT_LEN,
    BadReceipt,
    Receipt,
    Statement,
    Status,
    fleet_context,
    open_receipt,
    records_digest,
    signed_receipt,
)
from upseal.fleet.units import (
    MalformedUnits,
    body_id,
    body_kind,
    bundle,
    clear_body,
    make_unit,
    parse_bundle,
    parse_clear,
    parse_rows,
    unit_rows,
)
from upseal.fleet.uploads.words import Announcement, is_announcement

_CONTEXT = fleet_context(world.DEPLOYMENT)


@cache
def _opener():
    return Opener([world.private("x25519-a")], cache=8)


@cache
def _sealer():
    return Sealer([world.private("x25519-a").public_key])


# -- statements ------------------------------------------------------------------------------------


def run_statement(data):
    said, _ = attempt(lambda: Statement.decode(data), ValueError)
    if said is not None:
        same(said.encode(), data)
        same(said, Statement.decode(memoryview(data)))
        check(0 <= said.count < 2**20, "a count")


def _statement_seeds():
    for number, unit in enumerate(example_units()):
        yield unit.signed[:STATEMENT_LEN]
        if number == 0:
            yield unit.signed


# -- bodies ----------------------------------------------------------------------------------------


def run_units(data):
    kind, _ = attempt(lambda: body_kind(data), MalformedUnits)
    parts, _ = attempt(lambda: parse_bundle(data), MalformedUnits)
    rows, _ = attempt(lambda: parse_clear(data), MalformedUnits)
    check(kind == "bundle" or parts is None, "a bundle that is none")
    check(kind == "clear" or rows is None, "a clear body that is none")
    same(len(body_id(data)), 32)
    if parts is not None:
        same(bundle(parts), data)
        for part in parts:
            check(body_kind(part) != "bundle", "a bundle in a bundle")
            _one(bytes(part))
    else:
        _one(data)


def _one(body):
    """A clear or a sealed body."""
    rows, _ = attempt(lambda: parse_clear(body), MalformedUnits)
    if rows is not None:
        same(clear_body(rows), body)
    else:
        opened, _ = attempt(lambda: _opener().open_batch(body, _CONTEXT), OpenError)
        rows = None if opened is None else list(opened)
    if rows is None:
        return
    units, _ = attempt(lambda: parse_rows(rows), MalformedUnits)
    if units is None:
        return
    same(unit_rows(units), rows)
    keys = [world.signing("agent").public, world.signing("agent 2", "p256").public]
    for unit in units:
        same(unit.statement.encode(), unit.signed[:STATEMENT_LEN])
        verified = [key for key in keys if unit.verify(key)]
        for key in verified:
            same(key.agent_id, unit.statement.agent)
            check(key.verify(unit.signed[:STATEMENT_LEN], unit.signed[STATEMENT_LEN:]), "unsigned")
            same(unit.statement.digest, records_digest(list(unit.records)))
            same(unit.statement.count, len(unit.records))
        same(unit.beacon, not unit.records)


def rows_of(body):
    """The rows of a clear or sealed body, or None."""
    rows, _ = attempt(lambda: parse_clear(body), MalformedUnits)
    if rows is None:
        opened, _ = attempt(lambda: _opener().open_batch(body, _CONTEXT), OpenError)
        rows = None if opened is None else list(opened)
    return rows


_COUNTS = (0, 1, 2, 5, 2**16, 2**16 + 1, 2**19, 2**20, 2**20 + 1, 2**32 - 1)


def mutate_units(data, rnd, plain):
    """Rows changed and signed again; packed, sealed or bundled again."""
    if not rnd.randrange(10):  # a lie about how many there are
        return data[:4] + rnd.choice(_COUNTS).to_bytes(4, "big") + data[8:]
    parts, _ = attempt(lambda: parse_bundle(data), MalformedUnits)
    if parts is not None and rnd.randrange(4):
        parts = [bytes(part) for part in parts]
        at = rnd.randrange(len(parts))
        match rnd.randrange(5):
            case 0:
                del parts[at]
            case 1:
                parts.append(parts[at])
            case _:
                parts[at] = mutate_units(parts[at], rnd, plain)
        try:
            return bundle(parts)
        except ValueError:
            return plain(data)
    rows = rows_of(data)
    if rows is None or not rnd.randrange(6):
        return plain(data)
    rows = mutate_rows(rows, rnd, plain)
    if not rows:
        return plain(data)
    match rnd.randrange(8):
        case 0:
            return bundle([clear_body(rows), _sealer().seal_batch(rows, _CONTEXT)])
        case 1 | 2 | 3:
            return _sealer().seal_batch(rows, _CONTEXT)
    return clear_body(rows)


# -- receipts --------------------------------------------------------------------------------------


def run_receipt(data):
    keys = {key.key_id: key for key in world.manifest().receipt_keys}
    found, _ = attempt(lambda: open_receipt(data, keys, world.DEPLOYMENT), BadReceipt)
    if found is not None:
        same(found.encode(), data[8:-64])
        same((len(data), found.deployment), (RECEIPT_LEN, world.DEPLOYMENT))
        check(keys[data[:8]].verify(data[8:-64], data[-64:]), "not signed")
        check(isinstance(found.status, Status), "a status")


def mutate_receipt(data, rnd, plain):
    key = world.signing("receipt")
    if len(data) != RECEIPT_LEN or not rnd.randrange(4):
        return plain(data)
    encoded = bytearray(data[8:-64])
    if rnd.getrandbits(1):
        encoded[-1] = rnd.randrange(6)
    else:
        encoded = plain(bytes(encoded))
    if not rnd.randrange(4):
        key = world.signing("receipt 2", "p256")
    return key.public.key_id + bytes(encoded) + key.sign(bytes(encoded))


def _receipt_seeds():
    for status in Status:
        receipt = Receipt(world.DEPLOYMENT, bytes(range(32)), status)
        yield signed_receipt(receipt, world.signing("receipt"))
    yield signed_receipt(receipt, world.signing("receipt 2", "p256"))


# -- announcements ---------------------------------------------------------------------------------


def run_announcement(data):
    said, _ = attempt(lambda: Announcement.decode(data), ValueError)
    same(is_announcement(data), is_announcement(memoryview(data)), data[:4] == b"UPU\x01")
    if said is not None:
        same(said.encode(), data)
        same(len(said.body_id), len(said.digest(world.DEPLOYMENT, bytes(16))), 32)
        check(b"/" not in said.name and b"\0" not in said.name, "a name that is a path")
        check(said.form == "sealed" or said.size == said.body_size, "sizes")


def announcement(name=b"core.dump", form="sealed", size=1000):
    """One that is right."""
    body = size + 200 if form == "sealed" else size
    return Announcement(b"u" * 16, form, size, body, bytes(range(32)), world.NOW, name)


def _announcements():
    yield announcement().encode()
    yield announcement("\u00e9.txt".encode(), "clear").encode()
    yield announcement(b"n" * 1024, "clear", 0).encode()


# -- seeds -----------------------------------------------------------------------------------------


@cache
def example_units():
    """Units of two agents; one is a beacon, one announces a file."""
    agent, other = world.signing("agent"), world.signing("agent 2", "p256")
    made = []
    for key, sequence, records in (
        (agent, 1, [b"first", b"", b"third" * 20]),
        (agent, 2, []),
        (other, 2**63 - 1, [announcement().encode()]),
    ):
        made.append(
            make_unit(key, world.DEPLOYMENT, b"e" * 16, sequence, world.NOW, Level.OPTIONAL,
                      Reason.SEALED, records)
        )  # fmt: skip
    return made


def _unit_seeds():
    rows = unit_rows(example_units())
    clear, sealed = clear_body(rows), _sealer().seal_batch(rows, _CONTEXT)
    yield from (clear, sealed, bundle([clear, sealed, sealed]), clear_body(rows[:4]))
    yield clear_body([sign_statement(bytes(STATEMENT_LEN), world.signing("agent"))])


TARGETS = {
    target.name: target
    for target in (
        Target("statement", run_statement, _statement_seeds, dictionary="units.dict", longest=512),
        Target("units", run_units, _unit_seeds, mutate_units, "units.dict", longest=8192),
        Target("receipt", run_receipt, _receipt_seeds, mutate_receipt, "units.dict", longest=512),
        Target("announcement", run_announcement, _announcements, None, "units.dict", longest=2048),
    )
}
