"""The masked model on which compaction works: a copy with the masks applied."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bayesprune.graph.errors import CompactionError
from bayesprune.graph.hooks import whole_copy
from bayesprune.sparsity.groups import plain_name
from bayesprune.sparsity.masks import MaskHolder


@torch.no_grad()
def masked_copy(model: nn.Module, pruner: MaskHolder | None) -> tuple[nn.Module, list[str]]:
    """A deep copy with the pruner's masks applied, and what is to be said about it."""
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
    params, changed = dict(masked.named_parameters(remove_duplicate=False)), 0
    for name, mask in pruner.weight_masks().items():
        param = params[plain_name(name)]
        changed += bool((param.masked_select(~mask.expand_as(param)) != 0).any())
        param.masked_fill_(~mask, 0)
    for each in pruner.groups:
        for part, _ in each.norms:
            norm: Any = masked.get_submodule(plain_name(part.name).rpartition(".")[0])
            drop = ~part.broadcast(pruner.keep_masks[each.name])
            norm.running_mean.masked_fill_(drop, 0)
            norm.running_var.masked_fill_(drop, 1)
    return masked, [f"the pruner's masks were applied to {changed} tensors first"] if changed else []
