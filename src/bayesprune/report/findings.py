"""What runs found, first of all: accuracy with its interval, uncertainty, size and speed, dense beside compact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bayesprune.report.load import Run, run_labels
from bayesprune.report.style import MUTED, NothingToDraw, look, name_rows, one_panel, style_axes
from bayesprune.report.table import MISSING, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def tested(run: Run) -> float | None:
    """Number of inputs that a run was tested on, from its reliability bins."""
    rows = (run.result or {}).get("reliability") or (run.result or {}).get("reliability_single") or []
    count = sum(row.get("count") or 0 for row in rows)
    return count or None


def key_figures(run: Run) -> list[tuple[str, str, str]]:
    """The numbers of one finished run: (name, value, note); nothing for an unfinished one."""
    result = run.result
    if result is None:
        return []
    left, dense = result.get("madds"), result.get("madds_dense")
    remaining = "" if left is None or dense is None else f"{_short(left)} of {_short(dense)} left"

    def share(key: str) -> str:
        return shown(result.get(key), ".2%")

    def number(key: str) -> str:
        return shown(result.get(key), ".4f")

    return [
        ("Averaged accuracy", share("accuracy_mean"), f"single model: {share('accuracy_single')}"),
        ("Negative log-likelihood", number("nll"), f"single model: {number('nll_single')}"),
        ("Calibration error", number("ece"), f"single model: {number('ece_single')}"),
        ("Prunable weights at zero", share("sparsity_prunable"), f"of all parameters: {share('sparsity_all')}"),
        ("Multiply-adds removed", share("sparsity_madds"), remaining),
        ("Samples", f"{result.get('num_samples') or 0:,}", f"members disagree on {share('disagreement')}"),
    ]


def _short(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def found_table(runs: Sequence[Run]) -> dict[str, Any]:
    """Heads, rows and legend of the first table: a single model, the average, and the compact one where it was profiled."""
    timed = sorted({batch for run in runs for batch in ((run.profile or {}).get("latency") or {})}, key=int)
    heads = ["Run", "Model", "Accuracy %", "95 %", "NLL", "ECE", "Epistemic", "MB", *(f"ms, batch {n}" for n in timed)]
    rows: list[list[str]] = []
    for run, label in zip(runs, run_labels(runs)):
        if run.result is not None:
            rows += _rows(run, label, timed)
    legend = (
        "Single: the model at the end of training. Averaged: the mean of all samples' probabilities. 95 %: Wilson's interval "
        "over the test inputs. Epistemic: what the members disagree on, in nats. MB: float32 weights, of all members."
    )
    if timed:
        legend += (
            " Compact: what bayesprune compact wrote, with the outputs of the masked network; milliseconds were measured in "
            "turns, and the ratio carries its interval."
        )
    return {"heads": heads, "rows": rows, "legend": legend}


def _rows(run: Run, label: str, timed: Sequence[str]) -> list[list[str]]:
    result, profile = run.result or {}, run.profile or {}
    samples, latency = int(result.get("num_samples") or 0), profile.get("latency") or {}
    sizes = {name: f"{size:.3f}" for name, size in _megabytes(run).items() if size is not None}

    def row(name: str, key: str, scores: tuple[str, ...], times: list[str]) -> list[str]:
        numbers = [shown(result.get(score), ".4f") for score in scores]
        return [label, name, *_accuracy(run, key), *numbers, sizes.get(name.rpartition(" ")[2], MISSING), *times]

    averaged = "accuracy_mean", ("nll", "ece", "epistemic")
    before = [f"{1e3 * latency[n]['before']:.2f}" if n in latency and profile.get("dense") else MISSING for n in timed]
    rows = [row("single", "accuracy_single", ("nll_single", "ece_single", ""), before)]
    if samples:
        rows.append(row(f"{samples} averaged", *averaged, [MISSING] * len(timed)))
    if profile.get("compact"):
        rows.append(row("compact", *averaged, [_faster(latency.get(n), bool(profile.get("dense"))) for n in timed]))
    return rows


def _megabytes(run: Run) -> dict[str, float | None]:
    """Size of a run's single model, of its average, and of the compact average; None where it is not known."""
    result, compact = run.result or {}, (run.profile or {}).get("compact") or {}
    parameters, samples, stored = result.get("parameters"), result.get("num_samples") or 0, compact.get("bytes")
    return {
        "single": None if parameters is None else 4 * parameters / 1e6,
        "averaged": None if parameters is None else 4 * parameters * samples / 1e6,
        "compact": None if stored is None else stored / 1e6,
    }


def _faster(times: dict[str, Any] | None, dense: bool) -> str:
    if not times:
        return MISSING
    ratio = f" ({times['ratio']:.1f} ×: {times['low']:.1f} to {times['high']:.1f})" if dense else ""
    return f"{1e3 * times['after']:.2f}{ratio}"


def _accuracy(run: Run, key: str) -> tuple[str, str]:
    share, count = (run.result or {}).get(key), tested(run)
    if share is None:
        return MISSING, MISSING
    if count is None:
        return f"{100 * share:.2f}", MISSING
    low, high = wilson(share, count)
    return f"{100 * share:.2f}", f"{100 * low:.2f} to {100 * high:.2f}"


def comparison(runs: Sequence[Run]) -> Figure:
    """Accuracy of each run's single model and average with 95 % intervals, on the range that they cover."""
    drawn = [
        (index, f"{label} {name}", run.result[key], tested(run))
        for index, (run, label) in enumerate(zip(runs, run_labels(runs)))
        if run.result
        for name, key in (("single", "accuracy_single"), ("averaged", "accuracy_mean"))
        if run.result.get(key) is not None and (name == "single" or run.result.get("num_samples") != 0)
    ]
    if not drawn:
        raise NothingToDraw("no run is finished")
    figure, axes = one_panel(4.6, 0.26 * len(drawn) + 1.0)
    for place, (index, name, share, count) in enumerate(drawn):
        color = look(index)["color"]
        if count:
            low, high = wilson(share, count)
            axes.hlines(place, 100 * low, 100 * high, color=color, linewidth=1.6)
        full = name.endswith("averaged")
        axes.plot(
            [100 * share], [place], "o", color=color, markersize=5, label=name,
            markerfacecolor=color if full else "white",
        )  # fmt: skip
    axes.margins(x=0.08)
    style_axes(axes, x="accuracy (%)", title="Side by side", grid="x")
    name_rows(axes, [name for _, name, *_ in drawn], 34, color=MUTED, edge=0.5)
    said = ", ".join(f"{name} {100 * share:.2f}%" for _, name, share, _ in drawn)
    figure.set_label(f"Accuracy with 95 % intervals: {said}.")
    return figure


def size_accuracy(runs: Sequence[Run]) -> Figure:
    """Accuracy over megabytes: single models, averages of all members, and what they are once compact, with 95 % intervals."""
    drawn = [
        (index, f"{label} {name}", size, share, tested(run))
        for index, (run, label) in enumerate(zip(runs, run_labels(runs)))
        for name, size in _megabytes(run).items()
        if size
        and (share := (run.result or {}).get("accuracy_single" if name == "single" else "accuracy_mean")) is not None
    ]
    if len({size for _, _, size, *_ in drawn}) < 2:
        raise NothingToDraw("all runs have one size")
    from matplotlib.ticker import LogLocator

    figure, axes = one_panel(4.6, 2.2)
    axes.set_xscale("log")
    for index, name, size, share, count in drawn:
        color = look(index)["color"]
        if count:
            low, high = wilson(share, count)
            axes.vlines(size, 100 * low, 100 * high, color=color, linewidth=1.2, alpha=0.6)
        kind = name.rpartition(" ")[2]
        axes.plot(
            [size], [100 * share], "D" if kind == "compact" else "o", color=color, markersize=5, label=name,
            markerfacecolor="white" if kind == "single" else color,
        )  # fmt: skip
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.tick_params(which="minor", length=0)
    style_axes(axes, x="MB", y="accuracy (%)", title="Size and accuracy", grid="both")
    said = ", ".join(f"{name} {size:.3f} MB, {100 * share:.2f}%" for _, name, size, share, _ in drawn)
    figure.set_label(f"Accuracy over size in megabytes: {said}.")
    return figure
