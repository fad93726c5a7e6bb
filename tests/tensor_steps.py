"""One tensor's work for `sampler_step`, by name, and how two results are compared."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from bayesprune.samplers.layout import DecayLayout
from bayesprune.samplers.noise import stream_key
from bayesprune.samplers.tensor_step import TensorStep

SIZES = (0, 1, 31, 33, 2047, 5000)
DECAYS = ("number", "groups", "weights")


def tensor_step(
    numel: int,
    preconditioner: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    state: torch.dtype | None = None,
    previous: bool = True,
    decay: str = "number",
    device: str = "cpu",
    **settings: object,
) -> TensorStep:
    generator = torch.Generator().manual_seed(seed)

    def normal(count: int = numel) -> torch.Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    tensors = {name: normal().to(device, dtype) for name in ("weight", "gradient", "momentum")}
    scale = {"paper": normal(), "rms": normal().square(), "none": None}[preconditioner]
    decays = {
        "number": 0.03,
        "groups": DecayLayout(normal(7).abs().to(device, dtype), 3, 7),
        "weights": DecayLayout(normal(max(numel, 1)).abs().to(device, dtype), 1, max(numel, 1)),
    }
    tensors["momentum"] = tensors["momentum"].to(state or dtype)
    common = dict(
        offset=0, lr=0.1, beta1=0.9, beta2=1.2, num_data=50.0, adapt=True, scale_decay=0.9, damping=0.05, dual_lr=0.2, alpha=0.3,
        noise_std=0.1, exact=True, kinetic_factor=3.0, blend=0.25,
    )  # fmt: skip
    return TensorStep(
        **tensors,
        scale=None if scale is None else scale.to(device, state or dtype),
        kinetic=torch.tensor(0.5, device=device),
        weight_decay=decays[decay],
        key=stream_key(1, seed, 5),
        previous_key=stream_key(1, seed, 4) if previous else None,
        preconditioner=preconditioner,
        **(common | settings),
    )


def stepped(items: list[TensorStep], step: Callable[[list[TensorStep]], object]) -> list[TensorStep]:
    """Return copies of the items after the step."""
    items = copy.deepcopy(items)
    step(items)
    return items


def assert_steps_close(ours: list[TensorStep], theirs: list[TensorStep], rtol: float, atol: float) -> None:
    """Compare weights, state and kinetic temperature; bfloat16 state may differ by one unit where the digits dropped do."""
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("weight", "momentum", "scale", "kinetic"):
            a, b = getattr(mine, name), getattr(other, name)
            if a is not None and a.dtype == torch.bfloat16:
                torch.testing.assert_close(a, b, rtol=2**-7, atol=1e-6)
                assert a.numel() < 1000 or float((a != b).float().mean()) < 1e-3
            elif a is not None:
                torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}")
