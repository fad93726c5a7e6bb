"""The demo end to end, on a network small enough for a test."""

from __future__ import annotations

import json

import pytest
import torch

import bayesprune as bp
from bayesprune.cli import main
from bayesprune.demo import run_demo, summary
from bayesprune.train import Interrupted, load_trained
from bayesprune.vision import load_digits

TINY = [
    "width=16",
    "epochs=3",
    "train_size=320",
    "target_sparsity=0.7",
    "round_to=1",
    "samples_per_cycle=2",
    "sample_every=0.2",
]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    out = tmp_path_factory.mktemp("shown") / "demo"
    return out, run_demo(out, TINY, processes=1, quiet=True)


def test_property_folder_holds_what_the_metrics_say(shown):
    out, metrics = shown
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert sorted(path.name for path in out.iterdir()) == ["compact", "emmcmc", "metrics.json", "report.html", "sgd"]
    assert [path.name for path in out.parent.iterdir()] == ["demo"]  # nothing half-written beside it
    assert (out / "report.html").read_text().lstrip().lower().startswith("<!doctype html")
    ensemble = bp.load(out / "compact")
    assert len(ensemble) == metrics["models"]["ensemble"]["members"] == 2
    first = metrics["models"]["ensemble"]["by_fold"][0]
    assert (out / "compact" / "weights.safetensors").stat().st_size == first["bytes"]
    assert sum(p.numel() for p in ensemble.member(0).parameters()) == first["parameters"]


def test_property_every_digit_is_tested_once(shown):
    metrics = shown[1]
    assert metrics["test_images"] == 1797
    for row in metrics["models"].values():
        assert [fold["images"] for fold in row["by_fold"]] == [360, 360, 359, 359, 359]
        assert row["accuracy"][0] == pytest.approx(1 - sum(fold["wrong"] for fold in row["by_fold"]) / 1797)
        for key in ("accuracy", "nll", "auroc", "difference"):
            assert row[key][1] <= row[key][0] <= row[key][2]


def test_parity_the_compact_ensemble_is_the_masked_networks_average(shown):
    """What the table says of the small networks is what the trained ones, with their zeros, say of the same digits."""
    out, metrics = shown
    model, samples, data, config = load_trained(out / "emmcmc")
    assert config.data.fold == 0 and data.count("test") == 360
    masked = bp.predict(model, samples, data.loader("test", batch_size=512))
    compact = bp.load(out / "compact").predict(data.loader("test", batch_size=512))
    torch.testing.assert_close(compact.probabilities, masked.probabilities, atol=1e-4, rtol=0)
    wrong = int((masked.classes != masked.labels).sum())
    assert wrong == metrics["models"]["ensemble"]["by_fold"][0]["wrong"]


def test_property_the_run_can_be_compacted_again(shown, tmp_path, capsys):
    """`bayesprune compact demo/emmcmc` takes channels away, not only zeros: fewer parameters, and fewer bytes."""
    out, metrics = shown
    assert main(["compact", str(out / "emmcmc"), "--out", str(tmp_path / "small"), "--json"]) == 0
    before, after = json.loads(capsys.readouterr().out)["parameters"]
    assert before == metrics["models"]["dense"]["parameters"] and after < 0.45 * before
    assert main(["profile", str(tmp_path / "small"), "--seconds", "0.05"]) == 0
    assert "dense / compact" in capsys.readouterr().out


def test_property_the_table_says_what_the_metrics_say(shown):
    metrics = shown[1]
    ensemble, dense = metrics["models"]["ensemble"], metrics["models"]["dense"]
    for written in (summary.text(metrics), summary.markdown(metrics)):
        for row in metrics["models"].values():
            assert f"{100 * row['accuracy'][0]:.2f}" in written and f"{row['latency']['64']['ms']:.2f}" in written
        assert f"{ensemble['bytes'] / dense['bytes']:.1%} of the bytes" in written
        assert f"{ensemble['latency']['64']['speed'][0]:.1f} ×" in written and "1,797 digits" in written
    rows = summary.cells(metrics)
    assert [len(row) for row in rows] == [len(summary.HEAD)] * 4


def test_error_folders_in_use_settings_and_processes(shown, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert main(["demo", "--out", str(tmp_path / "mine")]) == 1
    assert "holds no demo" in capsys.readouterr().err and (tmp_path / "mine" / "thesis.txt").exists()
    assert main(["demo", "--out", str(tmp_path / "new"), "--processes", "0"]) == 1
    assert "processes=0" in capsys.readouterr().err
    assert main(["demo", "--out", str(tmp_path / "new"), "--processes", "1", "--set", "lrr=1"]) == 1
    assert "did you mean 'lr'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_property_an_earlier_demo_stays_until_the_next_is_complete(shown, monkeypatch):
    out, metrics = shown

    def stopped(*arguments):
        raise Interrupted("stopped at step 3")

    monkeypatch.setattr("bayesprune.demo.demonstration.run_jobs", stopped)
    with pytest.raises(Interrupted, match="start it again"):
        run_demo(out, TINY, processes=1, quiet=True)
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert [path.name for path in out.parent.iterdir()] == ["demo"]


@pytest.mark.slow
def test_property_processes_do_not_change_the_scores(shown, tmp_path):
    again = run_demo(tmp_path / "demo", TINY, processes=2, quiet=True)
    for name, row in shown[1]["models"].items():
        for key in ("accuracy", "nll", "auroc", "bytes"):
            assert again["models"][name][key] == row[key]


def test_property_folds_share_no_digit_and_keep_the_classes():
    data = [load_digits(fold=fold) for fold in range(5)]
    tested = torch.cat([part.test_images for part in data]).flatten(1)
    everything = torch.cat([data[0].train_images, data[0].test_images]).flatten(1)
    assert sorted(map(tuple, tested.tolist())) == sorted(map(tuple, everything.tolist()))
    for part in data:
        assert len(part.train_labels) + len(part.test_labels) == 1797
        shares = part.test_labels.bincount() / len(part.test_labels) - part.train_labels.bincount() / len(
            part.train_labels
        )
        assert shares.abs().max() < 0.005
    with pytest.raises(ValueError, match="fold=5: there are 5"):
        load_digits(fold=5)
