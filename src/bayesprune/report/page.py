"""The frame of every page, and its figures: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

from bayesprune._version import __version__
from bayesprune.report.style import NothingToDraw, figure_to_svg
from bayesprune.report.stylesheet import stylesheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Nothing may be fetched and nothing may run, whatever a file says.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Figures:
    """Turn figures into HTML, and number them so that their identifiers differ.

    Example:
        >>> from bayesprune.report.style import new_figure
        >>> html = Figures()(lambda: new_figure(2, 1), "Empty", "Nothing to see.")
        >>> html[:8], html[-9:]
        ('<figure>', '</figure>')
    """

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, draw: Callable[[], Figure], name: str, caption: str, *, wide: bool = False) -> str:
        """Draw one figure, or say in a paragraph why there is none.

        Args:
            draw: makes the figure; raises `NothingToDraw` where there is no data.
            name: what it would show.
            caption: HTML.
            wide: not to stand in columns.
        """
        try:
            figure = draw()
        except NothingToDraw as reason:
            return f'<p class="absent">{escape(name)}: {escape(str(reason))}.</p>'
        self.count += 1
        svg = figure_to_svg(figure, f"f{self.count}-")
        kind = ' class="wide"' if wide else ""
        # Reached by the keyboard, since it may scroll on a phone.
        reach = ' tabindex="0"' if wide else ""
        canvas = f'<div class="canvas"{reach}>{svg}</div>'
        return f"<figure{kind}>{canvas}<figcaption>{caption}</figcaption></figure>"


def grid(figures: Sequence[str]) -> str:
    """Flow the small figures in columns, then the wide ones, then what could not be drawn and why.

    Args:
        figures: HTML from `Figures`.

    Example:
        >>> print(grid(['<p class="absent">Paths: none.</p>', "<figure>1</figure>"]))
        <div class="figures"><figure>1</figure></div><p class="absent">Paths: none.</p>
    """
    small = "".join(figure for figure in figures if figure.startswith("<figure>"))
    wide = "".join(figure for figure in figures if figure.startswith("<figure class"))
    absent = "".join(figure for figure in figures if figure.startswith("<p"))
    return (f'<div class="figures">{small}</div>' if small else "") + wide + absent


def section(name: str, title: str, *parts: str) -> str:
    """Write a section with its heading; nothing if it is empty.

    Args:
        name: its anchor.
        title: plain text.
        parts: HTML; empty ones are left out.

    Example:
        >>> print(section("a", "A & B", "<p>1</p>"))
        <section id="a" aria-labelledby="a-title">
        <h2 id="a-title">A &amp; B</h2>
        <p>1</p>
        </section>
    """
    body = "\n".join(part for part in parts if part)
    if not body:
        return ""
    heading = f'<h2 id="{name}-title">{escape(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">\n{heading}\n{body}\n</section>'


def whole_page(title: str, subtitle: str, links: Sequence[tuple[str, str]], parts: Sequence[str]) -> str:
    """Write a page without scripts that fetches nothing and follows the reader's light or dark theme.

    Args:
        title: plain text.
        subtitle: plain text under it, or nothing.
        links: anchors and names of the sections.
        parts: HTML of the body; empty ones are left out.

    Example:
        >>> whole_page("Demo", "", [], []).splitlines()[0]
        '<!DOCTYPE html>'
    """
    navigation = "".join(f'<li><a href="#{anchor}">{escape(label)}</a></li>' for anchor, label in links)
    body = "\n".join(
        part
        for part in (
            f"<header>\n<h1>{escape(title)}</h1>",
            f'<p class="muted">{escape(subtitle)}</p>' if subtitle else "",
            f'<nav aria-label="Sections"><ul>{navigation}</ul></nav>\n</header>\n<main>',
            *parts,
            f"</main>\n<footer><p>Written by bayesprune {escape(__version__)}.</p></footer>",
        )
        if part
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{stylesheet()}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
