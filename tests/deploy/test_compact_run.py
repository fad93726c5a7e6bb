from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from bayesprune.cli import main
from bayesprune.compact_run import compact_run
from bayesprune.deploy import Ensemble, load, profile
from bayesprune.deploy.folder import read_architecture
from bayesprune.posterior import SampleStore, predict
from bayesprune.train import recipe, train
from bayesprune.train.evaluation import load_trained

SETTINGS = ["epochs=4", "cycles=2", "samples_per_cycle=2", "train_size=256", "width=16", "checkpoint_minutes=60"]
CHANNELS = ["groups=channel", "feedback=none", "target_sparsity=0.6", "prune_until=0.75"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short real run on the digits whose channels are pruned while samples are collected."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(recipe("digits-emmcmc", SETTINGS + CHANNELS), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def originals(run):
    model, samples, data, _ = load_trained(run)
    images, labels = next(iter(data.loader("test", batch_size=64, shuffle=False)))
    return model, samples, images, labels


def test_parity_ensemble_predicts_as_the_run_does(run, originals, tmp_path):
    model, samples, images, _ = originals
    result = compact_run(run, tmp_path / "small")
    ensemble = load(result.folder)
    assert isinstance(ensemble, Ensemble) and result.members == len(ensemble) == len(samples) == 2
    expected = predict(model, samples, images)
    found = ensemble.predict(images)
    assert (found.probabilities - expected.probabilities).abs().max() < 1e-5
    assert (found.epistemic - expected.epistemic).abs().max() < 1e-5
    assert result.difference < 1e-5 and result.left_out == []
    before, after = result.parameters
    assert before == sum(p.numel() for p in model.parameters())
    assert after == sum(p.numel() for p in ensemble.member(0).parameters()) < before


def test_property_members_final_shares_the_final_mask(run, originals, tmp_path):
    model, _, images, _ = originals
    run = shutil.copytree(run, tmp_path / "run")
    samples, early = SampleStore(run / "samples"), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in early.parameters():
            parameter.add_(0.1)  # as if collected before anything was pruned
    samples.collect(early, step=0)
    everything = compact_run(run, tmp_path / "all")
    final = compact_run(run, tmp_path / "final", members="final")
    assert (everything.members, everything.left_out, final.members, final.left_out) == (3, [], 2, [2])
    assert final.parameters[1] < everything.parameters[1]
    assert read_architecture(tmp_path / "final")["metadata"]["samples"] == [0, 1]
    for result, indices in ((everything, [0, 1, 2]), (final, [0, 1])):
        expected = predict(model, samples, images, indices=indices)
        assert (load(result.folder).predict(images).probabilities - expected.probabilities).abs().max() < 1e-5
    assert "left out: samples 2, which use weights that the final mask removes" in str(final)
    samples.truncate(0)
    samples.collect(early, step=0)
    with pytest.raises(ValueError, match="every sample uses weights that the final network does not"):
        compact_run(run, tmp_path / "none", members="final")


def test_property_a_constant_that_is_zero_in_one_member_only(run, originals, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    samples, model = SampleStore(run / "samples"), copy.deepcopy(originals[0])
    samples.truncate(0)
    keep = int(model.get_parameter("stages.1.0.bn1.weight").abs().argmax())
    with torch.no_grad():
        model.get_parameter("stages.1.0.bn1.weight")[keep] = 0
        for bias in (0.5, -0.5):  # behind ReLU: the constant 0.5, and nothing
            model.get_parameter("stages.1.0.bn1.bias")[keep] = bias
            samples.collect(model)
    result = compact_run(run, tmp_path / "small")
    found, expected = load(result.folder).predict(originals[2]), predict(model, samples, originals[2])
    assert result.report.training == "exact"  # nothing was folded
    assert (found.probabilities - expected.probabilities).abs().max() < 1e-5


def test_parity_last_iterate_with_its_meta_data(run, originals, tmp_path):
    model, _, images, _ = originals
    result = compact_run(run, tmp_path / "small", members="none", torch_export=True)
    single = load(result.folder)
    with torch.no_grad():
        assert (single(images) - model(images)).abs().max() < 1e-4
        exported = torch.export.load(str(result.folder / "model.pt2")).module()
        assert (exported(images) - model(images)).abs().max() < 1e-4
    assert set(result.exported) == {"model.pt2"} and result.members == 0
    about = read_architecture(result.folder)["metadata"]
    assert about["network"] == "digits_resnet" and about["input_shape"] == [1, 8, 8] and len(about["classes"]) == 10
    assert set(about["normalisation"]) == {"scale", "mean", "std"} and about["config"]["seed"] == 0
    report = json.loads((result.folder / "report.json").read_text())
    assert report["parameters"] == list(result.parameters)
    sizes = profile(result.folder, batch_sizes=(1,), seconds=0.02)
    assert sizes.dense is not None and sizes.dense.parameters == result.parameters[0]
    assert sizes.compact.parameters == result.parameters[1]


def test_property_round_to(run, tmp_path):
    result = compact_run(run, tmp_path / "small", members="none", round_to=8)
    widths = [m.out_channels for m in load(result.folder).modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(width % 8 == 0 for width in widths)


def test_property_command(run, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    words = ["compact", str(run), "--out", str(tmp_path / "small"), "--members", "none"]
    assert main([*words, "--onnx"]) == 0
    printed = capsys.readouterr().out
    assert "the last iterate" in printed and "largest difference of model.onnx from torch" in printed
    assert sorted(os.listdir(tmp_path / "small")) == [
        "architecture.json", "model.onnx", "report.json", "weights.safetensors"]  # fmt: skip
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["members"] == 0


def test_error_runs(run, tmp_path):
    with pytest.raises(ValueError, match=r"is missing; expected a run folder"):
        compact_run(tmp_path, tmp_path / "small")
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    (unfinished / "result.json").unlink()
    with pytest.raises(ValueError, match="holds no finished run"):
        compact_run(unfinished, tmp_path / "small")
    (unfinished / "chain-000").mkdir()
    with pytest.raises(ValueError, match=r"compact a chain of it, .*chain-000"):
        compact_run(unfinished, tmp_path / "small")
    with pytest.raises(ValueError, match="members='some'"):
        compact_run(run, tmp_path / "small", members="some")  # type: ignore[arg-type]
    assert not (tmp_path / "small").exists()
