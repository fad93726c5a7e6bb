"""The paper's recipes: its settings in numbers, every baseline at every place, and what the pages name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import paper.recipes  # noqa: F401 - they register
from bayesprune.train import recipe
from bayesprune.train.recipes import names
from bayesprune.train.settings import as_dict, from_dict
from paper.commands import main

ROOT = Path(__file__).parents[2]
PLACES = ("cifar10-resnet18", "cifar10-wrn28-10", "cifar100-resnet34", "cifar100-wrn28-10", "imagenet-resnet50")
OURS = sorted(name for name in names() if name.startswith(PLACES))


@pytest.mark.parametrize("name", OURS)
def test_roundtrip_every_recipe(name):
    config = recipe(name)
    assert config.recipe == name and from_dict(as_dict(config)) == config


def test_property_every_place_has_a_recipe_for_every_baseline():
    sampling = ("csgld", "csghmc", "rank1", "rank1-cauchy", "swag", "ensemble")
    sparse = ("sparse-momentum", "dsr", "set", "rigl", "gmp", "dpf-sgd")
    for place in PLACES:
        assert {f"{place}-{name}" for name in (*sampling, *sparse)} <= set(names())
    dsr = recipe("cifar10-resnet18-dsr")
    assert (dsr.sampler.method, dsr.sampler.beta1, dsr.pruning.prune_until) == ("dsr", 0.9, 0.95)
    csghmc = recipe("cifar10-resnet18-csghmc")
    assert (csghmc.sampler.lr, csghmc.sampler.beta1, csghmc.sampler.temperature) == (0.5, 0.1, 1 / 50_000)
    assert (csghmc.schedule.epochs, csghmc.schedule.cycles, csghmc.baseline.noise_epochs) == (200, 4, 5.0)
    assert recipe("cifar10-wrn28-10-ensemble").schedule.epochs == 800
    assert recipe("cifar10-wrn28-10-rank1").sampler.lr == pytest.approx(0.05)


def test_equation_recipes_are_the_papers_setting():
    for name, target in (("dfp", 0.8), ("dfp-90", 0.9), ("dpf", 0.8), ("dpf-90", 0.9)):
        config = recipe(f"imagenet-resnet50-{name}")
        assert config.pruning.target_sparsity == target
        assert config.pruning.feedback == ("none" if name.startswith("dfp") else "dense_copy")
        assert (config.schedule.epochs, config.schedule.warmup_epochs, config.schedule.cycles) == (200, 50, 3)
        assert (config.data.batch_size, config.sampler.lr, config.sampler.weight_decay) == (64, 1.0, 5e-4)
        assert config.sampler.temperature == 1 / 1_281_167  # k = 1/N


@pytest.mark.parametrize(
    "name",
    sorted(
        {
            name
            for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
            for name in re.findall(r"-m paper train ([\w-]+)", page.read_text(encoding="utf-8"))
        }
    ),
)
def test_property_recipes_that_the_pages_name_exist(name):
    assert recipe(name).schedule.epochs >= 1


def test_property_the_command_lists_and_trains_beside_the_librarys_own(tmp_path, capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(
        name in listed for name in ("digits-emmcmc", "cifar10-resnet18-dfp", "cifar100-wrn28-10-dpf", "cifar10-94-sgd")
    )
    assert main(["train", "cifar10-resnet18-sdg", "--out", str(tmp_path / "run")]) == 1
    assert "did you mean 'cifar10-resnet18-sgd'" in capsys.readouterr().err
