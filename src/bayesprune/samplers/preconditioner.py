"""The diagonals τ by which samplers scale their moves: the paper's dual variable, gradient second moments, none.

The stationary law is exact for any τ that is frozen while samples are taken, so that `adapt` is switched off then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from bayesprune.samplers import dynamics
from bayesprune.samplers.layout import local_part, whole

Preconditioner = Literal["paper", "rms", "none"]

STATE: dict[str, str | None] = {"paper": "rho", "rms": "second_moment", "none": None}
"""The name under which each preconditioner keeps its one value a weight."""


def damping(group: Mapping[str, Any]) -> float:
    """Return eps + √(weight_decay/N), the least root mean square of a gradient that `rms` believes."""
    return float(group["eps"]) + math.sqrt(group["weight_decay"] / group["num_data"])


def first_scale(kind: Preconditioner, param: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return what a preconditioner starts from: ρ = 0, or the mean square of the first gradient for every weight."""
    start = torch.zeros_like(param, memory_format=torch.preserve_format, dtype=dtype)
    if kind == "rms" and param.numel() and param.grad is not None:
        local_part(start)[0].fill_(whole(param.grad.detach().nan_to_num(0.0, 0.0, 0.0).square().sum()) / param.numel())
    return start


def tau(group: Mapping[str, Any], state: Mapping[str, Any], param: Tensor) -> Tensor:
    """Return τ of one parameter, in its shape: σ(ρ), 1/(√ν + damping) or 1; before its first step 1/2, 1 and 1."""
    kind = group["preconditioner"]
    name = STATE[kind]
    scale = state.get(name) if name else None
    if scale is None:
        return torch.full_like(param, 0.5 if kind == "paper" else 1.0)
    scale = scale.to(param.dtype)
    return dynamics.mirror_map(scale) if kind == "paper" else 1 / (scale.sqrt() + damping(group))
