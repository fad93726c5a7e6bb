"""README's promises: its snippet runs as printed, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import bayesprune as bp
from bayesprune.cli import main
from bayesprune.sparsity import sparsity_report

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_property_first_snippet_runs_as_printed(tmp_path, monkeypatch, capsys):
    """Nothing is given to it but an empty folder: it trains, prunes, compacts, predicts and saves."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope: dict = {}
    exec(SNIPPETS[0], scope)
    printed = capsys.readouterr().out
    assert re.search(r"4 members, 9\d\.\d% of the test images right", printed)
    assert "temperature, group 0: measured" in printed
    assert scope["pruner"].groups.kind == "channel"
    assert sparsity_report(scope["model"], scope["pruner"]).prunable == pytest.approx(
        0.9, abs=0.03
    )  # a channel of one layer's
    before, after = (sum(p.numel() for p in net.parameters()) for net in (scope["model"], scope["small"].model))
    assert after < 0.15 * before
    masked = bp.predict(scope["model"], scope["samples"], scope["test"])
    torch.testing.assert_close(scope["prediction"].probabilities, masked.probabilities, atol=1e-4, rtol=0)
    again = bp.load(tmp_path / "digits").predict(scope["test"])
    torch.testing.assert_close(again.probabilities, scope["prediction"].probabilities, atol=1e-6, rtol=0)


def test_property_first_screen_is_the_table_and_the_snippet():
    """Headline, commands, the demo's table and the snippet come first, in this order, before any other heading."""
    places = [README.index(mark) for mark in ("# bayesprune", "make demo", "<!-- table:demo -->", "```python", "\n## ")]
    assert places == sorted(places)


@pytest.mark.parametrize("line", re.findall(r"^bayesprune (\w+)", README, re.MULTILINE))
def test_property_commands_exist(line, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([line, "--help"])
    assert stopped.value.code == 0
    capsys.readouterr()


def test_property_tables_say_what_the_results_say():
    from benchmarks import tables

    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.refreshed(text) == text, f"{page.name} is stale: run python -m benchmarks.tables"
