"""Figures of a single run: its weight paths, calibration, layers and members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesprune.report.findings import wilson
from bayesprune.report.load import Run
from bayesprune.report.style import (
    INK,
    LINE,
    MUTED,
    PATHS,
    SERIES,
    NothingToDraw,
    legend_below,
    literal,
    name_rows,
    new_figure,
    one_panel,
    spread,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE = SERIES[:2]


def sample_paths(run: Run, *, max_channels: int = 8, max_weights: int = 256, max_steps: int = 600) -> Figure:
    """Paths of all weights of chosen channels over training, above the learning rate: weights of a channel concentrate.

    One panel a channel, input channels in one colour and output channels in another; panels of the same parameter share
    their scale. What is too much for the eye is thinned evenly, and the panel's title says so.

    Args:
        run: with recorded traces.
        max_channels: panels; kept in equal parts of input and output channels.
        max_weights: lines in a panel.
        max_steps: points of a line.

    Returns:
        A figure with a panel for each channel and the learning rate under each column; its label describes it in words.

    Raises:
        NothingToDraw: the run recorded no weight paths.

    Example:
        >>> from pathlib import Path
        >>> sample_paths(Run(Path("demo"), {}))
        Traceback (most recent call last):
            ...
        bayesprune.report.style.NothingToDraw: the run recorded no weight paths (no traces.safetensors)

    Reference:
        Ke & Fan (2022), Figure 1.
    """
    traces = run.traces()
    if traces is None:
        raise NothingToDraw("the run recorded no weight paths (no traces.safetensors)")
    if not traces.channels or not len(traces.steps):
        raise NothingToDraw("the run's traces.safetensors holds no weight paths")
    chosen = _choose(list(traces.channels), max_channels)
    points = spread(len(traces.steps), max_steps)
    from matplotlib.collections import LineCollection

    steps, columns = traces.steps[points], min(2, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = new_figure(3.3 * columns, 1.6 * rows + 1.5)
    grid = figure.subplots(rows + 1, columns, sharex=True, squeeze=False, height_ratios=[1.6] * rows + [0.9])
    names = {name for _, name, _ in chosen}
    limits: dict[tuple[str, str], list[float]] = {}
    for kind, name, channel in chosen:
        values = traces.channels[kind, name, channel]
        finite = values[np.isfinite(values)]
        limits.setdefault((kind, name), []).append(float(np.abs(finite).max()) if finite.size else 1.0)
    for index, (kind, name, channel) in enumerate(chosen):
        axes: Axes = grid[index // columns, index % columns]
        paths = traces.channels[kind, name, channel]
        lines = spread(paths.shape[1], max_weights)
        shown = f"{paths.shape[1]:,} weights"
        shown = f"{len(lines)} of {shown}" if len(lines) < paths.shape[1] else shown
        points_of = np.stack(np.broadcast_arrays(steps[:, None], paths[np.ix_(points, lines)]), axis=-1)
        bundle = LineCollection(
            list(points_of.transpose(1, 0, 2)),
            colors=PATHS[kind == "output"],
            alpha=float(np.clip(3 / np.sqrt(max(len(lines), 1)), 0.2, 0.8)),
            linewidths=0.7,
            rasterized=True,  # thousands of points: an image inside the vector graphic
        )
        axes.add_collection(bundle)
        axes.set_xlim(steps[0], steps[-1] if len(steps) > 1 else steps[0] + 1)
        style_axes(axes)
        heading = f"{kind} {channel}" if len(names) == 1 else f"{name} · {kind} {channel}"
        axes.set_title(literal(heading, 30), loc="left", color=INK, fontsize=9, fontweight="bold")
        axes.set_title(shown, loc="right", color=MUTED, fontsize=8)
        axes.axhline(0, color=MUTED, linewidth=0.6)
        bound = 1.06 * max(limits[kind, name]) or 1.0
        axes.set_ylim(-bound, bound)
    for index in range(len(chosen), rows * columns):
        grid[index // columns, index % columns].set_visible(False)
    for column in range(columns):
        axes = grid[rows, column]
        axes.plot(steps, traces.lr[points], color=INK, linewidth=1.2)
        axes.set_ylim(bottom=0)
        style_axes(axes, x="step", y="learning rate" if column == 0 else "")
    if len(names) == 1:
        figure.suptitle(literal(chosen[0][1]), color=MUTED, fontsize=9)
    channels = ", ".join(f"{kind} channel {channel} of {name}" for kind, name, channel in chosen)
    figure.set_label(f"Paths of the weights of {channels}, over steps, above the learning rate.")
    return figure


def reliability_diagram(run: Run) -> Figure:
    """Accuracy against confidence for the single model and for the averaged prediction, above the counts.

    Each point is a bin's accuracy over its mean confidence, with Wilson's 95 % interval; on the diagonal it is calibrated.

    Args:
        run: a finished one.

    Returns:
        A figure with two panels a prediction; its label describes it in words.

    Raises:
        NothingToDraw: the run has no reliability curve.

    Example:
        >>> from pathlib import Path
        >>> bins = [{"lower": 0.5, "upper": 1.0, "count": 8, "confidence": 0.8, "accuracy": 0.75}]
        >>> len(reliability_diagram(Run(Path("demo"), {}, result={"reliability": bins, "ece": 0.05})).axes)
        2
    """
    result = run.result or {}
    count = result.get("num_samples")
    single = ("single model", "reliability_single", "ece_single")
    average = (f"average of {count}" if count else "average", "reliability", "ece")
    if count == 0 and result.get("reliability_single"):
        average = single  # there was nothing to average: the same curve twice would say nothing
    kinds = [
        kind for kind in dict.fromkeys((single, average)) if any(row["count"] for row in result.get(kind[1]) or [])
    ]
    if not kinds:
        raise NothingToDraw("the run has no reliability curve" if run.finished else "the run is unfinished")
    figure = new_figure(4.4 if len(kinds) == 2 else 3.0, 3.5)
    grid = figure.subplots(2, len(kinds), sharex=True, sharey="row", squeeze=False, height_ratios=[3, 1])
    words = []
    bars: list[Any] = []
    for column, (name, key, error) in enumerate(kinds):
        rows = [row for row in result[key] if row.get("count")]
        keys = ("lower", "upper", "count", "confidence", "accuracy")
        lower, upper, counts, confidence, accuracy = (np.array([row[k] for row in rows], dtype=float) for k in keys)
        middle, width = (lower + upper) / 2, 0.86 * (upper - lower)
        curve, histogram = grid[:, column]
        ends = np.array([wilson(hit, count) for hit, count in zip(accuracy, counts)]).reshape(-1, 2)
        bars = [curve.vlines(confidence, ends[:, 0], ends[:, 1], color=BLUE, linewidth=1.4, alpha=0.55)]
        bars = [*curve.plot(confidence, accuracy, "o", color=BLUE, markersize=4, label=name), *bars]
        bars += curve.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
        histogram.bar(middle, counts / counts.sum() * 100, width, color=MUTED)
        value = result.get(error)
        said = f"ECE {value:.4f}" if value is not None else ""
        style_axes(curve, y="accuracy" if column == 0 else "", title=name, note=said)
        style_axes(histogram, x="confidence", y="inputs (%)" if column == 0 else "")
        curve.set_xlim(0, 1)
        curve.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        curve.set_ylim(0, 1)
        words.append(f"{name}: {said or 'no ECE'}, {counts[-1] / counts.sum():.0%} of the inputs in the last bin")
    legend_below(figure, bars, ["accuracy", "95 % interval", "calibrated"])
    figure.set_label("Reliability diagram. " + "; ".join(words) + ".")
    return figure


def layer_sparsity(run: Run) -> Figure:
    """Share of each layer's weights at zero, in the order of the network.

    Args:
        run: a finished one.

    Returns:
        A figure with a bar a layer; its label describes it in words.

    Raises:
        NothingToDraw: the run has no sparsity report, or no weight is at zero.

    Example:
        >>> from pathlib import Path
        >>> layers = [{"name": "conv.weight", "shape": [4, 1, 3, 3], "zeros": 18, "total": 36, "madds": 1000}]
        >>> figure = layer_sparsity(Run(Path("demo"), {}, result={"sparsity": {"per_layer": layers}}))
        >>> figure.get_label()
        'Sparsity of each layer, from 50.0% (conv.weight) to 50.0% (conv.weight).'
    """
    layers = [row for row in ((run.result or {}).get("sparsity") or {}).get("per_layer") or [] if row.get("total")]
    if not layers:
        raise NothingToDraw("the run has no sparsity report" if run.finished else "the run is unfinished")
    if not any(row["zeros"] for row in layers):
        raise NothingToDraw("no weight is at zero")
    share = np.array([100 * row["zeros"] / row["total"] for row in layers])
    prunable = [row.get("prunable", True) for row in layers]
    figure, axes = one_panel(4.6, 0.22 * len(layers) + 1.0)
    axes.barh(np.arange(len(layers)), share, height=0.68, color=[BLUE if yes else MUTED for yes in prunable])
    for at, (value, row, yes) in enumerate(zip(share, layers, prunable)):
        said = f"{value:.1f}% of {row['total']:,}" + ("" if yes else " *")
        axes.text(102, at, said, va="center", color=MUTED, fontsize=8)
    axes.set_xlim(0, 100)
    note = "" if all(prunable) else "* not prunable"
    style_axes(axes, x="weights at zero (%)", title="Sparsity by layer", note=note, grid="x")
    name_rows(axes, [str(row["name"]).removesuffix(".weight") for row in layers], 30)
    low, high = layers[int(share.argmin())], layers[int(share.argmax())]
    ends = f"from {share.min():.1f}% ({low['name']}) to {share.max():.1f}% ({high['name']})"
    figure.set_label(f"Sparsity of each layer, {ends}.")
    return figure


def member_accuracies(run: Run) -> Figure:
    """Accuracy of each sample, cycle by cycle, against that of the averaged prediction.

    Args:
        run: a finished one with samples.

    Returns:
        A figure with one panel; its label describes it in words.

    Raises:
        NothingToDraw: the run has no members.

    Example:
        >>> from pathlib import Path
        >>> members = [{"step": s, "cycle": s // 20, "accuracy": 0.9, "nll": 0.3} for s in (10, 20)]
        >>> figure = member_accuracies(Run(Path("demo"), {}, result={"members": members, "accuracy_mean": 0.92}))
        >>> figure.axes[0].get_ylabel()
        'accuracy (%)'
    """
    members = [row for row in (run.result or {}).get("members") or [] if row.get("accuracy") is not None]
    if not members:
        raise NothingToDraw("the run collected no samples" if run.finished else "the run is unfinished")
    accuracy = np.array([100 * row["accuracy"] for row in members])
    cycles = [row.get("cycle") for row in members]
    figure, axes = one_panel(4.4, 2.6)
    place = np.arange(1, len(members) + 1)
    starts = [i for i in range(len(cycles)) if i == 0 or cycles[i] != cycles[i - 1]]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(cycles)])):
        if number % 2 == 0 and len(starts) > 1:
            axes.axvspan(start + 0.5, end + 0.5, color=LINE, alpha=0.4, linewidth=0)
    (dots,) = axes.plot(place, accuracy, "o", color=BLUE, markersize=5, clip_on=False)
    handles, labels, mean = [dots], ["one sample"], (run.result or {}).get("accuracy_mean")
    if mean is not None:
        handles.append(axes.axhline(100 * mean, color=ORANGE, linewidth=1.6))
        labels.append(f"averaged: {100 * mean:.2f}%")
    note = "bands: cycles" if len(starts) > 1 else ""
    style_axes(axes, x="sample", y="accuracy (%)", title="Members", note=note)
    axes.set_xlim(0.5, len(members) + 0.5)
    axes.set_xticks(place[spread(len(place), 12)])
    legend_below(figure, handles, labels)
    ends = f"{accuracy.min():.2f}% to {accuracy.max():.2f}%"
    average = "" if mean is None else f"; their average {100 * mean:.2f}%"
    figure.set_label(f"Accuracy of {len(members)} samples in {len(starts)} cycle(s): {ends}{average}.")
    return figure


def _choose(keys: Sequence[tuple[str, str, int]], most: int) -> list[tuple[str, str, int]]:
    """At most `most` channels, evenly spread, as equal a number of each kind as there are."""
    if len(keys) <= most:
        return list(keys)
    inputs, outputs = ([key for key in keys if key[0] == kind] for kind in ("input", "output"))
    first = min(len(inputs), max(most // 2, most - len(outputs)))
    picked = [inputs[i] for i in spread(len(inputs), first)]
    return picked + [outputs[i] for i in spread(len(outputs), most - first)]
