"""Opens pages in headless Chromium: a picture of them, and what they said in the console."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find() -> str | None:
    """The browser's path, or None where none is installed."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def open_page(page: Path | str, picture: Path, width: int, height: int = 1600, seconds: float = 120.0) -> list[str]:
    """Take a picture of a page at a width; return the lines of its console.

    Args:
        page: a file, or an address.
        picture: PNG to write.
        width: of the window, in pixels.
        height: likewise.
        seconds: before it is given up.
    """
    browser = find()
    assert browser, "no Chromium is installed"
    address = page if isinstance(page, str) else page.resolve().as_uri()
    profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    words = [
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--enable-logging=stderr", "--log-level=0", "--virtual-time-budget=4000", f"--window-size={width},{height}",
        f"--screenshot={picture}", f"--user-data-dir={profile.name}", address,
    ]  # fmt: skip
    with profile:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    assert picture.is_file(), done.stderr[-1000:]
    return [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
