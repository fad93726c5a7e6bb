"""What a sampler takes: seeds, parameters, gradients, weight decays and saved states; everything else is refused by name."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from bayesprune.samplers.layout import local_part, overlaps

_TORCH_KEYS = ("foreach", "fused", "differentiable")
"""Keys of a group that say how torch runs an optimizer, not what it does."""


def first_seed(owner: str, seed: int | None, generator: torch.Generator | None) -> int:
    """Return the seed of an optimizer's noise: the given one, else one drawn from a generator."""
    if seed is not None:
        if not isinstance(seed, numbers.Integral):
            raise ValueError(f"seed={seed!r} is not an integer; give one, or None for one of torch's generator.")
        return int(seed)
    processes = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        processes = torch.distributed.get_world_size()
    if processes > 1 and generator is None:
        raise ValueError(
            f"seed=None: {owner} runs in {processes} processes; give the same seed to all that share parameters (DDP, FSDP), and "
            "seed=rank to chains of their own or under ZeroRedundancyOptimizer."
        )
    return int(torch.randint(1 << 62, (), generator=generator, device=generator.device if generator else None))


def innermost(optimizer: Any) -> Any:
    """What wrappers hold as ``.optimizer`` (accelerate's, Lightning's)."""
    inner = getattr(optimizer, "optimizer", None)
    while inner is not None and inner is not optimizer and hasattr(inner, "param_groups"):
        optimizer, inner = inner, getattr(inner, "optimizer", None)
    return optimizer


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside wrappers."""
    optimizer = innermost(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer={type(optimizer).__name__} is no torch.optim.Optimizer and holds none as .optimizer; give the torch "
            "optimizer"
        )
    return optimizer


def find_group(optimizer: Any, param: Tensor) -> dict[str, Any] | None:
    """Return the group of an optimizer that holds a parameter, or None."""
    return next((group for group in optimizer.param_groups if any(param is p for p in group["params"])), None)


def group_of(optimizer: Any, param: Tensor) -> dict[str, Any]:
    """Return the group of an optimizer that holds a parameter, which must be its own."""
    group = find_group(optimizer, param)
    if group is None:
        raise ValueError(
            f"parameter of shape {tuple(param.shape)} is not in this optimizer; pass one of its own parameters."
        )
    return group


def check_added(optimizer: torch.optim.Optimizer) -> None:
    """Refuse, and take out again, the last group of an optimizer where it cannot step a parameter of it."""
    try:
        for param in optimizer.param_groups[-1]["params"]:
            check_parameter(type(optimizer).__name__, param)
    except (ValueError, RuntimeError):
        optimizer.param_groups.pop()
        raise


def check_parameter(owner: str, param: Tensor) -> None:
    """Refuse a parameter that a sampler cannot step."""
    if param.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"parameter of dtype {param.dtype} and shape {tuple(param.shape)}: {owner} samples real float32 or float64 weights; "
            "keep float32 weights and use torch.autocast for half precision, or view complex weights as real."
        )
    local = local_part(param.detach())[0]
    if local.numel() and overlaps(local):
        raise ValueError(
            f"parameter of shape {tuple(param.shape)} and strides {local.stride()}: several of its entries share memory, which "
            f"{owner} cannot move apart; make it contiguous, or train the tensor that it was expanded from."
        )


def checked_gradient(owner: str, param: Tensor, momentum: Tensor | None) -> Tensor:
    """Return the gradient of a parameter that has one; data replaced by such of another shape or dtype are refused."""
    gradient = cast(Tensor, param.grad).detach()
    if gradient.layout is not torch.strided:
        raise RuntimeError(
            f"gradient of the parameter of shape {tuple(param.shape)} is sparse; {owner} needs dense gradients: build the embedding "
            "with sparse=False."
        )
    if param.dtype is not torch.float32:
        check_parameter(owner, param)
    if gradient.shape != param.shape or (momentum is not None and momentum.shape != param.shape):
        raise ValueError(
            f"parameter of shape {tuple(param.shape)} has a gradient of {tuple(gradient.shape)} and a momentum of "
            f"{None if momentum is None else tuple(momentum.shape)}: its data were replaced. Take a new gradient and "
            f"del optimizer.state[param], which begins its state anew, or build a new {owner}."
        )
    return gradient if gradient.dtype == param.dtype else gradient.to(param.dtype)


def checked_decay(value: Tensor, param: Tensor) -> Tensor:
    """Return a weight decay tensor in the dtype and on the device of its parameter."""
    try:
        fits = torch.broadcast_shapes(value.shape, param.shape) == param.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"weight_decay of shape {tuple(value.shape)} does not broadcast to the parameter's {tuple(param.shape)}; use size 1 "
            "in every dimension that shares a decay."
        )
    if not bool((value >= 0).all() and value.isfinite().all()):
        raise ValueError(
            "weight_decay holds a negative or non-finite value; every decay must be finite and at least 0."
        )
    return value.detach().to(dtype=param.dtype, device=param.device)


def check_state(
    owner: str, defaults: Mapping[str, Any], groups: list[dict[str, Any]], loaded: Mapping[str, Any]
) -> None:
    """Refuse the state of another kind of optimizer, of another preconditioner, or of other shapes."""
    for group, saved in zip(groups, loaded["param_groups"]):
        missing = [key for key in defaults if key not in saved and key not in _TORCH_KEYS]
        if missing:
            raise ValueError(
                f"state_dict has no {missing[0]!r} in its param_groups: it is not a {owner}'s; load one that a {owner}'s "
                "state_dict() returned."
            )
        if "betas" in saved and "betas" not in defaults:
            raise ValueError(
                f"state_dict has betas={saved['betas']!r}, {owner} has no momentum; load it in SGHMC or CVAdam."
            )
        if saved.get("preconditioner") != group.get("preconditioner"):
            raise ValueError(
                f"state_dict has preconditioner={saved['preconditioner']!r}, this {owner} has {group['preconditioner']!r}; build it "
                "with the same one."
            )
        for param in saved["params"]:
            for name in ("momentum", "rho", "second_moment"):
                value = loaded["state"].get(param, {}).get(name)
                if value is not None and value.shape != param.shape:
                    raise ValueError(
                        f"state_dict has a {name} of shape {tuple(value.shape)} for a parameter of shape {tuple(param.shape)}; it was "
                        "saved with another model."
                    )
