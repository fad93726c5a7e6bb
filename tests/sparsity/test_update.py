from __future__ import annotations

import pytest
import torch
from torch import nn

from bayesprune.samplers import CVAdam
from bayesprune.sparsity import concentration, l2
from sparsity.plain import forward_pruning

# -- EM --------------------------------------------------------------------------------------------------------------


def test_equation_e_and_m_step_set_the_group_decays(residual, cv_adam, train):
    model = residual()
    optimizer = cv_adam(model.parameters())
    pruner = forward_pruning(model, optimizer, groups="kernel", soft_threshold=0.02, spike_decay=3e-3, slab_decay=2e-4)
    train(model, optimizer, 1)
    mixed = 0
    for name, soft in pruner.soft_masks.items():
        weight = model.get_parameter(name)
        mean = weight.detach().square()
        mean = mean.mean((2, 3), keepdim=True) if mean.dim() == 4 else mean
        assert torch.equal(soft, mean >= 0.02)
        decay = optimizer.weight_decay_of(weight)
        if soft.any() and not soft.all():
            assert decay.shape == soft.shape  # group resolution, broadcast by the optimizer
            mixed += 1
        torch.testing.assert_close(torch.as_tensor(decay).expand(soft.shape), torch.where(soft, 2e-4, 3e-3))
    assert mixed > 0
    assert 0 < pruner.soft_sparsity < 1
    assert pruner.hard_sparsity == 0  # neither threshold nor target: EM alone


def test_property_decays_are_set_only_when_a_mask_changes(residual, train):
    class Counting(CVAdam):
        calls = 0

        def set_weight_decay(self, param, value):
            Counting.calls += 1
            super().set_weight_decay(param, value)

    model = residual()
    optimizer = Counting(model.parameters(), lr=1e-12, num_data=10**9, temperature=0.0)
    forward_pruning(model, optimizer, groups="output", soft_threshold=0.02)
    train(model, optimizer, 1)
    first = Counting.calls
    assert first == 6
    train(model, optimizer, 3)
    assert Counting.calls == first
    with torch.no_grad():
        model.conv1.weight[0] *= 100 if (model.conv1.weight[0].square().mean() < 0.02) else 0.0
    train(model, optimizer, 1)
    assert Counting.calls == first + 1


def test_property_the_spike_is_reversible(residual, train):
    model = residual()
    optimizer = CVAdam(model.parameters(), lr=1e-12, num_data=10**9, weight_decay=5e-4, temperature=0.0)
    pruner = forward_pruning(model, optimizer, groups="output", soft_threshold=0.02)
    with torch.no_grad():
        model.conv1.weight.mul_(1e-3)
    train(model, optimizer, 1)
    assert not pruner.soft_masks["conv1.weight"].any()
    assert optimizer.weight_decay_of(model.conv1.weight) == 1e-3  # a number where all are alike
    with torch.no_grad():
        model.conv1.weight.mul_(1e4)
    train(model, optimizer, 1)
    assert pruner.soft_masks["conv1.weight"].all()
    assert optimizer.weight_decay_of(model.conv1.weight) == 5e-4


def test_equation_the_running_expectation_is_the_running_mean(residual, cv_adam, train):
    model = residual()
    optimizer = cv_adam(model.parameters())
    pruner = forward_pruning(model, optimizer, groups="output", expectation="running", momentum=0.75)
    seen = []
    train(model, optimizer, 3, lambda: seen.append(model.conv1.weight.detach().square().mean((1, 2, 3))))
    expected = 0.75 * (0.75 * seen[0] + 0.25 * seen[1]) + 0.25 * seen[2]
    torch.testing.assert_close(pruner.state_dict()["running"]["conv1.weight"].flatten(), expected)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_parity_group_decay_on_a_torch_optimizer_equals_its_own_decay_where_all_groups_are_on_the_spike(
    name, residual, optimizers
):
    model, twin = residual().double(), residual().double()
    weights = {id(m.weight) for m in twin.modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    # A large step and decay, so that no factor 1 − lr·decay passes for 1.
    build = (lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2)) if name == "adamw" else optimizers[name]
    optimizer = build(model.parameters())
    own = build(
        [
            {"params": [p for p in twin.parameters() if id(p) in weights], "weight_decay": 1.3},
            {"params": [p for p in twin.parameters() if id(p) not in weights]},
        ]
    )
    # All on the spike, and set before the first step.
    pruner = forward_pruning(model, optimizer, soft_threshold=1e9, spike_decay=1.3)
    pruner._decay.set_([torch.zeros_like(mask) for mask in pruner.soft_masks.values()])

    def run(net, opt):
        for step in range(5):
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(8, 2, 6, 6, generator=generator, dtype=torch.float64)
            opt.zero_grad()
            net(inputs).square().mean().backward()
            opt.step()

    run(model, optimizer)
    run(twin, own)
    for a, b in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_parity_muons_decay_is_decoupled():
    def trained(decay, spike):
        torch.manual_seed(0)
        model = nn.Linear(6, 4, bias=False).double()
        optimizer = torch.optim.Muon(model.parameters(), lr=0.1, weight_decay=decay)
        if spike is not None:
            pruner = forward_pruning(model, optimizer, soft_threshold=1e9, spike_decay=spike)
            pruner._decay.set_([torch.zeros_like(mask) for mask in pruner.soft_masks.values()])
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.eye(6, dtype=torch.float64)).sin().sum().backward()
            optimizer.step()
        return model.weight

    torch.testing.assert_close(trained(0.2, 1.3), trained(1.3, None))


def test_parity_a_fused_step_that_undoes_the_scale_of_the_gradient_has_the_same_decays():
    """GradScaler leaves the gradients of fused optimizers scaled: the decay's share must be too."""

    def trained(scaler, **way):
        torch.manual_seed(0)
        model = nn.Linear(6, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, **way)
        forward_pruning(model, optimizer, soft_threshold=0.05, spike_decay=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            scaler.scale(model(torch.eye(6)).sin().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        return model.weight

    plain, fused = torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu", init_scale=2.0**12)
    torch.testing.assert_close(trained(fused, fused=True), trained(plain))


# -- the rules -------------------------------------------------------------------------------------------------------


def _still(model):
    return torch.optim.SGD(model.parameters(), lr=0.0)


@pytest.mark.parametrize("reading", ["signed", "absolute"])
def test_equation_9_on_kernels_prunes_by_input_and_by_output_channel(reading, residual, train):
    model = residual()
    weight = model.conv1.weight
    with torch.no_grad():
        weight[4] = 0.3 + 0.01 * weight[4]
        weight[:, 2] = 0.3 + 0.01 * weight[:, 2]
    kept = (concentration(weight, "input", reading=reading) >= 0.1) & (
        concentration(weight, "output", reading=reading) >= 0.1
    )
    pruner = forward_pruning(
        model, _still(model), groups="kernel", criterion="concentration", hard_threshold=0.1, reading=reading
    )
    train(model, pruner.optimizer, 1)
    assert torch.equal(pruner.keep_masks["conv1.weight"], kept.expand(6, 6, 1, 1))
    assert not kept[4].any() and not kept[0, 2].any()
    assert torch.equal(weight != 0, kept.expand(weight.shape))


def test_equation_10_prunes_the_input_units_below_the_threshold(residual, train):
    model = residual()
    with torch.no_grad():
        model.head.weight[:, 3:7] *= 0.01
    kept = l2(model.head.weight) >= 1e-3
    pruner = forward_pruning(
        model, _still(model), groups="input", criterion="magnitude", hard_threshold=1e-3, exclude=[nn.Conv2d]
    )
    train(model, pruner.optimizer, 1)
    assert torch.equal(pruner.keep_masks["head.weight"], kept)
    assert not kept[0, 3:7].any() and kept.any()


@pytest.mark.parametrize("expectation", ["current", "running"])
def test_property_what_noise_does_to_a_frozen_group_is_never_seen_by_an_update(expectation, residual, train):
    # A hot sampler throws every weight far above both thresholds in one step.
    model = residual()
    with torch.no_grad():
        model.head.weight[:, 3:7] = 1e-4
    optimizer = CVAdam(model.parameters(), lr=0.1, num_data=10)
    pruner = forward_pruning(
        model, optimizer, groups="input", hard_threshold=1e-3, soft_threshold=1e-3, expectation=expectation,
        momentum=0.0, exclude=[nn.Conv2d],
    )  # fmt: skip
    gone = torch.zeros(1, 12, dtype=torch.bool)
    gone[0, 3:7] = True
    pruner._set_keep_([~gone])

    def check() -> None:
        assert not pruner.keep_masks["head.weight"][gone].any()
        assert not pruner.soft_masks["head.weight"][gone].any()
        assert (model.head.weight[:, 3:7] == 0).all()

    train(model, optimizer, 3, check)
    assert pruner.keep_masks["head.weight"][~gone].all()


def test_property_the_floor_keeps_the_largest_groups_and_zero_lifts_it(residual, train):
    for floor in (0, 1, 2):
        model = residual()
        best = model.head.weight.square().mean(0).topk(floor).indices.sort().values.tolist()
        pruner = forward_pruning(
            model, _still(model), groups="input", hard_threshold=1e9, min_groups=floor, exclude=[nn.Conv2d]
        )
        train(model, pruner.optimizer, 2)
        assert pruner.keep_masks["head.weight"].flatten().nonzero().flatten().tolist() == best
