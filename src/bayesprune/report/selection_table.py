"""The selected inputs as a table: for the terminal, for the page, for a spreadsheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bayesprune.common.files import csv_text
from bayesprune.report.style import literal
from bayesprune.report.table import MISSING, shown

KEYS = (
    "input", "kind", "evidence", "probability", "chain_min", "chain_max", "q_value", "effect", "effect_alone", "direction",
)  # fmt: skip


def selection_table(selected: Sequence[dict[str, Any]], fmt: str = "text", most: int | None = None) -> str:
    """Write the selected inputs, one a line.

    Args:
        selected: dicts with the entries of `KEYS`, from a selection's result.
        fmt: "text" (aligned, for terminals), "html" (a ``<table>`` element) or "csv" (all digits, the names of `KEYS`).
        most: lines to write; a last one says how many more there are. Not for "csv".

    Returns:
        The table; text and CSV end in a line break.

    Raises:
        ValueError: an unknown format.

    Example:
        >>> row = {"input": "age", "kind": "number", "evidence": 12.34, "probability": 0.998, "chain_min": 0.99, "chain_max": 1.0,
        ...        "q_value": 0.002, "effect": 1.5, "effect_alone": 1.2, "direction": "increasing"}
        >>> print(selection_table([row]), end="")
        Input  Evidence  Chains       Probability  q-value  Effect  Alone  Direction
        age        12.3  0.990–1.000        0.998    0.002     1.5    1.2  increasing
    """
    writers: dict[str, Callable[[Sequence[dict[str, Any]], int], str]] = {"text": _text, "html": _html, "csv": _csv}
    if fmt not in writers:
        raise ValueError(f"fmt={fmt!r}: expected one of {', '.join(map(repr, writers))}")
    return writers[fmt](selected, len(selected) if most is None else most)


ORDER = ("Input", "Chains", "Direction", "Evidence", "Probability", "q-value", "Effect", "Alone")
"""The columns of a page: words first, as its tables have them."""
_TERMINAL = ("Input", "Evidence", "Chains", "Probability", "q-value", "Effect", "Alone", "Direction")


def _cells(row: dict[str, Any]) -> dict[str, str]:
    q_value = row["q_value"]
    return {
        "Input": str(row["input"]),
        "Chains": MISSING if row.get("chain_min") is None else f"{row['chain_min']:.3f}–{row['chain_max']:.3f}",
        "Direction": str(row["direction"]),
        "Evidence": shown(row.get("evidence"), ".1f"),
        "Probability": f"{row['probability']:.3f}",
        "q-value": f"{q_value:.3f}" if q_value >= 0.001 or q_value == 0 else f"{q_value:.0e}",
        "Effect": f"{row['effect']:.3g}",
        "Alone": shown(row["effect_alone"], ".3g"),
    }


def _text(selected: Sequence[dict[str, Any]], most: int) -> str:
    cells = [
        {name: literal(cell, 40).replace(r"\$", "$") for name, cell in _cells(row).items()} for row in selected[:most]
    ]
    cells.insert(0, dict(zip(ORDER, ORDER)))
    widths = {name: max(len(row[name]) for row in cells) for name in ORDER}

    def line(row: dict[str, str]) -> str:
        aligned = (row[h].ljust(widths[h]) if h in ORDER[:3] else row[h].rjust(widths[h]) for h in _TERMINAL)
        return "  ".join(aligned).rstrip()

    more = [f"… and {len(selected) - most} more"] if len(selected) > most else []
    return "\n".join([*map(line, cells), *more]) + "\n"


def _html(selected: Sequence[dict[str, Any]], most: int) -> str:
    from bayesprune.report.page import html_table

    rows = table_rows(selected[:most])
    if len(selected) > most:
        rows.append([f"and {len(selected) - most} more", *[""] * (len(ORDER) - 1)])
    return str(html_table(list(ORDER), rows, 3)).strip()


def table_rows(selected: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The cells of the selected inputs in the order of `ORDER`, as text."""
    return [list(_cells(row).values()) for row in selected]


def _csv(selected: Sequence[dict[str, Any]], most: int) -> str:
    return csv_text(KEYS, ([row.get(key) for key in KEYS] for row in selected))
