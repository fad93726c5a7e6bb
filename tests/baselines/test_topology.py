from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from baselines.sparse_reference import DYNAMIC, METHODS, OPTIMIZERS, build, sgd, step_torch
from bayesprune.baselines.allocation import apportion, erdos_renyi_kernel, layer_counts
from bayesprune.baselines.rigl import RigL
from bayesprune.baselines.set import SET
from bayesprune.baselines.topology import cosine_decay, highest, lowest, random_entries
from bayesprune.sparsity import sparsity_report
from bayesprune.train.tree import load_tree, save_tree
from bayesprune.vision import resnet18, resnet20, whitened94

RESNET18 = [tuple(p.shape) for p in resnet18(num_classes=10).parameters() if p.dim() > 1]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(seed=0):
    torch.manual_seed(seed)
    return resnet20(num_classes=3, width=8)  # strided 1 x 1 convolutions of fewer input channels crash oneDNN on AVX2


def train(model, optimizer, steps, after=lambda step: None):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images, labels = torch.randn(4, 3, 8, 8, generator=generator), torch.randint(3, (4,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        after(step)


# -- how many weights a layer keeps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.98])
def test_equation_erk_densities_with_epsilon_solved_by_bisection(sparsity):
    sums = np.array([sum(shape) for shape in RESNET18], dtype=float)
    sizes = np.array([math.prod(shape) for shape in RESNET18], dtype=float)
    low, high = 0.0, float((sizes / sums).max())
    for _ in range(200):
        epsilon = (low + high) / 2
        kept = np.minimum(1, epsilon * sums / sizes) @ sizes
        low, high = (epsilon, high) if kept < (1 - sparsity) * sizes.sum() else (low, epsilon)
    expected = np.minimum(1, low * sums / sizes)
    np.testing.assert_allclose(erdos_renyi_kernel(RESNET18, 1 - sparsity), expected, rtol=1e-10)
    counts = layer_counts(RESNET18, sparsity, "erk")
    assert sum(counts) == sizes.sum() - round(sparsity * sizes.sum())
    np.testing.assert_allclose(counts, expected * sizes, atol=1.0)


def test_limit_erk_of_a_dense_network_and_of_none():
    assert erdos_renyi_kernel([(3, 4), (5, 6, 3, 3)], 1.0) == pytest.approx([1.0, 1.0])
    assert erdos_renyi_kernel([(3, 4), (5, 6, 3, 3)], 0.0) == [0.0, 0.0]


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7, 0.9, 0.99, 0.999])
def test_property_layer_counts_are_exact_and_no_layer_dies(distribution, sparsity):
    counts = layer_counts(RESNET18, sparsity, distribution)
    sizes = [math.prod(shape) for shape in RESNET18]
    assert sum(counts) == sum(sizes) - round(sparsity * sum(sizes))
    assert all(1 <= count <= size for count, size in zip(counts, sizes))
    if distribution == "uniform":
        assert all(abs(count - (1 - sparsity) * size) <= 1 for count, size in zip(counts, sizes))


def test_equation_apportion_where_the_overflow_goes():
    # 12 in proportion 1:2:3 is 2, 4, 6; the last holds 2, its 4 over go to the others as 1:2, or alike
    assert apportion(12, [1, 2, 3], [50, 50, 2]) == [3, 7, 2]  # 3⅓, 6⅔, 2
    assert apportion(12, [1, 2, 3], [50, 50, 2], overflow="equal") == [4, 6, 2]
    # passing on twice: 20 as 1:1:2 is 5, 5, 10; caps 6 and 3 leave 20 − 9 to the first
    assert apportion(20, [1, 1, 2], [50, 6, 3]) == [11, 6, 3]
    assert apportion(7, [0, 0, 0], [9, 9, 9]) == [3, 2, 2]
    assert apportion(5, [0, 1, 0], [9, 3, 9]) == [1, 3, 1]
    assert apportion(10, [1, 1, 998], [9, 9, 99], minimum=1) == [1, 1, 8]


@pytest.mark.parametrize("overflow", ["proportional", "equal"])
def test_property_apportion_is_whole_exact_and_within_capacity(overflow):
    rng = np.random.default_rng(0)
    for _ in range(300):
        layers = int(rng.integers(1, 9))
        capacity = rng.integers(0, 40, layers).tolist()
        shares = (rng.random(layers) * rng.integers(0, 2, layers)).tolist()
        total = int(rng.integers(0, sum(capacity) + 1))
        counts = apportion(total, shares, capacity, overflow=overflow)
        assert sum(counts) == total
        assert all(isinstance(count, int) and 0 <= count <= most for count, most in zip(counts, capacity))


def test_error_allocation():
    with pytest.raises(ValueError, match="total=9 does not fit into the capacities, 8 in all"):
        apportion(9, [1, 1], [4, 4])
    with pytest.raises(ValueError, match="must be finite and not negative"):
        apportion(2, [1, float("nan")], [4, 4])
    with pytest.raises(ValueError, match=r"density=1\.5 must lie between 0 and 1"):
        erdos_renyi_kernel([(2, 2)], 1.5)
    with pytest.raises(ValueError, match="distribution='er' is unknown; choose one of 'uniform', 'erk'"):
        layer_counts([(2, 2)], 0.5, "er")
    with pytest.raises(ValueError, match=r"target_sparsity=0.95 leaves 1 of 20 weights to 2 layers"):
        layer_counts([(2, 5), (5, 2)], 0.95)


# -- choosing entries ------------------------------------------------------------------------------------------------


def test_equation_lowest_and_highest_against_a_full_sort():
    rng = np.random.default_rng(1)
    for _ in range(100):
        values = rng.integers(0, 6, (4, 5)).astype(float)  # full of ties
        among = rng.random((4, 5)) < 0.6
        count = int(rng.integers(0, among.sum() + 1))
        for function, sign in ((lowest, 1), (highest, -1)):
            places = sorted(np.flatnonzero(among), key=lambda i: (sign * values.ravel()[i], i))[:count]
            chosen = function(torch.from_numpy(values), torch.from_numpy(among), count)
            assert np.flatnonzero(chosen.numpy()).tolist() == sorted(places)


def test_property_choosing_does_not_depend_on_the_memory_layout():
    values = torch.randint(4, (6, 5, 3, 3)).double()
    among = torch.rand(6, 5, 3, 3) < 0.5
    there = values.to(memory_format=torch.channels_last), among.to(memory_format=torch.channels_last)
    assert torch.equal(lowest(values, among, 40), lowest(*there, 40))


def test_property_nan_is_chosen_last():
    values = torch.tensor([math.nan, 1.0, -math.inf, math.inf])
    everywhere = torch.ones(4, dtype=torch.bool)
    assert lowest(values, everywhere, 2).tolist() == [False, True, True, False]
    assert highest(values, everywhere, 2).tolist() == [False, True, False, True]
    with pytest.raises(ValueError, match="count=5 is more than the 4 entries"):
        lowest(values, everywhere, 5)


def test_target_random_entries_are_uniform():
    # 4,000 draws of 3 out of 8 marked: each marked place 1,500 ± 4·√(4000·⅜·⅝)
    among = torch.tensor([True] * 8 + [False] * 4)
    generator = torch.Generator().manual_seed(0)
    counts = sum(random_entries(among, 3, generator).long() for _ in range(4000))
    assert counts[8:].sum() == 0 and counts.sum() == 12_000
    assert (counts[:8] - 1500).abs().max() <= 4 * math.sqrt(4000 * 3 / 8 * 5 / 8)


@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_property_first_masks_keep_an_identity_whole_and_no_output_of_zeros_alone(distribution):
    torch.manual_seed(0)
    model = whitened94(num_classes=4, width=8)  # convolutions begin as identities: one weight an output is not zero
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.dim() == 4}
    RigL(
        model, torch.optim.SGD(model.parameters()), target_sparsity=0.9, every=2, end_step=4, distribution=distribution,
        exclude=("whiten",),
    )  # fmt: skip
    for name, weight in before.items():
        if name == "whiten.weight":
            continue
        after = model.get_parameter(name)
        assert after.flatten(1).any(1).all(), name
        if "convolutions" in name:  # nothing but the identity
            assert torch.equal(after, weight), name


def test_equation_cosine_decay():
    assert cosine_decay(0, 8, 0.5, 0.005) == 0.5
    assert cosine_decay(2, 8, 0.5, 0.005) == pytest.approx(0.005 + 0.495 * (1 + math.sqrt(0.5)) / 2)
    assert cosine_decay(8, 8, 0.5, 0.005) == cosine_decay(9, 8, 0.5, 0.005) == pytest.approx(0.005)


# -- what all methods keep -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("name", METHODS)
def test_property_masked_weights_are_zero_and_the_count_is_exact_after_every_step(name, make_optimizer):
    method, settings = METHODS[name]
    model = network().to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model.parameters())
    masks = method(model, optimizer, target_sparsity=0.8, **settings)
    seen = [{n: m.clone() for n, m in masks.keep_masks.items()}]

    def after(step):
        wanted = round(masks.target_now * masks.groups.total)
        if name in DYNAMIC:
            assert wanted == round(0.8 * masks.groups.total)
            assert masks.groups.zeros(list(masks.keep_masks.values())) == wanted
        elif masks._due():
            assert masks.groups.zeros(list(masks.keep_masks.values())) == wanted
        for param, mask, before in zip(masks.params, masks.keep_masks.values(), seen[-1].values()):
            assert (param[~mask] == 0).all() and mask.any()
            state = optimizer.state[param]
            held = [key for key, value in state.items() if getattr(value, "shape", None) == param.shape]
            assert held, "an optimizer with a state is what is tested"
            if name != "sparse_momentum":
                assert all((state[key][~mask] == 0).all() for key in held)
                assert all((state[key][mask & ~before] == 0).all() for key in held)
            assert (param[mask & ~before] == 0).all()  # what has grown starts at zero
        seen.append({n: m.clone() for n, m in masks.keep_masks.items()})

    assert masks.hard_sparsity == pytest.approx(0.8 if name in DYNAMIC else 0.0, abs=1e-4)
    train(model, optimizer, range(12), after)
    changes = sum(any((a[n] != b[n]).any() for n in a) for a, b in zip(seen, seen[1:]))
    assert changes >= 3
    report = sparsity_report(model, masks)
    assert round(0.8 * masks.groups.total) <= report.prunable_zeros and report.prunable_total == masks.groups.total
    assert not torch.isnan(torch.cat([p.flatten() for p in model.parameters()])).any()


@pytest.mark.parametrize("make_optimizer", [OPTIMIZERS["sgd"], OPTIMIZERS["cv_adam"]], ids=["sgd", "cv_adam"])
@pytest.mark.parametrize("name", METHODS)
def test_roundtrip_resumed_through_a_file_equals_uninterrupted(name, make_optimizer, tmp_path):
    method, settings = METHODS[name]

    def start(seed):
        model = network(seed)
        optimizer = make_optimizer(model.parameters())
        return model, optimizer, method(model, optimizer, target_sparsity=0.8, seed=seed, **settings)

    whole, optimizer, masks = start(0)
    train(whole, optimizer, range(12))
    half, first, interrupted = start(0)
    train(half, first, range(5))
    save_tree(tmp_path / "state", interrupted.state_dict())

    resumed, second, again = start(1)
    resumed.load_state_dict(half.state_dict())
    second.load_state_dict(first.state_dict())
    again.load_state_dict(load_tree(tmp_path / "state"))
    for key, mask in again.keep_masks.items():
        assert mask.dtype is torch.bool and torch.equal(mask, interrupted.keep_masks[key])
    train(resumed, second, range(5, 12))
    assert again.step_count == masks.step_count == 12
    for (key, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(a, b), key
    for key, mask in masks.keep_masks.items():
        assert torch.equal(mask, again.keep_masks[key])


@pytest.mark.parametrize("name", METHODS)
def test_property_finish_and_detach(name):
    method, settings = METHODS[name]
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    masks = method(model, optimizer, target_sparsity=0.8, **settings)
    train(model, optimizer, range(5))
    masks.finish_()
    kept = {n: m.clone() for n, m in masks.keep_masks.items()}
    assert masks.groups.zeros(list(kept.values())) == round(0.8 * masks.groups.total) and masks.target_now == 0.8
    assert all((param[~mask] == 0).all() for param, mask in zip(masks.params, kept.values()))
    train(model, optimizer, range(5, 8))
    assert all(torch.equal(mask, kept[n]) for n, mask in masks.keep_masks.items())
    masks.detach()
    train(model, optimizer, range(8, 9))
    assert any((param[~mask] != 0).any() for param, mask in zip(masks.params, kept.values()))
    masks.apply_()
    assert all((param[~mask] == 0).all() for param, mask in zip(masks.params, kept.values()))
    assert masks.soft_sparsity is None and "prunable weights" in masks.describe()


@pytest.mark.parametrize("name", DYNAMIC)
def test_property_the_seed_decides_and_nothing_global_is_touched(name):
    method, settings = METHODS[name]
    before = torch.get_rng_state()
    states = []
    for seed in (4, 4, 5):
        model = build()
        torch.set_rng_state(before)
        masks = method(model, sgd(model), target_sparsity=0.5, seed=seed, **settings)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(list(masks.keep_masks.values()))
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1]))
    assert not all(torch.equal(a, b) for a, b in zip(states[0], states[2]))


def test_property_excluded_and_frozen_layers_stay_dense():
    model = network()
    held = [p for n, p in model.named_parameters() if not n.startswith("stages.2")]
    masks = RigL(model, torch.optim.SGD(held, lr=0.1), target_sparsity=0.5, end_step=9, exclude=["stem", "head"])
    reasons = {each.name: each.reason for each in masks.groups.excluded}
    assert reasons["head.weight"] == "excluded by 'head'"
    assert reasons["stages.2.0.conv1.weight"] == "not held by the optimizer"
    assert not any(n.startswith(("stem", "head", "stages.2")) for n in masks.keep_masks)
    assert (model.stem[0].weight != 0).all() and (model.stages[2][0].conv1.weight != 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_property_a_layer_without_gradient_is_left_alone(name):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(9, 4, bias=False), nn.Linear(6, 6, bias=False)

        def forward(self, x):
            return self.used(x)

    method, settings = METHODS[name]
    model = Half().double()
    optimizer = sgd(model)
    masks = method(model, optimizer, target_sparsity=0.5, **settings)
    for step in range(12):
        step_torch(model, optimizer, step)
    masks.finish_()
    assert masks.groups.zeros(list(masks.keep_masks.values())) == round(0.5 * masks.groups.total)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_sparsity": 1.0}, r"target_sparsity=1.0 must lie in \[0, 1\)"),
        ({"target_sparsity": 0.5, "every": 0}, "every=0 must be at least 1"),
        ({"target_sparsity": 0.5, "end_step": 0}, "end_step=0 must be at least 1"),
        ({"target_sparsity": 0.99}, "leaves 1 of 91 weights to 2 layers"),
        ({"target_sparsity": 0.5, "distribution": "er"}, "distribution='er' is unknown"),
        ({"target_sparsity": 0.5, "exclude": ["stem"]}, "exclude='stem' matches no module"),
    ],
)
def test_error_settings(settings, message):
    model = build()
    with pytest.raises(ValueError, match=message):
        SET(model, sgd(model), **{"every": 3, **settings})


def test_error_an_optimizer_of_another_model():
    with pytest.raises(ValueError, match="holds none of the model's prunable weights"):
        SET(build(), sgd(build()), target_sparsity=0.5, every=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(method="RigL"), "method 'RigL', this pruner of version 1 and 'SET'"),
        (lambda s: s.update(version=2), "state is of version 2"),
        (lambda s: s["keep"].pop("1.weight"), "differ at '1.weight'"),
        (lambda s: s["keep"].update({"1.weight": torch.ones(2, 2).bool()}), r"\['1.weight'\] has shape \(2, 2\)"),
        (lambda s: s["keep"]["1.weight"].fill_(True), "state keeps .* weights, this one 45"),
    ],
)
def test_error_a_state_of_another_is_refused(change, message):
    model = build()
    masks = SET(model, sgd(model), target_sparsity=0.5, every=2)
    state = masks.state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        masks.load_state_dict(state)


@pytest.mark.parametrize("restored_first", [True, False])
def test_roundtrip_weights_restored_before_the_method_is_built_survive_its_first_masks(restored_first):
    # Lightning loads the weights, then has the optimizer built, then loads its state.
    model = build()
    optimizer = sgd(model)
    SET(model, optimizer, target_sparsity=0.5, every=2)
    for step in range(1, 6):
        step_torch(model, optimizer, step)
    weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    resumed = build()
    if restored_first:
        resumed.load_state_dict(weights)
    second = sgd(resumed)
    masks = SET(resumed, second, target_sparsity=0.5, every=2)
    if not restored_first:
        resumed.load_state_dict(weights)
    second.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), weights.values()))
    step_torch(model, optimizer, 6)
    step_torch(resumed, second, 6)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), model.parameters()))
    assert masks.hard_sparsity == pytest.approx(0.5, abs=0.01)
