"""Figures of a selection's predictions: their partial dependence on inputs, and held-out rows with their uncertainty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bayesprune.report.style import (
    INK,
    MUTED,
    SERIES,
    NothingToDraw,
    legend_below,
    literal,
    look,
    new_figure,
    one_panel,
    spread,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE = SERIES[:2]
_DASHED = (0, (4, 2))
_NAMED, _COLUMNS = 8, 3


def partial_dependence(result: dict[str, Any], most: int = 12) -> Figure:
    """Mean prediction while one input runs through its values, a panel an input, on one scale."""
    curves = (result.get("curves") or [])[:most]
    if not curves:
        raise NothingToDraw("no input is selected")
    columns = min(_COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    several = len(curves[0]["outputs"]) > 1
    figure = new_figure(9.0 if columns > 1 else 4.4, 2.15 * rows + (0.5 if several else 0.2))
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    handles: list[Any] = []
    words = []
    for index, curve in enumerate(curves):
        axes = panels[index // columns, index % columns]
        drawn = (_line if curve["kind"] == "number" else _points)(axes, curve)
        handles = handles or drawn
        style_axes(axes, y=_response(result) if index % columns == 0 else "")
        axes.set_title(literal(str(curve["input"]), 34), loc="left", color=INK, fontsize=9, fontweight="bold")
        mean = np.asarray(curve["mean"], dtype=float)
        words.append(f"{curve['input']} (from {mean.min():.3g} to {mean.max():.3g})")
    for index in range(len(curves), rows * columns):
        panels[index // columns, index % columns].set_visible(False)
    if several:
        legend_below(figure, handles, [str(name) for name in curves[0]["outputs"]])
    figure.set_label(f"Partial dependence of {result['target']['name']} on {', '.join(words)}.")
    return figure


def _line(axes: Axes, curve: dict[str, Any]) -> list[Any]:
    grid, lines = curve["grid"], []
    for number, mean in enumerate(curve["mean"]):
        style = look(number)
        if curve["lower"] is not None:
            band = {"color": style["color"], "alpha": 0.2, "linewidth": 0}
            axes.fill_between(grid, curve["lower"][number], curve["upper"][number], **band)
        marker = "o" if len(grid) <= 8 else None
        lines += axes.plot(grid, mean, **style, linewidth=1.5, marker=marker, markersize=3.5)
    deciles = curve.get("deciles") or []
    axes.plot(deciles, [0] * len(deciles), "|", color=MUTED, markersize=7, transform=axes.get_xaxis_transform())
    return lines


def _points(axes: Axes, curve: dict[str, Any]) -> list[Any]:
    at, lines = np.arange(len(curve["grid"])), []
    outputs = len(curve["mean"])
    for number, mean in enumerate(curve["mean"]):
        place = at + (number - (outputs - 1) / 2) * min(0.12, 0.6 / outputs)
        colour = look(number)["color"]
        if curve["lower"] is not None:
            axes.vlines(place, curve["lower"][number], curve["upper"][number], color=colour, alpha=0.5, linewidth=3)
        lines += axes.plot(place, mean, "o", color=colour, markersize=4.5)
    slant: dict[str, Any] = {"rotation": 0, "ha": "center"} if len(at) <= 5 else {"rotation": 40, "ha": "right"}
    axes.set_xticks(at, [literal(str(level), 14) for level in curve["grid"]], **slant)
    axes.set_xlim(-0.6, len(at) - 0.4)
    return lines


def _response(result: dict[str, Any]) -> str:
    target, outputs = result["target"], result["curves"][0]["outputs"]
    if target.get("task") != "classification":
        return literal(str(target["name"]), 24)
    return literal(f"probability of {outputs[0]}", 30) if len(outputs) == 1 else "probability"


def predicted_against_observed(result: dict[str, Any], most: int = 400) -> Figure:
    """Predictions of held-out rows with their 90 % intervals against what was observed."""
    rows = result.get("predictions") or {}
    if not rows.get("predicted"):
        raise NothingToDraw("the target is a class")
    keys = ("observed", "predicted", "lower", "upper")
    table = np.array([rows[key] for key in keys], dtype=float)
    kept = spread(table.shape[1], most)
    observed, predicted, lower, upper = table[:, kept]
    inside = (lower <= observed) & (observed <= upper)
    figure, axes = one_panel(4.4, 4.0)
    many = len(kept) > 150
    # Upright at the prediction, so that a point outside its interval lies off its own line.
    lines = axes.vlines(predicted, lower, upper, color=MUTED, alpha=0.22 if many else 0.4, linewidth=0.9)
    handles, labels = [], []
    for mask, colour, label in ((inside, BLUE, "inside its interval"), (~inside, ORANGE, "outside")):
        if mask.any():
            size = 2.6 if many else 3.8
            handles += axes.plot(predicted[mask], observed[mask], "o", color=colour, markersize=size, alpha=0.85)
            labels.append(label)
    ends = [float(np.concatenate([observed, predicted]).min()), float(np.concatenate([observed, predicted]).max())]
    axes.plot(ends, ends, color=INK, linewidth=1, linestyle=_DASHED)
    name, scores = result["target"]["name"], result["held_out"]
    note = f"{len(kept)} of {table.shape[1]:,} rows" if len(kept) < table.shape[1] else f"{len(kept)} rows"
    note += "" if scores.get("r2") is None else f", R² {scores['r2']:.3f}"
    style_axes(axes, x=f"predicted {name}", y=f"observed {name}", title="Held-out rows", note=note, grid="both")
    legend_below(figure, [*handles, lines], [*labels, "90 % interval"])
    figure.set_label(
        f"Observed against predicted {name} on {len(kept)} held-out rows, {inside.mean():.0%} inside the 90 % interval."
    )
    return figure


def interval_calibration(result: dict[str, Any]) -> Figure:
    """Share of held-out rows inside predictive intervals against the nominal share, with its sampling error."""
    rows = (result.get("held_out") or {}).get("calibration") or []
    if not rows:
        raise NothingToDraw("the target is a class")
    nominal, coverage = (np.array([row[key] for row in rows], dtype=float) for key in ("nominal", "coverage"))
    figure, axes = one_panel(4.4, 3.4)
    at = np.linspace(0, 1, 101)
    error = 2 * np.sqrt(at * (1 - at) / result["data"]["rows_held_out"])
    band = axes.fill_between(at, at - error, at + error, color=MUTED, alpha=0.2, linewidth=0)
    (line,) = axes.plot(nominal, coverage, "o-", color=BLUE, markersize=4, linewidth=1.3)
    (diagonal,) = axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=_DASHED)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    style_axes(axes, x="nominal coverage", y="rows inside", title="Calibration of intervals", grid="both")
    legend_below(figure, [line, diagonal, band], ["held-out rows", "calibrated", "± 2 standard errors"])
    words = ", ".join(f"{a:.0%}: {b:.1%}" for a, b in zip(nominal, coverage))
    figure.set_label(f"Coverage of predictive intervals on held-out rows by nominal level. {words}.")
    return figure


def roc_curves(result: dict[str, Any]) -> Figure:
    """True against false positive rate on held-out rows; one class against the rest where there are more than two."""
    curves = (result.get("held_out") or {}).get("roc") or []
    if not curves:
        raise NothingToDraw("the target is a number")
    figure, axes = one_panel(4.4, 3.8)
    named = [f"{curve['name']}: area {curve['auroc']:.3f}" for curve in curves]
    lines = [
        axes.plot(curve["false"], curve["true"], **look(i), linewidth=1.6, drawstyle="steps-post")[0]
        for i, curve in enumerate(curves[:_NAMED])
    ]
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=_DASHED)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    note = f"first {_NAMED} of {len(curves)} classes" if len(curves) > _NAMED else ""
    style_axes(axes, x="false positive rate", y="true positive rate", title="ROC", note=note, grid="both")
    legend_below(figure, lines, named[:_NAMED])
    figure.set_label(f"ROC curves on held-out rows. {'; '.join(named)}.")
    return figure
