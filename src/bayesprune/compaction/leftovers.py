"""Zero weights that stayed in the compact model: where, why, and what would free them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from bayesprune.compaction.slices import Cut, take
from bayesprune.compaction.solve import Solution
from bayesprune.graph.analysis import Analysis
from bayesprune.graph.layers import turned_linear

SCATTERED = "single zeros inside channels that are in use"
LEAST = 0.05  # of the parameters: fewer zeros than this promise nothing


@dataclass(frozen=True)
class LayerLeftover:
    """The zero weights that one layer keeps."""

    name: str
    zeros: int
    weights: int
    reasons: dict[str, int]


@dataclass
class Leftovers:
    """What was promised by the zeros, and what came of it."""

    promised: int = 0
    removed: int = 0
    layers: list[LayerLeftover] = field(default_factory=list)
    frees: list[str] = field(default_factory=list)

    @property
    def disappoints(self) -> bool:
        """Whether less than half of the promise was kept."""
        return 2 * self.removed < self.promised

    def reasons(self) -> dict[str, int]:
        """Reason -> zeros over all layers, most first."""
        total: dict[str, int] = {}
        for layer in self.layers:
            for reason, count in layer.reasons.items():
                total[reason] = total.get(reason, 0) + count
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    def lines(self) -> list[str]:
        """The report's lines."""
        if not self.layers:
            return []
        found = [
            f"zero weights left: {sum(each.zeros for each in self.layers):,} "
            f"(of {self.promised:,} in the masked model; {self.removed:,} parameters were removed)"
        ]
        for layer in self.layers:
            why = "; ".join(f"{count:,}: {reason}" for reason, count in layer.reasons.items())
            found.append(f"  {layer.name}: {layer.zeros:,} of {layer.weights:,} ({why})")
        return found + [f"would free more: {line}" for line in self.frees]

    def warn(self, parameters: int, stacklevel: int = 3) -> None:
        """Warn where less than half of the promise was kept."""
        if not self.disappoints or self.promised < LEAST * parameters:
            return
        why = "; ".join(f"{count:,}: {reason}" for reason, count in list(self.reasons().items())[:3])
        frees = "; ".join(self.frees) or "see report.leftovers"
        warnings.warn(
            f"compact removed {self.removed:,} parameters where {self.promised:,} weights are zero "
            f"({self.removed / self.promised:.0%}). Zeros that stayed: {why}. More goes with: {frees}",
            UserWarning,
            stacklevel=stacklevel,
        )


def size_after(model: nn.Module, cuts: Mapping[str, Cut]) -> int:
    """Number of parameters of a model once cut."""
    total = 0
    for name, param in model.named_parameters():
        shape = list(param.shape)
        for dim, index in cuts.get(name, []):
            shape[dim] = index.numel()
        total += math.prod(shape)
    return total


def leftovers(
    a: Analysis, solution: Solution, cuts: Mapping[str, Cut], small: nn.Module, other: Callable[[bool, bool], int]
) -> Leftovers:
    """Find the zero weights that are left."""
    left = {name for name, _ in small.named_parameters()}
    result = Leftovers()
    for name, param in a.model.named_parameters():
        path, _, which = name.rpartition(".")
        if param.dim() < 2 or not which.startswith(("weight", "in_proj_weight")):
            continue
        zero = (param.detach() == 0).cpu()
        result.promised += int(zero.sum())
        if name not in left:
            continue
        zero = take(zero, cuts.get(name, []))
        if zero.any():
            owner = path.removesuffix(".out_proj")
            result.layers.append(
                LayerLeftover(name, int(zero.sum()), zero.numel(), _why(a, solution, path, owner, zero))
            )
    result.layers.sort(key=lambda layer: -layer.zeros)
    after = sum(param.numel() for param in small.parameters())
    result.removed = sum(param.numel() for param in a.model.parameters()) - after
    if result.disappoints:
        result.frees = _frees(a, result, after, other)
    return result


def _why(a: Analysis, solution: Solution, name: str, owner: str, zero: Tensor) -> dict[str, int]:
    call = a.calls.get(name) or a.calls.get(owner)
    if call is None:
        return {
            a.untaken.get(
                name, "the forward does not call it, or computes with its weight in a way that is not known"
            ): int(zero.sum())
        }
    zero = zero.t() if turned_linear(call.module) else zero
    found: dict[str, int] = {}
    rows, rest = _lines(solution, call.target, zero, 0), zero
    if rows is not None:
        full = zero.flatten(1).all(1)
        for row in full.nonzero().flatten().tolist():
            reason = f"zero rows: {rows[row]}"
            found[reason] = found.get(reason, 0) + int(zero[row].sum())
        rest = zero[~full]
    columns = None if call.source is None or not rest.numel() else _lines(solution, call.source, rest, 1)
    scattered = int(rest.sum())
    if columns is not None:
        full = rest.transpose(0, 1).flatten(1).all(1)
        for column in full.nonzero().flatten().tolist():
            reason = f"zero columns: {columns[column]}"
            found[reason] = found.get(reason, 0) + int(rest[:, column].sum())
            scattered -= int(rest[:, column].sum())
    if scattered:
        found[SCATTERED] = scattered
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _lines(solution: Solution, atoms: Tensor, zero: Tensor, dim: int) -> list[str] | None:
    """Why each row (or column) that is left stayed; None where they are no channels."""
    classes = solution.classes[atoms][solution.kept(atoms)].reshape(-1).tolist()
    if len(classes) != zero.shape[dim]:
        return None
    return [f"{solution.reasons.get(each, 'in use')}" for each in classes]


def _frees(a: Analysis, found: Leftovers, after: int, other: Callable[[bool, bool], int]) -> list[str]:
    lines = []
    if not a.fold and (gain := after - other(True, False)) > 0:
        lines.append(
            f"constants='fold' (for evaluation) takes {gain:,} parameters more, of channels whose rows are zero but whose "
            "bias or shift is not; groups='channel' prunes those with the rows"
        )
    if not a.indexed and (gain := after - other(a.fold, True)) > 0:
        lines.append(f"coupling='indexed' takes {gain:,} parameters more, of sums whose terms do not agree")
    reasons = found.reasons()
    if reasons.get(SCATTERED, 0) * 2 > sum(reasons.values()):
        lines.append("groups='channel' (or 'output', 'input') prunes whole channels; single zeros cannot be removed")
    if any("is not known" in reason for reason in reasons):
        lines.append("layers of torch, or subclasses that call super().forward, in place of what is not known")
    return lines
