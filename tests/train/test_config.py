from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch

from bayesprune.train import recipe, recipes, settings, train
from bayesprune.train.build import build_clock
from bayesprune.train.config import OPTIONAL, PruningConfig, RunConfig
from bayesprune.train.idle import warn_of_idle
from bayesprune.train.methods import ramp_steps
from bayesprune.train.settings import from_dict, override
from bayesprune.train.tree import load_tree, save_tree

WAS_ZERO = (
    "train_size", "width", "stem_stride", "hard_threshold", "every", "drop_fraction", "threads", "trace_every",
    "evaluate_every",
)  # fmt: skip
NEVER_ZERO = sorted(set(WAS_ZERO) - {"hard_threshold"})


@pytest.mark.parametrize("name", sorted(recipes.names()))
def test_roundtrip_every_recipe(name):
    config = recipes.recipe(name)
    assert config.recipe == name
    assert from_dict(settings.as_dict(config)) == config
    if config.sampler.method == "emmcmc":  # the pruner refuses a spike that is wider than the slab
        assert config.pruning.spike_decay > config.sampler.weight_decay


@pytest.mark.parametrize(
    ("settings_", "number"),
    [
        ({}, 4),
        ({"epochs": 4}, 3),
        ({"epochs": 1}, 1),
        ({"epochs": 40, "cycles": 10, "sample_every": 0.5}, 4),
        ({"method": "sgd"}, 0),
        ({"method": "ensemble"}, 1),
        ({"method": "swag"}, 0),
        ({"samples_per_cycle": 0}, 0),
    ],
)
def test_property_a_sampler_collects_unless_it_is_told_not_to(settings_, number):
    config = override(RunConfig(), settings_)
    assert config.samples_per_cycle == number and build_clock(config, 3).samples_per_cycle == number


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RunConfig(pruning=PruningConfig(target_sparsity=0.8)), "target_sparsity changes nothing with method=cvadam"),
        (recipe("digits-sgd", ["temperature=0.5"]), "temperature changes nothing with method=sgd"),
        (override(RunConfig(), {"padding": 2, "augment": False}), "padding changes nothing with augment=False"),
    ],
)
def test_error_a_setting_without_effect_is_named_from_python(config, message, tmp_path):
    with pytest.warns(UserWarning, match=message), pytest.raises(FileNotFoundError, match="nowhere"):
        train(replace(config, data=replace(config.data, dataset="cifar10")), tmp_path / "run", data_dir="nowhere")


def test_property_settings_of_the_recipe_itself_or_that_are_off_are_not_named(recwarn):
    for config in (
        recipe("digits-emmcmc", ["method=sgd"]),
        override(RunConfig(), {"method": "sgd", "temperature": 0.0, "samples_per_cycle": 0}),
        from_dict(settings.as_dict(override(RunConfig(), {"method": "swag"}))),
    ):
        warn_of_idle(config, config)
    assert not recwarn


def test_property_keys_are_unique_and_frozen():
    names = [field.name for kind in settings.section_types().values() for field in dataclasses.fields(kind)]
    assert len(names) == len(set(names))
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().sampler.lr = 1.0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lrr=0.1", r"unknown key 'lrr': did you mean 'lr'"),
        ("schedule.lr=0.1", r"unknown key 'schedule.lr'"),
        ("lr", r"has no '='"),
        ("lr=fast", r"lr='fast' is not a number"),
        ("lr=-1", r"lr=-1.0 is out of range"),
        ("lr=nan", r"lr='nan' is not finite"),
        ("epochs=2.5", r"epochs='2.5' is not a whole number"),
        ("method=sdg", r"did you mean 'sgd'"),
        ("augment=perhaps", r"augment='perhaps' is not a truth value"),
        ("prune_from=0.9", r"must be below prune_until"),
        ("prune_from=7ep", r"prune_from=7ep must be below prune_until=0.6"),
        ("warmup_epochs=120%", r"warmup_epochs='120%' is out of range; write 0% to 100% of the run, or so many epochs"),
        ("warmup_epochs=11ep", r"warmup_epochs='11ep' is longer than the run of epochs=10"),
        ("warmup_epochs=ten%", r"warmup_epochs='ten' is not a number"),
        ("global_scale=wide", r"global_scale='wide'"),
        ("target_sparsity=1.0", r"target_sparsity=1.0 is out of range"),
        ("lr=none", r"lr='none' is not a number"),
        ("fold=5", r"fold=5 is out of range; it must lie in \[0, 4\], or be none: not set"),
        *((f"{key}=0", rf"{key}=0(\.0)? is out of range; .* or be none: not set \({key}=none\)") for key in NEVER_ZERO),
    ],
)
def test_error_settings_name_key_value_and_mend(setting, message):
    with pytest.raises(ValueError, match=message):
        override(RunConfig(), [setting])


def test_property_values_are_converted():
    config = override(
        RunConfig(), ["epochs=1e2", "augment=no", "exclude=stem*,head", "global_scale=0.1", "sampler.lr=2"]
    )
    assert config.schedule.epochs == 100 and isinstance(config.schedule.epochs, int)
    assert config.data.augment is False
    assert config.pruning.exclude == ("stem*", "head")
    assert (config.sampler.global_scale, config.sampler.lr) == ("0.1", 2.0)


def test_equation_shares_follow_the_epochs_and_epochs_may_stand_for_shares():
    """A longer run of a recipe in shares is the same run drawn out: no other key need be set."""
    for epochs in (10, 30):
        clock = build_clock(recipes.recipe("cifar10-resnet20", [f"epochs={epochs}"]), steps_per_epoch=100)
        assert (clock.warmup_steps, clock.spacing, clock.num_samples) == (10 * epochs, 2 * epochs, 10)
    config = override(
        RunConfig(), ["epochs=20", "prune_from=2ep", "prune_until=50 %", "noise_epochs=5%", "sample_every=3 epochs"]
    )
    assert (config.pruning.prune_from, config.pruning.prune_until) == ("2ep", "50%")
    assert ramp_steps(config, 2000) == (200, 1000) and build_clock(config, 100).spacing == 300
    assert override(RunConfig(), ["first_cycle=none"]).schedule.first_cycle is None
    clock = build_clock(override(RunConfig(), ["epochs=20", "cycles=3", "first_cycle=60%", "restart=0.2"]), 100)
    assert ([clock.start(cycle) for cycle in range(4)], clock.lr(1200)) == ([0, 1200, 1600, 2000], 0.2)
    assert from_dict(settings.as_dict(config)) == config
    swag = recipes.recipe("digits-swag", ["epochs=10", "collect_from=6ep"])
    with pytest.raises(ValueError, match="less than two of 7 epochs"):
        override(swag, ["epochs=7"])


@pytest.mark.parametrize("key", sorted(OPTIONAL))
@pytest.mark.parametrize("text", ["none", "None", "null"])
def test_property_none_is_not_set(key, text):
    assert settings.get(override(RunConfig(), [f"{key}={text}"]), key) is None
    assert settings.get(override(RunConfig(), {key: None}), key) is None


def test_property_zero_is_a_number():
    zeros = (
        "hard_threshold",
        "validation_size",
        "trace_channels",
        "workers",
        "checkpoint_minutes",
        "rank",
        "lr_floor",
        "fold",
    )
    config = override(RunConfig(), [f"{key}=0" for key in zeros])
    assert [settings.get(config, key) for key in zeros] == [0] * len(zeros)


def test_roundtrip_a_folder_of_the_first_version_is_read():
    """It wrote 0 for what was not set, no version, and had no fold."""
    old = settings.as_dict(RunConfig(recipe="digits-sgd"))
    assert old.pop("version") == 2
    for key in WAS_ZERO:
        old[settings.keys()[key]][key] = 0
    del old["data"]["fold"], old["pruning"]["round_to"], old["pruning"]["keep_ends"]
    config = from_dict(old)
    assert all(settings.get(config, key) is None for key in WAS_ZERO)
    assert config.data.validation_size == 0 and config.pruning.round_to == 1
    new = settings.as_dict(override(config, ["hard_threshold=0"]))
    assert from_dict(new).pruning.hard_threshold == 0


def test_error_a_folder_of_a_later_version_is_refused():
    with pytest.raises(ValueError, match="version=3 of the configuration is not known"):
        from_dict(settings.as_dict(RunConfig()) | {"version": 3})


def test_error_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'digits-sgd'"):
        recipes.recipe("digit-sgd")


def test_roundtrip_tree_keeps_types_bits_and_key_types(tmp_path):
    tree = {
        "tensor": torch.tensor([float("nan"), -0.0, 1e-45]), "bool": torch.tensor([True, False]), 3: "integer key",
        "nested": [(1, 2.5), {"none": None, "truth": True}, torch.zeros(0)], "small": 0.1 + 0.2,
        "strided": torch.arange(12.0).view(3, 4).T, "alias": [torch.ones(2)] * 2,
    }  # fmt: skip
    save_tree(tmp_path / "tree", tree)
    back = load_tree(tmp_path / "tree")
    assert back["tensor"].view(torch.int32).tolist() == tree["tensor"].view(torch.int32).tolist()
    assert torch.equal(back["bool"], tree["bool"]) and back["bool"].dtype == torch.bool
    assert back[3] == "integer key" and back["small"] == tree["small"]
    assert back["nested"][0] == (1, 2.5) and back["nested"][1] == {"none": None, "truth": True}
    assert torch.equal(back["strided"], tree["strided"]) and back["nested"][2].shape == (0,)


def test_error_tree_refuses_objects_and_damage(tmp_path):
    with pytest.raises(TypeError, match="/a/1 holds a set"):
        save_tree(tmp_path / "tree", {"a": [1, {2}]})
    with pytest.raises(TypeError, match="key of type tuple"):
        save_tree(tmp_path / "tree", {(1, 2): 3})
    assert not list(tmp_path.iterdir())
    save_tree(tmp_path / "tree", {"a": torch.ones(100)})
    (tmp_path / "tree").write_bytes((tmp_path / "tree").read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot be read"):
        load_tree(tmp_path / "tree")
