"""Weights that are computed from other tensors: by parametrizations, weight and spectral norm, torch's pruning."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm


def computed_weights(module: nn.Module) -> list[str]:
    """What computes a module's parameters from others: the names of its parametrizations and of older hooks."""
    found = []
    if parametrize.is_parametrized(module):
        for held in module.parametrizations.values():  # type: ignore[union-attr, operator]
            found += [_plain_kind(type(each).__name__) for each in held]
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod) or type(hook).__name__ in ("WeightNorm", "SpectralNorm"):
            found.append(_plain_kind(type(hook).__name__))
    return found


def _plain_kind(name: str) -> str:
    return {"_WeightNorm": "weight_norm", "WeightNorm": "weight_norm", "_SpectralNorm": "spectral_norm"}.get(
        name, "spectral_norm" if name == "SpectralNorm" else name
    )


def bake_(model: nn.Module) -> list[str]:
    """Replace computed parameters (weight norm, spectral norm, parametrizations, torch's pruning) by their values."""
    lines = []
    for name, module in list(model.named_modules()):
        kinds = computed_weights(module)
        if not kinds:
            continue
        mode = module.training
        module.eval()  # the value of evaluation, without a power iteration
        if parametrize.is_parametrized(module):
            _settle_(module)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
            elif type(hook).__name__ == "WeightNorm":
                remove_weight_norm(module, hook.name)  # type: ignore[attr-defined]
            elif type(hook).__name__ == "SpectralNorm":
                remove_spectral_norm(module, hook.name)  # type: ignore[attr-defined]
        module.training = mode
        lines.append(f"{name or type(module).__name__}: {', '.join(kinds)} replaced by the weights that it computes")
    return lines


@torch.no_grad()
def _settle_(module: nn.Module) -> None:
    """``remove_parametrizations``, without touching the class, which copies share."""
    held: dict[str, nn.Module] = dict(module.parametrizations.items())  # type: ignore[union-attr, operator]
    values = {name: getattr(module, name).detach().clone() for name in held}
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for name, value in values.items():
        if any(True for _ in held[name].parameters(recurse=False)):
            grads = any(param.requires_grad for param in held[name].parameters(recurse=False))
            module.register_parameter(name, nn.Parameter(value, requires_grad=grads))
        else:
            module.register_buffer(name, value)
