# SPDX-License-Identifier: Apache-2.0
"""Takes the pictures of the administrator's page that docs/administration.md shows.

    .venv/bin/python scripts/page_screenshots.py [FOLDER]

Needs Playwright, Pillow and Debian's Chromium. The deployment is one of the tests': made up.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/fleet"))

from fleet_browser import chromium  # noqa: E402
from fleet_page_support import add_login, populate  # noqa: E402
from fleet_server_support import Site  # noqa: E402
from PIL import Image  # noqa: E402

PICTURES = {
    "page.png": (1280, 0, "light", "/admin?range=30d&size=6&sort=-actual"),
    "page-phone.png": (390, 1500, "light", "/admin?filter=orphaned&range=30d"),
    "page-dark.png": (1280, 0, "dark", "/admin?size=3"),
    "page-login.png": (390, 700, "light", "/admin/login"),
    "page-whole.png": (1280, 0, "light", "/admin"),
    "page-phone-whole.png": (390, 0, "light", "/admin?filter=orphaned"),
}
IN_THE_DOCS = ("page.png", "page-phone.png")


def main(folder: Path, names: tuple[str, ...]) -> None:
    """All of them."""
    with tempfile.TemporaryDirectory() as work:
        site = Site(Path(work) / "site")
        settings = site.folder / "deployment.toml"
        settings.write_text(settings.read_text().replace('name = "site"', 'name = "Example"'))
        site.configure("")
        populate(site)
        password = add_login(site, "ada")
        with site.running(), chromium() as browser:
            for name in names:
                width, height, scheme, path = PICTURES[name]
                page = browser.new_page(
                    viewport={"width": width, "height": height or 900}, color_scheme=scheme
                )
                page.goto(site.url + "/admin/login")
                if path != "/admin/login":
                    page.fill("#name", "ada")
                    page.fill("#password", password)
                    page.click("button[type=submit]")
                    page.goto(site.url + path)
                page.screenshot(path=folder / name, full_page=not height)
                page.close()
                _shrink(folder / name)
                print(f"{folder / name}: {(folder / name).stat().st_size:,} bytes")


def _shrink(path: Path) -> None:
    """256 colours are enough for it, and a third of the size."""
    with Image.open(path) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]), tuple(PICTURES))
    else:
        main(ROOT / "docs/img", IN_THE_DOCS)
