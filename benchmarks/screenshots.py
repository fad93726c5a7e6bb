"""The pictures of docs/screenshots.md: real runs on handwritten digits, a real selection, and the site's front page.

    make docs && python -m benchmarks.screenshots [--work FOLDER]

Two trainings, one compaction and one selection, then headless Chromium at 1280 and at 390 pixels. What is in FOLDER already is used again.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests import browser

from bayesprune.cli import main as bayesprune
from benchmarks.tables import ROOT

FIGURES = ROOT / "docs" / "figures"
WIDTHS = {1280: 1400, 390: 1700}
SETTINGS = ["epochs=8", "width=32"]  # small: the pictures show pages, not results


def report(work: Path) -> Path:
    """The report of a dense run beside a pruned, compact one."""
    for recipe in ("digits-cnn-sgd", "digits-cnn-emmcmc"):
        run = work / recipe
        if not (run / "result.json").exists():
            bayesprune(["train", recipe, "--out", str(run), "--quiet", "--set", *SETTINGS])
            bayesprune(["evaluate", str(run), "--keep"])
    pruned, small = work / "digits-cnn-emmcmc", work / "small"
    if not (small / "architecture.json").exists():
        bayesprune(["compact", str(pruned), "--out", str(small)])
        if os.getloadavg()[0] < 1:  # times beside other work are worth nothing, in a picture too
            bayesprune(["profile", str(small), "--run", str(pruned), "--seconds", "2"])
    bayesprune(["report", str(work / "digits-cnn-sgd"), str(pruned), "--out", str(work / "report.html")])
    return work / "report.html"


def selection(work: Path) -> Path:
    """The page of a selection: patients' measurements beside shuffled copies of them."""
    from examples.select_inputs import beside_shuffled_copies

    frame, y = beside_shuffled_copies(0)
    frame.assign(progression=y).to_csv(work / "patients.csv", index=False)
    if not (work / "found" / "report.html").exists():
        bayesprune(
            ["select", str(work / "patients.csv"), "--target", "progression", "--out", str(work / "found"), "--quiet"]
        )
    return work / "found" / "report.html"


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing of it."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder on this machine: a site's search works there only, not on files."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "bayesprune-screenshots")
    parser.add_argument("--only", nargs="+", default=["report", "selection", "docs"])
    arguments = parser.parse_args(argv)
    arguments.work.mkdir(parents=True, exist_ok=True)
    makers = {"report": report, "selection": selection}
    messages = 0
    with served(ROOT / "site") as front:
        for name in arguments.only:
            page = front if name == "docs" else makers[name](arguments.work)
            for width, height in WIDTHS.items():
                said = browser.open_page(page, FIGURES / f"{name}_{width}.png", width, height)
                messages += len(said)
                print(f"{name} at {width}: {len(said)} messages in the console", *said, sep="\n  ")
    return min(messages, 1)


if __name__ == "__main__":
    sys.exit(main())
