# SPDX-License-Identifier: Apache-2.0
"""What fleet tests share: a real PostgreSQL, started once and only if a test asks for it."""

import pytest
from fleet_postgresql import PostgreSql


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL of our own; skips, visibly, where none is installed."""
    server = PostgreSql.start()
    yield server
    server.stop()
