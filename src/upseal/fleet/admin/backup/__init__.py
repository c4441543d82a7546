# SPDX-License-Identifier: Apache-2.0
"""A server's folder and database in one sealed file, and back. docs/backup.md has the format.

- `archive`: the file: what stands in it one after another, and who says so.
- `databases`: copies SQLite and PostgreSQL while they are in use, and puts them back.
- `taking`: makes a backup.
- `checking`: reads one as a stranger's, and believes nothing before it has seen all.
- `restoring`: puts one into an empty folder.
"""
