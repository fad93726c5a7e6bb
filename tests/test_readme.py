"""README's promises: its snippet runs as printed, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from bayesprune.cli import main
from bayesprune.sparsity import sparsity_report
from bayesprune.vision import small_cnn

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("epochs", [2, 24])
def test_property_snippet_runs_as_printed_and_prunes_to_its_target(epochs, tmp_path, monkeypatch, capsys):
    snippet = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    inputs, labels = torch.randn(64, 3, 8, 8), torch.randint(0, 3, (64,))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=8)
    scope = {
        "model": small_cnn(num_classes=3, width=8), "train_set": inputs, "epochs": epochs, "loader": loader, "x_test": inputs[:10],
    }  # fmt: skip
    exec(snippet, scope)
    assert len(scope["samples"]) == 8  # the two cycles after the ramp
    assert scope["prediction"].probabilities.shape == (10, 3)
    assert scope["pruner"].groups.kind == "channel"
    assert sparsity_report(scope["model"], scope["pruner"]).prunable == pytest.approx(
        0.9, abs=0.02
    )  # a channel of a toy's
    assert "measured" in capsys.readouterr().out


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
