"""What a pruner does unasked: whole channels where the graph allows, the first convolution and the outputs kept."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from bayesprune.graph.hooks import heard
from bayesprune.sparsity.partition import Exclude, Grouper, GroupKind, Partition, partition, prunable_modules
from bayesprune.sparsity.schedule import outside

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_EXTENTS = (32, 64, 128, 224, 28, 16, 8)


def default_partition(
    model: nn.Module,
    kind: GroupKind | Grouper | None,
    *,
    exclude: Exclude = (),
    coupling: str | None = None,
    example_input: Any = None,
    keep_ends: bool = True,
    sparsity: float | None = None,
    min_groups: int = 1,
) -> Partition:
    """The groups that are asked for; unasked, channels, and where there are none to cut kernels or weights, by name."""
    given = [exclude] if isinstance(exclude, (str, type, nn.Module)) else list(exclude)
    if kind is not None:
        return _with_ends(model, kind, given, coupling, example_input, keep_ends)
    why = "the first layer does not say what its input looks like"
    for example in [example_input] if example_input is not None else _guesses(model):
        try:
            found = _with_ends(model, "channel", given, coupling, example, keep_ends)
            few = _too_few(found, sparsity, min_groups)
            if few:
                found = _with_ends(model, "channel", [*given, *few], coupling, example, keep_ends)
                named = {f"{name}{end}" for name in few for end in ("", ".weight")}
                why = f"too few channels for sparsity={sparsity}"
                found.excluded = [replace(e, reason=why) if e.name in named else e for e in found.excluded]
            return found
        except ValueError as error:
            why = str(error)
    kind = "kernel" if any(isinstance(module, _CONVOLUTIONS) for module in model.modules()) else "weight"
    found = _with_ends(model, kind, given, None, example_input, keep_ends)
    hint = "" if example_input is not None else " If the model needs another input, give example_input=x[:2]."
    warnings.warn(
        f"no whole channels can be pruned here, so single {kind}s are (groups={kind!r}), which compact cannot remove: "
        f"{why}.{hint} groups={kind!r} says so without this warning.",
        stacklevel=outside(),
    )
    return found


def _too_few(found: Partition, sparsity: float | None, min_groups: int) -> list[str]:
    """The layers that write sets of which the target's share would leave less than may be left, where it is out of reach."""
    if sparsity is None or round(sparsity * found.total) <= found.reachable(min_groups):
        return []
    narrow = [groups.slices[0].name for groups in found if groups.count * (1 - sparsity) < min_groups]
    return [name.rpartition(".")[0] for name in narrow] if len(narrow) < len(found) else []


def _with_ends(
    model: nn.Module, kind: GroupKind | Grouper, exclude: list[Any], coupling: str | None, example: Any, keep_ends: bool
) -> Partition:
    ends = _ends(model, kind, exclude, example) if keep_ends else {}
    modules = dict(model.named_modules())
    try:
        found = partition(
            model, kind, exclude=[*exclude, *(modules[name] for name in ends)], coupling=coupling, example_input=example
        )
    except ValueError:
        if not ends or kind != "channel":
            raise
        # The first convolution's channels are the only ones.
        return partition(model, kind, exclude=exclude, coupling=coupling, example_input=example)
    named = {f"{name}.weight": reason for name, reason in ends.items()}
    found.excluded = [replace(each, reason=named.get(each.name, each.reason)) for each in found.excluded]
    return found


def _ends(model: nn.Module, kind: GroupKind | Grouper, exclude: list[Any], example: Any) -> dict[str, str]:
    """The names of the first convolution and of the layers that write the output, with the reason; not all there is."""
    modules, _ = prunable_modules(model, exclude)
    calls = _calls(model, modules, example) if example is not None else {}
    order = [*calls, *(name for name in modules if name not in calls)]
    first = next((name for name in order if isinstance(modules[name], _CONVOLUTIONS)), None)
    last = [name for name, writes in calls.items() if writes] or list(modules)[-1:]
    found = {name: "writes the model's output (keep_ends)" for name in last} if kind != "channel" else {}
    if first is not None:
        found[first] = "the first convolution (keep_ends)"
    return {} if set(modules) <= set(found) else found


def _calls(model: nn.Module, modules: dict[str, nn.Module], example: Any) -> dict[str, bool]:
    """The modules in the order of their calls, and whether what they return is (a view of) the model's output."""
    written: dict[str, int] = {}
    held: list[Any] = []

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        written[name] = output.untyped_storage().data_ptr() if isinstance(output, Tensor) else 0
        held.append(output)  # so that no storage is used twice

    try:
        output = heard(model, modules, example, note)
    except Exception:  # the trace of the channels says what is wrong with it
        return {}
    ends = {leaf.untyped_storage().data_ptr() for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)}
    return {name: place in ends for name, place in written.items()}


def _guesses(model: nn.Module) -> Iterator[Tensor]:
    """Inputs that the first layer would take: images of common sizes, or a vector."""
    layers = (module for module in model.modules() if isinstance(module, (nn.Embedding, nn.Linear, *_CONVOLUTIONS)))
    first = next(layers, None)
    weight = getattr(first, "weight", None)
    if isinstance(first, nn.Embedding) or not isinstance(weight, Tensor):
        return
    if isinstance(first, nn.Linear):
        yield weight.new_zeros(2, first.in_features)
        return
    assert isinstance(first, _CONVOLUTIONS)
    axes = weight.dim() - 2
    for extent in _EXTENTS:
        yield weight.new_zeros(2, first.in_channels, *[extent] * axes)
