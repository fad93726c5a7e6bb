"""What was removed, layer by layer, and why each channel stayed or went."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from bayesprune.compaction.leftovers import Leftovers
from bayesprune.compaction.solve import Solution
from bayesprune.graph.analysis import Analysis


@dataclass(frozen=True)
class LayerRecord:
    """The rows (or heads) of one layer.

    Attributes:
        name: Name of the layer.
        unit: ``"channels"`` or ``"heads"``.
        before: Their number in the masked model.
        after: Their number in the compact model; 0 if the whole branch went.
        stayed: Reason -> the channels (their old numbers) that stayed for it.
        went: Reason -> the channels that went for it.

    Example:
        >>> record = LayerRecord("0", "channels", 3, 1, {"read by 2": [0]}, {"no reader uses it": [1, 2]})
        >>> record.before - record.after == sum(map(len, record.went.values()))
        True
    """

    name: str
    unit: str
    before: int
    after: int
    stayed: dict[str, list[int]]
    went: dict[str, list[int]]


@dataclass
class CompactionReport:
    """What a compaction did.

    Attributes:
        kind: ``"modules"`` (the model's own class with smaller modules) or ``"graph"`` (a ``torch.fx.GraphModule``).
        graph_reasons: Why the graph had to change.
        layers: One record a layer.
        parameters: Number of parameters before and after.
        constants: Where constants were moved to.
        training: ``"exact"`` (training goes on as the masked model's would) or ``"evaluation only"`` (what is constant
            or zero now was taken for good).
        evaluated: Shapes of the inputs compared and the largest absolute difference of the outputs.
        exact: Largest difference of the outputs in float64, relative to the largest output.
        gradients: Largest relative difference of a gradient or running statistic after one float64 step.
        notes: What else is to be known.
        leftovers: Which zero weights stayed, why, and what would free them.

    Example:
        >>> import torch
        >>> from bayesprune import compact
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> with torch.no_grad():
        ...     _ = model[2].weight[:, 1].zero_()
        >>> report = compact(model, example_input=torch.zeros(2, 3)).report
        >>> report.parameters, report.why("0", 1)
        ((26, 20), 'went: no reader uses it')
    """

    kind: str
    graph_reasons: list[str]
    layers: list[LayerRecord]
    parameters: tuple[int, int]
    constants: list[str]
    training: str
    evaluated: list[tuple[tuple[int, ...], float]] = field(default_factory=list)
    exact: float | None = None
    gradients: float | None = None
    notes: list[str] = field(default_factory=list)
    leftovers: Leftovers = field(default_factory=Leftovers)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain numbers, strings, lists and dicts."""
        return asdict(self)

    def why(self, name: str, channel: int) -> str:
        """Why a channel of a layer stayed or went.

        Args:
            name: The layer.
            channel: The channel's number in the masked model.

        Returns:
            The reason.

        Raises:
            KeyError: No such layer or channel.
        """
        for layer in self.layers:
            if layer.name == name:
                for verb, held in (("stayed", layer.stayed), ("went", layer.went)):
                    for reason, channels in held.items():
                        if channel in channels:
                            return f"{verb}: {reason}"
        raise KeyError(f"channel {channel} of layer {name!r}: the layers are {[layer.name for layer in self.layers]}")

    def __str__(self) -> str:
        before, after = self.parameters
        width = max([len(layer.name) for layer in self.layers] + [8])
        lines = [f"{before:,} parameters -> {after:,} ({after / max(before, 1):.1%}); training: {self.training}"]
        if self.kind == "graph":
            lines += ["the result is a torch.fx.GraphModule:", *[f"  {reason}" for reason in self.graph_reasons]]
        for layer in self.layers:
            lines.append(f"{layer.name:<{width}} {layer.before:>6} -> {layer.after:>6} {layer.unit}")
            for verb, held in (("stayed", layer.stayed), ("went", layer.went)):
                lines += [f"{'':<{width}}   {len(channels):>6} {verb}: {reason}" for reason, channels in held.items()]
        lines += [f"moved: {line}" for line in self.constants]
        for shape, off in self.evaluated:
            lines.append(f"verified on {'x'.join(map(str, shape))}: largest difference {off:.1e}")
        if self.exact is not None:
            step = "" if self.gradients is None else f"; of a training step {self.gradients:.1e}"
            lines.append(f"verified in float64: {self.exact:.1e} relative{step}")
        lines += self.leftovers.lines()
        lines += [f"note: {line}" for line in self.notes]
        return "\n".join(lines)


def layer_records(a: Analysis, solution: Solution) -> list[LayerRecord]:
    """Per layer with rows of its own, why each channel stayed or went."""
    gone = _reasons_of_removal(a, solution)
    records = []
    for call in a.calls.values():
        if call.source is None:
            continue
        if call.heads is not None:
            records.append(_record(call.name, "heads", call.heads, call.node in a.alive, solution, gone))
        records.append(_record(call.name, "channels", call.target, call.node in a.alive, solution, gone))
    return records


def _record(name: str, unit: str, atoms: Tensor, alive: bool, solution: Solution, gone: dict[int, str]) -> LayerRecord:
    stayed: dict[str, list[int]] = {}
    went: dict[str, list[int]] = {}
    for channel, each in enumerate(solution.classes[atoms].tolist()):
        if not alive:
            went.setdefault("the branch is zero or constant and was left out", []).append(channel)
        elif solution.keep[each]:
            stayed.setdefault(solution.reasons[each], []).append(channel)
        else:
            went.setdefault(gone.get(each, "no reader uses it"), []).append(channel)
    return LayerRecord(name, unit, atoms.numel(), sum(map(len, stayed.values())), stayed, went)


def _reasons_of_removal(a: Analysis, solution: Solution) -> dict[int, str]:
    """For each class that went, what its readers saw; without an entry, no reader uses it."""
    reasons: dict[int, str] = {}
    for mixer in a.mixers:
        if mixer.node not in a.alive:
            continue
        rows = solution.kept(mixer.target)
        read = mixer.uses[rows].any(0) & ~solution.kept(mixer.source)
        for column in read.nonzero().flatten().tolist():
            each = int(solution.classes[mixer.source[column]])
            if float(mixer.const[column]) == 0:
                reasons.setdefault(each, "exactly zero at every reader")
            elif mixer.folds:
                reasons[each] = f"a constant, folded into {mixer.name}"
            else:
                reasons[each] = f"a constant, carried for {mixer.name} by another channel"
    return reasons


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(param.numel() for param in model.parameters())
