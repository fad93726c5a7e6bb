"""Forward hooks: which of them change values, and copies of a model that keep only those."""

from __future__ import annotations

import copy
import functools
import itertools
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from bayesprune.common.modes import evaluating
from bayesprune.graph.inputs import Inputs
from bayesprune.graph.source import releasing_source

FORWARD = ("_forward_pre_hooks", "_forward_hooks")
HOOKS = (
    *FORWARD, "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called",
    "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip

Changing = dict[str, set[int]]
"""Of each of ``FORWARD``, the keys of the hooks that change values; keys are unique in the process."""


def changing_hooks(model: nn.Module, inputs: Inputs) -> Changing:
    """Which forward hooks change what a module takes or returns, found by running a copy in both modes."""
    found: Changing = {name: set() for name in FORWARD}
    if not any(getattr(module, name) for module in model.modules() for name in FORWARD):
        return found
    probe = detached_copy(model)
    for module in probe.modules():
        for name in FORWARD:
            for key, hook in getattr(module, name).items():
                getattr(module, name)[key] = _watched(hook, found[name], key)
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        made = torch.randn(like.shape, generator=generator).to(like.device, like.dtype)
        return 3 * made if like.is_floating_point() else like.clone()

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for training, case in itertools.product((False, True), (inputs, inputs.map(noise))):
            try:
                case.map(torch.clone).run(probe.train(training))
            except Exception:  # too few examples for BatchNorm; whatever else is wrong shows when the model is traced
                continue
    return found


def _watched(hook: Callable[..., Any], found: set[int], key: int) -> Callable[..., Any]:
    def watch(module: nn.Module, *rest: Any) -> Any:
        tensors = [leaf for leaf in tree_flatten(rest)[0] if isinstance(leaf, Tensor)]
        versions = [tensor._version for tensor in tensors]
        result = hook(module, *rest)
        given = {id(entry) for each in rest for entry in (each, *(each if isinstance(each, tuple) else ()))}
        same = result is None or id(result) in given
        if not same or versions != [tensor._version for tensor in tensors]:
            found.add(key)
        return result

    return watch


def whole_copy(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """``copy.deepcopy``, of tensors computed from others too, and with the hooks that a ``torch.fx.GraphModule`` leaves."""
    result = copy.deepcopy(model, computed_tensors(model) if memo is None else memo)
    if isinstance(model, fx.GraphModule):
        for kind in HOOKS:
            result.__dict__[kind] = copy.copy(model.__dict__[kind])
    return releasing_source(result)


def computed_tensors(model: nn.Module) -> dict[int, Any]:
    """A memo for ``copy.deepcopy``, which refuses tensors computed from others (an older weight norm's): their values."""
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in module.__dict__.values()
        if isinstance(value, Tensor) and not value.is_leaf
    }


def detached_copy(model: nn.Module) -> nn.Module:
    """A deep copy; tensors computed from parameters are copied by value, and what hooks hold is copied too."""
    memo = computed_tensors(model)
    result = whole_copy(model, memo)
    for module in result.modules():
        for name in FORWARD:
            for key, hook in getattr(module, name).items():
                getattr(module, name)[key] = _own(hook, memo)
    return result


def _own(hook: Any, memo: dict[int, Any]) -> Any:
    """A function with a closure of its own."""
    if not isinstance(hook, types.FunctionType) or not hook.__closure__:
        return hook
    cells = []
    for cell in hook.__closure__:
        try:
            cells.append(types.CellType(copy.deepcopy(cell.cell_contents, memo)))
        except Exception:  # not to be copied, or empty: shared
            cells.append(cell)
    own = types.FunctionType(hook.__code__, hook.__globals__, hook.__name__, hook.__defaults__, tuple(cells))
    own.__kwdefaults__ = hook.__kwdefaults__
    return own


def silent_copy(model: nn.Module, changing: Changing | None = None) -> nn.Module:
    """A copy without the hooks that only look on: the comparison is not to be recorded by them."""
    result = detached_copy(model)
    for module in result.modules():
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
        computed = "weight" not in module._parameters and hasattr(module, "weight")
        for name in FORWARD:
            hooks = getattr(module, name)
            if computed and name == "_forward_pre_hooks":
                continue  # it may compute the weight
            for key in [key for key in hooks if key not in (changing or {}).get(name, ())]:
                del hooks[key]
    return result


def hooked(model: nn.Module) -> list[str]:
    """The modules that have forward hooks."""
    return [name or "the model" for name, m in model.named_modules() if any(getattr(m, kind) for kind in FORWARD)]


def heard(
    model: nn.Module, modules: Mapping[str, nn.Module], example: Any, note: Callable[[str, nn.Module, Any, Any], None]
) -> Any:
    """Run a model on an example in evaluation, with a note (name, module, inputs, output) of every call of some modules."""
    hooks = [module.register_forward_hook(functools.partial(note, name)) for name, module in modules.items()]
    try:
        with evaluating(model), torch.no_grad():
            return Inputs.of(model, example).run(model)
    finally:
        for hook in hooks:
            hook.remove()


def called_with_hooks(
    module: nn.Module, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call something in a module's place with its forward hooks around it, as ``nn.Module.__call__`` does."""
    computed = "weight" not in module._parameters and hasattr(module, "weight")  # by such a hook, as it stands
    for key, hook in [] if computed else list(module._forward_pre_hooks.items()):
        if key in module._forward_pre_hooks_with_kwargs:
            changed = hook(module, args, kwargs)  # type: ignore[call-arg]
            args, kwargs = (args, kwargs) if changed is None else changed
        else:
            changed = hook(module, args)
            args = args if changed is None else changed if isinstance(changed, tuple) else (changed,)
    result = call(*args, **kwargs)
    for key, hook in list(module._forward_hooks.items()):
        given = (args, kwargs) if key in module._forward_hooks_with_kwargs else (args,)
        changed = hook(module, *given, result)
        result = result if changed is None else changed
    return result
