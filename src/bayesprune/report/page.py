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

from bayesprune._version import __version__
from bayesprune.common.lazy import missing
from bayesprune.report.hover import hover_points
from bayesprune.report.style import THEME, NothingToDraw, figure_to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
