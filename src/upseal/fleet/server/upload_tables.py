# SPDX-License-Identifier: Apache-2.0
"""The tables of uploads. See `tables`, whose rules hold here as well."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
)

from upseal.fleet.server.tables import metadata

announcements = Table(
    "upload_announcements",  # what agents have signed that they will send
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),  # what a receipt of it names
    Column("agent", LargeBinary(16), nullable=False),
    Column("upload", LargeBinary(16), nullable=False),
    Column("body_id", LargeBinary(32), nullable=False),
    Column("form", Text, nullable=False),  # of the body: "sealed" or "clear"
    Column("size", BigInteger, nullable=False),  # of the file
    Column("body_size", BigInteger, nullable=False),
    Column("body_sha256", LargeBinary(32), nullable=False),
    Column("modified", BigInteger, nullable=False),  # stated
    Column("name", LargeBinary, nullable=False),
    Column("unit", BigInteger, nullable=False),  # that it came in
    Column("received", BigInteger, nullable=False),
    Index("upload_announcements_by_upload", "upload", "agent"),
    Index("upload_announcements_by_body", "body_id"),
)

uploads = Table(
    "uploads",  # files that are stored: each has its bytes in the folder of uploads
    metadata,
    Column("agent", LargeBinary(16), nullable=False),
    Column("upload", LargeBinary(16), nullable=False),
    Column("name", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", LargeBinary(32), nullable=False),  # of the file
    Column("modified", BigInteger, nullable=False),  # stated
    Column("form", Text, nullable=False),  # as its agent has sent it: "sealed" or "clear"
    Column("suite", Integer),  # that it arrived under; None: it came in clear all the way
    Column("key_id", LargeBinary(8)),
    Column("received", BigInteger, nullable=False),
    Column("path", Text, nullable=False),  # in the folder
    Column("body_id", LargeBinary(32), nullable=False),  # of the body that it was taken from
    Column("announcement", LargeBinary(32), nullable=False),  # its digest
    PrimaryKeyConstraint("agent", "upload"),
    Index("uploads_by_time", "received"),
    Index("uploads_by_body", "body_id"),
)

deletions = Table(
    "upload_deletions",  # of these files the bytes are gone, or go; that they were here stays
    metadata,
    Column("agent", LargeBinary(16), nullable=False),
    Column("upload", LargeBinary(16), nullable=False),
    Column("deleted", BigInteger, nullable=False),  # when that was decided
    Column("removed", BigInteger),  # when the server saw that the bytes are gone; None: not yet
    PrimaryKeyConstraint("agent", "upload"),
    Index("upload_deletions_left", "removed"),
)
GONE = (deletions.c.agent == uploads.c.agent) & (deletions.c.upload == uploads.c.upload)
"""Which deletion is of which file."""
