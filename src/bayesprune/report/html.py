"""One page that holds all there is to see of some runs, and needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayesprune.common.files import write_bytes
from bayesprune.report.diagrams import layer_sparsity, member_accuracies, reliability_diagram, sample_paths
from bayesprune.report.doubt import doubtful_images, other_data, risk_curves
from bayesprune.report.figures import accuracy_curves, learning_rate, sparsity_curves
from bayesprune.report.findings import comparison, found_table, key_figures, size_accuracy
from bayesprune.report.fragments import (
    flatten,
    found_faults,
    health_rows,
    health_said,
    layer_rows,
    setting_differences,
    table_legend,
)
from bayesprune.report.load import Run, run_labels
from bayesprune.report.page import Figures, render
from bayesprune.report.table import results_table


def write_report(runs: Sequence[Run], path: str | os.PathLike[str], *, title: str | None = None) -> Path:
    """Write one self-contained HTML page: what was found, where the runs doubt, how they got there, and their settings.

    The page fetches nothing; its one script sorts tables and shows values. It follows the reader's light or dark theme. The
    same runs give the same bytes. A run folder that holds `profile.json` (`bayesprune profile DIR --run RUN`) shows
    megabytes and milliseconds too, one that holds `predictions.safetensors` (`bayesprune evaluate RUN --keep`) its doubtful
    images and the histograms of other data.

    Args:
        runs: finished or not, in the order of the page.
        path: the file to write; it is replaced at once, never half.
        title: heading of the page; by default the run's name or the number of runs.

    Returns:
        The path.

    Raises:
        ValueError: there are no runs.
        ImportError: Matplotlib or Jinja2 is missing.

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
    from markupsafe import Markup

    labels, figure = run_labels(runs), Figures()
    several = len(runs) > 1
    headings = labels if several else ["The run in detail"]
    doubt = [
        figure(
            lambda: risk_curves(runs),
            "Risk and coverage",
            "Errors among the surest share of the test inputs. A curve that falls to zero on the left keeps its errors among "
            "the inputs that it doubts.",
        ),
        figure(
            lambda: other_data(runs),
            "Other data",
            "Entropy of the prediction on the test inputs and on inputs of another kind: the less they overlap, the better.",
        ),
    ]
    doubtful = [
        {"label": label if several else "", "images": images}
        for run, label in zip(runs, labels)
        if (images := doubtful_images(run))
    ]
    links = [("found", "Found"), ("doubt", "Doubt"), ("results", "Results"), ("training", "Training")]
    links += [(f"run-{number}", label) for number, label in enumerate(headings, 1)]
    faults = [(label if several else "", text) for run, label in zip(runs, labels) for text in found_faults(run)]
    training = [
        figure(lambda: accuracy_curves(runs), "Accuracy", "Accuracy after each epoch."),
        figure(lambda: learning_rate(runs), "Learning rate", "The cyclical step size; samples come from its cold end."),
        figure(
            lambda: sparsity_curves(runs),
            "Sparsity",
            "Soft sparsity: share of groups whose weights are under the spike. Hard sparsity: share of prunable weights that "
            "are exactly zero.",
        ),
    ]
    beside = [
        figure(
            lambda: comparison(runs), "Comparison", "Accuracy with 95 % intervals, on the range where the runs differ."
        ),
        figure(
            lambda: size_accuracy(runs),
            "Size",
            "Circles: single models, filled: the average of all members; diamonds: the same average, compact. Up and to the left is "
            "better.",
        ),
    ]
    return render(
        "runs.html",
        title=title or (labels[0] if not several else f"Report of {len(runs)} runs"),
        subtitle=_shared(runs),
        links=links,
        faults=faults,
        tiles=[] if several else key_figures(runs[0]),
        found=found_table(runs),
        comparison=[one for one in beside if several and one.kind != "absent"],
        doubt=doubt,
        doubtful=doubtful,
        results=Markup(results_table(runs, "html")),
        legend=table_legend(runs),
        differences=setting_differences(runs, labels),
        training=training,
        articles=[_article(run, heading, figure) for run, heading in zip(runs, headings)],
    )


def _article(run: Run, heading: str, figure: Figures) -> dict[str, Any]:
    """What stands under a run's own heading."""
    result = run.result or {}
    drawn = [
        figure(
            lambda: reliability_diagram(run),
            "Calibration",
            "Accuracy of the inputs in each bin of confidence, with 95 % intervals; beside the dashed line it is calibrated. "
            "ECE is the mean gap.",
        ),
        figure(lambda: member_accuracies(run), "Members", "Accuracy of every sample on its own, and of their average."),
        figure(
            lambda: sample_paths(run),
            "Sample paths",
            "Weights of some channels over training, above the learning rate. A channel whose paths all close in on zero is "
            "one to prune.",
            wide=True,
        ),
        figure(lambda: layer_sparsity(run), "Layers", "Share of each layer's weights that are exactly zero."),
    ]
    return {
        "heading": heading,
        "line": _line(run),
        "figures": drawn,
        "layers": layer_rows(result.get("sparsity") or {}),
        "health": health_rows(result.get("health")),
        "health_said": health_said(result.get("health")),
        "config": flatten(run.config),
        "environment": flatten(run.environment),
    }


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
