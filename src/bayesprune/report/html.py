"""One page that holds all there is to see of some runs, and needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from bayesprune._version import __version__
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
from bayesprune.report.style import NothingToDraw, figure_to_svg, write_bytes
from bayesprune.report.stylesheet import stylesheet
from bayesprune.report.table import results_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Nothing may be fetched and nothing may run, whatever a run's files say.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class _Figures:
    """Numbers the figures, so that their identifiers differ."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, draw: Callable[[], Figure], name: str, caption: str, *, wide: bool = False) -> str:
        try:
            figure = draw()
        except NothingToDraw as reason:
            return f'<p class="absent">{escape(name)}: {escape(str(reason))}.</p>'
        self.count += 1
        svg = figure_to_svg(figure, f"f{self.count}-")
        kind = ' class="wide"' if wide else ""
        # Reached by the keyboard, since it may scroll on a phone.
        reach = ' tabindex="0"' if wide else ""
        canvas = f'<div class="canvas"{reach}>{svg}</div>'
        return f"<figure{kind}>{canvas}<figcaption>{caption}</figcaption></figure>"


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
    labels, figure = run_labels(runs), _Figures()
    title = title or (labels[0] if len(runs) == 1 else f"Report of {len(runs)} runs")
    about = _shared(runs)
    headings = labels if len(runs) > 1 else ["The run in detail"]
    links = [("results", "Results"), ("training", "Training")]
    links += [(f"run-{number}", label) for number, label in enumerate(headings, 1)]
    navigation = "".join(f'<li><a href="#{anchor}">{escape(label)}</a></li>' for anchor, label in links)
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
    sections = [
        f"<header>\n<h1>{escape(title)}</h1>",
        f'<p class="muted">{escape(about)}</p>' if about else "",
        f'<nav aria-label="Sections"><ul>{navigation}</ul></nav>\n</header>\n<main>',
        key_figures(runs[0]) if len(runs) == 1 else "",
        warning_box(
            [(label if len(runs) > 1 else "", text) for run, label in zip(runs, labels) for text in found_faults(run)]
        ),
        '<section id="results" aria-labelledby="results-title">\n<h2 id="results-title">Results</h2>',
        scroll_box(results_table(runs, "html"), "Results table"),
        table_legend(runs),
        setting_differences(runs, labels),
        "</section>",
        '<section id="training" aria-labelledby="training-title">\n<h2 id="training-title">Training</h2>',
        _grid(curves),
        "</section>",
        *(_article(run, name, number, figure) for number, (run, name) in enumerate(zip(runs, headings), 1)),
        f"</main>\n<footer><p>Written by bayesprune {escape(__version__)}.</p></footer>",
    ]
    body = "\n".join(part for part in sections if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{stylesheet()}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _article(run: Run, heading: str, number: int, figure: _Figures) -> str:
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
        _grid(drawn),
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


def _grid(figures: list[str]) -> str:
    """Flow the small figures in columns, then the wide ones, then what could not be drawn and why."""
    small = "".join(figure for figure in figures if figure.startswith("<figure>"))
    wide = "".join(figure for figure in figures if figure.startswith("<figure class"))
    absent = "".join(figure for figure in figures if figure.startswith("<p"))
    return (f'<div class="figures">{small}</div>' if small else "") + wide + absent
