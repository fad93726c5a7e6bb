"""Optimizer, pruner and posterior samples come along."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bayesprune.compaction import CompactionError, compact
from bayesprune.posterior import MemorySamples
from bayesprune.samplers import CVAdam
from bayesprune.sparsity import partition
from compact_families import largest_difference, network, pruned_at_random, train
from sparsity.plain import feedback_pruning, forward_pruning


def _vgg(optimizer=torch.optim.SGD, share=0.5, groups="channel", seed=0, **settings):
    model, example = network("vgg", seed)
    model, example = model.double(), example.double()
    made = optimizer(model.parameters(), **settings)
    pruner = pruned_at_random(model, example, groups, share, made)
    train(model, made, example, 3)
    return model, example, made, pruner


def _cut(tensor, cut):
    for dim, index in cut:
        tensor = tensor.index_select(dim, index)
    return tensor


@pytest.mark.parametrize(
    ("make", "keys"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), ["momentum_buffer"]),
        (lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True), ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
        (lambda p: CVAdam(p, lr=0.01, num_data=100, seed=4), ["momentum", "second_moment"]),
        (lambda p: CVAdam(p, lr=0.01, num_data=100, seed=4, preconditioner="paper"), ["momentum", "rho"]),
    ],
)
def test_equation_the_state_is_cut_as_the_parameters_are(make, keys):
    model, example, optimizer, pruner = _vgg(make)
    result = compact(model, pruner, optimizer, example)
    assert type(result.optimizer) is type(optimizer)
    new = dict(result.model.named_parameters())
    assert [id(p) for p in result.optimizer.param_groups[0]["params"]] == [
        id(new[n]) for n, _ in model.named_parameters()
    ]
    cut = 0
    for name, param in model.named_parameters():
        for key in keys:
            wanted = _cut(optimizer.state[param][key], result.slices.get(name, []))
            got = result.optimizer.state[new[name]][key]
            assert got.shape == new[name].shape and torch.equal(got, wanted), (name, key)
            cut += got.numel() < param.numel()
        if "step" in optimizer.state[param]:
            assert result.optimizer.state[new[name]]["step"] == optimizer.state[param]["step"]
    assert cut > 10
    before = {id(p): p.clone() for p in model.parameters()}
    train(result.model, result.optimizer, example, 1)
    assert all(torch.equal(p, before[id(p)]) for p in model.parameters())  # the old model is not touched


def test_property_param_groups_settings_and_decays_come_along():
    model, example = network("vgg", 0)
    conv = [p for n, p in model.named_parameters() if n.startswith("features")]
    rest = [p for n, p in model.named_parameters() if not n.startswith("features")]
    optimizer = CVAdam(
        [{"params": rest, "lr": 0.5}, {"params": conv}], lr=0.01, num_data=50, weight_decay=5e-4, seed=9, fused=False
    )
    cut = partition(model, "channel", example_input=example)
    middle = float(torch.cat([each.mean_square().flatten() for each in cut]).quantile(0.3))
    pruner = pruned_at_random(model, example, "channel", 0.5, optimizer, spike_decay=1e-2, soft_threshold=middle)
    train(model, optimizer, example, 2)
    result = compact(model, pruner, None, example)
    first, second = result.optimizer.param_groups
    assert (first["lr"], second["lr"], first["seed"]) == (0.5, 0.01, 9) and len(first["params"]) == len(rest)
    assert result.optimizer.defaults["fused"] is False
    new, mixed = dict(result.model.named_parameters()), 0
    for name, param in model.named_parameters():
        decay = optimizer.weight_decay_of(param)
        wanted = _cut(torch.as_tensor(decay).expand(param.shape), result.slices.get(name, []))
        got = result.optimizer.weight_decay_of(new[name])
        torch.testing.assert_close(torch.as_tensor(got).expand(wanted.shape), wanted)
        mixed += isinstance(decay, torch.Tensor) and name in result.slices
    assert mixed > 0


def test_property_the_noise_of_whole_tensors_is_the_same_and_of_cut_ones_has_the_same_stream():
    model, example, optimizer, pruner = _vgg(lambda p: CVAdam(p, lr=0.01, num_data=100, temperature=1.0, seed=4))
    result = compact(model, pruner, optimizer, example)
    bias, small = model.head.bias, result.model.head.bias
    cut, reduced = model.features[0].weight, result.model.features[0].weight
    assert torch.equal(result.optimizer.last_noise(small), optimizer.last_noise(bias))
    assert result.optimizer.state[reduced]["stream"] == optimizer.state[cut]["stream"]
    assert not result.optimizer.state[reduced]["injected"] and optimizer.state[cut]["injected"]
    assert any("seed, streams and steps come along" in note for note in result.report.notes)
    train(model, optimizer, example, 1, start=3)
    train(result.model, result.optimizer, example, 1, start=3)
    assert torch.equal(result.optimizer.last_noise(small), optimizer.last_noise(bias))
    torch.testing.assert_close(small, bias, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(reduced, _cut(cut, result.slices["features.0.weight"]))


def test_property_streams_stay_apart_when_a_branch_goes():
    model, example = network("resnet18", 0)
    block = model.stages[0][1]
    with torch.no_grad():
        for tensor in (block.conv2.weight, block.bn2.weight, block.bn2.bias):
            tensor.zero_()
    optimizer = CVAdam(model.parameters(), lr=0.01, num_data=100)
    model.head.requires_grad_(False)  # never stepped so far
    train(model, optimizer, example, 1)
    with torch.no_grad():
        for tensor in (block.conv2.weight, block.bn2.weight, block.bn2.bias):
            tensor.zero_()
    result = compact(model, None, optimizer, example)
    result.model.head.requires_grad_(True)
    train(result.model, result.optimizer, example, 1)
    streams = [result.optimizer.state[p]["stream"] for p in result.model.parameters()]
    assert len(set(streams)) == len(streams)


@pytest.mark.parametrize("groups", ["channel", "output", "input", "kernel", "weight"])
def test_property_em_goes_on_as_it_would_have(groups):
    """The soft masks are judged on the groups as they were trained, with their zeros."""
    model, example = network("vgg", 1)
    model, example = model.double(), example.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    cut = partition(model, groups, example_input=example if groups == "channel" else None)
    middle = float(torch.cat([each.mean_square().flatten() for each in cut]).quantile(0.3))
    # An input's weights in rows that nothing reads count in the masked model only: there the soft masks stand still.
    threshold = middle if groups != "input" else 1e-12
    settings = {"spike_decay": 0.05, "soft_threshold": threshold, "expectation": "running"}
    pruner = pruned_at_random(model, example, groups, 0.4, optimizer, **settings)
    with torch.no_grad():  # channels that nothing reads, for the groups that do not make them
        model.hidden[0].weight[:, :8] = 0
    state = pruner.state_dict()
    if groups in ("input", "kernel", "weight"):
        name = "hidden.0.weight"
        state["keep"][name] = state["keep"][name].clone().expand(state["keep"][name].shape).clone()
        state["keep"][name][:, :8] = False
        pruner.load_state_dict(state)
    train(model, optimizer, example, 2)
    early = compact(model, pruner, optimizer, example)
    assert groups == "output" or early.report.parameters[1] < early.report.parameters[0]
    assert 0.05 < pruner.soft_sparsity < 0.95
    train(model, optimizer, example, 4, start=2)
    train(early.model, early.optimizer, example, 4, start=2)
    late = compact(model, pruner, optimizer, example)
    for name, tensor in late.model.state_dict().items():
        torch.testing.assert_close(early.model.state_dict()[name], tensor, rtol=1e-8, atol=1e-10)
    for name, mask in late.pruner.soft_masks.items():
        assert torch.equal(early.pruner.soft_masks[name], mask), name
    for name, mask in late.pruner.keep_masks.items():
        assert torch.equal(early.pruner.keep_masks[name], mask), name


def test_equation_the_target_counts_what_was_removed():
    model, example = network("vgg", 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = forward_pruning(
        model, optimizer, groups="channel", example_input=example, sparsity=0.8, warmup_steps=1, ramp_end_step=9
    )
    train(model, optimizer, example, 5)
    total, wanted = pruner.groups.total, round(0.8 * pruner.groups.total)
    result = compact(model, pruner, optimizer, example)
    removed = total - result.pruner.groups.total
    assert removed > 0
    assert result.pruner.target_sparsity == pytest.approx((wanted - removed) / result.pruner.groups.total)
    train(result.model, result.optimizer, example, 6, start=5)
    zeros = round(result.pruner.hard_sparsity * result.pruner.groups.total)
    train(model, optimizer, example, 6, start=5)
    reached = round(pruner.hard_sparsity * total)
    biggest = max(each.size for each in pruner.groups)
    assert abs(removed + zeros - wanted) <= biggest and abs(reached - wanted) <= biggest
    again = compact(result.model, result.pruner, result.optimizer, example)
    assert again.report.parameters[1] < again.report.parameters[0]
    assert largest_difference(result.model, again.model, example) <= 1e-5


def test_property_feedback_with_a_dense_copy_keeps_what_is_left_of_it():
    model, example = network("vgg", 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    pruner = feedback_pruning(
        model, optimizer, form="dense_copy", groups="channel", example_input=example, sparsity=0.5
    )
    train(model, optimizer, example, 17)
    result = compact(model, pruner, optimizer, example)
    assert "feedback: what was removed cannot come back" in result.report.notes
    with pruner.dense():
        dense = {name: param.clone() for name, param in model.named_parameters()}
    with result.pruner.dense():
        for name, param in result.model.named_parameters():
            torch.testing.assert_close(param, _cut(dense[name], result.slices.get(name, [])))
    train(result.model, result.optimizer, example, 17, start=17)


def test_roundtrip_the_new_pruner_saves_and_loads():
    model, example, optimizer, pruner = _vgg(lambda p: torch.optim.SGD(p, lr=0.01))
    one, two = compact(model, pruner, optimizer, example), compact(model, pruner, optimizer, example)
    train(one.model, one.optimizer, example, 2)
    two.model.load_state_dict(one.model.state_dict())
    two.optimizer.load_state_dict(one.optimizer.state_dict())
    two.pruner.load_state_dict(one.pruner.state_dict())
    train(one.model, one.optimizer, example, 2, start=2)
    train(two.model, two.optimizer, example, 2, start=2)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters()))


def test_property_masks_not_yet_applied_are_applied_to_the_copy():
    model, example = network("vgg", 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = feedback_pruning(model, optimizer, groups="input", sparsity=0.6, every=4)
    train(model, optimizer, example, 6)  # two steps after the last update: what was pruned has moved
    reference = copy.deepcopy(model)
    result = compact(model, pruner, optimizer, example)
    assert any("masks were applied" in note for note in result.report.notes)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters()))
    pruner.apply_()
    assert largest_difference(model, result.model, example) <= 1e-5


# -- posterior samples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["resnet18", "vit", "densenet"])
def test_property_samples_of_the_masked_model_come_along(family):
    model, example = network(family, 0)
    pruner = pruned_at_random(model, example, "input" if family == "vit" else "channel", 0.5)
    samples = MemorySamples()
    for step in range(3):
        train(model, pruner.optimizer, example, 2, start=2 * step)
        pruner.apply_()  # the running statistics of pruned channels
        samples.collect(model, step=step)
    result = compact(model, pruner, None, example)
    member = copy.deepcopy(result.model)
    for sample in samples:
        model.load_state_dict(sample)
        member.load_state_dict(result.convert(sample))
        assert largest_difference(model, member, example) <= 1e-4


def test_property_each_sample_folds_its_own_constants():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    example, samples = torch.randn(2, 3, 8, 8), []
    for _ in range(3):
        with torch.no_grad():
            for param in model.parameters():
                param.normal_()
            model[0].weight[[0, 2]] = 0
            model[0].bias.abs_()
            model[2].weight[1] = 0
        samples.append(copy.deepcopy(model.state_dict()))
    result = compact(model, example_input=example)
    assert (result.model[0].out_channels, result.model[2].out_channels) == (5, 3)
    for sample in samples:
        model.load_state_dict(sample)
        result.model.load_state_dict(result.convert(sample))
        assert largest_difference(model, result.model, example) <= 1e-4


def test_property_samples_follow_an_indexed_graph_and_dropped_branches():
    model, example = network("resnet18", 1)
    pruned_at_random(model, example, "input", 0.5)
    block = model.stages[1][1]
    with torch.no_grad():
        block.bn2.weight.zero_()
    result = compact(model, example_input=example, coupling="indexed")
    assert result.kind == "graph"
    with torch.no_grad():
        model.head.bias.add_(1.0)
        block.bn2.bias.add_(0.5)  # the branch is a constant, another one now
    result.model.load_state_dict(result.convert(model.state_dict()))
    assert largest_difference(model, result.model, example) <= 1e-5


def test_property_averages_whose_zeros_are_not_exact_are_cut_unchecked():
    model, example, optimizer, pruner = _vgg(lambda p: torch.optim.SGD(p, lr=0.01))
    result = compact(model, pruner, optimizer, example)
    average = {name: t + 1e-6 if t.is_floating_point() else t for name, t in model.state_dict().items()}
    with pytest.raises(CompactionError, match=r"reads \d+ channels that the compact model does not have"):
        result.convert(average)
    small = result.convert(average, check=False)
    for name, tensor in result.model.state_dict().items():
        assert small[name].shape == tensor.shape
        assert torch.equal(small[name], _cut(average[name], result.slices.get(name, [])))
