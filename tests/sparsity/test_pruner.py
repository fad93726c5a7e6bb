from __future__ import annotations

import pytest
import torch

from bayesprune.samplers import CVAdam
from bayesprune.sparsity import cubic_ramp
from sparsity.plain import forward_pruning

EXAMPLE = torch.zeros(2, 2, 6, 6)
KINDS = ["weight", "kernel", "input", "output", "channel"]


def _settings(kind: str) -> dict:
    return {"groups": kind, "example_input": EXAMPLE} if kind == "channel" else {"groups": kind}


def _state_tensors(optimizer, param):
    return {
        key: value
        for key, value in optimizer.state[param].items()
        if key != "weight_decay" and torch.is_tensor(value) and value.shape == param.shape
    }


# -- the frozen zeros ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_property_what_forward_pruning_pruned_is_exactly_zero_after_every_later_step(
    kind, residual, make_optimizer, train
):
    model = residual()
    optimizer = make_optimizer(model.parameters())
    pruner = forward_pruning(model, optimizer, sparsity=0.5, warmup_steps=2, ramp_end_step=6, **_settings(kind))
    parameters = dict(model.named_parameters())
    gone: dict[str, torch.Tensor] = {}

    def check() -> None:
        for name, mask in pruner.weight_masks().items():
            param = parameters[name]
            drop = ~mask.expand(param.shape)
            assert not (gone.get(name, drop) & ~drop).any()  # it never returns
            gone[name] = drop
            assert (param[drop] == 0).all()
            assert not torch.signbit(param[drop]).any()
            for value in _state_tensors(optimizer, param).values():
                assert (value[drop] == 0).all()
            assert (param[~drop] != 0).any()

    train(model, optimizer, 10, check)
    assert pruner.hard_sparsity > 0.4
    state = _state_tensors(optimizer, model.conv1.weight)
    assert set(state) >= ({"momentum", "second_moment"} if isinstance(optimizer, CVAdam) else set()) and state
    kept = pruner.weight_masks()["conv1.weight"].expand(model.conv1.weight.shape)
    assert all((value[kept] != 0).any() for value in state.values())  # and what is kept goes on


@pytest.mark.parametrize("coupling", ["group", "none"])
def test_property_a_pruned_channel_has_exactly_zero_gradients_in_train_mode(coupling, residual, cv_adam, train):
    model = residual()
    optimizer = cv_adam(model.parameters())
    pruner = forward_pruning(
        model, optimizer, groups="channel", coupling=coupling, example_input=EXAMPLE, sparsity=0.25
    )
    parameters, masks = dict(model.named_parameters()), pruner.weight_masks

    def check() -> None:
        if pruner.step_count < 2:
            return
        for name, mask in masks().items():
            drop = ~mask.expand(parameters[name].shape)
            assert (parameters[name].grad[drop] == 0).all(), name

    model.train()
    train(model, optimizer, 5, check)
    assert any((~mask).any() for mask in masks().values())
    for groups, keep in zip(pruner.groups, pruner.keep_masks.values()):
        for _, norm in groups.norms:
            assert (norm.running_mean[~keep] == 0).all() and (norm.running_var[~keep] == 1).all()
            assert (norm.weight[~keep] == 0).all() and (norm.bias[~keep] == 0).all()


def test_property_a_pruned_channel_group_can_be_cut_out_without_changing_the_function(residual, cv_adam, train):
    # All rows, columns, biases and BatchNorm pairs of a coupled channel are zero: whatever else its weights were, the
    # output does not depend on the channel. Said by noise on one member at a time: the others still silence it.
    model = residual()
    optimizer = cv_adam(model.parameters())
    pruner = forward_pruning(model, optimizer, groups="channel", example_input=EXAMPLE, sparsity=0.4)
    train(model, optimizer, 3)
    model.eval()
    inputs = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(inputs)
        parameters = dict(model.named_parameters())
        columns = [
            (part, keep)
            for groups, keep in zip(pruner.groups, pruner.keep_masks.values())
            for part in groups.slices
            if part.mask_view[0] == 1
        ]
        assert columns
        for part, keep in columns:
            weight = parameters[part.name]
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
            weight += noise * ~part.broadcast(keep)
        torch.testing.assert_close(model(inputs), before, rtol=0, atol=0)


# -- the target ------------------------------------------------------------------------------------------------------


def test_property_single_weights_hit_the_target_exactly_on_every_step_of_the_ramp(residual, make_optimizer, train):
    model = residual()
    optimizer = make_optimizer(model.parameters())
    pruner = forward_pruning(model, optimizer, groups="weight", sparsity=0.9, warmup_steps=2, ramp_end_step=9)
    total = pruner.groups.total
    seen = []

    def check() -> None:
        wanted = round(cubic_ramp(pruner.step_count, 2, 9, 0.9) * total)
        zeros = sum(int((param == 0).sum()) for param in pruner.groups.weights().values())
        assert zeros == wanted == round(pruner.hard_sparsity * total)
        seen.append(wanted)

    train(model, optimizer, 12, check)
    assert seen[1] == 0 < seen[2] < seen[7] < seen[8] == seen[11] == round(0.9 * total)


@pytest.mark.parametrize("kind", ["kernel", "input", "output", "channel"])
@pytest.mark.parametrize("target", [0.3, 0.7])
def test_property_groups_hit_the_target_to_within_one_group(kind, target, residual, cv_adam, train):
    model = residual()
    optimizer = cv_adam(model.parameters())
    pruner = forward_pruning(model, optimizer, sparsity=target, warmup_steps=1, ramp_end_step=4, **_settings(kind))
    train(model, optimizer, 6)
    zeros = sum(int((param == 0).sum()) for param in pruner.groups.weights().values())
    assert zeros == round(pruner.hard_sparsity * pruner.groups.total)
    assert abs(zeros - target * pruner.groups.total) <= max(groups.size for groups in pruner.groups)


def test_property_the_ramp_end_is_hit_even_between_updates_and_finish_hits_it_early(residual, cv_adam, train):
    model = residual()
    optimizer = cv_adam(model.parameters())
    pruner = forward_pruning(model, optimizer, groups="weight", sparsity=0.8, warmup_steps=1, ramp_end_step=9, every=5)
    train(model, optimizer, 8)
    assert 0.3 < pruner.hard_sparsity < 0.8
    twin = residual()
    early = forward_pruning(twin, cv_adam(twin.parameters()), groups="weight", sparsity=0.8, ramp_end_step=100)
    early.finish_()
    for each, net in ((pruner, model), (early, twin)):
        if each is pruner:
            train(model, optimizer, range(8, 9))
        zeros = sum(int((param == 0).sum()) for param in each.groups.weights().values())
        assert zeros == round(0.8 * each.groups.total), net
        assert each.target_now == 0.8


def test_property_layer_scope_meets_the_target_in_every_layer(residual, cv_adam, train):
    model = residual()
    optimizer = cv_adam(model.parameters())
    pruner = forward_pruning(model, optimizer, groups="weight", sparsity=0.6, scope="layer")
    train(model, optimizer, 2)
    for name, mask in pruner.keep_masks.items():
        assert int((~mask).sum()) == round(0.6 * mask.numel()), name


def test_property_layer_scope_makes_good_elsewhere_what_rounding_and_floors_take(residual, cv_adam, train):
    model = residual()
    optimizer = cv_adam(model.parameters())
    pruner = forward_pruning(model, optimizer, groups="output", sparsity=0.7, scope="layer")
    train(model, optimizer, 2)
    assert {name: int(mask.sum()) for name, mask in pruner.keep_masks.items()} == {
        "stem.weight": 2, "conv1.weight": 2, "conv2.weight": 2, "conv3.weight": 3, "short.weight": 4, "head.weight": 1,
    }  # fmt: skip
    assert abs(pruner.hard_sparsity - 0.7) * pruner.groups.total <= 54  # a row of conv3


@pytest.mark.parametrize("multiple", [1, 2])
def test_property_layer_scope_of_channels_keeps_the_same_share_of_every_set(residual, cv_adam, train, multiple):
    model = residual()
    example = torch.zeros(2, 2, 6, 6)
    pruner = forward_pruning(
        model, cv_adam(model.parameters()), groups="channel", example_input=example, sparsity=0.7, warmup_steps=1,
        ramp_end_step=6, scope="layer", round_to=multiple,
    )  # fmt: skip
    before = {name: mask.clone() for name, mask in pruner.keep_masks.items()}
    for step in range(8):
        train(model, pruner.optimizer, range(step, step + 1))
        shares = []
        for name, mask in pruner.keep_masks.items():
            assert not (mask & ~before[name]).any()  # what is gone stays gone
            before[name] = mask.clone()
            assert int(mask.sum()) % multiple == 0 and mask.any()
            shares.append((int(mask.sum()) / mask.numel(), multiple / mask.numel()))
        # All at m⌊kC/m⌋ of one k, but for the sets that had their turn first.
        assert max(share for share, _ in shares) - min(share + unit for share, unit in shares) <= max(
            u for _, u in shares
        )
    assert abs(pruner.hard_sparsity - 0.7) < 0.12
    best = pruner.groups[0]
    assert before[best.name].any()


def test_property_layer_scope_of_channels_drops_the_smallest_of_each_set(residual, cv_adam, train):
    model = residual()
    pruner = forward_pruning(
        model, cv_adam(model.parameters()), groups="channel", example_input=torch.zeros(2, 2, 6, 6),
        sparsity=0.5, scope="layer",
    )  # fmt: skip
    means = [each.mean_square() for each in pruner.groups]
    pruner.finish_()
    for mean, mask in zip(means, pruner.keep_masks.values()):
        assert not mask.all() and mean[~mask].max() <= mean[mask].min()


# -- life with optimizers --------------------------------------------------------------------------------------------


def test_property_defaults_take_decay_and_data_from_the_optimizer(residual, cv_adam):
    model = residual()
    optimizer = cv_adam(model.parameters())
    pruner = forward_pruning(model, optimizer, sparsity=0.9, warmup_steps=10, ramp_end_step=100)
    prior = pruner.priors[0]
    assert (prior.slab_decay, prior.spike_decay, prior.soft_threshold, prior.num_data) == (5e-4, 1e-3, 1e-4, 100)
    assert pruner.target_now == 0.0
    for probability in pruner.inclusion_probabilities().values():
        assert ((probability >= 0) & (probability <= 1)).all()


def test_property_parameters_without_gradient_and_layers_frozen_midway(residual, make_optimizer, train):
    model = residual()
    model.conv1.weight.requires_grad_(False)
    optimizer = make_optimizer(model.parameters())
    pruner = forward_pruning(model, optimizer, groups="weight", sparsity=0.5, warmup_steps=1, ramp_end_step=4)
    train(model, optimizer, 3)
    model.conv2.weight.requires_grad_(False)
    model.conv2.weight.grad = None
    train(model, optimizer, 4)
    assert round(pruner.hard_sparsity * pruner.groups.total) == round(0.5 * pruner.groups.total)


def test_property_weights_that_the_optimizer_does_not_hold_are_left_dense_and_named(residual, cv_adam, train):
    model = residual()
    optimizer = cv_adam([p for name, p in model.named_parameters() if name != "conv1.weight"])
    pruner = forward_pruning(model, optimizer, groups="weight", sparsity=0.5)
    train(model, optimizer, 2)
    assert (model.conv1.weight != 0).all()
    assert ("conv1.weight", "not held by the optimizer") in [(e.name, e.reason) for e in pruner.groups.excluded]


def test_property_detach_gives_the_optimizer_back(residual, make_optimizer, train):
    model = residual()
    optimizer = make_optimizer(model.parameters())
    pruner = forward_pruning(model, optimizer, groups="weight", sparsity=0.5)
    train(model, optimizer, 2)
    pruner.detach()
    assert not optimizer._optimizer_step_post_hooks and not optimizer._optimizer_step_pre_hooks
    if isinstance(optimizer, CVAdam):
        assert all(optimizer.weight_decay_of(p) == 5e-4 for p in model.parameters())
    train(model, optimizer, 1)
    assert sum(int((p == 0).sum()) for p in pruner.groups.weights().values()) < 10


def test_parity_a_closure_gives_what_the_plain_step_gives(residual, make_optimizer):
    model, twin = residual(), residual()
    for net, closure in ((model, False), (twin, True)):
        optimizer = make_optimizer(net.parameters())
        forward_pruning(net, optimizer, groups="kernel", sparsity=0.5, soft_threshold=0.02)
        for step in range(4):
            inputs = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(step))

            def loss(net=net, optimizer=optimizer, inputs=inputs):
                optimizer.zero_grad()
                value = net(inputs).square().mean()
                value.backward()
                return value

            if closure:
                optimizer.step(loss)
            else:
                loss()
                optimizer.step()
    assert int((model.conv1.weight == 0).sum()) > 0
    for a, b in zip(model.parameters(), twin.parameters()):
        assert torch.equal(a, b)


def test_property_channels_last_weights_are_pruned_alike(residual, make_optimizer, train):
    model = residual().to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model.parameters())
    pruner = forward_pruning(model, optimizer, groups="kernel", sparsity=0.5, soft_threshold=0.02)
    train(model, optimizer, 3)
    zeros = sum(int((param == 0).sum()) for param in pruner.groups.weights().values())
    assert zeros == round(pruner.hard_sparsity * pruner.groups.total) > 0
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "size"}, "criterion='size' is unknown"),
        ({"groups": "filter"}, "'filter' is unknown"),
        ({"sparsity": 1.0}, "sparsity=1.0"),
        ({"sparsity": 0.999, "groups": "output"}, "out of reach"),
        ({"sparsity": 0.5, "hard_threshold": 0.1}, "exclude each other"),
        ({"ramp_end_step": 10}, "needs a sparsity"),
        ({"sparsity": 0.5, "warmup_steps": 5, "ramp_end_step": 4}, "ramp_end_step=4 is before"),
        ({"every": 0}, "every=0"),
        ({"spike_decay": 1e-5}, "spike_decay=1e-05 must be larger than slab_decay=0.0005"),
        ({"soft_threshold": 1e-4, "inclusion_probability": 0.5}, "give one"),
        ({"inclusion_probability": 0.5}, "num_data is needed"),
        ({"criterion": "concentration", "groups": "weight", "hard_threshold": 0.1}, "criterion='concentration'"),
        ({"criterion": "concentration", "groups": "kernel", "sparsity": 0.1}, "criterion='concentration'"),
        ({"groups": "channel", "sparsity": 0.1}, "example_input is needed"),
        ({"groups": "channel", "scope": "chain"}, "scope='chain'"),
        ({"scope": "model"}, "scope='model'"),
        ({"round_to": 0}, "round_to=0"),
        ({"round_to": 8, "groups": "channel"}, "round_to=8 needs groups='channel' and scope='layer'"),
        ({"expectation": "mean"}, "expectation='mean'"),
        ({"reading": "paper"}, "reading='paper'"),
    ],
)
def test_error_names_the_argument_and_the_mend(settings, message, residual):
    model = residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4)
    with pytest.raises(ValueError, match=message):
        forward_pruning(model, optimizer, **settings)
    assert not optimizer._optimizer_step_post_hooks  # a refused pruner leaves nothing behind


def test_error_an_optimizer_of_another_model(residual):
    with pytest.raises(ValueError, match="holds none"):
        forward_pruning(residual(), torch.optim.SGD(residual().parameters(), lr=0.1))
