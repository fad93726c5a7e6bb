"""Which channels stay: need is followed backwards, with the ties, to a fixed point."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bayesprune.graph.analysis import Analysis, Mixer
from bayesprune.graph.errors import CompactionError


@dataclass
class Solution:
    """Which classes of atoms are kept."""

    classes: Tensor
    keep: Tensor
    reasons: dict[int, str] = field(default_factory=dict)
    carriers: dict[int, int] = field(default_factory=dict)

    def kept(self, atoms: Tensor) -> Tensor:
        """True where an atom stays."""
        return self.keep[self.classes[atoms]]

    def index(self, atoms: Tensor) -> Tensor:
        """The places of the atoms that stay."""
        return self.kept(atoms).nonzero().flatten()

    def mark(self, atoms: Tensor, reason: str) -> bool:
        """Keep atoms; whether that was new."""
        classes = self.classes[atoms].reshape(-1)
        new = classes[~self.keep[classes]].unique()
        self.keep[new] = True
        for each in new.tolist():
            self.reasons[each] = reason
        return new.numel() > 0


def needed(a: Analysis, mixer: Mixer, solution: Solution) -> Tensor:
    """The columns that a mixer's kept rows use and that no bias can stand for."""
    used = mixer.uses[solution.kept(mixer.target)].any(0)
    # A layer that is called twice has one bias, and may read different constants.
    movable = a.fold and mixer.moves and mixer.name not in a.repeated
    return used & (mixer.const.isnan() if movable else mixer.const != 0)


def solve(a: Analysis, *, round_to: int = 1, floors: list[tuple[Tensor, int, str]] | None = None) -> Solution:
    """Find the smallest set of channels that leaves the model's outputs as they are."""
    classes = a.atoms.classes()
    count = int(classes.max()) + 1 if classes.numel() else 0
    solution = Solution(classes, torch.zeros(count, dtype=torch.bool))
    for pin in a.pins:
        if pin.node in a.alive:
            solution.mark(pin.atoms, pin.reason)
    while True:
        _close(a, solution)
        if _carry(a, solution):
            continue
        if _floor(a, solution, floors or []) or _round(a, solution, round_to):
            continue
        return solution


def _close(a: Analysis, solution: Solution) -> None:
    """Follow need backwards until nothing is new."""
    mixers = [mixer for mixer in reversed(a.mixers) if mixer.node in a.alive]
    changed = True
    while changed:
        changed = False
        for mixer in mixers:
            columns = needed(a, mixer, solution)
            changed |= solution.mark(mixer.source[columns], f"read by {mixer.name}")
        for rule in a.implications:
            if rule.node in a.alive:
                on = solution.kept(rule.cause)
                on = on if rule.where is None else on & rule.where
                changed |= solution.mark(rule.effect[on], rule.reason)
        for grid in a.grids:
            if grid.node not in a.alive:
                continue
            kept = solution.kept(grid.atoms)
            whole = torch.ones_like(kept)
            for axis in range(kept.dim()):
                others = tuple(n for n in range(kept.dim()) if n != axis)
                line = kept.any(others, keepdim=True) if others else kept
                whole = whole & (kept.any() if axis in grid.full else line)
            changed |= solution.mark(grid.atoms[whole], grid.reason)


def _carry(a: Analysis, solution: Solution) -> bool:
    """Where a padded layer reads removed constants, keep one of them to carry all; whether one had to be kept."""
    if not a.fold:
        return False
    for place, mixer in enumerate(a.mixers):
        if mixer.folds or not mixer.moves or mixer.node not in a.alive or mixer.name in a.repeated:
            continue
        kept = solution.kept(mixer.source)
        constant = ~mixer.const.isnan() & (mixer.const != 0)
        used = mixer.uses[solution.kept(mixer.target)].any(0)
        lost = used & constant & ~kept
        if not lost.any():
            solution.carriers.pop(place, None)
            continue
        able = constant & kept
        if not able.any():
            able = lost
        solution.carriers[place] = carrier = int((mixer.const.abs() * able).nan_to_num(nan=0.0).argmax())
        if solution.mark(mixer.source[carrier : carrier + 1], f"carries the constant channels that {mixer.name} reads"):
            return True
    return False


def _floor(a: Analysis, solution: Solution, floors: list[tuple[Tensor, int, str]]) -> bool:
    """No tensor without channels, and the numbers asked for; whether something had to be kept."""
    places = [value.atoms for node, held in a.values.items() if node in a.alive for value in _flat(held) if value.axes]
    places += [gather.part for gather in a.gathers if gather.node in a.alive]
    places += [call.heads for call in a.calls.values() if call.heads is not None and call.node in a.alive]
    for atoms in places:
        flat = atoms.reshape(-1)
        if flat.numel() and not solution.kept(flat).any():
            return solution.mark(flat[:1], "floor of one channel")
    for atoms, minimum, reason in floors:
        kept = solution.kept(atoms)
        missing = min(minimum, atoms.numel()) - int(kept.sum())
        if missing > 0:
            return solution.mark(atoms[~kept][:missing], reason)
    return False


def _flat(held: object) -> list:
    if isinstance(held, tuple):
        return [value for entry in held for value in _flat(entry)]
    return [] if held is None else [held]


def _round(a: Analysis, solution: Solution, multiple: int) -> bool:
    if multiple <= 1:
        return False
    changed = False
    for call in a.calls.values():
        if call.source is None or call.heads is not None or call.node not in a.alive:
            continue
        kept = solution.kept(call.target)
        count = int(kept.sum())
        missing = min(-(-count // multiple) * multiple, kept.numel()) - count
        if missing > 0:
            spare = call.target[~kept]
            changed |= solution.mark(spare[:missing], f"rounded up to a multiple of {multiple}")
    return changed


def check_agreement(a: Analysis, solution: Solution) -> None:
    """Refuse a sum whose terms are zero at different kept channels."""
    for node, left, right in a.sums:
        if node not in a.alive or left.atoms.shape != right.atoms.shape:
            continue
        odd = solution.kept(left.atoms) & ((left.const == 0) != (right.const == 0))
        if odd.any():
            raise CompactionError(
                "masks-disagree",
                f"coupling='group', but at {node.name} {int(odd.sum())} of {odd.numel()} channels are zero in one term "
                "of the sum only; prune with groups='channel' and coupling='group', or compact with "
                "coupling='intersection' or 'indexed'",
            )


def violations(a: Analysis, solution: Solution) -> list[str]:
    """Why these weights do not allow what was removed for others: the check of a further sample."""
    found = list(a.problems)
    for place, mixer in enumerate(a.mixers):
        if mixer.node not in a.alive:
            continue
        used = mixer.uses[solution.kept(mixer.target)].any(0) & ~solution.kept(mixer.source)
        lost = used & needed(a, mixer, solution)
        if not mixer.folds and mixer.moves and a.fold:
            constants = used & (mixer.const != 0) & ~mixer.const.isnan()
            carrier = solution.carriers.get(place)
            if constants.any() and (carrier is None or not float(mixer.const[carrier]) or mixer.const[carrier].isnan()):
                lost = lost | constants
        if lost.any():
            found.append(f"{mixer.name} reads {int(lost.sum())} channels that the compact model does not have")
    for rule in a.implications:
        if rule.node in a.alive and rule.where is not None:
            gone = solution.kept(rule.cause) & rule.where & ~solution.kept(rule.effect)
            if gone.any():
                found.append(f"{int(gone.sum())} channels {rule.reason} that the compact model does not have")
    return found
