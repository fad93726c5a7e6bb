"""Figures of a selection of inputs: how probable each is, and how that came about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bayesprune.report.style import (
    INK,
    MUTED,
    SERIES,
    NothingToDraw,
    legend_below,
    look,
    name_rows,
    one_panel,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE = SERIES[0]
_NAMED = 8  # lines and points that get a colour and a name of their own


def inclusion_bars(result: dict[str, Any]) -> Figure:
    """Inclusion probabilities of the inputs that have the highest, with the chains' own as dots."""
    names, probability, selected, weighed, chains = _inputs(result)
    order = np.lexsort((-probability, ~selected))[: min(25, max(12, int(selected.sum()) + 8))]
    figure, axes = one_panel(4.4, 0.2 * len(order) + 1.1)
    place, drawn = np.arange(len(order)), weighed[order]
    handles: list[Any] = []
    labels = []
    for mask, colour, label in (
        (selected[order], BLUE, "selected"), (~selected[order] & drawn, MUTED, "not selected"),
    ):  # fmt: skip
        bars = axes.barh(place[mask], probability[order][mask], height=0.66, color=colour)
        if len(bars):
            handles.append(bars)
            labels.append(label)
    for at in place[~drawn]:
        axes.text(0.01, at, "no evidence", va="center", color=MUTED, fontsize=8)
    if len(chains) > 1:
        for chain in chains:
            (dots,) = axes.plot(
                chain[order][drawn], place[drawn], "o", color=INK, markersize=3.4, markeredgecolor="white",
                markeredgewidth=0.6, clip_on=False, zorder=4,
            )  # fmt: skip
        handles.append(dots)
        labels.append("single chains")
    axes.set_xlim(0, 1)
    note = f"first {len(order)} of {len(names):,}" if len(order) < len(names) else ""
    style_axes(axes, x="inclusion probability", title="Inclusion probabilities", note=note, grid="x")
    name_rows(axes, [names[i] for i in order], 26)
    legend_below(figure, handles, labels)
    ends = " to ".join(f"{names[i]} ({probability[i]:.2f})" for i in (order[0], order[-1]))
    figure.set_label(
        f"Inclusion probabilities of the {len(order)} likeliest inputs, from {ends}; {int(selected.sum())} selected."
    )
    return figure


def inclusion_scatter(result: dict[str, Any]) -> Figure:
    """Inclusion probabilities of all inputs, in the order of the columns."""
    names, probability, selected, weighed, _ = _inputs(result)
    figure, axes = one_panel(4.4, 2.9)
    from matplotlib.ticker import MaxNLocator

    at = np.arange(1, len(names) + 1)
    handles, labels = [], []
    for mask, colour, size, label in (
        (~selected & weighed, MUTED, 2.2, "not selected"), (selected, BLUE, 4.5, "selected"),
    ):  # fmt: skip
        if mask.any():
            style: dict[str, Any] = {"color": colour, "markersize": size, "clip_on": False}
            # Thousands of points become an image inside the vector graphic.
            handles += axes.plot(at[mask], probability[mask], "o", **style, rasterized=mask.sum() > 1500)
            labels.append(label)
    axes.set_ylim(-0.02, 1.06)
    axes.set_xlim(0, len(names) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    note = "" if weighed.all() else f"{int((~weighed).sum()):,} without evidence"
    style_axes(axes, x="column", y="inclusion probability", title="All inputs", note=note)
    legend_below(figure, handles[::-1], labels[::-1])
    rest = probability[~selected & weighed]
    highest = f"; the highest of the others is {rest.max():.2f}" if rest.size else ""
    figure.set_label(f"Inclusion probability of all {len(names):,} inputs; {int(selected.sum())} selected{highest}.")
    return figure


def inclusion_paths(result: dict[str, Any]) -> Figure:
    """Inclusion probabilities over training, the mean of the chains, with the threshold in force."""
    history = result.get("history") or {}
    paths = history.get("paths") or []
    if not paths or not history.get("epoch"):
        raise NothingToDraw("the estimator kept no paths")
    epoch = np.asarray(history["epoch"], dtype=float)
    figure, axes = one_panel(9.0, 3.4)
    handles, labels, number = [], [], 0
    for one in sorted(paths, key=lambda entry: entry["selected"]):  # the selected ones on top
        path = _numbers(one["path"])
        named = one["selected"] and number < _NAMED
        style: dict[str, Any] = look(number) if named else {"color": BLUE if one["selected"] else MUTED}
        width = 1.6 if one["selected"] else 0.8
        (line,) = axes.plot(epoch, path, **style, linewidth=width, alpha=1 if one["selected"] else 0.6)
        if named:
            handles.append(line)
            labels.append(str(one["input"]))
            number += 1
        elif not one["selected"] and "not selected" not in labels:
            handles.append(line)
            labels.append("not selected")
    threshold = _numbers(history.get("threshold") or [])
    if len(threshold) == len(epoch) and np.isfinite(threshold).any():
        handles += axes.plot(epoch, threshold, color=INK, linestyle=(0, (4, 2)), linewidth=1.2, drawstyle="steps-post")
        labels.append("threshold")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(epoch[0], epoch[-1] if len(epoch) > 1 else epoch[0] + 1)
    style_axes(axes, x="epoch", y="inclusion probability", title="Paths over training")
    legend_below(figure, handles, labels)
    kept = sum(one["selected"] for one in paths)
    figure.set_label(f"Inclusion probabilities of {len(paths)} inputs over training, {kept} of them selected.")
    return figure


def loss_by_number(result: dict[str, Any]) -> Figure:
    """Held-out loss by the number of inputs, with the number that was taken."""
    numbers = (result.get("history") or {}).get("numbers")
    if not numbers:
        raise NothingToDraw("the number of inputs was not cross-validated")
    counts, loss = np.asarray(numbers["inputs"], dtype=float), _numbers(numbers["loss"])
    figure, axes = one_panel(4.4, 2.6)
    axes.plot(counts, loss, "o-", color=BLUE, linewidth=1.2, markersize=3)
    axes.axvline(numbers["taken"], color=INK, linestyle=(0, (4, 2)), linewidth=1.2)
    axes.set_xscale("symlog", linthresh=8, linscale=2)
    ticks = [count for count in (0, 2, 4, 8, 16, 32, 64, 128) if count <= counts.max()]
    axes.set_xticks(ticks, [str(count) for count in ticks], minor=False)
    axes.minorticks_off()
    style_axes(axes, x="inputs a chain", y="held-out loss", title="How many inputs")
    figure.set_label(
        f"Held-out loss with {counts[0]:.0f} to {counts[-1]:.0f} inputs a chain, from {loss[0]:.3g} to {loss[-1]:.3g}; "
        f"{numbers['taken']} was taken."
    )
    return figure


def training_loss(result: dict[str, Any]) -> Figure:
    """Training loss of every chain over epochs."""
    history = result.get("history") or {}
    loss = [_numbers(chain) for chain in history.get("loss") or []]
    if not loss or not history.get("epoch"):
        raise NothingToDraw("the estimator kept no loss")
    figure, axes = one_panel(4.4, 2.6)
    lines = [axes.plot(history["epoch"], chain, **look(i), linewidth=1.1)[0] for i, chain in enumerate(loss)]
    finite = np.concatenate([chain[np.isfinite(chain)] for chain in loss])
    if finite.size and 0 < 20 * finite.min() < finite.max():
        axes.set_yscale("log")
    style_axes(axes, x="epoch", y="loss", title="Training loss")
    if len(lines) <= _NAMED:
        legend_below(figure, lines, [f"chain {i + 1}" for i in range(len(lines))])
    ends = ", ".join(f"{chain[-1]:.3g}" for chain in loss[:_NAMED])
    figure.set_label(f"Training loss of {len(loss)} chains over epochs, ending at {ends}.")
    return figure


def _inputs(result: dict[str, Any]) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Name, probability, whether selected, whether a chain's model held it (its evidence is not 0), and the chains' own."""
    inputs = result.get("inputs") or {}
    names = [str(name) for name in inputs.get("name") or []]
    if not names:
        raise NothingToDraw("there are no inputs")
    selected = np.asarray(inputs["selected"], dtype=bool)
    weighed = selected | (_numbers(inputs.get("evidence") or [None] * len(selected)) != 0)
    chains = np.asarray(inputs.get("chains") or [], dtype=float)
    return names, _numbers(inputs["probability"]), selected, weighed, chains


def _numbers(values: Any) -> np.ndarray:
    """Numbers, with NaN where JSON has null."""
    return np.array([np.nan if value is None else value for value in values], dtype=float)
