"""Figures 1 and 2 of the paper, from real runs: PNG, and a page with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper.cells import Cell, run_cells

RUNS = {"figure1": ("cifar10-resnet18-dfp-90",), "figure2": ("cifar10-resnet18-dfp-90", "cifar10-resnet18-dpf-90")}


def run_figure(
    figure: str, out: str | Path, *, recipes: Sequence[str] = (), settings: Sequence[str] = (), **how: Any
) -> list[Path]:
    """Run what a figure needs and draw it; the runs are those of Table 1 where it has them.

    Args:
        figure: "figure1" (paths of all weights of some channels above the cyclical rate) or "figure2" (accuracy, soft and
            hard sparsity over epochs, DFP against DPF).
        out: the PNG; a page of the same name with .html stands beside it, and the runs' rows in a .jsonl.
        recipes: other runs than `RUNS`.
        settings: "key=value" overrides.
        **how: of `run_cells`.

    Returns:
        What was drawn; nothing while a run is unfinished.
    """
    from bayesprune.report import load_run, sample_paths, save_png, training_course, write_report

    out, runs = Path(out), Path(how.get("runs", "runs"))
    cells = [Cell(name, 0, tuple(settings)) for name in recipes or RUNS[figure]]
    run_cells(cells, out.with_suffix(".jsonl"), need_runs=True, **how)
    loaded = [load_run(runs / cell.name) for cell in cells if (runs / cell.name / "result.json").exists()]
    if len(loaded) < len(cells):
        return []
    drawn = sample_paths(loaded[0]) if figure == "figure1" else training_course(loaded)
    pages = write_report(loaded, out.with_suffix(".html"), title=f"{figure.title()[:-1]} {figure[-1]}")
    return [save_png(drawn, out), pages]
