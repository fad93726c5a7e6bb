"""Whether two models do the same: outputs bit for bit in evaluation, outputs and buffers in one training pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bayesprune.common.modes import evaluating
from bayesprune.deploy.ensemble import Ensemble
from bayesprune.graph.inputs import Inputs
from bayesprune.graph.source import deep_copy

ALIGNMENT = 64
"""Bytes; torch places tensors at its multiples."""


def as_inputs(model: nn.Module, example_input: Any) -> Inputs:
    """The inputs of a model, every one with the batch on its first axis."""
    inputs = Inputs.of(model.template if isinstance(model, Ensemble) else model, example_input)
    for value in inputs.tensors or [example_input]:
        if not isinstance(value, Tensor) or value.ndim < 1 or not len(value):
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"example_input: {found}; give a tensor (or a tuple of them, or a dict of them by the names of forward's "
                "arguments) with the batch on the first axis"
            )
    return inputs


def flat(output: Any) -> list[Tensor]:
    """The tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output]
    values = list(output.values()) if isinstance(output, dict) else output
    return [tensor for value in values for tensor in flat(value)] if isinstance(values, (list, tuple)) else []


@torch.no_grad()
def check_same(model: nn.Module, again: nn.Module, inputs: Inputs, *, evaluation_only: bool = False) -> None:
    """Refuse a copy of a model that does not compute the same, bit for bit."""
    inputs = inputs.map(lambda value: value.detach().cpu())
    if any(
        tensor.device.type != "cpu" or tensor.data_ptr() % ALIGNMENT
        for tensor in (*model.parameters(), *model.buffers())
    ):
        model = deep_copy(model).cpu()
    with evaluating(model), evaluating(again):
        for size in (inputs.batch, inputs.batch + 1):
            batch = inputs.repeated(size)
            try:
                expected = flat(batch.map(torch.clone).run(model))
            except Exception:
                if size == inputs.batch:
                    raise
                continue  # a model of fixed batch size is not ours to refuse
            _compare(expected, flat(again(*batch.map(torch.clone).values)), f"in evaluation at batch size {size}")
    if (
        evaluation_only
        or any(module.training != model.training for module in model.modules())
        or not (any(True for _ in model.buffers()) or any("Dropout" in type(part).__name__ for part in model.modules()))
    ):
        return
    one, other = deep_copy(model).train(), deep_copy(again).train()
    batch = inputs.repeated(max(2, inputs.batch))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            expected = flat(batch.map(torch.clone).run(one))
        except (ValueError, RuntimeError):
            return  # a batch that the original cannot train on (one value a channel) proves nothing
        torch.manual_seed(0)
        _compare(expected, flat(other(*batch.map(torch.clone).values)), "in training")
    buffers = dict(other.named_buffers())
    for name, buffer in one.named_buffers():
        if name in buffers:
            _compare([buffer], [buffers[name]], f"of buffer {name!r} after a training pass")


@torch.no_grad()
def check_members(ensemble: Ensemble, inputs: Inputs, members: Ensemble) -> None:
    """Refuse an ensemble whose outputs are not those of the members, one after the other, but for rounding."""
    inputs = inputs.map(lambda value: value.detach().to(ensemble.device))
    found = flat(inputs.alone().map(torch.clone).run(ensemble))
    for index in range(len(ensemble)):
        expected = flat(inputs.map(torch.clone).run(members.member(index)))
        if len(expected) != len(found):
            raise ValueError(f"model: gives {len(found)} outputs, its member {index} gives {len(expected)}")
        for stacked, own in zip(found, expected):
            if not own.is_floating_point():
                continue
            worst = difference(stacked[index], own)
            if not worst <= torch.finfo(own.dtype).eps ** 0.5:
                raise ValueError(
                    f"model: strategy={ensemble.strategy!r} differs from member {index} by {worst:.1e} of the largest "
                    "output; use strategy='loop', and report the network"
                )


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest output where that exceeds 1; what is not finite must be equal."""
    one, other = one.double(), other.double()
    off = (one - other).abs()
    off[(one == other) | (one.isnan() & other.isnan())] = 0
    scale = other[other.isfinite()].abs().amax().clamp(min=1.0) if other.isfinite().any() else torch.ones(())
    return float(off.max() / scale) if off.numel() else 0.0


def _compare(expected: list[Tensor], found: list[Tensor], when: str) -> None:
    for one, other in zip(expected, found):
        if one.shape != other.shape or one.dtype != other.dtype or not _equal(one, other):
            raise ValueError(
                f"model: read back, its values {when} are not the original's; its forward does something that the traced "
                "graph does not hold (Python state, random numbers outside dropout?)"
            )
    if len(expected) != len(found):
        raise ValueError(f"model: read back, it has {len(found)} outputs {when} instead of {len(expected)}")


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
