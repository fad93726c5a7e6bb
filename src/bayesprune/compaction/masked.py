"""The masked model on which compaction works: a copy with the masks applied."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bayesprune.graph.errors import CompactionError
from bayesprune.graph.hooks import whole_copy
from bayesprune.sparsity.base import Pruner

COMPILED = "_orig_mod."


def plain_name(name: str) -> str:
    """A parameter's or module's name in the model that ``torch.compile`` wrapped.

    Example:
        >>> plain_name("_orig_mod.conv.weight"), plain_name("_orig_mod")
        ('conv.weight', '')
    """
    return (name + ".").removeprefix(COMPILED).removesuffix(".")


@torch.no_grad()
def masked_copy(model: nn.Module, pruner: Pruner | None) -> tuple[nn.Module, list[str]]:
    """A deep copy with the pruner's masks applied.

    Args:
        model: The model.
        pruner: Its pruner; None: the model as it is.

    Returns:
        The copy, and what is to be said about it.

    Raises:
        CompactionError: ``uninitialised``, ``compiled-part`` or ``not-copyable``.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(tensor, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)):
            raise CompactionError("uninitialised", f"{name} has no shape yet; run the lazy model once")
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod"):
            raise CompactionError(
                "compiled-part",
                f"{name} was wrapped by torch.compile inside the model; compile the compact model instead",
            )
    try:
        masked = whole_copy(model)
    except Exception as error:
        raise CompactionError(
            "not-copyable", f"copy.deepcopy(model) fails ({type(error).__name__}: {error}); see torch.nn.Module"
        ) from error
    if pruner is None:
        return masked, []
    params, changed = dict(masked.named_parameters()), 0
    for name, mask in pruner.weight_masks().items():
        param = params[plain_name(name)]
        changed += bool((param.masked_select(~mask.expand_as(param)) != 0).any())
        param.masked_fill_(~mask, 0)
    modules: dict[str, Any] = dict(masked.named_modules())
    for each in pruner.groups:
        for name, _ in each.norms:
            norm = modules[plain_name(name)]
            if getattr(norm, "running_mean", None) is not None:
                drop = each.dropped_from(name, pruner.keep_masks[each.name], len(norm.running_mean))
                norm.running_mean.masked_fill_(drop, 0)
                norm.running_var.masked_fill_(drop, 1)
    return masked, [f"the pruner's masks were applied to {changed} tensors first"] if changed else []
