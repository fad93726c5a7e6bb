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
from bayesprune.report.load import Run, run_labels
from bayesprune.report.page import Figures, flatten, render
from bayesprune.report.table import MISSING, results_table, shown


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
    faults = [(label if several else "", text) for run, label in zip(runs, labels) for text in _found_faults(run)]
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
        legend=_table_legend(runs),
        differences=_setting_differences(runs, labels),
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
        "layers": _layer_rows(result.get("sparsity") or {}),
        "health": _health_rows(result.get("health")),
        "health_said": _health_said(result.get("health")),
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


def _found_faults(run: Run) -> list[str]:
    """List what a reader must know before trusting a run: that it is unfinished, and its health warnings."""
    state = f"unfinished, after {run.epochs_done} of {run.epochs_planned or '?'} epochs: it has curves but no results"
    health = (run.result or {}).get("health") or {}
    return ([] if run.finished else [state]) + [f"{str(text).rstrip('.')}." for text in health.get("warnings") or []]


def _table_legend(runs: Sequence[Run]) -> str:
    """Explain the columns of the results table."""
    if not any(run.finished for run in runs):
        return ""
    return (
        "Single: the model at the end of training. Averaged: the mean of all samples' probabilities, to which NLL (nats), "
        "Brier score and ECE (15 bins) belong too. Sparsity: share of zeros among the prunable weights and among all "
        "parameters, and share of the multiply-adds removed."
    )


def _setting_differences(runs: Sequence[Run], labels: Sequence[str]) -> dict[str, Any] | None:
    """Heads and rows of the settings in which runs differ, so that it is plain what is compared; None for a single run."""
    if len(runs) < 2:
        return None
    flat = [dict(flatten(run.config)) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one)]
    differing = [key for key in keys if len({one.get(key, MISSING) for one in flat}) > 1]
    twice = {key.rpartition(".")[2] for key in differing if "." in key}  # such as method, which a section holds too
    rows = [[key, *(_told(one.get(key, MISSING)) for one in flat)] for key in differing if key not in twice]
    return {"heads": ["Setting", *labels], "rows": rows}


def _layer_rows(sparsity: dict[str, Any]) -> dict[str, Any]:
    """Heads and rows of a sparsity report, and what was excluded."""
    rows = []
    for row in sparsity.get("per_layer") or []:
        zeros, total = row.get("zeros"), row.get("total")
        share = f"{100 * zeros / total:.2f}" if zeros is not None and total else MISSING
        cells = [shown(zeros, ","), shown(total, ","), share, shown(row.get("madds"), ",")]
        rows.append([str(row.get("name")), " × ".join(map(str, row.get("shape") or [])), *cells])
    excluded = [_excluded(entry) for entry in sparsity.get("excluded") or []]
    note = f"Not prunable: {'; '.join(excluded)}." if excluded else "Nothing was excluded from pruning."
    heads = ["Layer", "Shape", "Zeros", "Weights", "Sparsity (%)", "Multiply-adds"]
    return {"heads": heads, "rows": rows, "note": note}


def _excluded(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    size = f" ({entry['weights']:,} weights)" if entry.get("weights") else ""
    return f"{entry.get('name')}{size}: {entry.get('reason')}"


def _health_rows(health: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The numbers of a health report by name; its warnings stand at the top of the page."""
    if not health:
        return []
    rows: list[tuple[str, str]] = []
    for number, group in enumerate(health.get("temperature") or []):
        said = f"{shown(group.get('mean'))} (from {shown(group.get('min'))} to {shown(group.get('max'))})"
        rows.append((f"Injected temperature, group {number}", said))
        if group.get("kinetic") is not None:
            rows.append((f"Measured temperature, group {number}", shown(group["kinetic"])))
        if group.get("suggested_lr") is not None:
            rows.append((f"Step size at which minibatches add a tenth, group {number}", shown(group["suggested_lr"])))
    values = {
        "Noise-to-gradient ratio": health.get("noise_to_gradient"),
        "Members": health.get("members"),
        "Temperature measured at the samples": health.get("sample_temperature"),
        "Relative spread of the weights": health.get("weight_spread"),
        "Disagreement between members": health.get("disagreement"),
        "Epistemic uncertainty": health.get("epistemic"),
        **{f"Training loss, {name}": value for name, value in (health.get("fit") or {}).items()},
    }
    rows += [(name, shown(value)) for name, value in values.items() if value is not None]
    for name, key in (("R-hat", "rhat"), ("Bulk ESS", "ess")):
        rows += [(f"{name} of {trace}", shown(value)) for trace, value in (health.get(key) or {}).items()]
    return rows


def _health_said(health: dict[str, Any] | None) -> str:
    """How many warnings a health report gave, in words."""
    warned = len((health or {}).get("warnings") or [])
    return f"{warned} warning{'s' if warned != 1 else ''}, see the top of the page" if warned else "no warnings"


def _told(value: str) -> str:
    return {"null": "not set", "true": "yes", "false": "no"}.get(value, value)
