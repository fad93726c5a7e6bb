"""Whether a forward switches gradients or autocast for a part of itself, which a graph does not hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bayesprune.graph.hooks import silent_copy
from bayesprune.graph.inputs import Inputs
from bayesprune.graph.trace import is_layer


def switched(model: nn.Module, inputs: Inputs, is_leaf: Callable[[nn.Module], bool] = is_layer) -> str | None:
    """What runs under another mode than the rest of the forward, in training; None if nothing does."""
    model = silent_copy(model).train()
    watch = _Watch()
    for module in model.modules():
        if is_leaf(module) and not isinstance(module, nn.Sequential):
            module.register_forward_pre_hook(watch.enter)
            module.register_forward_hook(watch.leave)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]), watch:
            inputs.map(torch.clone).run(model)
    except Exception:  # it does not train on this input: nothing to lose
        return None
    return watch.found


class _Watch(TorchFunctionMode):
    """Looks at the modes of each call outside torch's own layers, and of those layers as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.found: str | None = None
        self._inside = 0
        self._usual = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a call, having noted the modes under which it runs."""
        result = func(*args, **(kwargs or {}))
        trains = any(
            isinstance(each, torch.Tensor) and each.requires_grad for each in tree_leaves((args, kwargs or {}))
        )
        if trains and not self._inside and isinstance(result, torch.Tensor) and result.is_floating_point():
            self._note(getattr(func, "__name__", str(func)))
        return result

    def enter(self, module: nn.Module, args: Any) -> None:
        """A layer of torch begins, which switches as it likes."""
        if not self._inside and any(parameter.requires_grad for parameter in module.parameters()):
            self._note(type(module).__name__)
        self._inside += 1

    def leave(self, module: nn.Module, args: Any, result: Any) -> None:
        """A layer of torch ends."""
        self._inside -= 1

    def _note(self, name: str) -> None:
        if self.found is not None:
            return
        if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
            self.found = f"{name} runs without gradients"
        elif self._usual != (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")):
            self.found = f"{name} runs under another autocast"
