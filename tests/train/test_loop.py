from __future__ import annotations

import gc
import json
import os
import signal
import threading

import pytest
import torch
from torch import nn

from bayesprune.posterior import SampleStore, predict
from bayesprune.samplers import CVAdam
from bayesprune.sparsity import ForwardPruning
from bayesprune.sparsity.masks import MaskHolder
from bayesprune.train import Interrupted, NonFiniteLoss, evaluate, load_trained, recipe, train
from bayesprune.train.loop import Trainer
from bayesprune.vision.position import PositionedLoader

TINY = ["train_size=96", "epochs=3", "batch_size=16", "width=4", "cycles=1", "samples_per_cycle=2", "device=cpu"]


def tiny(name="digits-cvadam", *settings):
    return recipe(name, [*TINY, *settings])


@pytest.fixture(scope="module")
def sparse_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "sparse"
    return out, train(tiny("digits-emmcmc", "target_sparsity=0.8", "prune_until=0.5"), out, quiet=True)


def test_property_folder_holds_what_the_result_says(sparse_run):
    out, result = sparse_run
    assert json.loads((out / "result.json").read_text()) == result
    assert not (out / "checkpoint.safetensors").exists()
    store = SampleStore(out / "samples")
    assert len(store) == result["num_samples"] == 2
    total = sum(layer["total"] for layer in result["sparsity"]["per_layer"])
    for index in range(2):
        weights = {k: v for k, v in store[index].items() if k.endswith("weight") and v.dim() > 1}
        zeros = sum(int((v == 0).sum()) for v in weights.values())
        assert zeros == round(0.8 * total)
    assert result["sparsity_prunable"] == pytest.approx(0.8, abs=0.005)
    assert result["madds"] < result["madds_dense"]
    assert len((out / "metrics.csv").read_text().splitlines()) == 4


def test_parity_evaluate_agrees_with_the_result(sparse_run):
    out, result = sparse_run
    again = evaluate(out)
    assert again["single"]["accuracy"] == pytest.approx(result["accuracy_single"], abs=1e-12)
    assert again["average"]["nll"] == pytest.approx(result["nll"], rel=1e-5)
    model, samples, data, config = load_trained(out)
    by_hand = predict(model, samples, data.loader("test", batch_size=500))
    assert float((by_hand.classes == by_hand.labels).double().mean()) == result["accuracy_mean"]
    assert config.sampler.method == "emmcmc"


def test_property_validation_images_are_held_out(tmp_path):
    trainer = Trainer(tiny("digits-sgd", "validation_size=100"), tmp_path / "run", quiet=True)
    assert trainer.split == "validation"
    assert trainer.watch_loader.batches.num_images == 100
    assert trainer.loader.num_images == 96


def test_property_seed_decides_everything(tmp_path):
    runs = [
        train(tiny("digits-cvadam", f"seed={seed}"), tmp_path / f"{i}", quiet=True) for i, seed in enumerate((1, 1, 2))
    ]
    assert runs[0]["nll"] == runs[1]["nll"]
    assert runs[0]["nll"] != runs[2]["nll"]


def test_property_forward_pruned_weights_stay_zero_in_a_users_loop():
    """The pruned weight, its momentum and its second moment are exactly 0 after every later step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 3))
    optimizer = CVAdam(model.parameters(), lr=1e-3, num_data=50, weight_decay=5e-4)
    pruner = ForwardPruning(
        model, optimizer, groups="weight", sparsity=0.8, warmup_steps=5, ramp_end_step=25, spike_decay=1e-2
    )
    zero = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    for _ in range(60):
        optimizer.zero_grad()
        model(torch.randn(16, 10)).square().mean().backward()
        optimizer.step()
        for name, param in model.named_parameters():
            if name in pruner.weight_masks():
                dropped = ~pruner.weight_masks()[name].expand_as(param)
                assert not (zero[name] & ~dropped).any()  # never returns
                zero[name] = dropped
                for tensor in (
                    param.detach(),
                    optimizer.state[param]["momentum"],
                    optimizer.state[param]["second_moment"],
                ):
                    assert not tensor[dropped].any()
    assert pruner.hard_sparsity == pytest.approx(0.8, abs=0.5 / 390)


def test_error_non_finite_loss_names_step_lr_and_checkpoint(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"step \d+ \(lr=.*checkpoint.*Lower lr.*new folder"):
        train(tiny("digits-sgd", "lr=1000000", "epochs=5", "checkpoint_minutes=0"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "result.json").exists()


def test_roundtrip_ctrl_c_writes_a_checkpoint_and_resume_goes_on(tmp_path, monkeypatch, capfd):
    whole = train(tiny(), tmp_path / "whole", quiet=True)
    original = Trainer._train_step

    def interrupting(self, images, labels):
        original(self, images, labels)
        if self.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_train_step", interrupting)
    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(Interrupted, match=r"step 7 of 18; go on with --resume"):
        train(tiny(), tmp_path / "stopped", quiet=True)
    monkeypatch.setattr(Trainer, "_train_step", original)
    assert (tmp_path / "stopped" / "checkpoint.safetensors").exists()
    resumed = train(tiny(), tmp_path / "stopped", resume=True, quiet=True)
    for key in ("nll", "accuracy_single", "members"):
        assert resumed[key] == whole[key]
    assert "checkpoint" in capfd.readouterr().err


def test_error_folder_in_use_or_begun_otherwise(tmp_path):
    train(tiny(), tmp_path / "run", quiet=True)
    with pytest.raises(FileExistsError, match="--resume"):
        train(tiny(), tmp_path / "run", quiet=True)
    with pytest.raises(ValueError, match="another configuration"):
        train(tiny("digits-cvadam", "lr=0.3"), tmp_path / "run", resume=True, quiet=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="not empty"):
        train(tiny(), tmp_path / "full", quiet=True)


def test_property_options_change_what_they_name(tmp_path):
    def nll(setting="epochs=3"):
        return train(tiny("digits-cvadam", setting), tmp_path / setting, quiet=True)["nll"]

    plain = nll()
    for setting in (
        "label_smoothing=0.1",
        "noise=paper",
        "temperature=1",
        "augment=false",
        "warmup_epochs=1",
        "lr_floor=0.3",
    ):
        assert nll(setting) != plain, setting
    assert nll("tensorboard=true") == plain
    assert list(tmp_path.glob("tensorboard=true/tensorboard/events*"))


@pytest.mark.parametrize("settings", [["feedback=masked", "every=5"], ["feedback=dense_copy"], ["groups=channel"]])
def test_property_every_stored_sample_is_sparse(tmp_path, settings):
    config = tiny("digits-emmcmc", "target_sparsity=0.6", "prune_until=0.4", "width=8", *settings)
    result = train(config, tmp_path / "run", quiet=True)
    names = [layer["name"] for layer in result["sparsity"]["per_layer"]]
    for sample in SampleStore(tmp_path / "run" / "samples"):
        weights = [sample[name if name in sample else f"{name}.weight"] for name in names]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        assert zeros / sum(weight.numel() for weight in weights) == pytest.approx(0.6, abs=0.03)


def test_error_samples_that_cannot_be_taken_and_folders_not_claimed(tmp_path):
    with pytest.raises(ValueError, match="Lower prune_until"):
        train(tiny("digits-emmcmc", "prune_until=1"), tmp_path / "run", quiet=True)
    with pytest.raises(ValueError, match="--data-dir"):
        train(recipe("cifar10-resnet20"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()  # a command that failed claims nothing


@pytest.mark.slow
def test_parity_compiled_network_trains_alike(tmp_path):
    plain = train(tiny("digits-sgd"), tmp_path / "plain", quiet=True)
    compiled = train(tiny("digits-sgd", "compile=true"), tmp_path / "compiled", quiet=True)
    assert compiled["nll"] == pytest.approx(plain["nll"], rel=0.05)


def held_objects():
    """How many networks, optimizers, pruners, loaders, trainers and tensors this process holds."""
    kinds = (nn.Module, torch.optim.Optimizer, MaskHolder, PositionedLoader, Trainer, torch.Tensor)
    counts = dict.fromkeys(kinds, 0)
    for thing in gc.get_objects():
        for kind in kinds:
            counts[kind] += issubclass(type(thing), kind)
    return counts


@pytest.mark.parametrize(
    ("name", "settings"),
    [("digits-emmcmc", ["prune_until=0.5"]), ("digits-emmcmc", ["groups=channel", "prune_until=0.5"]), ("digits-rank1", [])],
)  # fmt: skip
def test_property_a_run_leaves_nothing_behind(name, settings, tmp_path):
    """A circle of references would hold images and weights until the collector's last generation is due, which is seldom."""
    own = [] if name == "digits-rank1" else ["cycles=1", "samples_per_cycle=2"]
    config = recipe(name, ["train_size=96", "epochs=3", "batch_size=16", "width=8", "device=cpu", *own, *settings])
    train(config, tmp_path / "first", quiet=True)
    gc.collect()
    before = held_objects()
    gc.disable()
    try:
        train(config, tmp_path / "second", quiet=True)
        assert held_objects() == before
        with pytest.raises(Interrupted):
            train(config, tmp_path / "third", quiet=True, stop=lambda: True)
        assert held_objects() == before
    finally:
        gc.enable()
