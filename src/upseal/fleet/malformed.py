# SPDX-License-Identifier: Apache-2.0
"""Whether a SQLite file is damaged, or could only not be read.

SQLite says "malformed" of a file also where the disk has failed to give it a page (EIO), which may
pass. Who would set a file aside for that looks once more, in peace.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path


def damaged(path: Path) -> bool:
    """Reads all of it: False if there is nothing wrong with it, or that cannot be said now."""
    try:
        uri = f"{path.absolute().as_uri()}?mode=rw"  # to look at a log there must be a -shm
        with closing(sqlite3.connect(uri, uri=True, timeout=5)) as connection:
            return connection.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        return True
