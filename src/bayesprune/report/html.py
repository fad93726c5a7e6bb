"""One page that holds all there is to see of some runs, and needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from bayesprune.common.files import write_bytes
from bayesprune.report.diagrams import layer_sparsity, member_accuracies, reliability_diagram, sample_paths
from bayesprune.report.figures import accuracy_curves, learning_rate, sparsity_curves
from bayesprune.report.fragments import (
    flatten,
    folded,
    found_faults,
    health_table,
    key_figures,
    layer_table,
    pair_table,
    scroll_box,
    setting_differences,
    table_legend,
    warning_box,
)
from bayesprune.report.load import Run, run_labels
from bayesprune.report.page import Figures, grid, section, whole_page
from bayesprune.report.table import results_table


def write_report(runs: Sequence[Run], path: str | os.PathLike[str], *, title: str | None = None) -> Path:
    """Write one self-contained HTML page: results, curves, calibration, sparsity, health and settings of the runs.

    The page has no scripts and fetches nothing; it follows the reader's light or dark theme. The same runs give the
    same bytes.

    Args:
        runs: finished or not, in the order of the page.
        path: the file to write; it is replaced at once, never half.
        title: heading of the page; by default the run's name or the number of runs.

    Returns:
        The path.

    Raises:
        ValueError: there are no runs.
        ImportError: Matplotlib is missing.

    Example:
        >>> import tempfile
        >>> run = Run(Path("demo"), {"recipe": "digits", "method": "cvadam", "seed": 0})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = write_report([run], Path(folder) / "report.html").read_text(encoding="utf-8")
        >>> page.splitlines()[0], "<title>demo</title>" in page
        ('<!DOCTYPE html>', True)
    """
    if not runs:
        raise ValueError("runs is empty: give at least one run")
    return write_bytes(path, _page(runs, title).encode("utf-8"))


def _page(runs: Sequence[Run], title: str | None) -> str:
    labels, figure = run_labels(runs), Figures()
    title = title or (labels[0] if len(runs) == 1 else f"Report of {len(runs)} runs")
    about = _shared(runs)
    headings = labels if len(runs) > 1 else ["The run in detail"]
    links = [("results", "Results"), ("training", "Training")]
    links += [(f"run-{number}", label) for number, label in enumerate(headings, 1)]
    curves = [
        figure(lambda: accuracy_curves(runs), "Accuracy", "Accuracy after each epoch."),
        figure(lambda: learning_rate(runs), "Learning rate", "The cyclical step size; samples come from its cold end."),
        figure(
            lambda: sparsity_curves(runs),
            "Sparsity",
            "Soft sparsity: share of groups whose weights are under the spike. Hard sparsity: share of prunable "
            "weights that are exactly zero.",
        ),
    ]
    parts = [
        key_figures(runs[0]) if len(runs) == 1 else "",
        warning_box(
            [(label if len(runs) > 1 else "", text) for run, label in zip(runs, labels) for text in found_faults(run)]
        ),
        section(
            "results",
            "Results",
            scroll_box(results_table(runs, "html"), "Results table"),
            table_legend(runs),
            setting_differences(runs, labels),
        ),
        section("training", "Training", grid(curves)),
        *(_article(run, name, number, figure) for number, (run, name) in enumerate(zip(runs, headings), 1)),
    ]
    return whole_page(title, about, links, parts)


def _article(run: Run, heading: str, number: int, figure: Figures) -> str:
    result = run.result or {}
    drawn = [
        figure(
            lambda: reliability_diagram(run),
            "Calibration",
            "Accuracy of inputs in each bin of confidence, and its gap to their mean confidence; ECE is the mean gap.",
        ),
        figure(lambda: member_accuracies(run), "Members", "Accuracy of every sample on its own, and of their average."),
        figure(
            lambda: sample_paths(run),
            "Sample paths",
            "All weights of some channels over training, above the learning rate. A channel whose paths all close in "
            "on zero is one to prune.",
            wide=True,
        ),
        figure(
            lambda: layer_sparsity(run),
            "Layers",
            "Share of each layer's weights that are exactly zero.",
        ),
    ]
    sparsity = result.get("sparsity") or {}
    parts = [
        f'<article id="run-{number}" aria-labelledby="run-{number}-title">',
        f'<h2 id="run-{number}-title">{escape(heading)}</h2>\n<p class="muted">{escape(_line(run))}</p>',
        grid(drawn),
        layer_table(sparsity),
        health_table(result.get("health")),
        folded("Configuration", pair_table(flatten(run.config)), kind="config"),
        folded("Environment", pair_table(flatten(run.environment)), kind="environment"),
        "</article>",
    ]
    return "\n".join(part for part in parts if part)


def _line(run: Run) -> str:
    state = "finished" if run.finished else f"unfinished: {run.epochs_done} of {run.epochs_planned or '?'} epochs"
    known = [run.recipe, run.method, run.dataset, run.network, f"seed {run.seed}", state]
    known.append(run.environment.get("device"))
    return " · ".join(str(item) for item in known if item not in (None, ""))


def _shared(runs: Sequence[Run]) -> str:
    """What all runs have in common, in one line."""
    values = [{getattr(run, key) for run in runs} for key in ("recipe", "method", "dataset", "network")]
    common = [str(next(iter(value))) for value in values if len(value) == 1 and None not in value]
    unfinished = sum(not run.finished for run in runs)
    return " · ".join(common + ([f"{unfinished} unfinished"] if unfinished else []))
