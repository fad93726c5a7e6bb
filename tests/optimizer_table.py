"""Every sampler class of the library by name, and the ways to run it: the rows of the table of what torch.optim users expect."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayesprune.samplers import VariationalCVAdam, native
from scenarios import SAMPLERS


def _variational(params: Any, **settings: Any) -> VariationalCVAdam:
    for name in ("temperature", "foreach", "fused"):
        settings.pop(name, None)
    return VariationalCVAdam(params, **{"global_scale": 0.05, **settings})


EVERY: dict[str, Callable[..., torch.optim.Optimizer]] = {**SAMPLERS, "VariationalCVAdam": _variational}
CLASSES = ("CVAdam rms", "SGHMC", "SGLD", "PSGLD", "VariationalCVAdam")

needs_native = pytest.mark.skipif(not native.available(), reason="no C compiler on this machine")
WAYS = {
    "plain": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
ways = pytest.mark.parametrize("way", ["plain", "foreach", pytest.param("fused", marks=needs_native)])
runs = pytest.mark.parametrize(
    ("name", "way"),
    [pytest.param(name, way, marks=needs_native if way == "fused" else ()) for name in SAMPLERS for way in WAYS]
    + [("VariationalCVAdam", "plain")],
)
every = pytest.mark.parametrize("name", EVERY)
samplers = pytest.mark.parametrize("name", SAMPLERS)
classes = pytest.mark.parametrize("name", CLASSES)


def build(name: str, params: Any, **settings: Any) -> Any:
    """Return an optimizer by name, at settings that suit all of them."""
    return EVERY[name](params, **{"lr": 0.05, "num_data": 20.0, "seed": 3, **settings})


def sampling(optimizer: Any) -> contextlib.AbstractContextManager[None]:
    """Return the context in which gradients are taken: Algorithm 1's hold sampled weights."""
    return optimizer.sampled() if hasattr(optimizer, "sampled") else contextlib.nullcontext()


def run(optimizer: Any, params: Sequence[Tensor], steps: int, seed: int = 0) -> None:
    """Step on quadratics whose centres come from a fixed stream."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        centres = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]
        optimizer.zero_grad()
        with sampling(optimizer):
            sum(((p - c).square().sum() / 2 for p, c in zip(params, centres)), torch.zeros(())).backward()
        optimizer.step()


def noise_of(optimizer: Any, param: Tensor) -> Tensor:
    """Return the noise that a parameter's last step used."""
    return optimizer.last_noise(param) if hasattr(optimizer, "last_noise") else optimizer.state[param]["noise"]


def network(seed: int = 0) -> nn.Sequential:
    """Return a small network whose rows do not divide by two."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) / 2)
    return model


def held(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the parameters of an optimizer."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def assert_same_tree(ours: Any, theirs: Any) -> None:
    """Compare two state_dicts bit for bit."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same_tree(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs):
            assert_same_tree(one, other)
    elif isinstance(ours, Tensor):
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs
