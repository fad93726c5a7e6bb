"""Figures of held-out rows: predictions, and whether their uncertainty is honest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bayesprune.report.style import INK, MUTED, SERIES, NothingToDraw, legend_below, look, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE = SERIES[:2]
_DASHED = (0, (4, 2))
_NAMED = 8


def predicted_against_observed(result: dict[str, Any], most: int = 400) -> Figure:
    """Predictions of held-out rows with their 90 % intervals against what was observed."""
    rows = result.get("predictions") or {}
    if not rows.get("predicted"):
        raise NothingToDraw("the target is a class")
    keys = ("observed", "predicted", "lower", "upper")
    table = np.array([rows[key] for key in keys], dtype=float)
    kept = np.unique(np.linspace(0, table.shape[1] - 1, min(most, table.shape[1])).round().astype(int))
    observed, predicted, lower, upper = table[:, kept]
    inside = (lower <= observed) & (observed <= upper)
    figure = new_figure(4.4, 4.0)
    axes = figure.add_subplot()
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
    style_axes(axes, x=f"predicted {name}", y=f"observed {name}", title="Held-out rows", grid="both")
    r2 = "" if scores.get("r2") is None else f"R² {scores['r2']:.3f}"
    shown = f"{len(kept)} of {table.shape[1]:,} rows" if len(kept) < table.shape[1] else f"{len(kept)} rows"
    axes.set_title(", ".join(part for part in (shown, r2) if part), loc="right", color=MUTED, fontsize=8.5)
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
    figure = new_figure(4.4, 3.4)
    axes = figure.add_subplot()
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
    figure = new_figure(4.4, 3.8)
    axes = figure.add_subplot()
    lines = [
        axes.plot(curve["false"], curve["true"], **look(i), linewidth=1.6, drawstyle="steps-post")[0]
        for i, curve in enumerate(curves[:_NAMED])
    ]
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=_DASHED)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    style_axes(axes, x="false positive rate", y="true positive rate", title="ROC", grid="both")
    if len(curves) > _NAMED:
        axes.set_title(f"first {_NAMED} of {len(curves)} classes", loc="right", color=MUTED, fontsize=8.5)
    legend_below(figure, lines, [f"{curve['name']}: area {curve['auroc']:.3f}" for curve in curves[:_NAMED]])
    words = "; ".join(f"{curve['name']}: area {curve['auroc']:.3f}" for curve in curves)
    figure.set_label(f"ROC curves on held-out rows. {words}.")
    return figure
