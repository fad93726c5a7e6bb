"""The three sparsity figures: over prunable weights, over all parameters, and in multiply-adds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from bayesprune.graph.hooks import heard
from bayesprune.graph.inputs import Inputs
from bayesprune.graph.layers import TRANSPOSED, is_weighted, turned_linear
from bayesprune.sparsity.partition import Exclude, Exclusion, prunable_modules


@dataclass(frozen=True)
class LayerSparsity:
    """One weight tensor of the report.

    Attributes:
        name: Name of the parameter.
        shape: Its shape.
        zeros: Number of exact zeros.
        total: Number of weights.
        madds: Multiply-adds per example, dense (0 if not measured).
        madds_left: Multiply-adds per example with the zeros left out.
        prunable: Whether it counts among the prunable weights.

    Example:
        >>> layer = LayerSparsity("0.weight", (4, 3), zeros=6, total=12, madds=12, madds_left=6, prunable=True)
        >>> layer.zeros / layer.total
        0.5
    """

    name: str
    shape: tuple[int, ...]
    zeros: int
    total: int
    madds: int
    madds_left: int
    prunable: bool


@dataclass(frozen=True)
class SparsityReport:
    """How sparse a model is, three ways; see :func:`sparsity_report`.

    Attributes:
        prunable: Share of exact zeros among the prunable weights.
        all: Share of exact zeros among all parameters.
        madds: Share of the multiply-adds that the zeros remove; None without ``example_input``.
        prunable_zeros: Number of exact zeros among the prunable weights.
        prunable_total: Number of prunable weights.
        all_zeros: Number of exact zeros among all parameters.
        all_total: Number of parameters.
        madds_dense: Multiply-adds per example, dense; None without ``example_input``.
        madds_left: Multiply-adds per example with the zeros left out.
        per_layer: One entry a convolution or linear weight.
        excluded: What does not count as prunable, with reasons.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> _ = nn.init.zeros_(model.weight)
        >>> report = sparsity_report(model)
        >>> report.prunable, report.all_zeros, report.per_layer[0].name
        (1.0, 8, 'weight')
    """

    prunable: float
    all: float
    madds: float | None
    prunable_zeros: int
    prunable_total: int
    all_zeros: int
    all_total: int
    madds_dense: int | None
    madds_left: int | None
    per_layer: list[LayerSparsity] = field(default_factory=list)
    excluded: list[Exclusion] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain numbers, strings, lists and dicts."""
        return asdict(self)

    def __str__(self) -> str:
        width = max([len(layer.name) for layer in self.per_layer] + [20])
        head = (
            f"{'weight':<{width}} {'shape':>18} {'zero':>12} {'of':>12} {'share':>8} {'multiply-adds':>15} {'left':>15}"
        )
        lines = [head, "-" * len(head)]
        for layer in self.per_layer:
            shape = "x".join(map(str, layer.shape)) + ("" if layer.prunable else " *")
            share = layer.zeros / layer.total if layer.total else 0.0
            lines.append(
                f"{layer.name:<{width}} {shape:>18} {layer.zeros:>12,} {layer.total:>12,} {share:>8.2%} "
                f"{layer.madds:>15,} {layer.madds_left:>15,}"
            )
        lines.append("-" * len(head))
        lines.append(f"prunable weights: {self.prunable:.2%} zero ({self.prunable_zeros:,} of {self.prunable_total:,})")
        lines.append(f"all parameters:   {self.all:.2%} zero ({self.all_zeros:,} of {self.all_total:,})")
        if self.madds is not None:
            lines.append(
                f"multiply-adds:    {self.madds:.2%} removed ({self.madds_left:,} of {self.madds_dense:,} left)"
            )
        lines += [f"* not prunable: {entry.name}: {entry.reason}" for entry in self.excluded]
        return "\n".join(lines)


def sparsity_report(
    model: nn.Module, pruner: Any = None, *, exclude: Exclude = (), example_input: Any = None
) -> SparsityReport:
    """Count the exact zeros of a model over its prunable weights, over all its parameters, and in multiply-adds.

    A weight of a convolution or linear layer takes one multiply-add at each position of the output (of the input, for a
    transposed convolution), padding included; a weight at exactly zero saves its own. Biases, normalisation and
    activations are not counted.

    Args:
        model: The model.
        pruner: A pruner attached to it, whose weights are then the prunable ones; else all linear and convolution
            weights are.
        exclude: Without a pruner: patterns on module names, module types or modules that do not count as prunable.
        example_input: An input (or tuple of inputs) to measure multiply-adds on; counted per example of its batch.

    Returns:
        The report; ``print`` shows it as a table.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 3))
        >>> with torch.no_grad():
        ...     _ = net[0].weight[0].zero_()
        >>> report = sparsity_report(net, example_input=torch.zeros(1, 1, 8, 8))
        >>> report.prunable_zeros, report.prunable_total, report.all_total, report.madds_dense, report.madds_left
        (9, 234, 239, 864, 540)

    Reference: method, section 6.
    """
    if pruner is not None:
        names = set(pruner.groups.weights())
        excluded = list(pruner.groups.excluded)
    else:
        modules, excluded = prunable_modules(model, exclude)
        names = {f"{name}.weight" if name else "weight" for name in modules}
    positions = _positions(model, example_input) if example_input is not None else {}

    uses: dict[int, tuple[str, Tensor, int]] = {}  # a tied weight is stored once but works at every place
    for name, module in _layers(model):
        full, weight, at = uses.get(id(module.weight), (f"{name}.weight" if name else "weight", module.weight, 0))
        uses[id(weight)] = full, weight, at + positions.get(name, 0)
    layers = []
    for full, weight, at in uses.values():
        zeros, total = int((weight == 0).sum()), weight.numel()
        shape = tuple(weight.shape)
        layers.append(LayerSparsity(full, shape, zeros, total, total * at, (total - zeros) * at, full in names))

    prunable_zeros, prunable_total = (
        sum(getattr(layer, what) for layer in layers if layer.prunable) for what in ("zeros", "total")
    )
    all_zeros, all_total = (
        sum(int((p == 0).sum()) for p in model.parameters()),
        sum(p.numel() for p in model.parameters()),
    )
    dense, left = sum(layer.madds for layer in layers), sum(layer.madds_left for layer in layers)
    measured = example_input is not None
    return SparsityReport(
        prunable=_share(prunable_zeros, prunable_total),
        all=_share(all_zeros, all_total),
        madds=_share(dense - left, dense) if measured else None,
        prunable_zeros=prunable_zeros,
        prunable_total=prunable_total,
        all_zeros=all_zeros,
        all_total=all_total,
        madds_dense=dense if measured else None,
        madds_left=left if measured else None,
        per_layer=layers,
        excluded=excluded,
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if is_weighted(module) and isinstance(getattr(module, "weight", None), Tensor):
            yield name, module


def _positions(model: nn.Module, example_input: Any) -> dict[str, int]:
    """Per layer, how often each of its weights is used for one example."""
    example, counts = Inputs.of(model, example_input), Counter[str]()

    def note(name: str, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear) or turned_linear(module):
            counts[name] += output.numel() // output.shape[-1]
        elif isinstance(module, TRANSPOSED):
            counts[name] += inputs[0].numel() // int(module.in_channels)
        else:
            counts[name] += output.numel() // int(module.out_channels)

    heard(model, dict(_layers(model)), example, note)
    return {name: used // example.batch for name, used in counts.items()}
