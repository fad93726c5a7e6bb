"""The page's style sheet: light and dark from one table, one column on a phone, plain on paper."""

from __future__ import annotations

from bayesprune.report.style import THEME

_RULES = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-padding-top: 1rem; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main, footer { max-width: 74rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.25rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .35rem; letter-spacing: -.01em; text-wrap: balance;
  overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .9rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
p { margin: .4rem 0; max-width: 68ch; }
a { color: var(--series-1); text-underline-offset: .15em; }
:focus-visible { outline: 2px solid var(--series-1); outline-offset: 2px; }
.muted, figcaption, footer { color: var(--muted); }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; list-style: none; margin: 1rem 0 0; padding: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0;
  padding: 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }
.tiles dt { color: var(--muted); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.55rem; font-weight: 600; line-height: 1.25; }
.tiles dd small { display: block; font-size: .8rem; font-weight: 400; color: var(--muted); }
.warnings { border: 1px solid var(--line); border-left: 4px solid var(--series-2); border-radius: .4rem;
  background: var(--card); padding: .7rem 1rem; margin: 1rem 0; }
.warnings strong { display: block; }
.warnings ul { margin: .3rem 0 0; padding-left: 1.1rem; }
.warnings li { overflow-wrap: anywhere; max-width: 90ch; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .6rem; background-color: var(--card);
  background-image: linear-gradient(to left, var(--card), transparent),
    linear-gradient(to left, var(--line), transparent);
  background-position: right; background-repeat: no-repeat; background-size: 2.5rem 100%, .8rem 100%;
  background-attachment: local, scroll; }
th code { white-space: nowrap; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { padding: .42rem .75rem; text-align: left; vertical-align: top; }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th[scope=colgroup] { text-align: center; border-bottom: 0; padding-bottom: 0; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody th { font-weight: 600; }
.number, td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.results { font-size: .84rem; }
.results th, .results td { padding: .4rem .5rem; }
.results td, .results tbody th { white-space: nowrap; }
.results tbody th { position: sticky; left: 0; background: var(--card); max-width: 19rem; overflow: hidden;
  text-overflow: ellipsis; }
.results tbody tr:hover > * { background: var(--page); }
.figures { columns: 2 24rem; column-gap: 1rem; margin-bottom: 1rem; }
figure { margin: 0 0 1rem; padding: .9rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; break-inside: avoid; min-width: 0; }
figure .canvas { overflow-x: auto; }
figure svg { display: block; width: 100%; max-width: calc(1.25 * var(--natural)); height: auto; margin: 0 auto; }
figure.wide svg { min-width: min(100%, 36rem); }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
figcaption { font-size: .85rem; margin-top: .5rem; }
.scroll + p { margin-top: .6rem; font-size: .9rem; max-width: 80ch; }
details { border: 1px solid var(--line); border-radius: .6rem; background: var(--card); margin: .7rem 0; }
summary { cursor: pointer; padding: .55rem 1rem; font-weight: 600; }
details > .scroll { border-width: 1px 0 0; border-radius: 0; }
details .inside { padding: 0 1rem .8rem; }
.pairs th { font-weight: 400; color: var(--muted); white-space: nowrap; width: 1%; }
.pairs td { overflow-wrap: anywhere; min-width: 9rem; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .92em;
  overflow-wrap: anywhere; }
article { border-top: 1px solid var(--line); margin-top: 2.75rem; }
article > h2 { margin-top: 1.6rem; }
.absent { color: var(--muted); font-size: .9rem; }
footer { font-size: .85rem; padding-top: 2rem; padding-bottom: 3rem; }
@media (max-width: 40rem) {
  header, main, footer { padding-left: .8rem; padding-right: .8rem; }
  header { padding-top: 1.4rem; }
  h1 { font-size: 1.45rem; }
  figure { padding: .6rem; }
  figure.wide svg { min-width: 30rem; }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  .tiles dd { font-size: 1.3rem; }
  .results tbody th { max-width: 9rem; }
  .pairs th { white-space: normal; overflow-wrap: anywhere; width: 45%; }
}
"""

_PRINT = """
@media print {
  @page { size: A4; margin: 14mm; }
  body { font-size: 10pt; }
  header, main, footer { max-width: none; padding-left: 0; padding-right: 0; }
  nav { display: none; }
  .scroll, figure .canvas { overflow: visible; }
  .results { font-size: 6.6pt; }
  .results th, .results td { padding: .25em .35em; }
  .results tbody th { position: static; max-width: none; }
  tr, .warnings { break-inside: avoid; }
  h2, h3, summary { break-after: avoid; }
  .figures { columns: 2; }
  details::details-content { content-visibility: visible; }
  .config { display: none; }
}
"""


def stylesheet() -> str:
    """Write the style sheet of a report; dark where the reader's system is, light on paper.

    Example:
        >>> "--series-1" in stylesheet() and "@media print" in stylesheet()
        True
    """
    light = " ".join(f"--{name}: {colours[0]};" for name, colours in THEME.items())
    dark = " ".join(f"--{name}: {colours[1]};" for name, colours in THEME.items())
    themes = f":root {{ color-scheme: light dark; {light} }}\n"
    themes += f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    return f"{themes}{_RULES}{_PRINT}"
