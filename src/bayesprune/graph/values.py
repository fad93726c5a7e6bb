"""What the analysis knows of a tensor: where its channels lie, which of them are tied, which are constant.

An *atom* is one channel at one place of the graph. Atoms that can only stay or go together are tied; a set of tied
atoms is a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

NAN = float("nan")


class Atoms:
    """Union-find over channels."""

    def __init__(self) -> None:
        self._parent: list[int] = []

    def fresh(self, *shape: int) -> Tensor:
        """New atoms, tied to none."""
        start, count = len(self._parent), int(torch.Size(shape).numel())
        self._parent.extend(range(start, start + count))
        return torch.arange(start, start + count).view(shape)

    def _find(self, atom: int) -> int:
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Tie the atoms of two arrays of one shape, entry by entry."""
        if a is b:
            return
        for one, two in zip(a.reshape(-1).tolist(), b.reshape(-1).tolist()):
            one, two = self._find(one), self._find(two)
            if one != two:
                self._parent[max(one, two)] = min(one, two)

    def tie_all(self, atoms: Tensor) -> None:
        """Tie all atoms of an array to each other."""
        flat = atoms.reshape(-1)
        if flat.numel() > 1:
            self.tie(flat[1:], flat[:1].expand(flat.numel() - 1))

    def roots(self, atoms: Tensor) -> Tensor:
        """One number for all atoms that are tied."""
        return torch.tensor([self._find(atom) for atom in atoms.reshape(-1).tolist()], dtype=torch.long).view(
            atoms.shape
        )

    def classes(self) -> Tensor:
        """The class of every atom, numbered from 0 in order of appearance."""
        roots = torch.tensor([self._find(atom) for atom in range(len(self._parent))], dtype=torch.long)
        return torch.unique(roots, return_inverse=True)[1] if roots.numel() else roots


@dataclass(eq=False)
class Value:
    """A tensor of the graph."""

    shape: torch.Size
    axes: tuple[int, ...] = ()
    atoms: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long))
    const: Tensor = field(default_factory=lambda: torch.full((), NAN, dtype=torch.float64))
    why: str = ""
    tensor: str = ""

    @property
    def single(self) -> bool:
        """Whether the channels lie along one dimension."""
        return len(self.axes) == 1

    def on(self, axis: int) -> bool:
        """Whether the channels lie along this dimension (negative from the end) and no other."""
        return self.axes == (axis % max(len(self.shape), 1),)

    def with_const(self, const: Tensor) -> Value:
        """The same channels holding something else."""
        return Value(self.shape, self.axes, self.atoms, const, self.why)

    def shaped(self, shape: Sequence[int], const: Tensor | None = None) -> Value:
        """The same channels in a tensor of other sizes elsewhere."""
        const = self.const if const is None else const
        return Value(torch.Size(shape), self.axes, self.atoms, const, self.why)

    def aligned(self, rank: int) -> Value:
        """The same seen with as many dimensions as broadcasting gives it."""
        more = rank - len(self.shape)
        if more <= 0:
            return self
        axes = tuple(axis + more for axis in self.axes)
        return Value(torch.Size([1] * more + list(self.shape)), axes, self.atoms, self.const, self.why, self.tensor)


def unknown_like(const: Tensor) -> Tensor:
    """A constant of the same shape that is nowhere known."""
    return torch.full_like(const, NAN)


def overlap(one: tuple[Sequence[int], Sequence[int], int], other: tuple[Sequence[int], Sequence[int], int]) -> bool:
    """Whether two views (shape, strides, offset) of one storage share an entry."""
    if 0 in one[0] or 0 in other[0]:
        return False
    ends = [at + sum((size - 1) * step for size, step in zip(shape, steps)) for shape, steps, at in (one, other)]
    mark = torch.zeros(max(ends) + 1, dtype=torch.bool)
    mark.as_strided(*one).fill_(True)
    return bool(mark.as_strided(*other).any())
