"""Table 4 as data: its methods, its designs, what is drawn, the paper's network and settings, and what the paper prints."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from paper.designs import SimulatedData, design

NETWORKS = ("paper's", "default")
VARIANTS: dict[str, tuple[str, ...]] = {
    "dfp": NETWORKS,
    "dpf": NETWORKS,
    "true-inputs": NETWORKS,
    "boosting": ("all columns", "selected columns"),
    "forest": ("all columns", "selected columns"),
    "lasso": ("linear",),
    "lassonet": ("path", "dense refit"),
    "svbnn": ("paper's",),
    "splbnn": ("paper's",),
}
METHODS = ("dfp", "dpf", "true-inputs", "boosting", "lasso", "svbnn", "splbnn", "lassonet", "forest")  # by value
BATCHED = ("dfp", "dpf", "true-inputs")  # several repetitions as one computation
ROWS = {"n": 10_000, "n_test": 5_000}


@dataclass(frozen=True)
class Table4Design:
    """One block of Table 4.

    Args:
        key: its name in rows and file names.
        title: its name in the table.
        example: the paper's number of it.
        name: of the design, as `paper.designs.design` knows it.
        settings: its arguments.
        hidden: hidden widths of the paper's network.
        splbnn: SPLBNN's published settings for it.
        ours_only: whether only our methods and the reference rows are run.
        paper: what the paper prints by method: score, false discoveries, number selected.
    """

    key: str
    title: str
    example: int
    name: str
    settings: dict[str, Any]
    hidden: tuple[int, ...]
    splbnn: dict[str, float]
    ours_only: bool
    paper: dict[str, tuple[str, str, str]]


_PAPER1 = {
    "splbnn": ("1.4", "0", "4"), "svbnn": ("1.6", "38.3 %", "6.3"), "dfp": ("1.32", "0", "4"), "dpf": ("1.29", "0", "4"),
}  # fmt: skip
_PAPER2 = {
    "splbnn": ("2.43", "0", "5"), "svbnn": ("3.12", "51 %", "10.2"), "dfp": ("2.46", "0", "5"), "dpf": ("2.49", "0", "5"),
}  # fmt: skip
_PAPER3 = {
    "splbnn": ("91.2 %", "0", "5"), "svbnn": ("86 %", "39.9 %", "8.2"), "dfp": ("94.70 %", "0", "5"), "dpf": ("94.50 %", "0", "5"),
}  # fmt: skip
# A quarter of the published 80,001 + 40,001 steps, so that forty fits take an hour and not four.
_STEPS = {"steps": 20_001, "refine_steps": 10_001}
_SPLBNN1 = _STEPS | {"step_size": 0.01, "batch_size": 1000, "spike_variance": 5e-4, "slab_variance": 0.01}
_SPLBNN2 = _STEPS | {"step_size": 0.005, "batch_size": 500, "spike_variance": 1e-4, "slab_variance": 0.01}
_SPLBNN3 = _STEPS | {"step_size": 0.005, "batch_size": 500, "spike_variance": 1e-4, "slab_variance": 1.0}

DESIGNS: dict[str, Table4Design] = {
    each.key: each
    for each in (
        Table4Design(
            "example1-paper", "Example 1, formula as printed, p = 1000", 1, "example1", {"formula": "paper", "p": 1000},
            (5, 3), _SPLBNN1, False, _PAPER1,
        ),
        Table4Design(
            "example1-authors-code", "Example 1, formula of the authors' code, p = 1000", 1, "example1",
            {"formula": "authors-code", "p": 1000}, (5, 3), _SPLBNN1, False, _PAPER1,
        ),
        Table4Design("example2", "Example 2, p = 2000", 2, "example2", {"p": 2000}, (6, 4, 3), _SPLBNN2, False, _PAPER2),
        Table4Design(
            "example3-p1000", "Example 3, p = 1000", 3, "example3", {"p": 1000}, (6, 4, 3), _SPLBNN3, False, _PAPER3
        ),
        Table4Design(
            "example3-p2000", "Example 3, p = 2000", 3, "example3", {"p": 2000}, (6, 4, 3), _SPLBNN3, True, _PAPER3
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A data set with its columns in another order.

    Args:
        data: the data set; its columns are permuted, `true_inputs` and `settings` are those of the design.
        order: (p,) the design's column that stands at each place.
    """

    data: SimulatedData
    order: np.ndarray

    def original(self, columns: Any) -> list[int]:
        """Return the design's numbers of columns, given their places, in order."""
        return sorted(int(column) for column in self.order[np.asarray(columns, dtype=np.int64)])

    def places(self) -> np.ndarray:
        """Return where the true inputs stand."""
        return np.flatnonzero(np.isin(self.order, self.data.true_inputs))


def draw(block: Table4Design, seed: int, repetition: int, sizes: dict[str, Any] | None = None) -> Drawn:
    """Draw a repetition of a block and permute its columns: the true inputs come first, and ties must not favour them.

    Args:
        block: one of `DESIGNS`.
        seed: root seed.
        repetition: from 0.
        sizes: other arguments of the design, to try it small.

    Returns:
        The data set in permuted order.

    Example:
        >>> drawn = draw(DESIGNS["example2"], 0, 1, {"n": 60, "p": 12, "n_test": 10})
        >>> drawn.original(drawn.places()), bool((drawn.order == np.arange(12)).all())
        ([0, 1, 2, 3, 4], False)
    """
    data = design(block.name, seed=seed, repetition=repetition, **(ROWS | block.settings | (sizes or {})))
    generator = np.random.default_rng(np.random.SeedSequence([seed, repetition, 4]))
    order = generator.permutation(data.X_train.shape[1])
    permuted: dict[str, Any] = {
        name: np.ascontiguousarray(getattr(data, name)[:, order]) for name in ("X_train", "X_validation", "X_test")
    }
    return Drawn(dataclasses.replace(data, **permuted), order)
