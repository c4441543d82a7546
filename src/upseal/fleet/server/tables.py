# SPDX-License-Identifier: Apache-2.0
"""The tables of a deployment's database, for SQLite and PostgreSQL.

Times are unix milliseconds by the server's clock unless a column says ``stated`` (the agent's).
Ids and digests are raw bytes. Nothing here is secret but the bodies of reports: private keys stay
in files, of tokens only the digest is kept.
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
)

SCHEMA = 1
"""The version of all this; `meta` carries it."""

metadata = MetaData()

# SQLite numbers rows only in a column that is declared INTEGER PRIMARY KEY, to the letter.
_Big = BigInteger().with_variant(Integer(), "sqlite")
_ZERO = text("0")


def _number(name: str, **options: object) -> Column[int]:
    """A whole number that is always there."""
    return Column(name, BigInteger, nullable=False, **options)  # type: ignore[arg-type]


def _bytes(name: str, nullable: bool = False) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=nullable)


meta = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),  # "schema", "deployment"
    Column("value", Text, nullable=False),
)

counters = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),  # "reports": the last id given away
    _number("value"),
)

# -- who reports --------------------------------------------------------------

agents = Table(
    "agents",
    metadata,
    Column("agent", LargeBinary(16), primary_key=True),
    Column("name", Text, nullable=False),
    _bytes("identity"),  # DER SubjectPublicKeyInfo
    _bytes("hop"),
    Column("role", Text, nullable=False),  # "agent" or "relay"
    Column("credential", Text, nullable=False),  # so that enrolling again gives the same
    _number("enrolled"),
    _bytes("token", nullable=True),  # SHA-256 of its secret
    Column("revoked", BigInteger),  # when; the manifest is what counts
    Index("agents_by_name", "name"),
)

hops = Table(
    "hops",
    metadata,
    Column("hop", LargeBinary(16), primary_key=True),
    _bytes("agent"),
    Column("role", Text, nullable=False),
    _bytes("spki"),  # of the hop's key, DER
)

clients = Table(
    "clients",
    metadata,
    Column("agent", LargeBinary(16), primary_key=True),
    Column("wanted", SmallInteger, nullable=False),  # Level.number, as last stated
    Column("actual", Text, nullable=False),  # "sealed", "clear" or "withheld"
    Column("reason", SmallInteger, nullable=False),  # Reason
    _number("last_seen"),
    _number("stated"),
    Column("suite", Integer),  # that its last sealed body came in under
    Column("key_id", LargeBinary(8)),
    _number("sealed", server_default=_ZERO),  # reports
    _number("clear", server_default=_ZERO),
    _number("units", server_default=_ZERO),
    _number("beacons", server_default=_ZERO),
    _number("contradictions", server_default=_ZERO),
)

client_counts = Table(
    "client_counts",
    metadata,
    Column("agent", LargeBinary(16), nullable=False),
    Column("reason", SmallInteger, nullable=False),
    _number("reports"),
    PrimaryKeyConstraint("agent", "reason"),
)

streams = Table(
    "streams",  # one for each epoch of an agent: what shows gaps, and beacons sent again
    metadata,
    _bytes("agent"),
    _bytes("epoch"),
    Column("beacon", Boolean, nullable=False),
    _number("lowest"),
    _number("highest"),
    _number("stored"),  # units
    _number("last_seen"),
    PrimaryKeyConstraint("agent", "epoch"),
)

beacons = Table(
    "beacons",  # the newest of each agent
    metadata,
    Column("agent", LargeBinary(16), primary_key=True),
    _bytes("epoch"),
    _number("sequence"),
    _number("stated"),
    _number("received"),
    Column("level", SmallInteger, nullable=False),
    Column("reason", SmallInteger, nullable=False),
)

# -- what they report -----------------------------------------------------------

units = Table(
    "units",
    metadata,
    Column("id", _Big, primary_key=True, autoincrement=False),  # that of its first report
    _bytes("agent"),
    _bytes("epoch"),
    _number("sequence"),
    _bytes("digest"),  # of the records
    Column("records", Integer, nullable=False),  # how many
    _number("stated"),
    _number("received"),
    Column("level", SmallInteger, nullable=False),
    Column("reason", SmallInteger, nullable=False),
    Column("suite", Integer),  # None: it came in clear
    Column("key_id", LargeBinary(8)),
    UniqueConstraint("agent", "epoch", "sequence", name="units_once"),
    Index("units_by_agent", "agent", "id"),
    Index("units_by_time", "received"),
)

reports = Table(
    "reports",  # ids of one unit follow one another: first the unit's own id
    metadata,
    Column("id", _Big, primary_key=True, autoincrement=False),
    _number("unit"),
    _bytes("body"),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", LargeBinary(32), primary_key=True),  # SHA-256 of the body
    _bytes("body"),
    _bytes("hop"),
    Column("role", Text, nullable=False),
    _number("received"),
    Column("reason", Text, nullable=False),  # see `store.deadletters`
    Column("key_id", LargeBinary(8)),
    _number("size"),
    Column("attempts", Integer, nullable=False, server_default=_ZERO),
    Column("wanted", Boolean, nullable=False),  # an administrator asked for another try
    # With what is counted: else each count would read all bodies.
    Index("dead_letters_by_hop", "hop", "size", "reason"),
    Index("dead_letters_by_time", "received"),
)

# -- what went wrong, and who did what ----------------------------------------------

alarms = Table(
    "alarms",
    metadata,
    Column("id", _Big, primary_key=True),
    Column("kind", Text, nullable=False),
    _bytes("subject"),  # an agent or a hop; empty for neither
    _number("first"),
    _number("last"),
    _number("times"),
    Column("details", Text, nullable=False),  # JSON, of the first
    Index("alarms_by_kind", "kind", "subject", "first"),
)

alarm_acknowledgements = Table(
    "alarm_acknowledgements",  # somebody has looked at it; open again if it comes once more
    metadata,
    Column("alarm", _Big, primary_key=True, autoincrement=False),
    _number("at"),
    _number("times"),  # how often it had come by then
    Column("actor", Text, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", _Big, primary_key=True, autoincrement=False),
    _number("at"),
    Column("actor", Text, nullable=False),
    Column("act", Text, nullable=False),
    Column("details", Text, nullable=False),  # JSON
    _bytes("previous"),
    _bytes("hash"),
    UniqueConstraint("previous", name="audit_one_chain"),
)

# -- the deployment --------------------------------------------------------------

manifests = Table(
    "manifests",
    metadata,
    Column("serial", _Big, primary_key=True, autoincrement=False),
    Column("jws", Text, nullable=False),
    Column("changed_signing_keys", Boolean, nullable=False),
    _number("issued"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("secret", LargeBinary(32), primary_key=True),  # SHA-256 of it
    Column("note", Text, nullable=False),
    Column("role", Text),  # None: agents and relays
    _number("created"),
    _number("expires"),
    Column("used", BigInteger),
    Column("agent", LargeBinary(16)),  # who used it
)

keys = Table(
    "keys",  # the server's own, and escrow keys
    metadata,
    Column("key_id", LargeBinary(8), primary_key=True),
    Column("generation", Integer, nullable=False),
    Column("holder", Text, nullable=False),  # "server" or an escrow's name
    Column("state", Text, nullable=False),  # pending, active, draining, retired
    Column("suite", Integer, nullable=False),
    Column("public", Text, nullable=False),  # PEM
    Column("certificate", Text),  # PEM
    _number("created"),
    Column("ready", BigInteger),
    Column("activated", BigInteger),
    Column("drained_from", BigInteger),  # since when it is draining
    Column("retired", BigInteger),
    Column("first_used", BigInteger),
    Column("last_used", BigInteger),
    _number("units", server_default=_ZERO),
    _number("reports", server_default=_ZERO),
)

key_use = Table(
    "key_use",  # reports by minute, for "in the last hour"
    metadata,
    Column("key_id", LargeBinary(8), nullable=False),
    Column("minute", Integer, nullable=False),
    _number("reports"),
    PrimaryKeyConstraint("key_id", "minute"),
)

relays = Table(
    "relays",
    metadata,
    Column("relay", LargeBinary(16), primary_key=True),
    Column("name", Text, nullable=False),
    _bytes("identity"),  # DER
    Column("accepts_sealed", Boolean, nullable=False),
    Column("decrypts", Boolean, nullable=False),
    _number("enrolled"),
    Column("listed", Boolean, nullable=False),  # the administrator put it into the manifest
    Column("last_seen", BigInteger),
)

relay_keys = Table(
    "relay_keys",
    metadata,
    _bytes("relay"),
    Column("generation", Integer, nullable=False),
    Column("key_id", LargeBinary(8), nullable=False),
    Column("spki", Text, nullable=False),  # PEM, as the relay sent it
    Column("certificate", Text),
    _number("received"),
    Column("ready_at", BigInteger),
    PrimaryKeyConstraint("relay", "generation"),
)

challenges = Table(
    "challenges",  # one open for each holder and generation; the nonce itself is never kept
    metadata,
    Column("holder", Text, nullable=False),  # "server", or a relay's id in hexadecimal
    Column("generation", Integer, nullable=False),
    Column("key_id", LargeBinary(8), nullable=False),
    _bytes("challenge"),
    _bytes("expected"),  # SHA-256("ready" || nonce)
    _number("created"),
    _number("expires"),
    Column("answered", BigInteger),
    PrimaryKeyConstraint("holder", "generation", "key_id"),
)

# -- for the administrator's page -----------------------------------------------------

coverage = Table(
    "coverage",  # a row a minute; of what is older than two days one an hour
    metadata,
    Column("minute", Integer, primary_key=True, autoincrement=False),  # unix time / 60
    _number("sealed"),  # clients
    _number("clear"),
    _number("withheld"),
    _number("silent"),
    _number("sealed_reports"),  # all that were ever stored, until then
    _number("clear_reports"),
)

page_logins = Table(
    "page_logins",
    metadata,
    Column("name", Text, primary_key=True),
    _bytes("salt"),
    _bytes("hash"),  # scrypt, of the password
    Column("cost", Integer, nullable=False),  # scrypt's N, r and p
    Column("block", Integer, nullable=False),
    Column("parallel", Integer, nullable=False),
    _number("created"),
    Column("last_login", BigInteger),
)

_APPEND_ONLY = "the audit log is append-only"


def _ddl(statement: str) -> DDL:
    return DDL(statement)  # type: ignore[no-untyped-call]


for _what in ("UPDATE", "DELETE"):
    event.listen(
        audit,
        "after_create",
        _ddl(
            f"CREATE TRIGGER audit_no_{_what.lower()} BEFORE {_what} ON audit "
            f"BEGIN SELECT RAISE(ABORT, '{_APPEND_ONLY}'); END"
        ).execute_if(dialect="sqlite"),
    )
event.listen(
    audit,
    "after_create",
    _ddl(
        "CREATE OR REPLACE FUNCTION upseal_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ "
        f"BEGIN RAISE EXCEPTION '{_APPEND_ONLY}'; END $$"
    ).execute_if(dialect="postgresql"),
)
event.listen(
    audit,
    "after_create",
    _ddl(
        "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION upseal_append_only()"
    ).execute_if(dialect="postgresql"),
)
