# SPDX-License-Identifier: Apache-2.0
"""Debian's Chromium, without a window, by Playwright; skips, visibly, where one is missing."""

import shutil
from contextlib import contextmanager

import pytest


@contextmanager
def chromium():
    """A browser."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("Chromium is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found,
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],  # also as root
        )
        try:
            yield browser
        finally:
            browser.close()
