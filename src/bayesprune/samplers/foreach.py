"""The step in torch's multi-tensor operations: at most 40, views apart, for all tensors that share their hyper-parameters."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bayesprune.samplers.layout import DecayLayout
from bayesprune.samplers.noise import Key, check_span, counters, key_words, normal_pairs
from bayesprune.samplers.tensor_step import TensorStep


def foreach_step(items: list[TensorStep]) -> None:
    """Make one step on each tensor, the tensors with equal hyper-parameters, device and type together."""
    groups: dict[tuple[object, ...], list[TensorStep]] = {}
    for item in items:
        if item.weight.numel():
            groups.setdefault(_signature(item), []).append(item)
    for group in groups.values():
        _step(group)


def _signature(item: TensorStep) -> tuple[object, ...]:
    """Return what the tensors of one call must share."""
    decay = None if isinstance(item.weight_decay, DecayLayout) else item.weight_decay
    kinds = (
        item.weight.device,
        item.weight.dtype,
        item.momentum.dtype,
        item.scale.dtype if item.scale is not None else None,
    )
    return (
        *kinds, decay, item.recalls, item.lr, item.beta1, item.beta2, item.num_data, item.preconditioner, item.adapt,
        item.scale_decay, item.damping, item.dual_lr, item.alpha, item.noise_std, item.exact, item.kinetic_factor, item.blend,
    )  # fmt: skip


def _step(items: list[TensorStep]) -> None:
    """Make one step on tensors that share everything but their numbers; mirrors `single_tensor_step`."""
    first, dtype = items[0], items[0].weight.dtype
    weight, gradient = [item.weight for item in items], [item.gradient for item in items]
    momentum = [item.momentum for item in items]
    scale = [item.scale for item in items if item.scale is not None]
    narrow = first.momentum.dtype != dtype or (bool(scale) and scale[0].dtype != dtype)
    if narrow:
        momentum, scale = [v.to(dtype) for v in momentum], [s.to(dtype) for s in scale]
    keys = [[item.key for item in items]] if first.noise_std else []
    if first.recalls:
        keys.append([item.previous_key for item in items if item.previous_key is not None])
    drawn = _noise(items, keys) if keys else []
    noise, previous = drawn[0] if first.noise_std else [], drawn[-1] if first.recalls else []

    decay = first.weight_decay
    decays = [d.slice(0, len(item.weight)) for item in items if isinstance(d := item.weight_decay, DecayLayout)]
    if isinstance(decay, DecayLayout):
        drift = torch._foreach_addcmul(gradient, weight, decays)
    else:
        drift = torch._foreach_add(gradient, weight, alpha=decay)
    inverse: list[Tensor] = []  # τ of "paper", 1/τ of "rms"
    if first.preconditioner == "paper":
        if first.adapts:
            _dual_step_(first, scale, gradient, decays, previous)
        inverse = list(torch._foreach_sigmoid(scale))
    elif first.preconditioner == "rms":
        if first.adapts:
            torch._foreach_mul_(scale, first.scale_decay)
            torch._foreach_addcmul_(scale, drift, drift, 1 - first.scale_decay)
        inverse = list(torch._foreach_sqrt(scale))
        torch._foreach_add_(inverse, first.damping)
    torch._foreach_mul_(momentum, first.beta1)
    torch._foreach_add_(momentum, drift, alpha=-first.beta2 * first.lr)
    if noise and first.exact and inverse:
        add = torch._foreach_addcdiv_ if first.preconditioner == "paper" else torch._foreach_addcmul_
        add(momentum, noise, torch._foreach_sqrt(inverse), first.noise_std)
    elif noise:
        torch._foreach_add_(momentum, noise, alpha=first.noise_std)
    moved: tuple[Tensor, ...] | list[Tensor] = momentum
    if inverse:
        moved = (torch._foreach_mul if first.preconditioner == "paper" else torch._foreach_div)(momentum, inverse)
    alive: tuple[Tensor, ...] | list[Tensor] = torch._foreach_sign(weight) if first.blend else []
    torch._foreach_add_(weight, moved)
    if first.blend:
        terms = torch._foreach_mul(moved, momentum)
        torch._foreach_mul_(terms, alive)  # pruned weights do not count
        energy = list(torch._foreach_norm(terms, 1))  # the sum of τv²: the norm drops the weights' signs
        torch._foreach_mul_(energy, [first.kinetic_factor / item.weight.numel() for item in items])
        kinetic = [item.kinetic for item in items]
        if dtype == torch.float32:
            torch._foreach_lerp_(kinetic, energy, first.blend)
        else:
            torch._foreach_mul_(kinetic, 1 - first.blend)
            torch._foreach_add_(kinetic, energy, alpha=first.blend)
    if narrow:
        for i, item in enumerate(items):
            item.keep(0, momentum[i], scale[i] if scale else None)


def _dual_step_(
    first: TensorStep, rho: list[Tensor], gradient: list[Tensor], decays: list[Tensor], previous: list[Tensor]
) -> None:
    """Take the paper's dual step on many tensors; see `dynamics.dual_step_`."""
    tau = torch._foreach_sigmoid(rho)
    torch._foreach_add_(rho, torch._foreach_reciprocal(tau), alpha=first.dual_lr / first.num_data)
    prior = first.dual_lr * first.alpha**2
    if isinstance(first.weight_decay, DecayLayout):
        torch._foreach_addcmul_(rho, tau, decays, -prior)
    elif prior and first.weight_decay:
        torch._foreach_add_(rho, tau, alpha=-prior * first.weight_decay)
    if previous:
        torch._foreach_addcmul_(rho, previous, gradient, -first.dual_lr * first.alpha)


@functools.lru_cache(maxsize=8)
def _places(
    spans: tuple[tuple[int, int], ...], copies: int, device: torch.device
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Return the counters of all spans' pairs, the number of the span each belongs to, and the sizes of the pieces that
    their numbers fall into: before, within and after each span.
    """
    pairs = [(offset // 2, (offset + numel + 1) // 2) for offset, numel in spans] * copies
    counter = torch.cat([counters(low, high - low, device) for low, high in pairs])
    sizes = torch.tensor([high - low for low, high in pairs], device=device)
    owner = torch.repeat_interleave(torch.arange(len(pairs), dtype=torch.int32, device=device), sizes)
    pieces = []
    for (offset, numel), (low, high) in zip(spans * copies, pairs):
        before = offset - 2 * low
        pieces += [before, numel, 2 * (high - low) - before - numel]
    return counter, owner, tuple(pieces)


def _noise(items: list[TensorStep], keys: list[list[Key]]) -> list[list[Tensor]]:
    """Return the noise of every tensor for each list of keys, drawn in one go."""
    for item in items:
        check_span(item.offset, item.weight.numel())
    weight, count = items[0].weight, len(items)
    spans = tuple((item.offset, item.weight.numel()) for item in items)
    counter, owner, pieces = _places(spans, len(keys), weight.device)
    table = key_words([key for row in keys for key in row], weight.device)
    numbers = normal_pairs(counter, table.index_select(0, owner).unbind(1), weight.dtype)
    within = list(numbers.split_with_sizes(pieces)[1::3])
    return [within[i * count : (i + 1) * count] for i in range(len(keys))]
