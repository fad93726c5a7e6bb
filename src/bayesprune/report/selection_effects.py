"""Partial dependence of the prediction on the selected inputs, with credible bands."""

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
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE = SERIES[0]
_COLUMNS = 3


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
        label = _response(result) if index % columns == 0 else ""
        style_axes(axes, y=label)
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
        shift = (number - (outputs - 1) / 2) * min(0.12, 0.6 / outputs)
        colour = look(number)["color"]
        if curve["lower"] is not None:
            axes.vlines(
                at + shift, curve["lower"][number], curve["upper"][number], color=colour, alpha=0.5, linewidth=3
            )
        lines += axes.plot(at + shift, mean, "o", color=colour, markersize=4.5)
    few = len(at) <= 5
    axes.set_xticks(
        at,
        [literal(str(level), 14) for level in curve["grid"]],
        rotation=0 if few else 40,
        ha="center" if few else "right",
    )
    axes.set_xlim(-0.6, len(at) - 0.4)
    return lines


def _response(result: dict[str, Any]) -> str:
    target, outputs = result["target"], result["curves"][0]["outputs"]
    if target.get("task") != "classification":
        return literal(str(target["name"]), 24)
    return literal(f"probability of {outputs[0]}", 30) if len(outputs) == 1 else "probability"
