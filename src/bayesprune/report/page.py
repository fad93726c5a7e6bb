"""Templates and figures of every page: one HTML file that fetches nothing and needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesprune._version import __version__
from bayesprune.common.lazy import missing
from bayesprune.report.style import THEME, NothingToDraw, figure_to_svg, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOST = 1200  # points of a figure


@dataclass(frozen=True)
class Drawn:
    """A figure as the templates take it, or the reason why there is none."""

    kind: str
    name: str
    caption: Any
    svg: Any = ""
    points: str = "[]"


class Figures:
    """Turn figures into what the templates draw, and number them so that their identifiers differ."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, draw: Callable[[], Figure], name: str, caption: str, *, wide: bool = False) -> Drawn:
        """Draw one figure, or say why there is none."""
        try:
            figure = draw()
        except NothingToDraw as reason:
            return Drawn("absent", name, str(reason))
        from markupsafe import Markup

        self.count += 1
        svg = Markup(figure_to_svg(figure, f"f{self.count}-"))
        points = json.dumps(hover_points(figure), ensure_ascii=False, separators=(",", ":"))
        return Drawn("wide" if wide else "small", name, caption, svg, points)


@cache
def _environment() -> Any:
    """Jinja2 with autoescape on, reading this package's templates."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise missing(error, "a report") from error
    return Environment(
        loader=PackageLoader("bayesprune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _static(name: str) -> str:
    return resources.files("bayesprune.report").joinpath("templates").joinpath(name).read_text(encoding="utf-8")


def stylesheet() -> str:
    """The style sheet of a page: light and dark from one table, one column on a phone, plain on paper."""
    light, dark = (" ".join(f"--{name}: {pair[i]};" for name, pair in THEME.items()) for i in (0, 1))
    themes = f":root {{ color-scheme: light dark; {light} }}\n"
    return f"{themes}@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{_static('style.css')}"


def render(template: str, **context: Any) -> str:
    """Write a page that fetches nothing and follows the reader's light or dark theme; its one script may run by its hash."""
    from markupsafe import Markup

    script = _static("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
    frame = {"script": Markup(script), "script_hash": Markup(f"sha256-{digest}"), "style": Markup(stylesheet())}
    text: str = _environment().get_template(template).render(version=__version__, **frame, **context)
    return text.lstrip()


def html_table(heads: list[str], rows: list[list[str]], texts: int, groups: list[tuple[str, int]] | None = None) -> Any:
    """A sortable ``<table>`` element."""
    parts = _environment().get_template("parts.html").module
    return parts.table(heads, rows, texts, groups or [])


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


def flatten(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """List the entries of a nested dict under dotted names, the values as text."""
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            rows += flatten(item, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)))
    return rows
