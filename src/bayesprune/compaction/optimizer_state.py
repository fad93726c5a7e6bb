"""The optimizer comes along: the same class and settings on the smaller parameters, its state cut as they are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.compaction.slices import Cut, take_like
from bayesprune.graph.errors import CompactionError

_BY_SHAPE = ("Adafactor", "Muon")  # their steps are of a whole matrix, not of each entry


@torch.no_grad()
def transfer_optimizer(
    optimizer: Optimizer, old: nn.Module, new: nn.Module, cuts: Mapping[str, Cut]
) -> tuple[Optimizer, list[str]]:
    """Build the compact model's optimizer from the masked model's."""
    fresh = dict(new.named_parameters(remove_duplicate=False))
    names = {id(param): name for name, param in old.named_parameters()}
    held = [param for group in optimizer.param_groups for param in group["params"]]
    strangers = [param for param in held if id(param) not in names]
    if strangers:
        raise CompactionError(
            "optimizer-mismatch",
            f"the optimizer holds a parameter of shape {tuple(strangers[0].shape)} that is not the model's; build it on "
            "model.parameters()",
        )
    kind = next((each.__name__ for each in type(optimizer).__mro__ if each.__name__ in _BY_SHAPE), None)
    if kind is not None and cuts:
        raise CompactionError(
            "optimizer-state",
            f"the steps of {kind} depend on the shapes of the parameters, which change; compact the model alone and build "
            "a new optimizer",
        )
    gone = {id(p): nn.Parameter(torch.empty(0)) for p in held if names[id(p)] not in fresh}
    memo: dict[int, Any] = {id(p): fresh.get(names[id(p)], gone.get(id(p))) for p in held}
    result: Optimizer = copy.deepcopy(optimizer, memo)
    for key, value in optimizer.__dict__.items():
        if not key.startswith("_optimizer_") and isinstance(value, (int, float, str, bool, tuple, type(None))):
            result.__dict__[key] = value
    notes = []
    lost = {id(param) for param in gone.values()}
    for group in result.param_groups:
        group["params"] = [param for param in group["params"] if id(param) not in lost]
    for param in [param for param in result.state if id(param) in lost]:
        del result.state[param]
    redrawn = 0
    for param in held:
        name = names[id(param)]
        state = result.state.get(fresh[name]) if name in fresh else None
        if state and name in cuts:
            for key, value in list(state.items()):
                if isinstance(value, Tensor):
                    state[key] = _cut(value, param, cuts[name], f"{name}: {key}")
            if state.get("injected"):
                state["injected"] = False
                redrawn += 1
    if redrawn:
        notes.append(
            f"noise: seed, streams and steps come along; {redrawn} cut tensors leave out the last step's noise once"
        )
    _adopt_new_(result, old, new)
    extra = len(optimizer._optimizer_step_post_hooks) + len(optimizer._optimizer_step_pre_hooks)
    if extra > 2:
        notes.append("step hooks other than the pruner's are not copied to the new optimizer")
    return result, notes


def _cut(value: Tensor, param: Tensor, cut: Cut, label: str) -> Tensor:
    part = take_like(value, param.shape, cut)
    if part is None:
        raise CompactionError(
            "optimizer-state",
            f"{label} has shape {tuple(value.shape)}, which does not follow the parameter's {tuple(param.shape)}; "
            "compact the model alone and build a new optimizer",
        )
    return part


def _adopt_new_(result: Optimizer, old: nn.Module, new: nn.Module) -> None:
    """A bias that a layer did not have is trained with the layer's weight."""
    before = {name for name, _ in old.named_parameters(remove_duplicate=False)}
    for name, param in new.named_parameters():
        if name not in before and name.endswith("bias"):
            weight = dict(new.named_parameters())[name[: -len("bias")] + "weight"]
            for group in result.param_groups:
                if any(weight is held for held in group["params"]):
                    group["params"].append(param)
