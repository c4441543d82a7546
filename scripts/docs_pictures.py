# SPDX-License-Identifier: Apache-2.0
"""Takes the curves and bars that pages show out of docs/benchmarks.html, as files of their own.

``python scripts/docs_pictures.py`` writes docs/img/bench-*.svg; with ``--check`` it only says
whether they are as they should be. Whoever publishes new figures runs it again.
"""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURES = {
    "bench-one": (
        "Seal one report of 1 KiB (logarithmic)",
        "Sealing one report of 1 KiB, least first (logarithmic)",
    ),
    "bench-sizes": ("By size", "Sealing reports: GB/s on one core, by size of a report"),
    "bench-file": (
        "Seal, on ext4",
        "Sealing a file of 1 GiB on ext4: GB/s, against cp, most memory",
    ),
    "bench-reports": ("Reports in a batch", "As a batch grows"),
    "bench-upload": ("Bytes of an upload", "As an upload grows"),
}
"""Each picture's name, the heading that it stands below in the page, and its title."""


def sections(page: str) -> dict[str, str]:
    """The first picture below each heading."""
    found: dict[str, str] = {}
    parts = re.split(r"(<h[23][^>]*>.*?</h[23]>)", page, flags=re.S)
    for heading, body in zip(parts[1::2], parts[2::2], strict=False):
        if svg := re.search(r"<svg.*?</svg>", body, flags=re.S):
            found.setdefault(html.unescape(re.sub("<.*?>", "", heading)).strip(), svg[0])
    return found


def alone(svg: str, title: str, style: str) -> str:
    """A picture that needs no page: with its colours, for light and dark, and a ground of its own.

    Raises:
        ValueError: it is none.
    """
    box = re.match(r'<svg viewBox="0 0 (\d+) (\d+)"', svg)
    if not box:
        raise ValueError(f"{title}: no picture as benchmarks/charts.py draws them")
    wide, high = map(int, box.groups())
    colours = re.findall(r"^:root \{.*?^  --c5.*?\}$|^@media.*?\} \}$", style, flags=re.S | re.M)
    rules = re.findall(r"svg [.a-z][^{]*\{[^}]*\}", style)
    css = "\n".join([*colours, *rules, "svg .ground { fill: var(--paper) }"])
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 -34 {wide + 24} {high + 46}" '
        f'role="img" aria-labelledby="t"><title id="t">{html.escape(title)}</title>'
        f"<style>\n{css}\n</style>"
        f'<rect class="ground" x="-12" y="-34" width="{wide + 24}" height="{high + 46}" rx="8"/>'
        f'<text x="0" y="-12" font-weight="600">{html.escape(title)}</text>'
    )
    return f"{head}{svg[svg.index('>') + 1 :]}\n"


def pictures() -> dict[Path, str]:
    """Each file, and what belongs in it."""
    found = sections((ROOT / "docs/benchmarks.html").read_text())
    style = (ROOT / "benchmarks/page.css").read_text()
    folder = ROOT / "docs/img"
    return {
        folder / f"{name}.svg": alone(found[heading], title, style)
        for name, (heading, title) in PICTURES.items()
    }


def main(arguments: list[str]) -> int:
    """Writes or compares; 1 if a picture is not as it should be."""
    old = [path for path, svg in pictures().items() if not path.exists() or path.read_text() != svg]
    if "--check" in arguments:
        for path in old:
            print(f"{path.relative_to(ROOT)}: python scripts/docs_pictures.py writes it anew")
        return bool(old)
    for path in old:
        path.write_text(pictures()[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
