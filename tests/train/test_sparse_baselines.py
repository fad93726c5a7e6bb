from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from bayesprune.train import recipe, train
from bayesprune.train.baseline_recipes import sparse_baseline
from bayesprune.train.build import build_data, build_network, build_optimizer, build_pruner
from bayesprune.train.idle import refuse_idle
from bayesprune.train.loop import Trainer
from bayesprune.train.recipes import names
from bayesprune.train.registry import sparse_baselines
from bayesprune.train.settings import override

SMALL = ["train_size=160", "epochs=5", "batch_size=16", "width=6", "threads=1", "device=cpu", "checkpoint_minutes=0"]


def config(method):
    return sparse_baseline(recipe("digits-sgd", SMALL), method, 0.8)


@pytest.mark.parametrize("method", sparse_baselines())
def test_roundtrip_a_run_stopped_and_resumed_equals_an_uninterrupted_one(method, tmp_path, monkeypatch):
    chosen = override(config(method), ["every=4"])
    result = train(chosen, tmp_path / "whole", quiet=True)
    step = Trainer._train_step

    def stopping(self, images, labels):
        if self.step == 23:
            raise KeyboardInterrupt
        step(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(chosen, tmp_path / "half", quiet=True)
    again = train(chosen, tmp_path / "half", quiet=True, resume=True)
    assert again["accuracy_single"] == result["accuracy_single"]
    whole, half = (load_file(str(tmp_path / name / "model.safetensors")) for name in ("whole", "half"))
    assert all(torch.equal(whole[name], half[name]) for name in whole)
    assert abs(result["sparsity_prunable"] - 0.8) < 0.005 or method == "sparse_momentum"
    sparsity = [row["hard_sparsity"] for row in json.loads((tmp_path / "whole" / "history.json").read_text())]
    assert abs(sparsity[-1] - 0.8) < 0.001 and (method in ("gmp", "dpf")) == (sparsity[0] < 0.7)


@pytest.mark.parametrize("method", sparse_baselines())
def test_property_every_key_of_a_method_changes_its_pruner(method):
    base = config(method)
    data = build_data(base)

    def described(settings):
        chosen = override(base, settings)
        model = build_network(chosen, data)
        pruner = build_pruner(chosen, model, build_optimizer(chosen, model, 160), 50, torch.zeros(1, 1, 8, 8))
        kept = {name: int(mask.sum()) for name, mask in pruner.weight_masks().items()}
        plain = {k: v for k, v in vars(pruner).items() if isinstance(v, (int, float, str, tuple))}
        return kept, plain

    values = {
        "target_sparsity": "0.6", "every": "3", "exclude": "stages.0", "dense_layers": "none", "distribution": "erk",
        "prune_from": "0.3", "prune_until": "0.6", "drop_fraction": "0.2",
    }  # fmt: skip
    if method in ("set", "rigl"):
        values["distribution"] = "uniform"
    if method in ("sparse_momentum", "dpf"):
        values.pop("dense_layers")  # their authors leave nothing dense on small images
    for key, value in values.items():
        try:
            refuse_idle(base, key)
        except ValueError:
            assert described([f"{key}={value}"]) == described([]), key
        else:
            assert described([f"{key}={value}"]) != described([]), key


def test_property_every_place_has_a_recipe_for_every_baseline():
    assert {f"cifar10-resnet20-{m}" for m in ("sparse-momentum", "dsr", "set", "rigl", "gmp", "dpf-sgd")} <= set(
        names()
    )
    dsr = recipe("cifar10-resnet20-dsr")
    assert (dsr.sampler.method, dsr.sampler.beta1, dsr.pruning.prune_until) == ("dsr", 0.9, 0.95)
