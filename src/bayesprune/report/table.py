"""The results of runs, side by side, as text, Markdown or HTML."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from bayesprune.report.load import Run, run_labels

MISSING = "–"


def shown(value: Any, form: str = ".4g") -> str:
    """A number in a form (`.2%` is a percentage), a dash for what is none."""
    return format(value, form) if isinstance(value, (int, float)) else MISSING


class Column(NamedTuple):
    """A column of numbers: its heading, the heading of its group, the result's entry, and the form of a value."""

    group: str
    heading: str
    key: str
    form: str


COLUMNS = (
    Column("Accuracy (%)", "single", "accuracy_single", ".2%"),
    Column("Accuracy (%)", "averaged", "accuracy_mean", ".2%"),
    Column("Averaged prediction", "NLL", "nll", ".4f"),
    Column("Averaged prediction", "Brier", "brier", ".4f"),
    Column("Averaged prediction", "ECE", "ece", ".4f"),
    Column("Sparsity (%)", "prunable", "sparsity_prunable", ".2%"),
    Column("Sparsity (%)", "all", "sparsity_all", ".2%"),
    Column("Sparsity (%)", "multiply-adds", "sparsity_madds", ".2%"),
    Column("", "Samples", "num_samples", ",.0f"),
    Column("", "Epochs", "epochs", ",.0f"),
    Column("", "Seconds", "seconds", ",.0f"),
)


class _Row(NamedTuple):
    label: str
    runs: list[Run]


def results_table(runs: Sequence[Run], fmt: str = "text", *, average_seeds: bool = False) -> str:
    """Put the results of runs side by side, one run a line.

    Accuracies and sparsities are in percent. Single is the model at the end of training, averaged is the mean of
    all samples' predictions, to which NLL, Brier and ECE belong too. Where a run has no
    value (or is not finished) the cell is a dash; a column of data sets or networks appears when they differ.

    Args:
        runs: in the order of the lines.
        fmt: "text" (aligned, for terminals), "markdown" or "html" (a ``<table>`` element).
        average_seeds: runs that differ only in their seed share a line: mean ± sample standard deviation.

    Returns:
        The table; text and Markdown end in a line break.

    Raises:
        ValueError: there are no runs, or ``fmt`` is unknown.

    Example:
        >>> from pathlib import Path
        >>> config = {"recipe": "digits", "method": "cvadam", "seed": 0}
        >>> run = Run(Path("demo"), config, result={"accuracy_mean": 0.9712, "nll": 0.1})
        >>> for line in results_table([run]).splitlines():
        ...     print(line[:40].rstrip())
                                Accuracy (%)
        Run   Recipe  Method  single  averaged
        ----  ------  ------  ------  --------
        demo  digits  cvadam       –     97.12
    """
    writers = {"text": _text, "markdown": _markdown, "html": _html}
    if fmt not in writers:
        raise ValueError(f"fmt={fmt!r}: expected one of {', '.join(map(repr, writers))}")
    if not runs:
        raise ValueError("runs is empty: give at least one run")
    rows = _merged(runs) if average_seeds else [_Row(name, [run]) for name, run in zip(run_labels(runs), runs)]
    headings = [("", "Run"), ("", "Recipe"), ("", "Method")]
    cells = [[row.label, row.runs[0].recipe, row.runs[0].method] for row in rows]
    for heading, attribute in (("Data", "dataset"), ("Network", "network")):
        values = [getattr(row.runs[0], attribute) for row in rows]
        if len(set(values)) > 1:
            headings.append(("", heading))
            for line, value in zip(cells, values):
                line.append(value or MISSING)
    texts = len(headings)
    for column in COLUMNS:
        headings.append((column.group, column.heading))
        for line, row in zip(cells, rows):
            line.append(_cell(row, column))
    return writers[fmt](headings, cells, texts)


def _cell(row: _Row, column: Column) -> str:
    first = row.runs[0]
    if first.result is None:  # never merged with another
        if column.key != "epochs":
            return MISSING
        return f"{first.epochs_done} of {first.epochs_planned or '?'}"
    values = [v for run in row.runs if (v := (run.result or {}).get(column.key)) is not None]
    if not values:
        return MISSING
    if not all(map(math.isfinite, values)):
        return str(next(value for value in values if not math.isfinite(value)))
    told = [statistics.fmean(values)]
    if len(values) > 1 and (column.form != ",.0f" or len(set(values)) > 1):
        told.append(statistics.stdev(values))
    return " ± ".join(format(value, column.form).rstrip("%") for value in told)  # the heading says %


def _merged(runs: Sequence[Run]) -> list[_Row]:
    together: dict[str, list[tuple[str, Run]]] = {}
    for label, run in zip(run_labels(runs), runs):
        rest = {key: value for key, value in run.config.items() if key not in ("seed", "runtime")}
        # An unfinished run has nothing to average; its own path keeps it alone.
        same = json.dumps(rest, sort_keys=True) if run.finished else str(run.path)
        together.setdefault(same, []).append((label, run))
    rows = []
    for members in together.values():
        label = members[0][0]
        if len(members) > 1:
            label = re.sub(rf"(^|[-_./ ]+)(seed|s)?[-_= ]*{members[0][1].seed}$", "", label) or members[0][1].recipe
            label = f"{label} ({len(members)} runs)"
        rows.append(_Row(label, [run for _, run in members]))
    return rows


def _text(headings: list[tuple[str, str]], cells: list[list[str]], texts: int) -> str:
    widths = [max(len(heading), *(len(line[i]) for line in cells)) for i, (_, heading) in enumerate(headings)]
    groups, at = [], 0
    for group, members in groupby(headings, key=lambda heading: heading[0]):
        count = len(list(members))
        width = sum(widths[at : at + count]) + 2 * (count - 1)
        if width < len(group):  # a group's name is never cut: its last column grows
            widths[at + count - 1] += len(group) - width
            width = len(group)
        groups.append(group.center(width))
        at += count

    def line(values: list[str]) -> str:
        aligned = (v.ljust(w) if i < texts else v.rjust(w) for i, (v, w) in enumerate(zip(values, widths)))
        return "  ".join(aligned).rstrip()

    head = ["  ".join(groups).rstrip(), line([heading for _, heading in headings]), line(["-" * w for w in widths])]
    return "\n".join([*head, *map(line, cells)]) + "\n"


def _markdown(headings: list[tuple[str, str]], cells: list[list[str]], texts: int) -> str:
    def line(values: list[str]) -> str:
        return "| " + " | ".join(values) + " |"

    def plain(value: str) -> str:
        return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(value.split()))

    names = [group.replace(" (%)", f", {heading} (%)") if "%" in group else heading for group, heading in headings]
    rule = [":---" if i < texts else "---:" for i in range(len(headings))]
    return "\n".join([line(names), line(rule), *(line([plain(v) for v in row]) for row in cells)]) + "\n"


def _html(headings: list[tuple[str, str]], cells: list[list[str]], texts: int) -> str:
    from bayesprune.report.page import html_table

    groups = [(group, len(list(members))) for group, members in groupby(headings, key=lambda heading: heading[0])]
    return str(html_table([heading for _, heading in headings], cells, texts, groups)).strip()
