"""Every family, pruned at random: the compact model's outputs are the masked one's, and so is its training."""

from __future__ import annotations

import pytest
import torch

from bayesprune.compaction import compact
from bayesprune.samplers import CVAdam
from compact_families import FAMILIES, groups_of, largest_difference, network, pruned_at_random, settle_, train

# 200 draws over all; the shares of zeros take turns.
DRAWS = {
    "mlp": 36, "vgg": 32, "vit": 30, "vit-linear": 30, "densenet": 26, "resnet18": 18, "wrn28": 10, "resnet34": 9,
    "resnet50": 9,
}  # fmt: skip
SHARES = (0.3, 0.6, 0.9)


def _further(example):
    """Another size, odd where the model takes images."""
    return torch.randn(3, *example.shape[1:]) if example.dim() == 2 else torch.randn(3, 3, 13, 15)


def test_property_there_are_200_draws_over_all_families():
    assert set(DRAWS) == set(FAMILIES) and sum(DRAWS.values()) == 200


@pytest.mark.parametrize("family", list(DRAWS))
def test_property_random_masks_leave_the_outputs_as_they_are(family):
    removed = []
    for draw in range(DRAWS[family]):
        model, example = network(family, draw)
        pruner = pruned_at_random(model, example, groups_of(family), SHARES[draw % 3])
        # In turns as a model to go on training, and as one to evaluate.
        result = compact(model, pruner, None, example) if draw % 2 else compact(model, None, None, example)
        off = largest_difference(model, result.model, example, _further(example))
        assert off <= 1e-5, f"draw {draw}: {off}"
        before, after = result.report.parameters
        assert sum(p.numel() for p in result.model.parameters()) == after
        removed.append(1 - after / before)
    assert min(removed) > 0 and max(removed) > 0.4


@pytest.mark.parametrize("family", list(DRAWS))
@pytest.mark.parametrize("groups", ["output", "input"])
def test_property_masks_that_do_not_agree_are_removed_by_index(family, groups):
    draw = list(DRAWS).index(family)
    model, example = network(family, draw)
    pruned_at_random(model, example, groups, SHARES[draw % 3])
    plain = compact(model, None, None, example)
    indexed = compact(model, None, None, example, coupling="indexed")
    for result in (plain, indexed):
        assert largest_difference(model, result.model, example, _further(example)) <= 1e-5
    assert indexed.report.parameters[1] <= plain.report.parameters[1]


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.005, momentum=0.9, weight_decay=5e-4),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=5e-4),
    "cv_adam": lambda params: CVAdam(params, lr=1e-3, num_data=100, temperature=0.0, seed=3),
}


@pytest.mark.parametrize(
    ("family", "kind"),
    [*[(f, "cv_adam") for f in DRAWS], *[(f, "sgd") for f in DRAWS], ("mlp", "adamw"), ("resnet18", "adamw")],
)
def test_property_training_then_compacting_is_compacting_then_training(family, kind):
    model, example = network(family, 5)
    model, example = model.double(), example.double()  # rounding apart: k steps of float32 are not the claim
    optimizer = OPTIMIZERS[kind](model.parameters())
    pruner = pruned_at_random(model, example, groups_of(family), 0.3, optimizer)
    train(model, optimizer, example, 2)
    early = compact(model, pruner, optimizer, example)
    assert early.report.training == "exact"
    train(model, optimizer, example, 4, start=2)
    train(early.model, early.optimizer, example, 4, start=2)
    late = compact(model, pruner, optimizer, example)
    wanted, got = late.model.state_dict(), early.model.state_dict()
    assert list(wanted) == list(got)
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            got[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert largest_difference(late.model, early.model, example) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "wrn28_10", "vgg16", "densenet", "vit"])
@pytest.mark.parametrize("share", SHARES)
def test_property_the_real_sizes(name, share):
    from bayesprune.vision import build

    torch.manual_seed(0)
    model = build(name, num_classes=10)
    example = torch.randn(2, 3, 64, 64) if name == "resnet50" else torch.randn(2, 3, 32, 32)
    settle_(model, torch.randn(4, *example.shape[1:]))
    pruner = pruned_at_random(model, example, groups_of(name), share)
    result = compact(model, pruner, None, example)
    further = torch.randn(2, 3, 65, 67) if name == "resnet50" else torch.randn(2, 3, 29, 31)
    assert largest_difference(model, result.model, example, further) <= 1e-5
    assert result.kind == "modules" and type(result.model) is type(model)
