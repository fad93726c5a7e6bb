"""How a model's weights are cut into groups, and what is left out."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bayesprune.graph.layers import PACKED, TRANSPOSED, is_weighted, turned_linear
from bayesprune.sparsity.channels import channel_groups
from bayesprune.sparsity.groups import ChannelGroups, Groups, TensorGroups

KINDS = ("weight", "kernel", "input", "output", "channel")
GroupKind = Literal["weight", "kernel", "input", "output", "channel"]
Grouper = Callable[[nn.Module, dict[str, nn.Module]], Iterable[Groups]]
Exclude = Iterable[Any]
TRANSPOSED_REASON = "transposed convolutions are not pruned"
_TURNED = {"input": "output", "output": "input"}  # of a weight that holds the inputs first
PACKED_REASON = "only groups='channel' prunes it"


@dataclass(frozen=True)
class Exclusion:
    """A tensor or module that is left dense, and why.

    Example:
        >>> Exclusion("head", 330, "the model's output").reason
        "the model's output"
    """

    name: str
    weights: int
    reason: str


class Partition(list[Groups]):
    """A list of groups together with what was left out.

    Attributes:
        kind: The kind of the groups.
        excluded: What stays dense, with reasons.

    Example:
        >>> found = partition(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "weight", exclude=["1"])
        >>> found.kind, len(found), found.excluded[0].name
        ('weight', 1, '1.weight')
    """

    def __init__(self, groups: Iterable[Groups], kind: str, excluded: Sequence[Exclusion] = ()) -> None:
        super().__init__(groups)
        self.kind = kind
        self.excluded = list(excluded)

    def weights(self) -> dict[str, Tensor]:
        """Every weight tensor that some group covers, once, by name."""
        return {part.name: part.param for groups in self for part in groups.slices}

    @property
    def total(self) -> int:
        """Number of prunable weights."""
        return sum(param.numel() for param in self.weights().values())

    @property
    def coupled(self) -> bool:
        """Whether the groups are of channels, which share weights: one's rows are cut by another's columns."""
        return any(isinstance(groups, ChannelGroups) for groups in self)

    def zeros(self, keep: Sequence[Tensor]) -> int:
        """Number of weights that the masks ``keep`` (one a groups object, in order) set to zero, each counted once."""
        if not self.coupled:
            kept = torch.stack([torch.count_nonzero(mask) for mask in keep]).tolist()
            return sum((groups.count - left) * groups.size for groups, left in zip(self, kept))
        # What is left of a weight is a rectangle.
        sizes = {name: list(param.shape) for name, param in self.weights().items()}
        for groups, mask in zip(self, keep):
            gone = groups.count - int(mask.sum())
            for part in groups.slices:
                sizes[part.name][part.axis] -= gone * (part.length // groups.count)
        return self.total - sum(math.prod(shape) for shape in sizes.values())

    def reachable(self, min_groups: int) -> int:
        """The largest number of zeros when every groups object keeps ``min_groups`` of its groups."""
        return self.zeros([torch.arange(groups.count) < min_groups for groups in self])


def prunable_modules(model: nn.Module, exclude: Exclude = ()) -> tuple[dict[str, nn.Module], list[Exclusion]]:
    """The modules whose ``weight`` may be pruned: ``nn.Linear`` and ``nn.Conv1d/2d/3d``, each weight once.

    ``nn.MultiheadAttention`` and recurrent layers, whose heads and hidden units only channel groups prune, stand among what
    was left out.

    Args:
        model: The model.
        exclude: What to leave dense: patterns on module names (as for file names: ``"layer1.*"``; a name stands for all
            below it), module types, or modules.

    Returns:
        The modules by name, and the list of what was left out with the reasons.

    Raises:
        ValueError: If a pattern matches no module.
        TypeError: If an entry is neither a pattern nor a type nor a module.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> modules, excluded = prunable_modules(net, exclude=["2"])
        >>> list(modules), [e.name for e in excluded]
        (['0'], ['2.weight'])
    """
    named = dict(model.named_modules())
    banned: dict[str, str] = {}
    for entry in [exclude] if isinstance(exclude, (str, type, nn.Module)) else list(exclude):
        if isinstance(entry, str):
            hits = [name for name in named if fnmatch.fnmatchcase(name, entry) or f"{name}.weight" == entry]
            if not hits:
                raise ValueError(f"exclude={entry!r} matches no module; the names are those of model.named_modules()")
            reason = f"excluded by {entry!r}"
        elif isinstance(entry, type):
            hits = [name for name, module in named.items() if isinstance(module, entry)]
            reason = f"excluded by type {entry.__name__}"
        elif isinstance(entry, nn.Module):
            hits = [name for name, module in named.items() if module is entry]
            reason = "excluded as a module"
        else:
            raise TypeError(f"exclude entry {entry!r} must be a pattern on module names, a module type or a module")
        for hit in hits:
            for name in named:
                if name == hit or name.startswith(f"{hit}.") or not hit:
                    banned.setdefault(name, reason)

    modules: dict[str, nn.Module] = {}
    excluded: list[Exclusion] = []
    owners: set[int] = set()
    for name, module in named.items():
        weight = getattr(module, "weight", None)
        if isinstance(module, PACKED):
            count = sum(param.numel() for param in module.parameters(recurse=False) if param.dim() > 1)
            excluded.append(Exclusion(name, count, banned.get(name, PACKED_REASON)))
        if not is_weighted(module) or not isinstance(weight, Tensor):
            continue
        full = f"{name}.weight" if name else "weight"
        if isinstance(weight, nn.parameter.UninitializedParameter):
            raise ValueError(f"{full} is not initialised yet; run the lazy model once before it is cut into groups")
        if id(weight) in owners:
            continue  # a tied weight is one tensor
        owners.add(id(weight))
        if name in banned:
            excluded.append(Exclusion(full, weight.numel(), banned[name]))
        elif isinstance(module, TRANSPOSED):
            excluded.append(Exclusion(full, weight.numel(), TRANSPOSED_REASON))
        elif weight.numel() == 0:
            excluded.append(Exclusion(full, 0, "has no weights"))
        else:
            modules[name] = module
    return modules, excluded


def partition(
    model: nn.Module,
    kind: GroupKind | Grouper = "kernel",
    *,
    exclude: Exclude = (),
    coupling: str | None = None,
    example_input: Any = None,
) -> Partition:
    """Cut the prunable weights of a model into groups.

    Args:
        model: The model. Prunable are the weights of ``nn.Linear`` and ``nn.Conv1d/2d/3d``; for ``"channel"`` also the heads
            of ``nn.MultiheadAttention`` and the hidden units of ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``.
        kind: ``"weight"`` (each alone), ``"kernel"`` (one filter slice w[o, i]), ``"input"`` (all weights reading one
            input unit or channel), ``"output"`` (all weights writing one unit or channel), ``"channel"`` (a channel
            with every tensor tied to it); or a grouper of your own, a callable of the model and its prunable modules by
            name that returns :class:`Groups`, no weight in two of them.
        exclude: Patterns on module names, module types or modules to leave dense.
        coupling: For ``"channel"``: ``"group"`` (default) ties all rows, columns and BatchNorm pairs of coupled
            channels together;
            ``"none"`` ties each row to its own bias and BatchNorm pair only, and leaves channels of residual streams
            out.
        example_input: For ``"channel"``: an input (or tuple of inputs) on which the graph is traced.

    Returns:
        A list of groups, with the exclusions in ``.excluded``.

    Raises:
        ValueError: If the kind is unknown, nothing is left to prune, or (``"channel"``) the model cannot be traced.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> [(g.name, g.count, g.size) for g in partition(net, "input")]
        [('0.weight', 3, 72), ('2.weight', 8, 4)]

    Reference: method, section 5; arXiv 2210.12957, section 4.
    """
    if not callable(kind) and kind not in KINDS:
        raise ValueError(f"groups={kind!r} is unknown; choose one of {', '.join(map(repr, KINDS))}")
    modules, excluded = prunable_modules(model, exclude)
    if not modules and not any(each.reason == PACKED_REASON for each in excluded):
        raise ValueError("nothing to prune: the model has no nn.Linear or nn.Conv weight that is not excluded")
    if coupling is not None and kind != "channel":
        raise ValueError(f"coupling={coupling!r} applies to kind='channel' only, not to {kind!r}; leave it out")
    found: list[Groups] = []
    pinned: list[Exclusion] = []
    label = getattr(kind, "__name__", repr(kind))
    if callable(kind):
        found = list(kind(model, modules))
        if not found or not all(isinstance(groups, Groups) for groups in found):
            raise ValueError(f"groups={label!r} returned {found!r}; it must return sparsity.Groups, at least one")
        if len({groups.name for groups in found}) < len(found):
            raise ValueError(
                f"groups={label!r} returned {found!r}; give each another name, under which its mask is kept"
            )
    elif kind == "channel":
        dense = {each.name.removesuffix(".weight") for each in excluded if each.reason == TRANSPOSED_REASON}
        packed = {each.name: model.get_submodule(each.name) for each in excluded if each.reason == PACKED_REASON}
        channels, reasons = channel_groups(model, {**modules, **packed}, dense, coupling or "group", example_input)
        cut = {part.name.rpartition(".")[0] for groups in channels for part in groups.slices}
        excluded = [each for each in excluded if each.name not in packed or each.name not in cut]
        found.extend(channels)
        pinned = [Exclusion(label, 0, reason) for label, reason in reasons.items()]
    else:
        found.extend(
            TensorGroups(
                f"{name}.weight" if name else "weight",
                weight,
                _TURNED.get(kind, kind) if turned_linear(module) else kind,
                int(getattr(module, "groups", 1)),
            )
            for name, module in modules.items()
            if isinstance(weight := module.weight, Tensor)
        )
    covered = {id(part.param) for groups in found for part in groups.slices}
    why = f"not cut by groups={label!r}" if callable(kind) else "no removable channel"
    left = [
        Exclusion(f"{name}.weight", int(module.weight.numel()), why)  # type: ignore[operator,union-attr]
        for name, module in modules.items()
        if id(module.weight) not in covered
    ]
    return Partition(found, kind if isinstance(kind, str) else found[0].kind, [*excluded, *left, *pinned])


def describe(groups: Partition) -> str:
    """A table of the groups and of what was excluded, for printing.

    Args:
        groups: What :func:`partition` returned.

    Returns:
        One line a groups object, then one line an exclusion with its reason.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> print(describe(partition(net, "input", exclude=["2"])))
        kind 'input': 4 groups over 12 prunable weights
          0.weight                                       4 groups x        3 weights
        left dense:
          2.weight                                       6 weights: excluded by '2'
    """
    lines = [
        f"kind {groups.kind!r}: {sum(g.count for g in groups):,} groups over {groups.total:,} prunable weights",
        *(f"  {g.name:<40} {g.count:>7,} groups x {g.size:>8,} weights" for g in groups),
    ]
    if groups.excluded:
        lines.append("left dense:")
        lines += [f"  {e.name:<40} {e.weights:>7,} weights: {e.reason}" for e in groups.excluded]
    return "\n".join(lines)
