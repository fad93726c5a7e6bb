from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bayesprune.samplers import CVAdam
from bayesprune.samplers.kernels import native
from parity import NumpyCVAdam

needs_native = pytest.mark.skipif(not native.available(), reason="no C compiler on this machine")


def quadratic_steps(optimizer, params, steps, seed=0):
    """Step with gradients that depend on the weights and a fixed stream."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for param in params:
            noise = torch.randn(param.shape, generator=generator, dtype=param.dtype)
            param.grad = (param.detach() * 0.3 + noise).contiguous(
                memory_format=torch.channels_last
                if param.dim() == 4 and not param.is_contiguous()
                else torch.contiguous_format
            )
        optimizer.step()


@pytest.mark.parametrize("steps", [1, 100])
def test_equation_paper_step_is_the_numpy_transcription(steps):
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    settings = dict(num_data=50.0, lr=0.3, betas=(0.1, 1.0), dual_lr=0.2, weight_decay=0.02, temperature=0.7)
    weight = nn.Parameter(start.clone())
    optimizer = CVAdam([weight], noise="paper", **settings)
    reference = NumpyCVAdam(start.numpy(), **settings)
    for _ in range(steps):
        gradient = torch.randn(3, 7, generator=generator, dtype=torch.float64) + weight.detach()
        weight.grad = gradient
        optimizer.step()
        reference.step(gradient.numpy(), optimizer.last_noise(weight).numpy())
    for name, value in (("momentum", reference.v), ("rho", reference.rho)):
        np.testing.assert_allclose(optimizer.state[weight][name].numpy(), value, rtol=0, atol=1e-12)
    np.testing.assert_allclose(weight.detach().numpy(), reference.w, rtol=0, atol=1e-12)
    assert np.abs(reference.rho).max() > 1e-3  # the dual variable did move


@pytest.mark.parametrize("noise", ["exact", "paper"])
@pytest.mark.parametrize("tau", [0.5, 0.8])
@pytest.mark.parametrize("beta1", [0.0, 0.1, 0.9])
def test_limit_cold_frozen_is_sgd_with_momentum(noise, tau, beta1):
    start = torch.randn(5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = CVAdam(
        [ours], lr=0.2, num_data=10, betas=(beta1, 1.5), dual_lr=0.0, weight_decay=0.01, temperature=0.0, noise=noise
    )
    ours.grad = torch.zeros_like(ours)
    optimizer._collect()
    optimizer.state[ours]["rho"].fill_(float(torch.logit(torch.tensor(tau, dtype=torch.float64))))
    sgd = torch.optim.SGD([theirs], lr=tau * 1.5 * 0.2, momentum=beta1, weight_decay=0.01)
    quadratic_steps(optimizer, [ours], 50)
    quadratic_steps(sgd, [theirs], 50)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def nasty_parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    shapes = [(5000,), (7, 3, 3, 3), (64, 16), (1,), (0,), (2049,), ()]
    params = [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]
    params[1] = nn.Parameter(params[1].detach().to(memory_format=torch.channels_last))
    return params


@needs_native
@pytest.mark.parametrize("noise", ["exact", "paper"])
@pytest.mark.parametrize("dual_lr", [0.0, 0.1])
@pytest.mark.parametrize("global_scale", ["paper", 0.2])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_parity_native_step_is_the_plain_loop(noise, dual_lr, global_scale, temperature):
    decays = {1: torch.rand(7, 3, 1, 1), 2: torch.rand(1, 16), 5: torch.rand(2049)}
    runs = []
    for implementation in ("plain", "native"):
        params = nasty_parameters()
        optimizer = CVAdam(
            params, lr=0.1, num_data=40, dual_lr=dual_lr, noise=noise, global_scale=global_scale,
            temperature=temperature, seed=5, implementation=implementation,
        )  # fmt: skip
        for index, decay in decays.items():
            optimizer.set_weight_decay(params[index], decay)
        unused, frozen_midway = params[3], params[4]
        for step in range(20):
            quadratic_steps(optimizer, [p for p in params if p is not unused], 1, seed=step)
            if step == 10:
                frozen_midway.requires_grad_(False)
                frozen_midway.grad = None
        assert unused not in optimizer.state
        runs.append((params, optimizer))
    for ours, theirs in zip(runs[0][0], runs[1][0]):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
        for name in ("momentum", "rho"):
            if ours in runs[0][1].state:
                torch.testing.assert_close(
                    runs[0][1].state[ours][name], runs[1][1].state[theirs][name], rtol=1e-5, atol=2e-6
                )


@pytest.mark.parametrize("implementation", ["plain", pytest.param("native", marks=needs_native)])
def test_property_decay_tensor_acts_per_group(implementation):
    """Each group decays as if it were alone with its own number."""
    start = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    for shape in [(4, 6, 1, 1), (1, 6, 1, 1), (4, 1, 1, 1), (4, 6, 3, 3), (1, 1, 3, 1), (4, 1, 3, 1), ()]:
        decay = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        for memory_format in (torch.contiguous_format, torch.channels_last):
            weight = nn.Parameter(start.clone(memory_format=memory_format))
            optimizer = CVAdam(
                [weight], lr=0.5, num_data=9, temperature=0.0, dual_lr=0.0, implementation=implementation
            )
            optimizer.set_weight_decay(weight, decay)
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
            torch.testing.assert_close(weight.detach(), start - 0.5 * 0.5 * decay * start, rtol=1e-6, atol=1e-7)


def test_property_state_is_two_values_a_weight():
    weight = nn.Parameter(torch.randn(30, 20))
    optimizer = CVAdam([weight], lr=0.1, num_data=10)
    quadratic_steps(optimizer, [weight], 3)
    values = sum(v.numel() for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor))
    assert values == 2 * weight.numel()


def test_property_step_leaves_global_generators_alone_and_is_reproducible():
    outcomes = []
    for _ in range(2):
        weight = nn.Parameter(torch.ones(100))
        optimizer = CVAdam([weight], lr=0.1, num_data=10, seed=7)
        before = torch.get_rng_state()
        quadratic_steps(optimizer, [weight], 0)
        weight.grad = torch.ones(100)
        optimizer.step()
        assert torch.equal(before, torch.get_rng_state())
        outcomes.append(weight.detach().clone())
    assert torch.equal(*outcomes)
    other = nn.Parameter(torch.ones(100))
    optimizer = CVAdam([other], lr=0.1, num_data=10, seed=8)
    other.grad = torch.ones(100)
    optimizer.step()
    assert not torch.allclose(other, outcomes[0])


@pytest.mark.parametrize("implementation", ["plain", pytest.param("native", marks=needs_native)])
def test_roundtrip_state_dict_goes_on_bit_for_bit(implementation):
    torch.manual_seed(0)
    settings = dict(lr=0.1, num_data=30, seed=3, global_scale=0.1, implementation=implementation)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    optimizer = CVAdam(model.parameters(), **settings)
    optimizer.set_weight_decay(model[0].weight, torch.rand(5, 1))
    quadratic_steps(optimizer, list(model.parameters()), 4)
    twin = copy.deepcopy(model)
    resumed = CVAdam(twin.parameters(), **settings)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, net in ((optimizer, model), (resumed, twin)):
        quadratic_steps(each, list(net.parameters()), 6, seed=9)
    for ours, theirs in zip(model.parameters(), twin.parameters()):
        assert torch.equal(ours, theirs)
        assert torch.equal(optimizer.state[ours]["rho"], resumed.state[theirs]["rho"])


def test_property_param_groups_schedulers_closure_and_added_group():
    first, second, third = (nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer = CVAdam([{"params": [first]}, {"params": [second], "lr": 0.0}], lr=0.1, num_data=10, temperature=0.0)
    optimizer.add_param_group({"params": [third], "lr": 1.0, "betas": (0.0, 2.0), "weight_decay": 0.0})
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    def closure():
        optimizer.zero_grad()
        loss = first.sum() + second.sum() + third.sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 9.0
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.0, 0.5]
    assert torch.equal(second.detach(), torch.ones(3))
    tau = optimizer.tau(third)
    torch.testing.assert_close(third.detach(), 1 - tau * 2.0)
    streams = [optimizer.state[p]["stream"] for p in (first, second, third)]
    assert streams == [0, 1, 2]


def test_property_gradient_accumulation_and_scaler():
    def run(scaled, pieces):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = CVAdam(model.parameters(), lr=0.1, num_data=8, temperature=0.1)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
        for _ in range(3):
            optimizer.zero_grad()
            for piece in inputs.chunk(pieces):
                scaler.scale(model(piece).square().sum() / 8).backward()
            scaler.step(optimizer)
            scaler.update()
        return model.weight.detach()

    torch.testing.assert_close(run(False, 1), run(True, 4), rtol=1e-6, atol=1e-7)


def test_property_version_counter_tells_autograd_of_the_write():
    weight = nn.Parameter(torch.ones(3))
    optimizer = CVAdam([weight], lr=0.1, num_data=10)
    loss = (weight * weight).sum()
    weight.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_property_schedule_of_global_scale_is_called_and_survives_loading():
    seen = []

    def schedule(lr, step):
        seen.append((lr, step))
        return 0.01 * step

    weight = nn.Parameter(torch.ones(3))
    optimizer = CVAdam([weight], lr=0.1, num_data=10, global_scale=schedule)
    quadratic_steps(optimizer, [weight], 3)
    assert seen == [(0.1, 1), (0.1, 2), (0.1, 3)]
    state = optimizer.state_dict()
    assert state["param_groups"][0]["global_scale"] == "schedule"
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["global_scale"] is schedule
    with pytest.raises(ValueError, match="same callable"):
        CVAdam([nn.Parameter(torch.ones(3))], lr=0.1, num_data=10).load_state_dict(state)


def test_equation_effective_temperature_of_the_paper_rule():
    weight = nn.Parameter(torch.ones(3))
    number, lr, beta1 = 50_000, 0.01, 0.1
    optimizer = CVAdam([weight], lr=lr, num_data=number, noise="paper", temperature=1.0, betas=(beta1, 1.0))
    report = optimizer.effective_temperature()[0]
    assert report["mean"] == pytest.approx(0.5 * lr**0.5 * (1 + beta1**2) / (1 - beta1), rel=1e-6)
    assert report["mean"] == pytest.approx(0.056, abs=5e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, r"lr=-1.0 is out of range"),
        ({"num_data": 0}, r"num_data=0 is out of range"),
        ({"betas": (1.0, 1.0)}, r"betas\[0\]=1.0"),
        ({"temperature": float("nan")}, r"temperature=nan"),
        ({"noise": "exakt"}, r"did you mean 'exact'"),
        ({"global_scale": "papr"}, r"did you mean 'paper'"),
        ({"implementation": "fast"}, r"implementation='fast'"),
    ],
)
def test_error_names_argument_and_value(settings, message):
    arguments = {"lr": 0.1, "num_data": 10, **settings}
    with pytest.raises(ValueError, match=message):
        CVAdam([nn.Parameter(torch.ones(2))], **arguments)


def test_error_complex_half_sparse_and_foreign_parameters():
    for dtype in (torch.complex64, torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match="float32 or float64"):
            CVAdam([nn.Parameter(torch.ones(2, dtype=dtype))], lr=0.1, num_data=10)
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = CVAdam(embedding.parameters(), lr=0.1, num_data=10)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()
    with pytest.raises(ValueError, match="not in this optimizer"):
        optimizer.set_weight_decay(nn.Parameter(torch.ones(1)), 0.1)
    with pytest.raises(ValueError, match=r"does not broadcast"):
        optimizer.set_weight_decay(embedding.weight, torch.ones(3))
    with pytest.raises(ValueError, match=r"does not broadcast"):
        optimizer.set_weight_decay(embedding.weight, torch.ones(5, 4, 2))
    with pytest.raises(ValueError, match=r"negative"):
        optimizer.set_weight_decay(embedding.weight, -torch.ones(4, 1))


def test_property_weight_decay_of_returns_what_is_applied():
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = CVAdam([weight], lr=0.1, num_data=10, weight_decay=0.3)
    assert optimizer.weight_decay_of(weight) == 0.3
    decay = torch.tensor([[0.1], [0.2]])
    optimizer.set_weight_decay(weight, decay)
    assert torch.equal(optimizer.weight_decay_of(weight), decay)
    optimizer.set_weight_decay(weight, None)
    assert optimizer.weight_decay_of(weight) == 0.3


def test_equation_noise_to_gradient():
    weight = nn.Parameter(torch.full((1000,), 2.0, dtype=torch.float64))
    optimizer = CVAdam([weight], lr=0.1, num_data=10, temperature=0.5, weight_decay=0.1)
    assert np.isnan(optimizer.noise_to_gradient())
    weight.grad = torch.full_like(weight, 3.0)
    std = (2 * 0.9 * 0.1 * 0.5 / (0.5 * 10)) ** 0.5
    assert optimizer.noise_to_gradient() == pytest.approx(std / (0.1 * (3.0 + 0.1 * 2.0)))


def test_error_strided_and_expanded_parameters_are_refused_not_overrun():
    for tensor in (torch.zeros(12)[:10:2], torch.ones(1).expand(5)):
        weight = nn.Parameter(tensor)
        optimizer = CVAdam([weight], lr=0.1, num_data=10)
        weight.grad = torch.ones_like(weight)
        with pytest.raises(RuntimeError, match="gaps or overlaps"):
            optimizer.step()


def test_roundtrip_copied_and_pickled_optimizers_step():
    weight = nn.Parameter(torch.ones(4))
    optimizer = CVAdam([weight], lr=0.1, num_data=10, seed=2)
    quadratic_steps(optimizer, [weight], 2)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        (param,) = twin.param_groups[0]["params"]
        quadratic_steps(twin, [param], 3, seed=4)
        original = copy.deepcopy(optimizer)
        quadratic_steps(original, [original.param_groups[0]["params"][0]], 3, seed=4)
        assert torch.equal(param, original.param_groups[0]["params"][0])


@needs_native
def test_parity_threads_do_not_change_a_bit():
    outcomes, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            params = [nn.Parameter(torch.ones(150_001)), nn.Parameter(torch.ones(7))]
            optimizer = CVAdam(params, lr=0.1, num_data=10, implementation="native")
            quadratic_steps(optimizer, params, 3)
            outcomes.append(torch.cat([p.detach() for p in params]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*outcomes)


def test_property_noise_that_was_not_injected_is_not_remembered():
    weight = nn.Parameter(torch.ones(5))
    optimizer = CVAdam([weight], lr=0.0, num_data=10)
    quadratic_steps(optimizer, [weight], 1)
    assert not optimizer.last_noise(weight).any()
    optimizer.param_groups[0]["lr"] = 0.1
    quadratic_steps(optimizer, [weight], 1)
    assert optimizer.last_noise(weight).all()


def test_property_native_source_ships_with_the_package():
    import importlib.resources

    tomllib = pytest.importorskip("tomllib")  # Python 3.11

    root = importlib.resources.files("bayesprune")
    assert (root / "samplers" / "kernels" / "native.c").is_file()
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert "samplers/kernels/*.c" in project["tool"]["setuptools"]["package-data"]["bayesprune"]
