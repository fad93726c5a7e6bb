"""Tables 1 to 3 of the paper as data: their runs, in order of value, and the accuracies that are printed there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paper.cells import Cell

LABELS = {
    "sgd": "SGD (Nesterov)",
    "csgld": "cSGLD",
    "csghmc": "cSGHMC",
    "rank1": "rank-1 BNN",
    "cvadam": "CV-Adam",
    "dfp": "EM-MCMC, DFP",
    "dpf": "EM-MCMC, DPF",
    "sparse-momentum": "sparse momentum",
    "dsr": "DSR",
    "set": "SET",
    "rigl": "RigL",
    "gmp": "gradual magnitude",
    "dpf-sgd": "DPF on SGD",
    "best": "CV-Adam, our setting",
    "dfp-best": "EM-MCMC, DFP, our setting",
    "dpf-best": "EM-MCMC, DPF, our setting",
}
DENSE = ("sgd", "csgld", "csghmc", "rank1", "cvadam", "best")
_VALUE = (  # within a network and seed
    "sgd", "cvadam", "dfp", "dpf", "csgld", "rigl", "best", "dfp-best", "dpf-best", "sparse-momentum", "dsr", "rank1", "gmp",
    "csghmc", "set", "dpf-sgd",
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One network on one data set.

    Args:
        place: as the recipes' names begin.
        title: in words.
        sparsities: percent.
        dense: accuracy in the paper by method.
        sparse: likewise, one for each sparsity.
        elsewhere: accuracy that another publication prints, by method and sparsity (None for dense), with its source.
        methods: those that have recipes there.
    """

    place: str
    title: str
    sparsities: tuple[int, ...]
    dense: dict[str, float]
    sparse: dict[str, tuple[float, ...]]
    elsewhere: dict[tuple[str, int | None], tuple[float, str]]
    methods: tuple[str, ...] = _VALUE

    def recipe(self, method: str, sparsity: int | None) -> str:
        """Return the recipe of a cell.

        Example:
            >>> TABLES["table1"][0].recipe("dfp", 80), TABLES["table1"][0].recipe("cvadam", None)
            ('cifar10-resnet18-dfp-80', 'cifar10-resnet18')
        """
        name = self.place if method == "cvadam" else f"{self.place}-{method}"
        return name if sparsity is None else f"{name}-{sparsity}"

    def paper(self, method: str, sparsity: int | None) -> float | None:
        """Return what the paper prints, if it prints it."""
        if sparsity is None:
            return self.dense.get(method)
        values = self.sparse.get(method)
        return None if values is None else values[self.sparsities.index(sparsity)]

    def entries(self) -> list[tuple[str, int | None]]:
        """Return (method, sparsity) of all cells, first things first."""
        found: list[tuple[str, int | None]] = []
        for method in (name for name in _VALUE if name in self.methods):
            found += [(method, None)] if method in DENSE else [(method, each) for each in self.sparsities]
        return found


_RIGL, _UB = "RigL, 250 epochs", "uncertainty-baselines"
_IMAGENET_METHODS = tuple(name for name in _VALUE if "best" not in name)
TABLES: dict[str, tuple[Block, ...]] = {
    "table1": (
        Block(
            "cifar10-resnet18", "CIFAR-10, ResNet-18", (70, 80, 90),
            {"sgd": 95.0, "csgld": 95.7, "cvadam": 95.5},
            {"sparse-momentum": (92.8, 91.1, 89.7), "dsr": (93.1, 91.2, 90.0), "dfp": (94.7, 94.5, 93.9), "dpf": (94.8, 94.5, 93.8)},
            {("sgd", None): (95.45, _RIGL), ("rigl", 70): (95.41, _RIGL), ("rigl", 80): (95.20, _RIGL), ("rigl", 90): (95.06, _RIGL)},
        ),
        Block(
            "cifar10-wrn28-10", "CIFAR-10, WRN-28-10", (90, 95, 99),
            {"sgd": 96.3, "rank1": 96.5, "csgld": 96.2, "cvadam": 96.5},
            {"sparse-momentum": (95.4, 95.3, 94.5), "dsr": (95.8, 95.4, 94.5), "dfp": (95.5, 95.3, 94.7), "dpf": (95.8, 95.4, 94.5)},
            {("sgd", None): (96.0, _UB), ("rank1", None): (96.5, _UB)},
        ),
    ),
    "table2": (
        Block(
            "cifar100-resnet34", "CIFAR-100, ResNet-34", (50, 70, 90),
            {"sgd": 78.5, "csgld": 79.7, "cvadam": 79.4},
            {"sparse-momentum": (76.4, 73.2, 72.1), "dsr": (76.6, 73.8, 72.3), "dfp": (77.6, 75.4, 75.1), "dpf": (77.4, 75.1, 75.3)},
            {},
        ),
        Block(
            "cifar100-wrn28-10", "CIFAR-100, WRN-28-10", (70, 80, 90),
            {"sgd": 81.7, "rank1": 82.4, "csgld": 82.7, "cvadam": 83.4},
            {"sparse-momentum": (78.0, 77.0, 76.5), "dsr": (78.1, 76.5, 76.4), "dfp": (78.5, 77.7, 77.5), "dpf": (78.2, 77.9, 77.4)},
            {("sgd", None): (79.8, _UB), ("rank1", None): (82.4, _UB)},
        ),
    ),
    "table3": (
        Block(
            "imagenet-resnet50", "ImageNet, ResNet-50", (80, 90),
            {"sgd": 76.5, "rank1": 77.3, "csgld": 76.7, "cvadam": 76.8},
            {"sparse-momentum": (73.8, 72.3), "dsr": (73.3, 72.0), "dfp": (74.5, 73.5), "dpf": (74.6, 73.2)},
            {}, _IMAGENET_METHODS,
        ),
    ),
}  # fmt: skip


def table_cells(table: str, seeds: int, settings: Sequence[str] = (), only: Sequence[str] = ()) -> list[Cell]:
    """Return the runs of a table in order of value: a seed of every cell before the next seed of any.

    Args:
        table: "table1", "table2" or "table3".
        seeds: how many of each, from 0.
        settings: "key=value" overrides of all.
        only: patterns of recipe names ("*" and "?" as in a shell); a name without them stands for itself.

    Raises:
        ValueError: a pattern that matches no cell.

    Example:
        >>> [cell.recipe for cell in table_cells("table1", 1)][:4]
        ['cifar10-resnet18-sgd', 'cifar10-resnet18', 'cifar10-resnet18-dfp-70', 'cifar10-resnet18-dfp-80']
    """
    recipes = [block.recipe(*entry) for block in TABLES[table] for entry in block.entries()]
    return [Cell(name, seed, tuple(settings)) for seed in range(seeds) for name in chosen(recipes, only)]


def chosen(names: Sequence[str], only: Sequence[str]) -> list[str]:
    """Return the names that match one of the patterns, in their order; all where there are no patterns.

    Raises:
        ValueError: a pattern that matches none.
    """
    from fnmatch import fnmatchcase

    from bayesprune.train.values import nearest

    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"only={pattern!r} matches no cell: {nearest(pattern, names)}")
    return [name for name in names if not only or any(fnmatchcase(name, pattern) for pattern in only)]
