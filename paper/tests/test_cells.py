"""Cells that run, stop, go on and merge; Tables 1 to 3 as data and text; the driver, on networks small enough for seconds."""

from __future__ import annotations

import pytest

from bayesprune.train import Trainer, recipe
from paper import published
from paper.cells import Cell, run_cells, standing
from paper.commands import main
from paper.image_tables import mean_and_spread, paper_table_markdown
from paper.ledger import Ledger
from paper.published import TABLES, Block, table_cells
from paper.tests.rows import row

TINY = ("train_size=96", "epochs=3", "batch_size=16", "width=4", "threads=1", "device=cpu")
SGD, SAMPLED = Cell("digits-sgd", 0, TINY), Cell("digits-sgd", 1, TINY)


# ---- running, stopping, going on


def test_property_finished_cells_are_never_repeated_and_stopped_ones_go_on(tmp_path, monkeypatch):
    out, how = tmp_path / "t.jsonl", {"runs": tmp_path / "runs", "quiet": True}
    trained, step = [], Trainer._train_step

    def counted(self, images, labels):
        trained.append(self.step)
        step(self, images, labels)

    monkeypatch.setattr(Trainer, "_train_step", counted)
    stopped = run_cells([SGD, SAMPLED], out, budget_minutes=1e-9, **how)
    assert stopped["rows"] == [] and stopped["command"]["not_started"] == 2 and not trained
    monkeypatch.setattr("paper.cells.time.time", Clock(start=100.0, after=4))
    half = run_cells([SGD, SAMPLED], out, budget_minutes=1.0, **how)
    monkeypatch.undo()
    monkeypatch.setattr(Trainer, "_train_step", counted)
    assert half["rows"] == [] and half["command"]["stopped"] == 1
    assert "a checkpoint" in half["unfinished"][SGD.name] and 0 < len(trained) < 18
    result = run_cells([SGD, SAMPLED], out, **how)
    assert [each["name"] for each in result["rows"]] == [SGD.name, SAMPLED.name] and not result["unfinished"]
    assert len(trained) == 2 * 18  # no step twice
    assert result["rows"][0]["changes"] == sorted(TINY[:4]) and "device=cpu" not in SGD.name
    before = out.read_text()
    assert run_cells([SGD, SAMPLED], out, **how)["command"]["cells"] == 0
    assert len(trained) == 36 and out.read_text() == before and len(before.splitlines()) == 2


class Clock:
    """A clock that leaps by an hour once it has been read so often."""

    def __init__(self, start, after):
        self.now, self.left = start, after

    def __call__(self):
        self.left -= 1
        return self.now + (3600.0 if self.left < 0 else 0.0)


def test_property_a_loss_that_is_not_finite_is_a_row_and_other_errors_are_not(tmp_path):
    wild, out = Cell("digits-sgd", 0, (*TINY, "lr=1e6", "weight_decay=1000")), tmp_path / "t.jsonl"
    how = {"runs": tmp_path / "runs", "quiet": True}
    result = run_cells([wild], out, **how)
    assert result["rows"][0]["status"] == "failed" and "not finite" in result["rows"][0]["reason"]
    assert run_cells([wild], out, **how)["command"]["cells"] == 0  # not tried again
    stopped = run_cells([wild], out, retry=True, budget_minutes=1e-9, **how)
    assert stopped["rows"] == []  # until it is: whatever comes of it counts, and a later command goes on with it
    assert run_cells([wild], out, **how)["command"]["failed"] == 1 and len(standing(out)["rows"]) == 1
    with pytest.raises(RuntimeError, match="did you mean"):
        run_cells([Cell("digits-sdg")], tmp_path / "u.jsonl", **how)
    assert Ledger(tmp_path / "u.jsonl").rows() == {}
    with pytest.raises(ValueError, match="jsonl"):
        run_cells([wild], tmp_path / "t.json", **how)


# ---- the tables


def test_property_every_cell_has_a_recipe_at_its_sparsity():
    for table, blocks in TABLES.items():
        cells = table_cells(table, 2)
        assert len({cell.name for cell in cells}) == len(cells)
        assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
        for block in blocks:
            for method, sparsity in block.entries():
                config = recipe(block.recipe(method, sparsity))
                assert config.schedule.epochs == 200 and config.recipe == block.recipe(method, sparsity)
                assert sparsity is None or config.pruning.target_sparsity == pytest.approx(sparsity / 100)
            assert all(len(values) == len(block.sparsities) for values in block.sparse.values())


def test_error_a_pattern_that_matches_nothing_and_a_sparsity_of_a_dense_recipe():
    with pytest.raises(ValueError, match="cifar10-resnet18-sgd"):
        table_cells("table1", 1, only=["cifar10-resnet18-sdg"])
    with pytest.raises(ValueError, match="unknown recipe"):
        recipe("cifar10-resnet18-sgd-80")


def test_property_the_table_has_the_papers_figure_beside_ours_with_n():
    rows = [row("cifar10-resnet18-dfp-80", seed, accuracy=0.94 + seed / 100) for seed in range(2)]
    rows += [
        row("cifar10-resnet18-sgd"),
        row("cifar10-resnet18-sgd", changes=["epochs=2"]),
        row("cifar10-resnet18-gmp-90", status="failed"),
    ]
    text = paper_table_markdown("table1", {"rows": rows, "unfinished": {"x.seed0": "3 of 200 epochs, a checkpoint"}})
    lines = {
        line.split(" |")[0].strip("| ") + line.split("|")[2].strip(): line
        for line in text.splitlines()
        if line.startswith("|")
    }
    dfp = [cell.strip() for cell in lines["EM-MCMC, DFP80 %"].split("|")[1:-1]]
    assert dfp == ["EM-MCMC, DFP", "80 %", "94.5", "", "94.50 ± 0.71", "95.50 ± 0.71", "0.300 ± 0.000", "0.010 ± 0.000",
                   "80.0 %", "79.0 %", "30.0 %", "2"]  # fmt: skip
    assert lines["SGD (Nesterov) (epochs=2)dense"].endswith("| 1 |")
    assert "gradual magnitude90 %" not in lines and "without a result: cifar10-resnet18-gmp-90" in text
    assert "95.41" in lines["RigL70 %"] and "3 of 200 epochs" in text
    assert mean_and_spread([1.0], 1) == "1.0"


def test_property_the_command_runs_stops_lists_and_merges(tmp_path, monkeypatch, capsys):
    block = Block("digits", "digits", (80,), {"sgd": 99.0}, {}, {}, methods=("sgd",))
    monkeypatch.setitem(published.TABLES, "table1", (block,))
    out = str(tmp_path / "t1.jsonl")
    common = ["table1", "--out", out, "--runs", str(tmp_path / "runs"), "--quiet", "--set", *TINY[:-1]]
    assert main([*common, "--seeds", "2", "--list"]) == 0
    assert len(capsys.readouterr().out.split()) == 2
    assert main([*common, "--seeds", "1", "--device", "cpu", "--budget-minutes", "1e-9"]) == 0
    assert "1 of 1 cells are missing" in capsys.readouterr().out
    assert main([*common, "--seeds", "1", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "| SGD (Nesterov) | dense | 99.0 |" in printed and "missing" not in printed
    elsewhere = str(tmp_path / "elsewhere.jsonl")
    assert main(["table1", "--out", elsewhere, "--merge", out]) == 0
    assert "1 new rows" in capsys.readouterr().out


def test_property_figures_are_drawn_from_real_runs(tmp_path, capsys):
    how = [
        "--runs",
        str(tmp_path / "runs"),
        "--quiet",
        "--device",
        "cpu",
        "--set",
        *TINY[:-1],
        "cycles=1",
        "samples_per_cycle=1",
    ]
    for figure in ("figure1", "figure2"):
        out = tmp_path / f"{figure}.png"
        assert main([figure, "--only", "digits-emmcmc", "--out", str(out), *how]) == 0
        assert out.read_bytes()[:4] == b"\x89PNG" and "<svg" in out.with_suffix(".html").read_text()
    assert (
        main(
            [
                "figure2",
                "--only",
                "digits-sgd",
                "--out",
                str(tmp_path / "x.png"),
                "--budget-minutes",
                "1e-9",
                *how[:5],
            ]
        )
        == 0
    )
    assert "not drawn" in capsys.readouterr().out and not (tmp_path / "x.png").exists()
