"""What a torch.optim user expects of a sampler's state: copies, pickles, checkpoints and Fabric go on bit for bit."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

from bayesprune.samplers import PSGLD, SGHMC, SGLD, CVAdam, CycleClock, CyclicalLR
from optimizer_table import WAYS, assert_same_tree, build, every, held, network, run, runs, samplers, sampling


def with_decay(optimizer, param):
    """Give a parameter a weight decay of its own, where the class has such."""
    if hasattr(optimizer, "set_weight_decay"):
        optimizer.set_weight_decay(param, torch.linspace(0.1, 0.5, param.shape[0]).view(-1, *[1] * (param.dim() - 1)))


@runs
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_roundtrip_copies_go_on_bit_for_bit_the_same_way(name, way, how):
    params = [nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(2))]
    optimizer = build(name, params, seed=None, **WAYS[way])
    with_decay(optimizer, params[0])
    run(optimizer, params, 3)
    twin = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    for each in (optimizer, twin):
        run(each, held(each), 3, seed=9)
        each.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
        run(each, held(each), 2, seed=10)
    for ours, theirs in zip(held(optimizer), held(twin)):
        assert ours is not theirs and torch.equal(ours, theirs)
    assert_same_tree(optimizer.state_dict()["state"], twin.state_dict()["state"])
    for key in ("foreach", "fused"):
        if key in optimizer.defaults:
            assert twin.param_groups[0][key] == twin.defaults[key] == WAYS[way].get(key)


@runs
@pytest.mark.parametrize("through", ["memory", "torch.save"])
def test_roundtrip_state_dict_goes_on_bit_for_bit(name, way, through):
    """Into an optimizer of another seed, rate and decay: the state says it all, and needs no pickled code."""
    model = network()
    optimizer = build(name, model.parameters(), **WAYS[way])
    with_decay(optimizer, model[0].weight)
    model[2].bias.requires_grad_(False)  # has no state yet, and thaws after the load
    run(optimizer, [p for p in model.parameters() if p.requires_grad], 3)
    state = copy.deepcopy(optimizer.state_dict())
    if through == "torch.save":
        file = io.BytesIO()
        torch.save(state, file)
        state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    twin = copy.deepcopy(model)
    resumed = build(name, twin.parameters(), seed=99, lr=0.5, weight_decay=0.3, **WAYS[way])
    resumed.load_state_dict(state)
    for each, net in ((optimizer, model), (resumed, twin)):
        net[2].bias.requires_grad_(True)
        run(each, list(net.parameters()), 4, seed=9)
    for ours, theirs in zip(model.parameters(), twin.parameters()):
        assert torch.equal(ours, theirs)
    assert_same_tree(optimizer.state_dict(), resumed.state_dict())


@samplers
def test_property_loading_keeps_the_way_of_this_machine(name):
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    saved, loaded = build(name, weights[:1], foreach=True), build(name, weights[1:], foreach=False, fused=False)
    run(saved, weights[:1], 1)
    loaded.load_state_dict(saved.state_dict())
    assert loaded.param_groups[0]["foreach"] is False and loaded.param_groups[0]["fused"] is False


@samplers
def test_property_streams_stay_apart_after_a_load_into_another_history(name):
    """The saved optimizer had lost its first group; a parameter that has no state yet must not take a saved stream."""
    gone, kept, late = (nn.Parameter(torch.ones(3)) for _ in range(3))
    saved = build(name, [{"params": [gone]}, {"params": [kept]}, {"params": [late]}])
    run(saved, [kept], 1)
    saved.param_groups.pop(0)
    loaded = build(name, [{"params": [kept]}, {"params": [late]}])
    loaded.load_state_dict(saved.state_dict())
    run(loaded, [kept, late], 1)
    assert loaded.state[kept]["stream"] == 1 and loaded.state[late]["stream"] != 1


@every
@pytest.mark.parametrize("other", ["Adam", "SGD", "AdamW"])
def test_error_state_of_another_optimizer_is_named_and_changes_nothing(name, other):
    model = network()
    optimizer, theirs = build(name, model.parameters()), getattr(torch.optim, other)(model.parameters(), lr=0.1)
    run(theirs, list(model.parameters()), 1)
    run(optimizer, list(model.parameters()), 1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"no 'num_data' in its param_groups: it is not a \w+'s"):
        optimizer.load_state_dict(theirs.state_dict())
    assert_same_tree(optimizer.state_dict(), before)


@samplers
@pytest.mark.parametrize("preconditioner", ["paper", "rms", "none"])
def test_error_state_of_another_sampler_is_named(name, preconditioner):
    weight = nn.Parameter(torch.ones(3))
    optimizer = build(name, [weight])
    theirs = CVAdam([weight], num_data=10, preconditioner=preconditioner)
    run(theirs, [weight], 1)
    if optimizer.defaults["preconditioner"] == preconditioner and name.startswith("CVAdam"):
        optimizer.load_state_dict(theirs.state_dict())
    elif optimizer.defaults["preconditioner"] != preconditioner:
        with pytest.raises(ValueError, match=rf"preconditioner='{preconditioner}'|has betas=.*no momentum"):
            optimizer.load_state_dict(theirs.state_dict())
    elif name in ("SGLD", "PSGLD"):
        with pytest.raises(ValueError, match=r"has betas=.*has no momentum"):
            optimizer.load_state_dict(theirs.state_dict())
    else:
        optimizer.load_state_dict(theirs.state_dict())  # SGHMC is CVAdam without a preconditioner


@samplers
def test_property_a_layer_frozen_midway_stays_where_its_gradient_is_set_to_zeros(name):
    """zero_grad(set_to_none=False): noise and prior alone would carry it away."""
    model = network()
    optimizer = build(name, model.parameters())

    def step():
        optimizer.zero_grad(set_to_none=False)
        model(torch.ones(4, 6)).square().mean().backward()
        optimizer.step()

    step(), step()
    model[0].requires_grad_(False)
    frozen, free = model[0].weight.clone(), model[2].weight.clone()
    step(), step()
    assert torch.equal(model[0].weight, frozen) and bool((model[2].weight != free).all())
    with optimizer.midpoint():
        assert torch.equal(model[0].weight, frozen)
    model[0].requires_grad_(True)
    step()
    assert bool((model[0].weight != frozen).any())


@pytest.mark.parametrize("stale", ["state", "gradient", "dtype"])
@runs
def test_error_data_replaced_after_a_step_are_named(name, way, stale):
    """A resized embedding: the fused kernel wrote behind its momentum."""
    params = [nn.Parameter(torch.ones(3, 8))]
    optimizer = build(name, params, seed=0, **WAYS[way])
    if stale != "gradient":
        run(optimizer, params, 2)
    params[0].grad = torch.ones(3, 8)
    params[0].data = torch.ones(3, 8, dtype=torch.bfloat16) if stale == "dtype" else torch.ones(500, 8)
    if stale == "state":
        params[0].grad = torch.ones(500, 8)
    before = params[0].detach().clone()
    message = "bfloat16" if stale == "dtype" else r"shape \(500, 8\) .*its data were replaced"
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert torch.equal(params[0].detach(), before)
    if stale == "state":
        del optimizer.state[params[0]]
        run(optimizer, params, 2)
        assert bool((params[0] != before).all())


@every
def test_error_state_of_another_model_is_named(name):
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4))
    optimizer, theirs = build(name, [first]), build(name, [second])
    run(theirs, [second], 1)
    with pytest.raises(ValueError, match=r"of shape \(4,\) for a parameter of shape \(3,\)"):
        optimizer.load_state_dict(theirs.state_dict())
    with pytest.raises(ValueError, match="parameter group"):
        optimizer.load_state_dict(build(name, [first, second]).state_dict())


@every
def test_property_state_hooks_see_and_may_change_the_state(name):
    """A pre-hook that turns a foreign state into ours is heard before the state is judged."""
    weight, seen = nn.Parameter(torch.ones(3)), []
    optimizer = build(name, [weight])
    run(optimizer, [weight], 1)
    good = copy.deepcopy(optimizer.state_dict())
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("save"))
    optimizer.register_state_dict_post_hook(lambda _, state: seen.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda _, state: seen.append("load") or good)
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    optimizer.state_dict()
    optimizer.load_state_dict(torch.optim.Adam([weight]).state_dict())
    assert seen == ["save", "saved", "load", "loaded"]
    assert_same_tree({k: v for k, v in optimizer.state_dict().items()}, good)


@samplers
def test_property_reading_does_not_write(name):
    model = network()
    optimizer = build(name, model.parameters())
    for steps in (0, 2):
        run(optimizer, list(model.parameters()), steps)
        with sampling(optimizer):
            model(torch.ones(2, 6)).square().mean().backward()
        before, weights = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in model.parameters()]
        optimizer.noise_to_gradient()
        optimizer.kinetic_temperature(), optimizer.injected_temperature(), optimizer.suggest_lr()
        for param in model.parameters():
            optimizer.tau(param), optimizer.last_noise(param), optimizer.weight_decay_of(param)
            optimizer.set_weight_decay(param, None)
        with optimizer.midpoint():
            pass
        assert_same_tree(optimizer.state_dict(), before)
        assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights))


@samplers
def test_error_step_or_midpoint_inside_midpoint(name):
    weight = nn.Parameter(torch.ones(3))
    optimizer = build(name, [weight])
    run(optimizer, [weight], 1)
    before = weight.detach().clone()
    with optimizer.midpoint():
        with pytest.raises(RuntimeError, match="after the with block"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="entered twice"), optimizer.midpoint():
            pass
    assert torch.equal(weight, before)
    optimizer.step()


@samplers
def test_equation_kinetic_temperature_is_the_mean_over_tensors_weighted_by_size_from_the_first_move(name):
    """A step at lr = 0 does not enter the mean; one tensor more does not change the others'."""
    weights = [nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(3))]
    optimizer = build(name, weights)
    optimizer.param_groups[0]["lr"] = 0.0
    run(optimizer, weights, 2)
    assert all(value != value for value in optimizer.kinetic_temperature()[0].values())
    optimizer.param_groups[0]["lr"] = 0.05
    total, each = 0.0, torch.zeros(2)
    for step in range(1, 4):
        run(optimizer, weights, 1, seed=step)
        for place, weight in enumerate(weights):
            momentum, beta1 = optimizer.state[weight]["momentum"], optimizer.param_groups[0].get("betas", (0.0,))[0]
            now = 20 * (1 + beta1) * (optimizer.tau(weight) * momentum.square()).mean() / (2 * 0.05)
            each[place] += (now - each[place]) / step
    total = (7 * each[0] + 3 * each[1]) / 10
    shown = optimizer.kinetic_temperature()[0]
    assert shown["mean"] == pytest.approx(float(total), rel=1e-5)
    assert [shown["min"], shown["max"]] == pytest.approx(sorted(each.tolist()), rel=1e-5)


def checkpoint(model, optimizer, flat):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_optimizer_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=flat))


@every
@pytest.mark.parametrize("flat", [False, True])
def test_roundtrip_distributed_checkpoint_goes_on_bit_for_bit(name, flat, tmp_path):
    """Saved and loaded by parameter names, into an optimizer whose decays were set before it had a state."""
    straight, model, twin = network(), network(), network(seed=1)
    first, whole = build(name, model.parameters()), build(name, straight.parameters())
    for optimizer, net in ((first, model), (whole, straight)):
        with_decay(optimizer, net[0].weight)
        run(optimizer, list(net.parameters()), 3)
    second = build(name, twin.parameters(), seed=99)
    with_decay(second, twin[0].weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": model.state_dict(), "optim": checkpoint(model, first, flat)}, checkpoint_id=str(tmp_path))
        state = {"model": twin.state_dict(), "optim": checkpoint(twin, second, flat)}
        dcp.load(state, checkpoint_id=str(tmp_path))
        twin.load_state_dict(state["model"])
        set_optimizer_state_dict(
            twin, second, state["optim"], options=StateDictOptions(flatten_optimizer_state_dict=flat)
        )
    for optimizer, net in ((second, twin), (whole, straight)):
        run(optimizer, list(net.parameters()), 3, seed=5)
    for ours, theirs in zip(twin.parameters(), straight.parameters()):
        assert torch.equal(ours, theirs)


@samplers
def test_property_a_checkpoint_before_the_first_step_changes_nothing(name):
    """torch makes the state by a step at lr = 0 on gradients of 0; it counts for nothing."""
    outcomes = []
    for saved in (False, True):
        model = network()
        optimizer = build(name, model.parameters())
        if saved:
            checkpoint(model, optimizer, False)
        run(optimizer, list(model.parameters()), 4)
        outcomes.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*outcomes)


@every
def test_parity_fabric_steps_as_the_bare_optimizer(name):
    fabric_module = pytest.importorskip("lightning_fabric")
    fabric = fabric_module.Fabric(accelerator="cpu", devices=1)
    bare, model = network(), network()
    plain = build(name, bare.parameters())
    module, optimizer = fabric.setup(model, build(name, model.parameters()))
    images = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    for each, net, go in ((plain, bare, torch.Tensor.backward), (optimizer, module, fabric.backward)):
        for _ in range(3):
            each.zero_grad()
            with sampling(each):
                go(net(images).square().mean())
            each.step()
    for ours, theirs in zip(model.parameters(), bare.parameters()):
        assert torch.equal(ours, theirs)
    assert_same_tree(optimizer.state_dict(), plain.state_dict())
    if hasattr(optimizer, "midpoint"):
        with optimizer.midpoint(), pytest.raises(RuntimeError, match="after the with block"):
            optimizer.step()
        assert optimizer.kinetic_temperature() == plain.kinetic_temperature()
        optimizer.set_weight_decay(model[0].weight, 0.5)
        assert optimizer.optimizer.weight_decay_of(model[0].weight) == 0.5


def test_property_classes_name_themselves():
    weight = nn.Parameter(torch.ones(1))
    for kind in (SGHMC, SGLD, PSGLD, CVAdam):
        assert kind([weight], lr=0.1, num_data=10, generator=torch.Generator()).param_groups[0]["seed"] >= 0
        with pytest.raises(ValueError, match=f"it is not a {kind.__name__}'s"):
            kind([weight], lr=0.1, num_data=10).load_state_dict(torch.optim.SGD([weight], lr=0.1).state_dict())


def test_target_kinetic_temperature_is_true_at_the_end_of_a_cosine_cycle():
    """v² keeps the heat of larger steps a moment longer than l falls: a mean of v²/l read 1.6 to 3 times too hot."""
    weight = torch.nn.Parameter(torch.zeros(2000))
    optimizer = CVAdam([weight], lr=0.05, num_data=100, weight_decay=0.0, preconditioner="none", seed=0)
    clock = CycleClock(total_steps=400)
    scheduler = CyclicalLR(optimizer, clock)
    for _ in range(400):
        weight.grad = weight.detach().clone()
        optimizer.step()
        scheduler.step()
    measured = optimizer.kinetic_temperature()[0]["mean"]
    assert abs(measured - 1) < 0.06  # 200 steps of 2000 weights: standard error below 0.01; the step error adds 0.02
    assert optimizer.injected_temperature()[0]["mean"] == 1.0


@pytest.mark.parametrize("kind", [CVAdam, SGHMC, SGLD, PSGLD])
def test_limit_without_a_weight_decay_the_prior_has_precision_ten(kind):
    weight = torch.nn.Parameter(torch.zeros(2))
    assert kind([weight], lr=0.1, num_data=1000).param_groups[0]["weight_decay"] == 0.01
    groups = [{"params": [weight], "num_data": 100}]
    assert kind(groups, lr=0.1, num_data=1000).param_groups[0]["weight_decay"] == 0.1
    assert kind(groups, lr=0.1, num_data=1000, weight_decay=0.0).param_groups[0]["weight_decay"] == 0.0


@pytest.mark.parametrize("way", WAYS)
def test_target_kinetic_temperature_counts_the_weights_that_live(way):
    """A pruner zeroes weights and momenta after every step: those weights have no temperature."""
    weight = torch.nn.Parameter(0.1 * torch.randn(4000))
    drop = torch.arange(4000) % 10 != 0
    optimizer = SGHMC([weight], lr=0.01, num_data=100, weight_decay=0.0, seed=0, **WAYS[way])
    with torch.no_grad():
        for _ in range(400):
            weight[drop] = 0.0
            if weight in optimizer.state:
                optimizer.state[weight]["momentum"][drop] = 0.0
            weight.grad = weight.detach().clone()
            optimizer.step()
        weight[drop] = 0.0
    # 400 weights, 200 steps of which a tenth is independent: a standard error of 0.016; 0.013 to 0.13 T without the rule
    assert abs(optimizer.kinetic_temperature()[0]["mean"] - 1) < 0.07
