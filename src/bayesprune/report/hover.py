"""The values that a page shows over a figure's points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bayesprune.report.style import spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 1200  # points of a figure


def hover_points(figure: Figure) -> list[list[Any]]:
    """Places and texts of a drawn figure's points, in the coordinates of its SVG."""
    scale, height = 72 / figure.dpi, 72 * float(figure.get_size_inches()[1])
    found: list[list[Any]] = []
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        named = axes.get_xlabel() or _below(figure, axes), axes.get_ylabel()
        places: list[tuple[np.ndarray, list[str]]] = []
        for line in axes.lines:
            data = np.asarray(line.get_xydata(), dtype=float)
            if len(data) > 2 or line.get_marker() not in ("None", None, ""):
                inside = np.isfinite(data).all(axis=1) if len(data) else np.zeros(0, dtype=bool)
                if line.get_transform() == axes.transData:
                    places.append((data[inside], [_text(line.get_label(), named, x, y) for x, y in data[inside]]))
        for bars in axes.containers:
            places.append(_bars(bars, axes, named))
        for data, texts in places:
            if len(data):
                pixels = axes.transData.transform(data)
                low, high = np.asarray(axes.bbox.min) - 1, np.asarray(axes.bbox.max) + 1
                seen: np.ndarray = np.all((pixels >= low) & (pixels <= high), axis=1)  # not cut off
                drawn = (pixels[seen] * scale).tolist()
                told = [text for text, yes in zip(texts, seen) if yes]
                found += [[round(x, 1), round(height - y, 1), text] for (x, y), text in zip(drawn, told)]
    return [found[i] for i in spread(len(found), MOST)]


def _below(figure: Any, axes: Any) -> str:
    """The label of a shared horizontal axis, which stands at the lowest of its panels."""
    shared = [other.get_xlabel() for other in axes.get_shared_x_axes().get_siblings(axes) if other.get_xlabel()]
    return shared[0] if shared else ""


def _bars(bars: Any, axes: Any, named: tuple[str, str]) -> tuple[np.ndarray, list[str]]:
    """The ends of bars, named by their tick labels where these are words."""
    data, texts = [], []
    lying = getattr(bars, "orientation", "vertical") == "horizontal"
    ticks = (axes.get_yticklabels() if lying else axes.get_xticklabels()) or []
    words = {round(tick.get_position()[1 if lying else 0], 6): tick.get_text() for tick in ticks}
    for bar in getattr(bars, "patches", []):
        x, y, w, h = bar.get_x(), bar.get_y(), bar.get_width(), bar.get_height()
        end, middle, value = ((x + w, y + h / 2), y + h / 2, w) if lying else ((x + w / 2, y + h), x + w / 2, h)
        if not np.isfinite(end).all():
            continue
        name = words.get(round(middle, 6)) if lying else None
        data.append(end)
        quantity = named[0] if lying else named[1]
        texts.append(f"{name or f'{middle:.3g}'}: {quantity} {value:.4g}".strip())
    return np.array(data, dtype=float).reshape(-1, 2), texts


def _text(label: Any, named: tuple[str, str], x: float, y: float) -> str:
    said = f"{named[0]} {x:.6g}, {named[1]} {y:.4g}".strip()
    label = str(label)
    return said if not label or label.startswith("_") else f"{label.strip()}: {said}"
