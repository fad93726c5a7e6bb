"""One look for all figures, and their ways out: PNG for documents, SVG that follows the page's light or dark theme."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesprune.common.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Name: (light, dark). Figures are drawn in the light colours; `figure_to_svg` turns each into the page's variable.
# Series are told apart by lightness as well as by hue, and beyond the eighth by dashes.
THEME: dict[str, tuple[str, str]] = {
    "page": ("#fcfcfb", "#16181c"),
    "card": ("#ffffff", "#1d2025"),
    "ink": ("#1e242c", "#e7e9ec"),
    "muted": ("#5c6672", "#a3abb5"),
    "line": ("#dfe2e6", "#353a42"),
    "series-1": ("#2364b0", "#6aa9f0"),
    "series-2": ("#d9661f", "#f2935a"),
    "series-3": ("#138a6b", "#43c49f"),
    "series-4": ("#9a4fb0", "#cd8ee0"),
    "series-5": ("#b8860b", "#dcb548"),
    "series-6": ("#c23a5f", "#f0809d"),
    "series-7": ("#4aa3c7", "#8ed0e8"),
    "series-8": ("#6f7a45", "#b3be84"),
}
SERIES = tuple(light for name, (light, _) in THEME.items() if name.startswith("series"))
INK, MUTED, LINE = (THEME[name][0] for name in ("ink", "muted", "line"))
PATHS = ("#3d84d3", "#e0752f")  # of lines that become an image, which cannot follow the theme
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))


class NothingToDraw(ValueError):
    """The runs hold no data for this figure; the message says what is missing.

    Example:
        >>> try:
        ...     raise NothingToDraw("the run recorded no weight paths")
        ... except NothingToDraw as reason:
        ...     print(reason)
        the run recorded no weight paths
    """


def spread(length: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `length` things, evenly spread, both ends among them."""
    return np.unique(np.linspace(0, max(length - 1, 0), min(length, most)).round().astype(int))


def one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure and its only axes."""
    figure = new_figure(width, height)
    return figure, figure.add_subplot()


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure outside of pyplot's global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('the figures of a report need Matplotlib: pip install "bayesprune[train]"') from error
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def style_axes(axes: Axes, *, x: str = "", y: str = "", title: str = "", note: str = "", grid: str = "y") -> None:
    """Give axes their labels and the house's look: no box, a light grid, a title at the left, a note at the right."""
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LINE)
    axes.tick_params(colors=MUTED, labelsize=8.5, length=3, color=LINE)
    axes.set_xlabel(literal(x), color=MUTED, fontsize=9)
    axes.set_ylabel(literal(y), color=MUTED, fontsize=9)
    if title:
        axes.set_title(literal(title), loc="left", color=INK, fontsize=9.5, fontweight="bold")
    if note:
        axes.set_title(literal(note), loc="right", color=MUTED, fontsize=8.5)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=LINE, linewidth=0.7)  # type: ignore[arg-type]


def name_rows(axes: Axes, names: Sequence[str], width: int, *, color: str = INK, edge: float = 0.6) -> None:
    """Give the rows of lying bars their names, the first on top."""
    axes.set_yticks(range(len(names)), [literal(name, width) for name in names])
    axes.set_ylim(len(names) - (1 - edge), -edge)
    axes.tick_params(axis="y", length=0, labelcolor=color, labelsize=8)


def literal(text: str, width: int = 60) -> str:
    """Make any text safe to draw: no mathematics between dollars, one line, the middle cut out if it is too long."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(text) > width:
        text = text[: width - 1 - (width - 1) // 2] + "…" + text[len(text) - (width - 1) // 2 :]
    return text.replace("$", r"\$")


def look(index: int) -> dict[str, Any]:
    """Colour and dashes of the run at a position."""
    return {"color": SERIES[index % len(SERIES)], "linestyle": DASHES[index // len(SERIES) % len(DASHES)]}


def legend_below(figure: Figure, handles: list[Any], labels: list[str]) -> None:
    """Put a legend under all axes, in as many columns as the labels' lengths allow."""
    for handle, label in zip(handles, labels):  # what the page shows over its points
        if hasattr(handle, "set_label"):
            handle.set_label(label)
    names = [literal(label, 44) for label in labels]
    names = [" " + name if name.startswith("_") else name for name in names]  # Matplotlib hides those
    room = figure.get_size_inches()[0] / 0.078  # characters that fit in a line
    columns = max(1, min(4, len(names), int(room // (max(map(len, names)) + 7))))
    if sum(len(name) + 6 for name in names) <= room:
        columns = len(names)
    figure.legend(
        handles,
        names,
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=1.9,
        columnspacing=1.3,
        borderaxespad=0.2,
    )


def figure_to_svg(figure: Figure, prefix: str) -> str:
    """Render a figure as an ``<svg>`` element to stand in a page."""
    import matplotlib

    stream = io.StringIO()
    options: Any = {"svg.fonttype": "none", "svg.hashsalt": "bayesprune", "savefig.bbox": None}
    with matplotlib.rc_context(options), warnings.catch_warnings():
        # The reader's browser has the letters that Matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, format="svg", transparent=True, dpi=170, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    # Matplotlib's own style sheet would hold for the whole page.
    text = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = text.replace("url(#", f"url(#{prefix}").replace('href="#', f'href="#{prefix}')
    for name, (light, _) in THEME.items():
        text = re.sub(rf"(:\s*){light}\b", rf"\1var(--{name}, {light})", text)
    text = re.sub(r"font: ([^;\"']*?px) [^;\"]*", r"font: \1 sans-serif", text)
    width = round(float(figure.get_size_inches()[0]) * 96)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    name = escape(str(figure.get_label()))
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img"'
        f' aria-label="{name}" style="--natural: {width}px">'
    )
    return opening + text[text.index(">") + 1 :]


def save_png(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 160) -> Path:
    """Save a figure as a PNG file, through a temporary name, so that a half-written file never stands there.

    Args:
        figure: from this package.
        path: where to; its folder is made if need be.
        dpi: dots an inch.

    Returns:
        The path.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_png(new_figure(2, 1), Path(folder) / "empty.png").name
        'empty.png'
    """
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Description": str(figure.get_label())})
    return write_bytes(path, stream.getvalue())
