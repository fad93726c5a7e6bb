"""The functional step: its equations by hand, and every faster way against the plain loop."""

from __future__ import annotations

import copy
import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bayesprune.samplers import native, step
from bayesprune.samplers.layout import DecayLayout
from bayesprune.samplers.noise import counter_normal
from bayesprune.samplers.step import fused_reason, sampler_step
from bayesprune.samplers.tensor_step import TensorStep
from tensor_steps import DECAYS, SIZES, assert_steps_close, stepped, tensor_step

KINDS = ("paper", "rms", "none")
needs_native = pytest.mark.skipif(not native.available(), reason="no C compiler on this machine")
WAYS = {
    "plain": dict(foreach=False, fused=False),
    "foreach": dict(foreach=True, fused=None),
    "native": dict(foreach=None, fused=True),
}
CPU_WAYS = ["plain", "foreach", pytest.param("native", marks=needs_native)]


def run(items, way):
    return stepped(items, lambda parts: sampler_step(parts, **WAYS[way]))


def by_hand(item: TensorStep) -> dict[str, np.ndarray]:
    """The step as the module's documentation writes it, in NumPy and float64."""
    n = item.weight.numel()
    w, g, v = (getattr(item, name).double().numpy() for name in ("weight", "gradient", "momentum"))
    decay = item.weight_decay
    wd = (
        decay.values.double().numpy()[np.arange(n) // decay.inner % decay.period]
        if isinstance(decay, DecayLayout)
        else decay
    )
    noise = counter_normal(n, item.key, start=item.offset, dtype=torch.float64).numpy()
    previous = np.zeros(n)
    if item.previous_key:
        previous = counter_normal(n, item.previous_key, start=item.offset, dtype=torch.float64).numpy()
    scale, tau = None, np.ones(n)
    if item.preconditioner == "paper":
        scale = item.scale.double().numpy()
        if item.adapt and item.dual_lr:
            tau = 1 / (1 + np.exp(-scale))
            dual = 1 / (item.num_data * tau) - item.alpha**2 * wd * tau - item.alpha * previous * g
            scale = scale + item.dual_lr * dual
        tau = 1 / (1 + np.exp(-scale))
    elif item.preconditioner == "rms":
        scale = item.scale.double().numpy()
        if item.adapt:
            scale = item.scale_decay * scale + (1 - item.scale_decay) * (g + wd * w) ** 2
        tau = 1 / (np.sqrt(scale) + item.damping)
    s = item.noise_std / np.sqrt(tau) if item.exact else item.noise_std
    v = item.beta1 * v - item.beta2 * item.lr * (g + wd * w) + s * noise
    kinetic = item.kinetic.item() + item.blend * (item.kinetic_factor * np.mean(tau * v**2) - item.kinetic.item())
    result = {"weight": w + tau * v, "momentum": v, "kinetic": np.array(kinetic)}
    return result if scale is None else result | {"scale": scale}


@pytest.mark.parametrize("way", CPU_WAYS)
@pytest.mark.parametrize("previous", [False, True])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equation_every_way_is_the_step_by_hand(kind, exact, previous, way):
    dtype = torch.float32 if way == "native" else torch.float64
    for decay, adapt in itertools.product(DECAYS, (False, True)):
        item = tensor_step(50, kind, exact=exact, previous=previous, decay=decay, adapt=adapt, offset=3, dtype=dtype)
        (after,) = run([item], way)
        tolerance = 3e-6 if dtype == torch.float32 else 1e-12
        for name, value in by_hand(item).items():
            close = 1e-6 if name == "kinetic" else tolerance
            np.testing.assert_allclose(getattr(after, name).double().numpy(), value, rtol=close, atol=close)


def test_equation_kinetic_temperature_blends_the_mean_over_the_tensor():
    """v ← −0.1·(2, −4) = (−0.2, 0.4), τ = 1: mean(τv²) = 0.1; 0.5 + 0.25·(3·0.1 − 0.5) = 0.45."""
    for way in ("plain", "foreach", *(["native"] if native.available() else [])):
        item = tensor_step(2, "none", noise_std=0.0, lr=0.1, beta2=1.0, decay="number")
        item.gradient, item.momentum, item.weight_decay = torch.tensor([2.0, -4.0]), torch.zeros(2), 0.0
        assert float(run([item], way)[0].kinetic) == pytest.approx(0.45, abs=1e-7)
        assert float(run([replace(item, blend=0.0)], way)[0].kinetic) == 0.5
        item.weight = torch.tensor([0.0, -1.0])  # a pruned weight adds nothing: mean 0.08
        assert float(run([item], way)[0].kinetic) == pytest.approx(0.375 + 0.75 * 0.08, abs=1e-7)


@pytest.mark.parametrize("way", ["foreach", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("offset", [0, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_parity_faster_ways_are_the_plain_loop(kind, dtype, offset, way):
    tight = dict(rtol=2e-5, atol=4e-6) if dtype == torch.float32 else dict(rtol=1e-6, atol=1e-12)
    for exact, adapt, decay, previous in itertools.product((False, True), (False, True), DECAYS, (False, True)):
        items = [
            tensor_step(
                n, kind, seed=n, exact=exact, adapt=adapt, decay=decay, previous=previous, offset=offset, dtype=dtype
            )
            for n in SIZES
        ]
        assert_steps_close(run(items, way), run(items, "plain"), **tight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["paper", "rms"])
def test_parity_foreach_rounds_bfloat16_state_as_the_plain_loop_does(kind, dtype):
    items = [tensor_step(n, kind, seed=n, dtype=dtype, state=torch.bfloat16, offset=5) for n in SIZES]
    assert_steps_close(run(items, "foreach"), run(items, "plain"), rtol=2e-5, atol=4e-6)
    if native.available():  # leaves such tensors to the plain loop
        assert_steps_close(run(items, "native"), run(items, "plain"), rtol=0, atol=0)


def test_target_stochastic_rounding_is_unbiased():
    """With β₁ = 1 and no gradient the momentum is only rounded: a step down by less than its unit goes on average through."""
    item = tensor_step(40_000, "none", state=torch.bfloat16, beta1=1.0, beta2=1.0, lr=1.0, noise_std=0.0)
    item.weight_decay, item.momentum = 0.0, torch.ones(40_000, dtype=torch.bfloat16)
    item.gradient = torch.full((40_000,), -0.002)
    (after,) = run([item], "plain")
    unit, share = 2**-7, 0.002 * 2**7
    assert set(after.momentum.unique().tolist()) == {1.0, 1.0 + unit}
    error = 4 * (share * (1 - share) / 40_000) ** 0.5
    assert abs(float((after.momentum > 1).float().mean()) - share) < error


@pytest.mark.parametrize("way", CPU_WAYS)
def test_parity_settings_may_differ_from_tensor_to_tensor(way):
    changes = [
        {}, dict(lr=0.2), dict(beta1=0.5), dict(beta2=0.7), dict(weight_decay=0.2), dict(num_data=10.0), dict(adapt=False),
        dict(scale_decay=0.5), dict(damping=0.4), dict(dual_lr=0.5), dict(alpha=0.6), dict(noise_std=0.3), dict(exact=False),
        dict(kinetic_factor=7.0), dict(blend=0.9), dict(previous_key=None), dict(key=(9, 9, 9, 9)), dict(offset=12),
    ]  # fmt: skip
    for kind in KINDS:
        items = [replace(copy.deepcopy(tensor_step(40, kind)), **change) for change in changes]
        together = run(items, way)
        alone = [run([item], way)[0] for item in items]
        assert_steps_close(together, alone, rtol=1e-6, atol=1e-7)
        for item, after in zip(items, together):
            for name, value in by_hand(item).items():
                np.testing.assert_allclose(getattr(after, name).double().numpy(), value, rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("way", CPU_WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_property_a_tensor_stepped_in_shards_is_the_tensor_stepped_whole(kind, way):
    whole = tensor_step(5000, kind, decay="number", offset=1)
    (after,) = run([whole], way)
    for cut in (1, 32, 1023, 2501):
        parts = []
        for part in (slice(0, cut), slice(cut, 5000)):
            tensors = {f.name: getattr(whole, f.name)[part].clone() for f in fields(whole)[:3]}
            scale = None if whole.scale is None else whole.scale[part].clone()
            parts.append(replace(whole, **tensors, scale=scale, kinetic=whole.kinetic.clone(), offset=1 + part.start))
        parts = run(parts, way)
        for name in ("weight", "momentum", "scale"):
            if getattr(after, name) is not None:
                joined = torch.cat([getattr(part, name) for part in parts])
                assert torch.equal(joined, getattr(after, name)) or way != "native"
                torch.testing.assert_close(joined, getattr(after, name), rtol=1e-6, atol=1e-7)
        mean = sum(float(part.kinetic - 0.375) * part.weight.numel() for part in parts) / 5000
        assert float(after.kinetic) - 0.375 == pytest.approx(mean, rel=1e-5)


@needs_native
@pytest.mark.parametrize("kind", KINDS)
def test_property_threads_change_no_bit(kind):
    items = [tensor_step(n, kind, seed=n) for n in (100_000, 33, 70_001)]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(run(items, "native"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert_steps_close(results[0], other, rtol=0, atol=0)


@pytest.mark.parametrize("way", CPU_WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_property_a_gradient_that_is_no_number_reaches_the_weight(kind, way):
    for value in (float("nan"), float("inf")):
        item = tensor_step(100, kind)
        item.gradient[17] = value
        after = run([item], way)[0].weight
        assert not after[17].isfinite()
        assert after.isfinite().sum() == 99


@pytest.mark.parametrize("way", CPU_WAYS)
def test_property_an_extreme_dual_variable_stays_finite(way):
    item = tensor_step(4, "paper", adapt=False, noise_std=0.0)
    item.scale.copy_(torch.tensor([-60.0, -30.0, 30.0, 60.0]))
    (after,) = run([item], way)
    np.testing.assert_allclose(after.weight.numpy(), by_hand(item)["weight"], rtol=1e-6)


class Calls(TorchDispatchMode):
    """Records the operations that compute something."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_property_foreach_takes_at_most_forty_calls_for_all_tensors(kind):
    items = [tensor_step(10 + i, kind, seed=i) for i in range(62)]
    run(items, "foreach")  # the counters are laid once
    with Calls() as calls:
        sampler_step(items, foreach=True, fused=None)
    assert len(calls.names) <= 40, calls.names


def test_property_no_work_is_no_work():
    for way in ("plain", "foreach", *(["native"] if native.available() else [])):
        run([], way)
        item = tensor_step(0, "rms")
        assert float(run([item], way)[0].kinetic) == 0.5


@needs_native
def test_property_the_native_step_tells_autograd():
    item = tensor_step(3, "none")
    version = item.weight._version
    sampler_step([item], foreach=None, fused=None)
    assert item.weight._version > version


def test_error_both_ways_at_once():
    with pytest.raises(ValueError, match="exclude each other"):
        sampler_step([], foreach=True, fused=True)


def test_error_a_missing_kernel_is_named(monkeypatch):
    assert "'meta'" in fused_reason("meta")
    monkeypatch.setattr(step.native, "available", lambda: False)
    monkeypatch.setattr(step.native, "reason", "no C compiler (cc, gcc or clang) is on the path")
    item = tensor_step(3, "none")
    with pytest.raises(ValueError, match="fused=True is not available on cpu: no C compiler"):
        sampler_step([item], foreach=None, fused=True)
    sampler_step([item], foreach=None, fused=None)  # the plain loop
    monkeypatch.setattr(step.triton, "available", lambda: False)
    assert "pip install triton" in fused_reason("cuda")


@pytest.mark.parametrize("way", CPU_WAYS)
def test_error_a_stream_ends(way):
    with pytest.raises(ValueError, match="a stream has the numbers"):
        run([tensor_step(10, "none", offset=(1 << 33) - 9)], way)
