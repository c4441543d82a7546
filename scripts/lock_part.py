# SPDX-License-Identifier: Apache-2.0
"""``lock_part.py LOCK NAME...``: of a lock, the named packages and all that they need, for pip.

Needs nothing but Python: it is what an empty environment begins with. What needs what stands in
the lock's own comments (``# via``), so no index is asked.
"""

import re
import sys
from pathlib import Path

ENTRY = re.compile(r"^([\w.-]+)==.*(?:\n {4}.*)*", re.MULTILINE)


def canonical(name: str) -> str:
    """As package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def part(lock: str, names: list[str]) -> str:
    """The head of the lock and the entries of these packages and of what they need.

    Raises:
        ValueError: the lock does not have one of them.
    """
    entries = {canonical(found[1]): found[0] for found in ENTRY.finditer(lock)}
    askers = {
        name: {canonical(one) for one in re.findall(r"[\w.-]+", entry.partition("# via")[2])}
        for name, entry in entries.items()
    }
    taken = {canonical(name) for name in names}
    if missing := taken - set(entries):
        raise ValueError(f"the lock has no {', '.join(sorted(missing))}")
    while more := {name for name, by in askers.items() if by & taken} - taken:
        taken |= more
    head = [line for line in lock.splitlines() if line.startswith(("# ", "--"))]
    return "\n".join([*head, *(entries[name] for name in sorted(taken)), ""])


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    print(part(Path(sys.argv[1]).read_text("utf-8"), sys.argv[2:]), end="")
