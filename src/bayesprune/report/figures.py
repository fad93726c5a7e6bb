"""Curves over training, one line a run; `diagrams` has the figures of a single run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bayesprune.common.files import listed
from bayesprune.report.load import Run, run_labels
from bayesprune.report.style import MUTED, NothingToDraw, legend_below, look, new_figure, one_panel, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.4  # inches; text stays readable when a phone shrinks it


def accuracy_curves(runs: Sequence[Run]) -> Figure:
    """Accuracy over epochs: held-out solid, training faint; a diamond marks the averaged prediction of a finished run.

    Args:
        runs: one colour each.

    Returns:
        A figure with one panel; its label describes it in words.

    Raises:
        NothingToDraw: no run has an accuracy in its history.

    Example:
        >>> from pathlib import Path
        >>> rows = [{"step": 9 * e, "epoch": e, "accuracy": 0.5 + 0.1 * e, "split": "test"} for e in range(4)]
        >>> figure = accuracy_curves([Run(Path("demo"), {}, history=rows)])
        >>> figure.axes[0].get_ylabel()
        'test accuracy (%)'
    """
    held = _held(runs, "accuracy", "train_accuracy")
    if not held:
        raise NothingToDraw("no run has an accuracy in its history")
    figure, axes = one_panel(WIDTH, 3.1)
    splits = sorted({row["split"] for run in runs for row in run.history if row.get("split")})
    handles, words = [], []
    training = diamond = None
    for index, run, label in held:
        epochs, style = run.column("epoch"), look(index)
        faint = {**style, "alpha": 0.45, "linewidth": 0.9, "label": f"{label}, training"}
        training = _curve(axes, epochs, 100 * run.column("train_accuracy"), **faint) or training
        handles.append(_curve(axes, epochs, 100 * run.column("accuracy"), **style, linewidth=1.7))
        mean = (run.result or {}).get("accuracy_mean")
        if mean is not None:
            marker = {"color": style["color"], "markersize": 5, "clip_on": False, "zorder": 4}
            diamond = axes.plot([epochs[-1]], [100 * mean], "D", **marker, label=f"{label}, averaged")
            words.append(f"{label} ends at {100 * mean:.2f}% averaged")
        else:
            words.append(f"{label} is unfinished")
    notes = ["faint: training"] if training is not None else []
    notes += ["◆ averaged prediction"] if diamond is not None else []
    accuracy = f"{' / '.join(splits)} accuracy (%)".strip()
    style_axes(axes, x="epoch", y=accuracy, title="Accuracy", note=", ".join(notes))
    _whole_ticks(axes)
    _late(axes, [run for _, run, _ in held])
    legend_below(figure, handles, [label for _, _, label in held])
    figure.set_label("Accuracy over epochs. " + "; ".join(words) + ".")
    return figure


def sparsity_curves(runs: Sequence[Run]) -> Figure:
    """Soft sparsity (share of groups on the spike) above hard sparsity (share of weights at zero), over epochs.

    The dotted line in the lower panel is the target that the pruner was asked for.

    Args:
        runs: one colour each; those that pruned nothing are left out.

    Returns:
        A figure with two panels; its label describes it in words.

    Raises:
        NothingToDraw: no run has a soft or hard sparsity in its history.

    Example:
        >>> from pathlib import Path
        >>> rows = [{"step": e, "epoch": e, "soft_sparsity": 0.3 * e, "hard_sparsity": 0.25 * e} for e in range(4)]
        >>> figure = sparsity_curves([Run(Path("demo"), {}, history=rows)])
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['groups on the spike (%)', 'weights at zero (%)']

    Reference:
        Ke & Fan (2022), Figure 2.
    """
    keys = ("soft_sparsity", "hard_sparsity")
    held = _held(runs, *keys)
    if not held:
        raise NothingToDraw("no run has a soft or hard sparsity in its history: nothing was pruned")
    figure = new_figure(WIDTH, 4.4)
    soft, hard = figure.subplots(2, 1, sharex=True)
    handles, words = [], []
    target = None
    for index, run, label in held:
        epochs, style = run.column("epoch"), look(index)
        wanted = {"color": MUTED, "linestyle": (0, (1.5, 1.5)), "linewidth": 2.6, "alpha": 0.9, "zorder": 1}
        target = _curve(hard, epochs, 100 * run.column("target_sparsity"), **wanted) or target
        drawn = [_curve(axes, epochs, 100 * run.column(key), **style) for axes, key in zip((soft, hard), keys)]
        handles.append(next(line for line in drawn if line is not None))
        ends = [_finite(run, key) for key in keys]
        said = [f"{100 * end[-1]:.1f}% {name}" for end, name in zip(ends, ("soft", "hard")) if len(end)]
        words.append(f"{label} ends at {' and '.join(said)}")
    style_axes(soft, y="groups on the spike (%)", title="Soft sparsity")
    note = "dotted, grey: target" if target is not None else ""
    style_axes(hard, x="epoch", y="weights at zero (%)", title="Hard sparsity", note=note)
    for axes in (soft, hard):
        axes.set_ylim(-2, 102)
        axes.set_yticks([0, 25, 50, 75, 100])
    _whole_ticks(hard)
    legend_below(figure, handles, [label for _, _, label in held])
    figure.set_label("Soft and hard sparsity over epochs. " + "; ".join(words) + ".")
    return figure


def training_course(runs: Sequence[Run]) -> Figure:
    """Accuracy, soft sparsity and hard sparsity over epochs side by side, one line a run: pruning while it trains.

    Args:
        runs: one colour each; those without a value for a panel are left out of it.

    Returns:
        A figure with three panels; its label describes it in words.

    Raises:
        NothingToDraw: no run has one of the three in its history.

    Example:
        >>> from pathlib import Path
        >>> rows = [{"step": e, "epoch": e, "accuracy": 0.5 + 0.1 * e, "hard_sparsity": 0.2 * e} for e in range(4)]
        >>> [axes.get_title(loc="left") for axes in training_course([Run(Path("dfp"), {}, history=rows)]).axes]
        ['Accuracy', 'Soft sparsity', 'Hard sparsity']

    Reference:
        Ke & Fan (2022), Figure 2.
    """
    panels = (
        ("accuracy", "Accuracy", "accuracy (%)"),
        ("soft_sparsity", "Soft sparsity", "groups on the spike (%)"),
        ("hard_sparsity", "Hard sparsity", "weights at zero (%)"),
    )
    if not _held(runs, *(key for key, *_ in panels)):
        raise NothingToDraw("no run has an accuracy or a sparsity in its history")
    figure = new_figure(2.1 * WIDTH, 3.0)
    lines: dict[int, object] = {}
    words = []
    for axes, (key, title, name) in zip(figure.subplots(1, len(panels)), panels):
        for index, run in enumerate(runs):
            line = _curve(axes, run.column("epoch"), 100 * run.column(key), **look(index), linewidth=1.6)
            lines.setdefault(index, line)
        style_axes(axes, x="epoch", y=name, title=title)
        _whole_ticks(axes)
        if key != "accuracy":
            axes.set_ylim(-2, 102)
    for run, label in zip(runs, run_labels(runs)):
        ends = [(title, _finite(run, key)) for key, title, _ in panels]
        said = ", ".join(f"{title.lower()} {100 * values[-1]:.1f}%" for title, values in ends if len(values))
        words.append(f"{label} ends at {said}")
    drawn = {run_labels(runs)[index]: line for index, line in lines.items() if line is not None}
    legend_below(figure, list(drawn.values()), list(drawn))
    figure.set_label("Accuracy, soft and hard sparsity over epochs. " + "; ".join(words) + ".")
    return figure


def learning_rate(runs: Sequence[Run]) -> Figure:
    """Learning rate over steps, by step where a run recorded it so, else by epoch; ticks mark where samples were taken.

    Args:
        runs: those with the same schedule share a line.

    Returns:
        A figure with one panel; its label describes it in words.

    Raises:
        NothingToDraw: no run has a learning rate.

    Example:
        >>> from pathlib import Path
        >>> rows = [{"step": 10 * e, "epoch": e, "lr": 0.1 / (e + 1)} for e in range(4)]
        >>> runs = [Run(Path(name), {}, history=rows) for name in "ab"]
        >>> [text.get_text() for text in learning_rate(runs).legends[0].get_texts()]
        ['a, b']
    """
    together: dict[bytes, tuple[list[str], np.ndarray, np.ndarray, list[int]]] = {}
    for run, label in zip(runs, run_labels(runs)):
        traces = run.traces()
        steps, rate = (traces.steps, traces.lr) if traces is not None else (run.column("step"), run.column("lr"))
        if not np.isfinite(rate).any():
            continue
        taken = [member["step"] for member in (run.result or {}).get("members") or [] if member.get("step") is not None]
        names, *_, ticks = together.setdefault(np.stack([steps, rate]).tobytes(), ([], steps, rate, []))
        names.append(label)
        ticks += taken
    if not together:
        raise NothingToDraw("no run has a learning rate in its history")
    figure, axes = one_panel(WIDTH, 2.5)
    handles, labels, note = [], [], ""
    for index, (names, steps, rate, taken) in enumerate(together.values()):
        handles.append(_curve(axes, steps, rate, **look(index), linewidth=1.5))
        labels.append(listed(names, 2))
        if taken:
            note = "ticks: samples taken"
            tick = {"color": look(index)["color"], "markersize": 11, "markeredgewidth": 1.3, "clip_on": False}
            axes.plot(taken, [0] * len(taken), "|", **tick)
    style_axes(axes, x="step", y="learning rate", title="Learning rate", note=note)
    axes.set_ylim(bottom=0)
    legend_below(figure, handles, labels)
    peak = max(float(np.nanmax(rate)) for _, _, rate, _ in together.values())
    figure.set_label(f"Learning rate over steps; the highest is {peak:.3g}. Runs: {'; '.join(labels)}.")
    return figure


def _finite(run: Run, key: str) -> np.ndarray:
    """The finite values of a column of the history."""
    values = run.column(key)
    return values[np.isfinite(values)]


def _held(runs: Sequence[Run], *keys: str) -> list[tuple[int, Run, str]]:
    """Place, run and label of the runs whose history holds a value of one of the keys."""
    labelled = enumerate(zip(runs, run_labels(runs)))
    return [(index, run, label) for index, (run, label) in labelled if any(len(_finite(run, key)) for key in keys)]


def _curve(axes: Axes, x: np.ndarray, y: np.ndarray, **style: object):  # type: ignore[no-untyped-def]
    """Draw the finite points of a curve, a single one as a dot; return None where there are none."""
    keep = np.isfinite(y)
    if not keep.any():
        return None
    marker = "o" if keep.sum() == 1 else None
    (line,) = axes.plot(x[keep], y[keep], marker=marker, markersize=4, **style)  # type: ignore[arg-type]
    return line


def _late(axes: Axes, runs: Sequence[Run]) -> None:
    """Begin the axis below what the second half of the epochs holds, so that it shows where runs differ and not their start."""
    lows, highs = [], []
    for run in runs:
        for key in ("accuracy", "train_accuracy"):
            values = 100 * run.column(key)
            late = values[len(values) // 2 :]
            lows += late[np.isfinite(late)].tolist()
            highs += values[np.isfinite(values)].tolist()
        mean = (run.result or {}).get("accuracy_mean")
        highs += [] if mean is None else [100 * mean]
    if lows and len(runs[0].history) > 3:
        room = max(max(highs) - min(lows), 1.0)
        axes.set_ylim(max(0.0, min(lows) - 0.15 * room), min(100.5, max(highs) + 0.12 * room))


def _whole_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
