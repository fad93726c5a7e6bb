"""Rows of cells as `run_cells` writes them, for tests of what reads them."""

from __future__ import annotations

from paper.cells import Cell


def row(recipe, seed=0, status="done", changes=(), accuracy=0.9):
    return {
        "name": Cell(recipe, seed, tuple(changes)).name, "recipe": recipe, "seed": seed, "status": status, "changes": list(changes),
        "reason": "the loss is not finite", "accuracy_single": accuracy, "accuracy_mean": accuracy + 0.01, "nll": 0.3,
        "ece": 0.01, "sparsity_prunable": 0.8, "sparsity_all": 0.79, "madds": 30, "madds_dense": 100, "num_samples": 6, "seconds": 9.0,
    }  # fmt: skip
