"""The methods on whitened networks: their recipes, their cells at a size of seconds, the tables, the settings that were tried."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from benchmarks import cifar_methods, cifar_settings
from benchmarks.gpu.data import tiny

from bayesprune.train import recipe
from bayesprune.train.build import build_data, build_network, build_optimizer, build_pruner
from bayesprune.train.settings import as_dict
from paper.cells import Cell, run_cells
from paper.ledger import Ledger
from paper.tests.rows import row

PLACES = ("cifar10-94", "cifar100-72")
TINY = ("batch_size=16", "width=4", "epochs=2", "warmup_epochs=0.5", "samples_per_cycle=2")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    tiny("cifar100", folder, train=100, test=100)
    return str(tiny("cifar10", folder))


@pytest.mark.parametrize("place", PLACES)
def test_property_every_method_has_the_same_network_data_and_epochs(place):
    configs = [recipe(name) for name in cifar_methods.names(place)]
    assert len(configs) == len({config.recipe for config in configs}) == (27 if place == "cifar10-94" else 8)
    assert len({(config.data, config.network.network, config.network.width) for config in configs}) == 1
    assert len({config.schedule.epochs for config in configs}) == 1


@pytest.mark.parametrize("name", ["dfp-90", "dpf-90", "rigl-90", "dfp-channel-70", "dpf-channel-70", "channel-gmp-70"])
def test_property_pruned_runs_reach_their_target(images, name):
    config = recipe(f"cifar10-94-{name}", ["width=8", "every=1", "batch_size=16"])
    model = build_network(config, build_data(config, images))
    optimizer = build_optimizer(config, model, 80)
    inputs = torch.randn(8, 3, 32, 32)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    pruner = build_pruner(config, model, optimizer, 20, inputs[:1])
    for _ in range(20):
        optimizer.zero_grad()
        model(inputs).logsumexp(1).mean().backward()
        optimizer.step()
    pruner.finish_()
    wanted = config.pruning.target_sparsity
    assert pruner.hard_sparsity == pytest.approx(wanted, abs=0.06 if "channel" in name else 0.01)


def test_property_cells_are_measured_once(tmp_path, images, monkeypatch, capsys):
    command = [
        "cifar_methods",
        "--data-dir",
        images,
        "--ood-dir",
        images,
        "--jobs",
        "2",
        "--seeds",
        "0",
        "--set",
        *TINY,
    ]
    command += ["--only", "cifar10-94-sgd", "cifar10-94-dfp-channel-50"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")])
    cifar_methods.main()
    path = cifar_methods.ledger("cifar10-94", tmp_path / "out")
    rows = {row["recipe"]: row for row in Ledger(path).rows().values()}
    assert set(rows) == {"cifar10-94-sgd", "cifar10-94-dfp-channel-50"}
    for each in rows.values():
        assert 0 <= each["noisy_accuracy"] <= 1 and 0 <= each["blurred_ece"] <= 1 and 0 <= each["ood_auroc"] <= 1
    assert rows["cifar10-94-dfp-channel-50"]["compact_mb"] < rows["cifar10-94-sgd"]["compact_mb"]
    assert not any((tmp_path / "runs").iterdir())
    before = path.read_text()
    cifar_methods.main()
    assert path.read_text() == before  # nothing was missing


def test_property_a_row_holds_what_measure_says(tmp_path, images):
    cell = Cell("cifar10-94-sgd", 0, (*TINY, "threads=1", "device=cpu"))
    found = run_cells(
        [cell], tmp_path / "t.jsonl", runs=tmp_path / "runs", data_dir=images, measure=weighed, quiet=True
    )
    (only,) = found["rows"]
    assert (only["weighed"], only["name"], only["seed"], only["recipe"]) == (cell.name, cell.name, 0, "cifar10-94-sgd")
    assert only["changes"] == sorted(TINY) and 0 <= only["accuracy_mean"] <= 1


def weighed(run):
    return {
        "weighed": run.name,
        **dict.fromkeys(("name", "recipe", "seed", "changes", "accuracy_mean"), "a measure adds"),
    }


def test_property_the_table_shows_cells_of_the_full_size_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_methods, "RESULTS", tmp_path)
    monkeypatch.setattr(cifar_methods, "TIMES", tmp_path / "times.json")
    size = cifar_methods.size_of(recipe("cifar10-94-sgd"))
    timed = {"sizes": {size: {"ms_1": 2.0, "ms_64": 70.0}}, "environment": {"cpu": "z", "torch": "2"}}
    (tmp_path / "times.json").write_text(json.dumps(timed))
    more = {
        "views": {"accuracy_mean": 0.95}, "nll_single": 0.4, "ece_single": 0.02, "ood_auroc": 0.9, "noise": 0.04, "epochs": 14,
        "noisy_accuracy": 0.5, "blurred_accuracy": 0.6, "compact_mb": 7.5, "measured_temperature": None,
        "environment": {"cpu": "x", "torch": "1", "device": "cpu"},
    }  # fmt: skip
    on_gpu = {"environment": {"cpu": "x", "torch": "2", "device": "y"}}
    rows = [
        row("cifar10-94-gmp-90", accuracy=0.8) | on_gpu,
        row("cifar10-94-sgd", 0, accuracy=0.9),
        row("cifar10-94-sgd", 1, accuracy=0.92),
    ]
    rows += [row("cifar10-94-cvadam", changes=["epochs=1"])]
    Ledger(cifar_methods.ledger("cifar10-94", tmp_path)).append(*(more | each for each in rows))
    right, wrong = np.eye(10, dtype=np.float16), np.full((10, 10), 0.1, dtype=np.float16)
    for seed, says in enumerate((right, wrong)):
        (tmp_path / f"run{seed}").mkdir()
        np.savez(tmp_path / f"run{seed}" / cifar_methods.SAID, labels=np.arange(10), **{f"seed{seed}": says})
        cifar_methods._keep_probabilities(tmp_path / f"run{seed}", tmp_path / "cifar10_94.jsonl")
    count, scores = cifar_methods.deep_ensemble(tmp_path / "cifar10_94.jsonl")
    assert count == 2 and scores["nll"] == pytest.approx(-np.log(0.55), abs=1e-3)
    shown = cifar_methods.table("cifar10-94")
    lines = [line for line in shown.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [line[:3] for line in cells] == [
        ["sgd", "2", "91.00 ± 1.41"], ["gmp-90", "1", "80.00"], ["deep ensemble of 2 SGD runs", "1", "–"],
    ]  # fmt: skip
    assert "2.0" in cells[0] and "70" in cells[0] and "100.00" in cells[2]
    assert [line[-1] for line in cells] == ["9 ± 0", "–", "–"]  # seconds: of the runs that had a core
    assert "x, one thread a run, torch 1 (2 of 3 runs)" in shown and "y, many runs at once, torch 2 (1 of 3" in shown


@pytest.mark.parametrize("path", sorted(cifar_methods.RESULTS.glob("cifar*.jsonl")), ids=lambda path: path.stem)
def test_property_the_committed_rows_are_of_the_recipes_as_they_are(path):
    for each in Ledger(path).rows().values():
        held_out = cifar_settings.HELD_OUT if path == cifar_settings.RESULTS else ()
        wanted = as_dict(recipe(each["recipe"], [*held_out, *each["changes"], f"seed={each['seed']}"]))
        assert each["config"] | {"runtime": None} == wanted | {"runtime": None}, each["name"]


def test_property_settings_are_compared_on_held_out_images(tmp_path, images, monkeypatch, capsys):
    monkeypatch.setitem(cifar_settings.TRIED, "cifar10-94-sgd", ("", "lr=0.1"))
    command = ["cifar_settings", "--data-dir", images, "--only", "cifar10-94-sgd", "--rows", str(tmp_path / "s.jsonl")]
    monkeypatch.setattr(sys, "argv", [*command, "--set", *TINY, "validation_size=16"])
    cifar_settings.main()
    rows = Ledger(tmp_path / "s.jsonl").rows()
    settings = sorted([*TINY, "validation_size=16"])
    assert [each["changes"] for each in rows.values()] == [settings, sorted([*settings, "lr=0.1"])]
    assert all(0 <= each["average"]["accuracy"] <= 1 and each["members"] == 2 for each in rows.values())
    assert all((16 * each["average"]["accuracy"]) % 1 == pytest.approx(0) for each in rows.values())  # of 16 images
    before = (tmp_path / "s.jsonl").read_text()
    cifar_settings.main()
    assert (tmp_path / "s.jsonl").read_text() == before
    assert capsys.readouterr().out.count("| `cifar10-94-sgd` | ") == 4
