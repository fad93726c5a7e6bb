"""The pages in headless Chromium: nothing in the console, tables sort, values show, a phone's width holds."""

from __future__ import annotations

import re

import pytest
from safetensors.numpy import save_file

import browser
from bayesprune.report import load_run, write_report, write_selection_report
from report.test_html import predictions
from report.test_selection import selection

pytestmark = pytest.mark.skipif(browser.find() is None, reason="Chromium is not installed: apt-get install chromium")

# Runs in the page after its own script, and says in the console what it found.
CHECK = """
const said = [];
const table = document.querySelector("table.sortable");
const column = [...table.tHead.rows].at(-1).cells.length - 1;
const button = [...table.tHead.rows].at(-1).cells[0].querySelector("button");
button.click(); const up = table.tBodies[0].rows[0].cells[0].textContent;
button.click(); const down = table.tBodies[0].rows[0].cells[0].textContent;
said.push("sorted " + (up < down));
const canvas = [...document.querySelectorAll(".canvas")].find((one) => JSON.parse(one.dataset.points).length > 1);
canvas.focus();
canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
said.push("tip " + document.querySelector(".tip").textContent);
said.push("overflow " + (document.documentElement.scrollWidth > innerWidth));
console.log("CHECK " + said.join(" | "));
"""


@pytest.fixture(scope="module")
def pages(make_run_once, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    runs = [make_run_once("a-dfp"), make_run_once("b-sgd", recipe="digits-sgd", method="sgd", pruned=False, level=0.95)]
    save_file(predictions(), runs[0] / "predictions.safetensors")
    report = write_report([load_run(run) for run in runs], folder / "report.html")
    chosen = write_selection_report(selection(), folder / "selection.html")
    return {"report": report, "selection": chosen}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["report", "selection"])
def test_property_no_message_in_the_console_at_any_width(pages, name, width, tmp_path):
    assert browser.open_page(pages[name], tmp_path / "page.png", width) == []
    assert (tmp_path / "page.png").stat().st_size > 20_000


@pytest.mark.parametrize("name", ["report", "selection"])
def test_property_tables_sort_and_values_show_by_keyboard_on_a_phone(pages, name, tmp_path):
    text = pages[name].read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)  # the check is one script more
    page = tmp_path / f"{name}.html"
    page.write_text(text.replace("</body>", f"<script>{CHECK}</script></body>"), encoding="utf-8")
    (line,) = browser.open_page(page, tmp_path / "page.png", 390)
    assert "sorted true" in line and "overflow false" in line
    assert re.search(r"tip [^|]*\d", line)
