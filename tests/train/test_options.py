"""Every option changes something: two runs that differ in one key differ in what they leave behind."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bayesprune.train import recipe, train
from bayesprune.train.idle import refuse_idle
from bayesprune.train.loop import Trainer
from bayesprune.train.settings import keys, override
from pictures import write_pictures

TINY = (
    "train_size=48",
    "epochs=4",
    "batch_size=16",
    "width=8",
    "device=cpu",
    "threads=1",
    "trace_channels=0",
    "evaluate_every=none",
)
PRUNED = ("samples_per_cycle=1", "cycles=1", "prune_until=0.6", "target_sparsity=0.6", "feedback=none")
CHANNELS = (*PRUNED, "groups=channel", "scope=layer", "round_to=1", "network=small_cnn")
PAPER = ("preconditioner=paper", "samples_per_cycle=1", "cycles=1")
PICTURES = (
    "dataset=images",
    "train_size=none",
    "width=none",
    "network=resnet18",
    "image_size=16",
    "epochs=1",
    "workers=0",
)

# key: the recipe, further settings, and a value that differs from what these make of it.
RESULTS = {
    "seed": ("digits-sgd", (), "1"),
    "fold": ("digits-sgd", (), "0"),
    "train_size": ("digits-sgd", (), "64"),
    "validation_size": ("digits-sgd", (), "100"),
    "batch_size": ("digits-sgd", (), "24"),
    "augment": ("digits-sgd", (), "no"),
    "padding": ("digits-sgd", (), "2"),
    "flip": ("digits-sgd", (), "yes"),
    "alternate": ("digits-sgd", ("flip=yes",), "yes"),
    "padding_mode": ("digits-sgd", (), "reflect"),
    "cutout": ("digits-sgd", (), "4"),
    "network": ("digits-sgd", (), "small_cnn"),
    "width": ("digits-sgd", (), "4"),
    "stem_stride": ("digits-sgd", ("network=resnet20", "width=4"), "2"),
    "label_smoothing": ("digits-sgd", (), "0.1"),
    "method": ("digits-sgd", (), "cvadam"),
    "lr": ("digits-sgd", (), "0.05"),
    "beta1": ("digits-sgd", (), "0.5"),
    "weight_decay": ("digits-sgd", (), "0.01"),
    "beta2": ("digits-cvadam", PAPER, "0.5"),
    "preconditioner": ("digits-cvadam", PAPER, "rms"),
    "scale_decay": ("digits-cvadam", (*PAPER, "preconditioner=rms", "lr=0.01"), "0.5"),
    "dual_lr": ("digits-cvadam", (*PAPER, "lr=0.2"), "5"),
    "temperature": ("digits-cvadam", PAPER, "1"),
    "noise": ("digits-cvadam", PAPER, "paper"),
    "global_scale": ("digits-cvadam", (*PAPER, "temperature=1"), "0.5"),
    "epochs": ("digits-sgd", (), "3"),
    "cycles": ("digits-sgd", (), "2"),
    "first_cycle": ("digits-sgd", ("cycles=2",), "70%"),
    "restart": ("digits-sgd", ("cycles=2",), "0.3"),
    "warmup_epochs": ("digits-sgd", (), "1"),
    "samples_per_cycle": ("digits-cvadam", PAPER, "2"),
    "sample_every": ("digits-cvadam", (*PAPER, "samples_per_cycle=2"), "0.34"),
    "lr_floor": ("digits-sgd", (), "0.3"),
    "target_sparsity": ("digits-emmcmc", PRUNED, "0.8"),
    "feedback": ("digits-emmcmc", PRUNED, "dense_copy"),
    "groups": ("digits-emmcmc", PRUNED, "kernel"),
    "scope": ("digits-emmcmc", PRUNED, "layer"),
    "min_groups": ("digits-emmcmc", (*CHANNELS, "scope=global", "target_sparsity=0.8"), "4"),
    "rule": ("digits-emmcmc", (*PRUNED, "groups=output"), "concentration"),
    "spike_decay": ("digits-emmcmc", (*PRUNED, "soft_threshold=10"), "0.1"),
    "soft_threshold": ("digits-emmcmc", (*PRUNED, "spike_decay=0.1"), "10"),
    "expectation": ("digits-emmcmc", (*PRUNED, "spike_decay=0.1", "soft_threshold=0.01"), "running"),
    "hard_threshold": ("digits-emmcmc", PRUNED, "0.0001"),
    "round_to": ("digits-emmcmc", CHANNELS, "4"),
    "keep_ends": ("digits-emmcmc", CHANNELS, "yes"),
    "every": ("digits-emmcmc", (*PRUNED, "target_sparsity=0.8"), "3"),
    "prune_from": ("digits-emmcmc", PRUNED, "0.5"),
    "prune_until": ("digits-emmcmc", PRUNED, "0.3"),
    "exclude": ("digits-emmcmc", PRUNED, "stages.0*"),
    "dense_layers": ("cifar10-resnet20-set", ("dataset=digits", "stem_stride=none"), "none"),
    "distribution": ("cifar10-resnet20-set", ("dataset=digits",), "uniform"),
    "drop_fraction": ("cifar10-resnet20-set", ("dataset=digits", "every=2", "prune_until=0.9"), "0.9"),
    "noise_epochs": ("digits-csgld", ("cycles=1", "noise_epochs=1"), "3"),
    "members": ("digits-rank1", (), "2"),
    "prior": ("digits-rank1", (), "cauchy"),
    "prior_std": ("digits-rank1", (), "1"),
    "random_sign": ("digits-rank1", (), "1"),
    "annealing": ("digits-rank1", (), "0"),
    "draws": ("digits-swag", ("draws=2", "collect_from=0"), "3"),
    "rank": ("digits-swag", ("draws=2", "collect_from=0"), "2"),
    "collect_from": ("digits-swag", ("draws=2", "collect_from=0"), "0.5"),
    "precision": ("digits-sgd", (), "bf16-mixed"),
    "dataset": ("digits-sgd", PICTURES, "folder"),
    "image_size": ("digits-sgd", PICTURES, "24"),
    "crop_scale": ("digits-sgd", PICTURES, "0.9"),
}  # fmt: skip
# What does not change the result, by what of it shows: tested below, or where it says.
SHOWN = {
    "device": "test_property_device_is_where_it_runs",
    "compile": "test_loop.py::test_parity_compiled_network_trains_alike",
    "channels_last": "test_property_memory_format_threads_and_traces",
    "threads": "test_property_memory_format_threads_and_traces",
    "trace_every": "test_property_memory_format_threads_and_traces",
    "trace_channels": "test_property_memory_format_threads_and_traces",
    "test_views": "test_property_views_of_test_images_have_scores_of_their_own",
    "evaluate_every": "test_property_evaluations_checkpoints_and_boards",
    "checkpoint_minutes": "test_property_evaluations_checkpoints_and_boards",
    "collective_timeout": "test_ranks.py::test_error_a_main_process_without_life_is_not_awaited",
    "tensorboard": "test_property_evaluations_checkpoints_and_boards",
    "workers": "test_images.py::test_property_settings_reach_the_loaders",
}


@functools.cache
def pictures():
    return write_pictures(Path(tempfile.mkdtemp()), train=12, val=4)


@functools.cache
def left_behind(name, settings):
    """The last weights, the samples and the score of a tiny run."""
    config = recipe(name, [*TINY, *settings])
    with tempfile.TemporaryDirectory() as place:
        result = train(
            config, Path(place) / "run", data_dir=pictures() if config.data.dataset != "digits" else None, quiet=True
        )
        files = [Path(place) / "run" / "model.safetensors", *sorted(Path(place).glob("run/samples/*.safetensors"))]
        weights = {f"{file.name} {key}": tensor for file in files for key, tensor in load_file(str(file)).items()}
    return weights, (result["nll"], result["num_samples"])


def differ(first, second):
    if first[1] != second[1] or first[0].keys() != second[0].keys():
        return True
    return any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first[0].values(), second[0].values()))


def test_property_every_key_has_its_effect_tested():
    assert not set(RESULTS) & set(SHOWN)
    assert set(RESULTS) | set(SHOWN) == set(keys())
    for place in SHOWN.values():
        file, _, name = place.rpartition("::")
        assert f"def {name}(" in (Path(__file__).parent / (file or Path(__file__).name)).read_text(encoding="utf-8"), (
            place
        )


@pytest.mark.parametrize("key", sorted(RESULTS))
def test_property_option_changes_the_result(key):
    name, settings, value = RESULTS[key]
    config = recipe(name, [*TINY, *settings])
    refuse_idle(config, key)
    assert differ(left_behind(name, settings), left_behind(name, (*settings, f"{key}={value}")))


def test_property_runs_that_do_not_differ_leave_the_same():
    settings = ("lr=0.1",)  # what the recipe has
    assert not differ(left_behind("digits-sgd", ()), left_behind("digits-sgd", settings))


def trainer(place, *settings):
    return Trainer(override(recipe("digits-sgd", TINY), settings), place / "run", quiet=True)


def test_property_memory_format_threads_and_traces(tmp_path):
    weight = trainer(tmp_path, "network=small_cnn").model.features[3].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert trainer(tmp_path, "network=small_cnn", "channels_last=no").model.features[3].weight.is_contiguous()
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            trainer(tmp_path, f"threads={number}")
            assert torch.get_num_threads() == number
        torch.set_num_threads(2)
        trainer(tmp_path, "threads=none")
        assert torch.get_num_threads() == 2  # as it was
    finally:
        torch.set_num_threads(threads)
    traces = [
        trainer(tmp_path, f"trace_channels={n}", "epochs=300", f"trace_every={every}").traces
        for n, every in ((0, 5), (2, "none"))
    ]
    traces[1].record(0, 0.1)
    assert [t.every for t in traces] == [5, 900 // 200]
    assert [len(t.tensors()) for t in traces] == [0, 2 + 4]  # steps, step sizes, two channels on each side


def test_property_views_of_test_images_have_scores_of_their_own(tmp_path):
    settings = ("samples_per_cycle=2", "cycles=1", "flip=yes")
    found = {
        kind: train(recipe("digits-sgd", [*TINY, *settings, f"test_views={kind}"]), tmp_path / kind, quiet=True)
        for kind in ("none", "mirror", "crops")
    }
    assert found["none"]["views"] is None
    assert {kind: found[kind]["views"]["kind"] for kind in ("mirror", "crops")} == {
        "mirror": "mirror",
        "crops": "crops",
    }
    plain = {(result["nll"], result["nll_single"], result["accuracy_mean"]) for result in found.values()}
    assert len(plain) == 1  # the plain scores are never those of the views
    scores = [
        next(iter(plain))[:2],
        *((found[kind]["views"]["nll"], found[kind]["views"]["nll_single"]) for kind in ("mirror", "crops")),
    ]
    assert len({first for first, _ in scores}) == len({second for _, second in scores}) == 3


def test_property_device_is_where_it_runs(tmp_path):
    assert next(trainer(tmp_path, "device=cpu").model.parameters()).device.type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(Exception, match=r"(?i)cuda"):
            trainer(tmp_path, "device=cuda")


def test_property_evaluations_checkpoints_and_boards(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda self: saved.append(self.step))

    def rows(*settings):
        saved.clear()
        out = tmp_path / "-".join(("run", *settings))
        train(override(recipe("digits-sgd", TINY), settings), out, quiet=True)
        return [row["split"] for row in json.loads((out / "history.json").read_text())], list(saved), out

    assert rows()[:2] == ([None] * 4, [11])  # the step before the last, always
    assert rows("evaluate_every=2")[0] == [None, "test", None, "test"]
    assert rows("checkpoint_minutes=0")[1] == list(range(1, 12))
    assert not list(rows("seed=0")[2].glob("tensorboard/*"))
    assert list(rows("tensorboard=yes")[2].glob("tensorboard/events*"))
