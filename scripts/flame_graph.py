# SPDX-License-Identifier: Apache-2.0
"""Draws folded stacks (py-spy's ``--format raw``) of scripts/profile_work.py as a flame graph.

``flame_graph.py FOLDED TITLE > flame.svg``: nothing in it is loaded from elsewhere, and it needs
no script; what a frame is called in full, and its share, are in its tooltip.
"""

from __future__ import annotations

import re
import sys
from html import escape
from pathlib import Path

CIPHERS = "ciphers (ippcp, OpenSSL)"
WIDTH, ROW, TOP, LETTER = 1200, 19, 62, 6.7
LAYERS = (  # (what, colour, which frames), the first that matches
    ("cffi, Rust of cryptography", "#c9b458", r"_cffi|^_RN|^_ZN|^Rust"),
    (CIPHERS, "#e4572e", r"^ippcp$|^OpenSSL|ipps|_native\.abi3|_rust\.abi|libcrypto|sodium"),
    ("upseal's C", "#f2a541", r"upseal_|\((native/)?(records|chunks|core|aead_\w+)\.c"),
    ("upseal's Python", "#4f8fc0", r"\(upseal/|\(cryptography/|\(nacl/|\(threading"),
    ("C library and system calls", "#9aa5ab", r"libc\.so|libpthread|\[vdso\]|ld-linux"),
    ("the work", "#dcdcdc", r"profile_work"),
    ("CPython", "#7fb69a", r""),
)


def layer(frame: str) -> tuple[str, str]:
    """(name, colour) of the layer a frame belongs to."""
    return next((name, colour) for name, colour, which in LAYERS if re.search(which, frame))


def tidy(frame: str) -> str:
    """A frame without its line; what has no symbol goes by the name of its library."""
    frame = re.sub(r":\d+\)$", ")", frame)
    library = frame.rpartition("/")[2].rstrip(")").rpartition("(")[2]
    if frame.startswith(("_RN", "_ZN")):
        return f"Rust ({library})"
    if layer(frame)[0] == CIPHERS:
        return "ippcp" if library.startswith("_native") else f"OpenSSL ({library})"
    return library if frame.startswith(("0x", "? (")) else frame


def read(path: str) -> dict[str, object]:
    """A tree of ``{"count": samples, "children": {name: tree}}``: what main() called."""
    root: dict = {"count": 0, "children": {}}
    for line in Path(path).read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [tidy(frame) for frame in stack.split(";")]
        start = next((i for i, f in enumerate(frames) if f.startswith("main (profile_work")), None)
        if start is None or start + 1 == len(frames):
            continue  # starting up
        node, last = root, None
        node["count"] += int(count)
        for frame in frames[start + 1 :]:
            if frame in (last, "?"):
                continue
            last = frame
            node = node["children"].setdefault(frame, {"count": 0, "children": {}})
            node["count"] += int(count)
            if layer(frame)[0] == CIPHERS:
                break  # its insides are not ours, and its assembly keeps no frames
    return root


def depth(node: dict) -> int:
    """How many rows it takes."""
    return 1 + max((depth(child) for child in node["children"].values()), default=0)


def main() -> None:
    """Writes the SVG."""
    root = read(sys.argv[1])
    total, rows = root["count"], depth(root) - 1
    height = TOP + rows * ROW + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="ui-monospace,Menlo,DejaVu Sans Mono,monospace" '
        f'font-size="11"><rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
        f'<text x="12" y="22" font-size="15" font-family="sans-serif" fill="#222">'
        f"{escape(sys.argv[2])}: {total:,} samples; width is time, callers below callees</text>"
    ]
    at = 12.0
    for name, colour, _ in LAYERS:
        parts.append(
            f'<rect x="{at:.0f}" y="34" width="12" height="12" fill="{colour}"/>'
            f'<text x="{at + 17:.0f}" y="44" font-family="sans-serif" fill="#222">'
            f"{escape(name)}</text>"
        )
        at += 32 + 6.1 * len(name)

    def draw(node: dict, x: float, row: int) -> None:
        for name, child in sorted(node["children"].items()):
            width = (WIDTH - 24) * child["count"] / total
            if width >= 0.4:
                y = height - 12 - (row + 1) * ROW
                what, colour = layer(name)
                share = f"{100 * child['count'] / total:.1f} %"
                parts.append(
                    f"<g><title>{escape(name)}: {share} ({what})</title><rect x='{x:.1f}' y='{y}' "
                    f"width='{width:.1f}' height='{ROW - 1}' fill='{colour}' rx='1'/>"
                )
                label = name.partition(" (")[0]
                if width > 110:
                    label += f" {share}"
                room = int((width - 6) / LETTER)
                if room >= 3:
                    text = label if len(label) <= room else label[: room - 1] + "…"
                    parts.append(
                        f"<text x='{x + 3:.1f}' y='{y + 13}' fill='#111'>{escape(text)}</text>"
                    )
                parts.append("</g>")
                draw(child, x, row + 1)
            x += width

    draw(root, 12.0, 0)
    print("\n".join([*parts, "</svg>"]))


main()
