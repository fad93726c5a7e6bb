"""Networks of today: which of their channels a pruner may take, and that what it takes is removed exactly."""

from __future__ import annotations

import pytest
import torch

from bayesprune.compaction import compact
from bayesprune.sparsity import partition
from compact_families import train
from small_networks import NETWORKS, halved, network, off


@pytest.mark.parametrize("name", list(NETWORKS))
def test_property_half_of_every_group_is_removed_exactly(name):
    model, example, most = network(name)
    pruner, optimizer = halved(model, example)
    result = compact(model, pruner, optimizer, example)
    before, after = result.report.parameters
    assert off(model, result.model, example, torch.randn(3, *example.shape[1:])) <= 1e-5
    assert result.report.training == "exact" and after <= most * before, f"{after / before:.3f}"
    # What is switched off is nothing but that: no zero of a pruned layer is left.
    assert not any("zero rows" in reason or "zero columns" in reason for reason in result.report.leftovers.reasons())


@pytest.mark.parametrize("name", ["efficientnet", "layer scale, position", "u-net", "swiglu", "shufflenet"])
def test_property_training_goes_on_as_the_masked_networks_would(name):
    model, example, _ = network(name)
    model, example = model.double(), example.double()
    pruner, optimizer = halved(model, example)
    train(model, optimizer, example, 2)
    early = compact(model, pruner, optimizer, example)
    train(model, optimizer, example, 3, start=2)
    train(early.model, early.optimizer, example, 3, start=2)
    late = compact(model, pruner, optimizer, example)
    wanted, got = late.model.state_dict(), early.model.state_dict()
    assert list(wanted) == list(got)
    for key, tensor in wanted.items():
        torch.testing.assert_close(got[key], tensor, rtol=1e-6, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", list(NETWORKS))
def test_equation_statistics_and_zeros_by_an_explicit_count(name):
    model, example, _ = network(name)
    model = model.double()
    groups = partition(model, "channel", example_input=example.double())
    for each in groups:
        total = torch.zeros(each.count, dtype=torch.float64)
        size = torch.zeros(each.count, dtype=torch.long)
        for name_of in {part.name for part in each.slices}:
            parts = [part for part in each.slices if part.name == name_of]
            for g in range(each.count):
                keep = torch.ones(each.count, dtype=torch.bool)
                keep[g] = False
                dropped = torch.zeros_like(parts[0].param, dtype=torch.bool)
                for part in parts:
                    dropped |= ~part.broadcast(keep).expand_as(part.param)
                total[g] += parts[0].param.detach()[dropped].square().sum()
                size[g] += int(dropped.sum())
        torch.testing.assert_close(each.sum_squares().reshape(-1), total)
        assert size.tolist() == [each.size] * each.count
