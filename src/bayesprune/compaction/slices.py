"""What is cut from each tensor of the model, and how any tensor that follows it is cut alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bayesprune.compaction.solve import Solution
from bayesprune.graph.analysis import Analysis, Call

Cut = list[tuple[int, Tensor]]


def take(tensor: Tensor, cut: Sequence[tuple[int, Tensor]]) -> Tensor:
    """The entries of a tensor at the given places of some dimensions, in the tensor's own memory format."""
    out = tensor.detach()
    for dim, index in cut:
        out = out.index_select(dim, index.to(out.device))
    for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        is_last = tensor.dim() == rank and tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous()
        if is_last:
            return out.contiguous(memory_format=layout).clone(memory_format=torch.preserve_format)
    return out.contiguous() if cut else out.clone()


def take_like(tensor: Tensor, shape: Sequence[int], cut: Sequence[tuple[int, Tensor]]) -> Tensor | None:
    """Cut a tensor that broadcasts to a parameter of the given (old) shape as the parameter is cut."""
    if tensor.numel() == 1 and tensor.dim() == 0:
        return tensor.detach().clone()
    if tensor.dim() != len(shape) or any(size not in (1, full) for size, full in zip(tensor.shape, shape)):
        return None
    return take(tensor, [(dim, index) for dim, index in cut if tensor.shape[dim] == shape[dim]])


def cut_of(call: Call, solution: Solution, module: Any = None) -> dict[str, Cut]:
    """What is cut from a module's own tensors, by their names in the module."""
    cuts: dict[str, Cut] = {}
    for name, dim, atoms in call.sides(module):
        index = solution.index(atoms)
        if index.numel() < atoms.numel():
            cuts.setdefault(name, []).append((dim, index))
    return cuts


def cuts_of(a: Analysis, solution: Solution) -> dict[str, Cut]:
    """What is cut from every tensor of the model, by its name in the state dict (every name of a shared module)."""
    names: dict[int, list[str]] = {}
    for name, module in a.model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    found: dict[str, Cut] = {}
    for call in a.calls.values():
        if call.node not in a.alive:
            continue
        for suffix, cut in cut_of(call, solution).items():
            for name in names[id(a.modules[call.name])]:
                found[f"{name}.{suffix}" if name else suffix] = cut
    for name, (dim, atoms, node) in a.tensors.items():
        index = solution.index(atoms)
        if node in a.alive and index.numel() < atoms.numel():
            found[name] = [(dim, index)]
    return found


def cut_state(state: Mapping[str, Tensor], cuts: Mapping[str, Cut]) -> dict[str, Tensor]:
    """A state dict of the old architecture with its tensors cut."""
    return {name: take(tensor, cuts.get(name, [])) for name, tensor in state.items()}
