# SPDX-License-Identifier: Apache-2.0
"""Whole files at the server: taken in by tus, matched with what agents announced, opened, stored.

- `bound`: how many bytes may be stored in all.
- `content`: the folder of stored files.
- `deleting`: files that go, and stay known.
- `unsealing`: from a sealed body to a file's bytes.
- `settling`: what becomes of one body.
- `working`: the threads that do it, and what bodies wait for.
- `room`: all of it for the server's application.
"""
