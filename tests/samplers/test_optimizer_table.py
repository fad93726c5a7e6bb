"""What a torch.optim user expects of every sampler while it trains: groups, schedulers, hooks, scalers, odd parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from bayesprune.samplers import SGHMC, CVAdam, native
from optimizer_table import WAYS, build, classes, every, network, noise_of, run, runs, samplers, sampling, ways

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 9),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=6),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=9),
}
assert set(lr_scheduler.__all__) - {"LRScheduler"} <= set(SCHEDULERS), "torch has a scheduler that this table lacks"


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@classes
def test_parity_scheduler_sets_the_rates_that_it_sets_for_sgd(name, scheduler):
    make = SCHEDULERS[scheduler]
    weight = nn.Parameter(torch.ones(4))
    ours, sgd = build(name, [weight]), torch.optim.SGD([nn.Parameter(torch.ones(4))], lr=0.05, momentum=0.9)
    if name in ("SGLD", "PSGLD") and scheduler in ("CyclicLR", "OneCycleLR"):
        with pytest.raises(ValueError, match="momentum"):  # they would cycle a momentum that SGLD has not
            make(ours)
        return
    pairs = [(ours, make(ours)), (sgd, make(sgd))]
    for _ in range(5):
        before = weight.detach().clone()
        run(ours, [weight], 1)
        sgd.step()
        assert not torch.equal(weight, before) and weight.isfinite().all()
        for _, each in pairs:
            each.step(1.0) if scheduler == "ReduceLROnPlateau" else each.step()
        assert ours.param_groups[0]["lr"] == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12)


@every
def test_equation_a_tensor_as_rate_is_its_number(name):
    weights = [nn.Parameter(torch.ones(5)) for _ in range(2)]
    for weight, lr in zip(weights, (0.05, torch.tensor(0.05, dtype=torch.float64))):
        optimizer = build(name, [weight], lr=lr)
        scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(3):
            run(optimizer, [weight], 1)
            scheduler.step()
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-7)


@every
def test_property_groups_have_their_own_settings(name):
    """A group at lr = 0 rests, one added later moves as if alone, every default reaches every group."""
    first, second, third, alone = (nn.Parameter(torch.ones(3)) for _ in range(4))
    optimizer = build(name, [{"params": [first]}, {"params": [second], "lr": 0.0}], temperature=0.0)
    optimizer.add_param_group({"params": [third], "lr": 0.2, "weight_decay": 0.5})
    one = build(name, [alone], lr=0.2, weight_decay=0.5, temperature=0.0)
    if name == "VariationalCVAdam":
        for each in (optimizer, one):
            for group in each.param_groups:
                group["global_scale"] = 1e-9  # next to no noise
    for step in range(2):
        run(optimizer, [third, first, second], 1, seed=step)
        run(one, [alone], 1, seed=step)
    torch.testing.assert_close(third, alone)
    assert torch.equal(second, torch.ones(3)) and not torch.equal(first, second)
    assert all(group.keys() == optimizer.param_groups[0].keys() for group in optimizer.param_groups)


@every
@pytest.mark.parametrize("change", ["pop and add", "copy the settings", "append to a group", "come back"])
def test_property_no_two_parameters_share_a_noise_stream(name, change):
    first, second, third = (nn.Parameter(torch.zeros(50)) for _ in range(3))
    optimizer = build(name, [{"params": [first]}, {"params": [second]}])
    run(optimizer, [first, second], 1)
    if change == "append to a group":
        optimizer.param_groups[0]["params"].append(third)
    else:
        group = optimizer.param_groups.pop(0)
        settings = {key: value for key, value in group.items() if change == "copy the settings" and key != "params"}
        optimizer.add_param_group({**settings, "params": [third]})
        if change == "come back":
            optimizer.add_param_group(group)
    run(optimizer, [first, second, third] if change in ("append to a group", "come back") else [second, third], 1)
    streams = [optimizer.state[param]["stream"] for param in (first, second, third)]
    assert streams[:2] == [0, 1] and len(set(streams)) == 3
    assert not torch.allclose(noise_of(optimizer, second), noise_of(optimizer, third))


@every
def test_property_one_optimizer_a_layer_has_its_own_noise(name):
    """Without a seed each draws one of torch's generator, and `torch.manual_seed` repeats them all."""

    def noises():
        torch.manual_seed(11)
        found = []
        for _ in range(3):
            weight = nn.Parameter(torch.zeros(40))
            optimizer = build(name, [weight], seed=None)
            run(optimizer, [weight], 1)
            found.append(noise_of(optimizer, weight))
        return torch.stack(found)

    drawn = noises()
    assert torch.equal(drawn, noises())
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.7 and not torch.equal(drawn[0], drawn[1])


@every
def test_property_noise_leaves_torchs_generators_alone_and_heeds_its_own(name):
    outcomes = []
    for seed in (7, 7, 8):
        weight = nn.Parameter(torch.ones(40))
        optimizer = build(name, [weight], seed=None, generator=torch.Generator().manual_seed(seed))
        before = torch.get_rng_state()
        run(optimizer, [weight], 2)
        assert torch.equal(before, torch.get_rng_state())
        outcomes.append(weight.detach().clone())
        torch.rand(1)  # another state of the global generator
    assert torch.equal(*outcomes[:2]) and not torch.allclose(*outcomes[1:])


@every
def test_property_hooks_are_called_around_the_step(name):
    weight, seen = nn.Parameter(torch.ones(3)), []
    optimizer = build(name, [weight])
    optimizer.register_step_pre_hook(lambda *_: seen.append(("pre", weight.detach().clone())))
    optimizer.register_step_post_hook(lambda *_: seen.append(("post", weight.detach().clone())))
    run(optimizer, [weight], 1)
    assert [word for word, _ in seen] == ["pre", "post"]
    assert torch.equal(seen[0][1], torch.ones(3)) and torch.equal(seen[1][1], weight)


@every
def test_property_closure_is_evaluated_with_gradients_and_its_loss_returned(name):
    weight = nn.Parameter(torch.full((3,), 2.0))
    optimizer = build(name, [weight])

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    found = optimizer.step(closure)
    assert float(found.detach()) == pytest.approx(12.0, rel=0.5)  # Algorithm 1's at sampled weights
    assert not torch.equal(weight, torch.full((3,), 2.0))


@every
def test_property_scaler_skips_a_step_and_its_noise(name):
    """A step skipped for an infinite gradient moves nothing, and the next one draws what it would have drawn."""
    outcomes = []
    for spoil in (False, True):
        weight = nn.Parameter(torch.ones(6))
        optimizer, scaler = build(name, [weight]), torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
        for step in range(4):
            if spoil and step == 2:
                before, state = weight.detach().clone(), optimizer.state[weight]["step"]
                weight.grad = torch.full_like(weight, torch.inf)
                scaler.scale(torch.zeros(()))
                scaler.step(optimizer)
                scaler.update()
                assert torch.equal(weight, before) and optimizer.state[weight]["step"] == state
            optimizer.zero_grad()
            with sampling(optimizer):
                scaler.scale(weight.square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        outcomes.append(weight.detach().clone())
    torch.testing.assert_close(*outcomes, rtol=1e-6, atol=1e-7)


@every
def test_property_accumulated_gradients_are_the_batchs(name):
    images, outcomes = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)), []
    for pieces in (1, 4):
        model = network()
        optimizer = build(name, model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            with sampling(optimizer):
                sum(model(part).square().sum() / 8 for part in images.chunk(pieces)).backward()
            optimizer.step()
        outcomes.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*outcomes, rtol=1e-5, atol=1e-6)


@every
def test_property_parameters_without_gradient_rest_and_have_no_state(name):
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = build(name, [used, unused])
    run(optimizer, [used], 2)
    assert torch.equal(unused, torch.ones(3)) and not torch.equal(used, unused)
    if name != "VariationalCVAdam":  # which samples before it knows who gets a gradient
        assert unused not in optimizer.state
    before = used.detach().clone()
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert torch.equal(used, before)
    optimizer.zero_grad(set_to_none=False)
    assert used.grad is None


@samplers
def test_property_zeroed_gradient_is_a_gradient(name):
    """`set_to_none=False` leaves a gradient of 0: the prior and the noise go on."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = build(name, [weight])
    run(optimizer, [weight], 1)
    before = weight.detach().clone()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert not torch.equal(weight, before) and optimizer.state[weight]["step"] == 2


@samplers
def test_property_layer_frozen_midway_stands_in_the_midpoint_and_thaws(name):
    kept, layer = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = build(name, [kept, layer])
    run(optimizer, [kept, layer], 2)
    frozen, state = layer.detach().clone(), optimizer.state[layer]["momentum"].clone()
    layer.requires_grad_(False).grad = None
    run(optimizer, [kept], 2)
    with optimizer.midpoint():
        assert torch.equal(layer, frozen)
    assert torch.equal(layer, frozen) and torch.equal(optimizer.state[layer]["momentum"], state)
    layer.requires_grad_(True)
    run(optimizer, [kept, layer], 1)
    assert optimizer.state[layer]["step"] == 3 and optimizer.state[kept]["step"] == 5
    with optimizer.midpoint():
        torch.testing.assert_close(layer.detach(), (frozen + (2 * layer.detach() - frozen)) / 2)
        assert not torch.equal(layer, frozen)


ODD = {
    "empty": lambda: torch.zeros(0, 3),
    "scalar": lambda: torch.tensor(1.5),
    "gaps": lambda: torch.randn(24)[:20:2].view(10),
    "strided slice": lambda: torch.randn(6, 8)[::2, 1:5],
    "as_strided": lambda: torch.as_strided(torch.randn(40), (3, 4), (11, 2)),
    "transposed": lambda: torch.randn(4, 3).t(),
    "channels_last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "float64": lambda: torch.randn(5, dtype=torch.float64),
}


@runs
@pytest.mark.parametrize("kind", ODD)
def test_parity_an_odd_tensor_moves_as_its_contiguous_copy(name, way, kind):
    torch.manual_seed(0)
    odd = nn.Parameter(ODD[kind]())
    plain = nn.Parameter(odd.detach().clone(memory_format=torch.contiguous_format))
    for weight in (odd, plain):
        optimizer = build(name, [weight], temperature=0.0, **WAYS[way])
        if hasattr(optimizer, "set_weight_decay") and weight.dim() > 1:
            optimizer.set_weight_decay(
                weight, torch.arange(1.0, weight.shape[1] + 1).view(-1, *[1] * (weight.dim() - 2))
            )
        run(optimizer, [weight], 4)
    torch.testing.assert_close(odd, plain, rtol=1e-5, atol=1e-6)
    assert odd.stride() == ODD[kind]().stride()


@ways
@pytest.mark.parametrize("kind", ODD)
def test_property_noise_of_an_odd_tensor_is_what_last_noise_returns(way, kind):
    weight = nn.Parameter(ODD[kind]())
    optimizer = build("SGLD", [weight], weight_decay=0.0, **WAYS[way])
    before, weight.grad = weight.detach().clone(), torch.zeros_like(weight)
    optimizer.step()
    std = optimizer.noise_std(optimizer.param_groups[0], 0.05)
    torch.testing.assert_close(weight.detach() - before, std * optimizer.last_noise(weight), rtol=1e-4, atol=1e-5)


@every
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, dtype=torch.float16), "float32 or float64"),
        (torch.ones(2, dtype=torch.bfloat16), "float32 or float64"),
        (torch.ones(2, dtype=torch.complex64), "view complex weights as real"),
        (torch.ones(1).expand(5), "share memory.*make it contiguous"),
        (torch.as_strided(torch.ones(6), (4, 3), (1, 1)), "share memory"),
    ],
)
def test_error_a_tensor_that_cannot_be_sampled_is_named(name, tensor, message):
    with pytest.raises(ValueError, match=message):
        build(name, [nn.Parameter(tensor)])
    optimizer = build(name, [nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(tensor)]})
    assert len(optimizer.param_groups) == 1


@every
def test_error_sparse_gradients_and_settings_out_of_range_are_named(name):
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = build(name, embedding.parameters())
    with pytest.raises(RuntimeError, match="sparse=False"):
        with sampling(optimizer):
            embedding(torch.tensor([1])).sum().backward()
        optimizer.step()
    for setting in ({"lr": -1.0}, {"num_data": 0}, {"weight_decay": float("nan")}):
        (key,) = setting
        with pytest.raises(ValueError, match=f"{key}=.* is out of range"):
            build(name, [nn.Parameter(torch.ones(2))], **setting)
        with pytest.raises(ValueError, match=f"{key}=.* is out of range"):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], **setting})


@samplers
def test_error_both_ways_at_once_or_a_way_that_is_missing(name, monkeypatch):
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="foreach=True and fused=True"):
        build(name, [weight], foreach=True, fused=True)
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "reason", "no C compiler")
    weight.grad = torch.ones(2)
    with pytest.raises(ValueError, match=r"fused=True is not available.*: no C compiler; use fused=None"):
        build(name, [weight], fused=True).step()
    build(name, [weight]).step()
    assert not torch.equal(weight, torch.ones(2))


def test_property_a_group_may_have_its_own_way():
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    groups = [{"params": [weights[0]], "foreach": True}, {"params": [weights[1]], "foreach": False, "fused": False}]
    optimizer = SGHMC(groups, lr=0.1, num_data=10, temperature=0.0)
    run(optimizer, weights[:1], 2)
    run(optimizer, weights[1:], 2)
    torch.testing.assert_close(*weights)
    with pytest.raises(ValueError, match="foreach=True and fused=True"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "foreach": True, "fused": True})
    with pytest.raises(ValueError, match=r"seed=0.5 is not an integer"):
        CVAdam(weights, num_data=10, seed=0.5)


@runs
def test_parity_compiled_step_is_the_eager_one(name, way):
    outcomes = []
    for compiled in (False, True):
        weights = [nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(2, 3))]
        optimizer = build(name, weights, **WAYS[way])
        step = torch.compile(optimizer.step) if compiled else optimizer.step
        for _ in range(3):
            optimizer.zero_grad()
            with sampling(optimizer):
                sum(weight.square().sum() for weight in weights).backward()
            step()
        outcomes.append(torch.cat([w.detach().flatten() for w in weights]))
    assert torch.equal(*outcomes)


@every
def test_parity_compiled_model_trains_as_the_eager_one(name):
    outcomes, images = [], torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    for compiled in (False, True):
        model = network()
        forward = torch.compile(model, backend="aot_eager") if compiled else model
        optimizer = build(name, model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            with sampling(optimizer):
                forward(images).square().mean().backward()
            optimizer.step()
        outcomes.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*outcomes, rtol=1e-5, atol=1e-6)
