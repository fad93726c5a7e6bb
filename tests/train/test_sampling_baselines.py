from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from bayesprune.baselines import DeepEnsemble, refresh_batch_norm_
from bayesprune.posterior import SampleStore
from bayesprune.train import evaluate, recipe, train
from bayesprune.train.baseline_recipes import sampling_baseline
from bayesprune.train.build import build_data, build_network, build_optimizer
from bayesprune.train.idle import refuse_idle
from bayesprune.train.loop import Trainer
from bayesprune.train.recipes import names
from bayesprune.train.settings import override

SMALL = ["train_size=160", "epochs=8", "batch_size=16", "width=6", "threads=1", "device=cpu", "checkpoint_minutes=0"]
METHODS = ("csgld", "csghmc", "rank1", "rank1-cauchy", "swag", "ensemble")


def config(name):
    chosen = sampling_baseline(recipe("digits-sgd", SMALL), name)
    return override(
        chosen, {"swag": ["draws=3"], "rank1": ["draws=2"], "ensemble": ["epochs=8", "cycles=2"]}.get(name, [])
    )


@pytest.mark.parametrize("name", METHODS)
def test_roundtrip_a_run_stopped_and_resumed_equals_an_uninterrupted_one(name, tmp_path, monkeypatch):
    chosen = config(name)
    result = train(chosen, tmp_path / "whole", quiet=True)
    step = Trainer._train_step

    def stopping(self, images, labels):
        if self.step == 75:  # swag has collected, the noise is on, the second member has begun
            raise KeyboardInterrupt
        step(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(chosen, tmp_path / "half", quiet=True)
    again = train(chosen, tmp_path / "half", quiet=True, resume=True)
    drop = ("seconds", "environment", "recipe")
    assert {k: v for k, v in again.items() if k not in drop} == {k: v for k, v in result.items() if k not in drop}
    whole, half = (load_file(str(tmp_path / place / "model.safetensors")) for place in ("whole", "half"))
    assert all(torch.equal(whole[key], half[key]) for key in whole)
    stores = [SampleStore(tmp_path / place / "samples") for place in ("whole", "half")]
    for first, second in zip(*stores):
        assert all(torch.equal(first[key], second[key]) for key in first)
    members = {"csgld": 12, "csghmc": 12, "rank1": 8, "rank1-cauchy": 4, "swag": 3, "ensemble": 2}
    assert len(stores[0]) == result["num_samples"] == members[name]
    # the folder is of the plain architecture: it evaluates without the method
    assert evaluate(tmp_path / "whole")["average"]["accuracy"] == pytest.approx(result["accuracy_mean"])
    if name == "ensemble":
        assert len(set(DeepEnsemble(stores[0]).seeds)) == 2
    if name in ("csgld", "csghmc"):
        assert result["health"]["temperature"][0]["mean"] == 1 / 50_000


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_property_the_method_learns(name, tmp_path):
    """90 % of the real digits in ten epochs (an ensemble of two: ten each); most classes are a tenth of them."""
    own = {
        "ensemble": ["epochs=20", "cycles=2"],
        "swag": ["draws=3"],
        "rank1": ["random_sign=1"],
        "rank1-cauchy": ["random_sign=1"],
    }
    base = recipe("digits-sgd", ["epochs=10", "width=8", "threads=1", "device=cpu", "evaluate_every=none"])
    result = train(override(sampling_baseline(base, name), own.get(name, [])), tmp_path / "run", quiet=True)
    assert result["accuracy_mean"] > 0.9 and result["accuracy_single"] > 0.85


def test_property_members_of_an_ensemble_do_not_share_their_start(tmp_path, monkeypatch):
    starts, step = [], Trainer._train_step

    def watching(self, images, labels):
        if self.step in (0, 40):
            self.procedure.begin_(self.step, self.optimizer)
            starts.append(next(self.model.parameters()).detach().clone())
            assert not self.optimizer.state
        step(self, images, labels)

    monkeypatch.setattr(Trainer, "_train_step", watching)
    train(config("ensemble"), tmp_path / "run", quiet=True)
    assert not torch.allclose(*starts)
    rates = [row["lr"] for row in json.loads((tmp_path / "run" / "history.json").read_text())]
    assert rates[4] > rates[3]  # the second member starts at the peak again


@pytest.mark.parametrize("name", ["csgld", "csghmc"])
def test_property_samplers_take_their_settings(name):
    chosen = override(config(name), ["temperature=0.005", "beta1=0.2", "lr=0.3"])
    data = build_data(chosen)
    optimizer = build_optimizer(chosen, build_network(chosen, data), 160)
    group = optimizer.param_groups[0]
    assert (group["temperature"], group["num_data"], group["lr"]) == (0.005, 160, 0.3)
    assert (name == "csgld" or group["betas"] == (0.2, 1.0)) and group["preconditioner"] == "none"


def test_error_idle_keys_and_impossible_schedules_are_refused():
    for name, key in (
        ("csgld", "beta1"), ("csghmc", "dual_lr"), ("rank1", "cycles"), ("rank1", "rank"), ("swag", "members"),
        ("ensemble", "temperature"), ("ensemble", "draws"), ("swag", "target_sparsity"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="changes nothing"):
            refuse_idle(config(name), key)
    for name, key in (("csghmc", "beta1"), ("csgld", "noise_epochs"), ("rank1", "prior"), ("swag", "lr_floor")):
        refuse_idle(config(name), key)
    for name, setting, message in (
        ("ensemble", "samples_per_cycle=2", "cycles are its members"), ("swag", "collect_from=0.99", "less than two"),
        ("swag", "rank=1", "rank=0"), ("rank1", "prior=laplace", "gaussian, cauchy"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            override(config(name), [setting])


def test_property_every_place_has_a_recipe_for_every_baseline():
    for place in ("digits", "cifar10-resnet20"):
        assert {f"{place}-{name}" for name in METHODS} <= set(names())
    csghmc = recipe("cifar10-resnet20-csghmc", ["epochs=200"])
    assert (csghmc.sampler.lr, csghmc.sampler.beta1, csghmc.sampler.temperature) == (0.5, 0.1, 1 / 50_000)
    assert (csghmc.schedule.cycles, csghmc.schedule.samples_per_cycle, csghmc.baseline.noise_epochs) == (4, 3, 0.25)


def test_property_swag_estimates_statistics_at_the_precision_of_the_run(tmp_path, monkeypatch):
    """In float32 a pass over CIFAR for each draw took three times as long, and its statistics were of other outputs."""
    seen = []

    def refreshed(model, batches):
        seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return refresh_batch_norm_(model, batches)

    monkeypatch.setattr("bayesprune.baselines.swag.refresh_batch_norm_", refreshed)
    monkeypatch.setattr("bayesprune.baselines.refresh_batch_norm_", refreshed)
    train(override(config("swag"), ["precision=bf16-mixed"]), tmp_path, quiet=True)
    assert seen == [torch.bfloat16] * 4  # three draws and the mean
