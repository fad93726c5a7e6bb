"""Tables 1 to 3 as Markdown, from their ledgers: what the paper prints beside ours, with n."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from paper.published import DENSE, LABELS, TABLES, Block

_HEAD = ["", "sparsity", "paper %", "elsewhere %", "ours: single %", "averaged %", "NLL", "ECE", "zero: prunable"]
_HEAD += ["zero: all", "multiply-adds", "n"]


def paper_table_markdown(table: str, result: dict[str, Any]) -> str:
    """Return one of Tables 1 to 3, a block a network.

    Ours is of the last epoch on the test images: the single model, and the average over all samples, to which NLL and ECE
    belong; with n ≥ 2 the mean ± standard deviation over seeds.

    Args:
        table: "table1", "table2" or "table3".
        result: as of `run_cells` or `standing`.

    Returns:
        Markdown; runs that were changed from the paper's setting have rows of their own, and cells that neither the paper
        nor we have are left out.

    Example:
        >>> print(paper_table_markdown("table3", {"rows": []}).splitlines()[4])
        | SGD (Nesterov) | dense | 76.5 |  |  |  |  |  |  |  |  | 0 |
    """
    done = [row for row in result["rows"] if row["status"] == "done"]
    parts = []
    for block in TABLES[table]:
        lines = ["| " + " | ".join(_HEAD) + " |", "|---" + "|---:" * (len(_HEAD) - 1) + "|"]
        for method in LABELS:
            for sparsity in (None,) if method in DENSE else block.sparsities:
                if method in block.methods:
                    lines += _lines(block, method, sparsity, done)
        parts += [f"**{block.title}**", "\n".join(lines)]
    failed = [f"{row['name']} ({row['reason']})" for row in result["rows"] if row["status"] == "failed"]
    notes = [f"elsewhere: {source}" for source in _sources(table)]
    notes += [f"without a result: {'; '.join(failed)}"] if failed else []
    notes += [f"{name}: {how_far}" for name, how_far in result.get("unfinished", {}).items()]
    return "\n\n".join([*parts, *(f"- {note}" for note in notes)]).replace("\n\n- ", "\n- ").replace("|\n- ", "|\n\n- ")


def _lines(block: Block, method: str, sparsity: int | None, rows: Sequence[dict[str, Any]]) -> list[str]:
    own = [row for row in rows if row["recipe"] == block.recipe(method, sparsity)]
    changes: list[list[str]] = [[]]
    changes += sorted({tuple(row["changes"]): row["changes"] for row in own if row["changes"]}.values())
    printed = block.paper(method, sparsity)
    other = block.elsewhere.get((method, sparsity))
    lines = []
    for change in changes:
        mine = [row for row in own if row["changes"] == change]
        if not mine and (change or (printed is None and other is None)):
            continue
        label = LABELS[method] + (f" ({', '.join(change)})" if change else "")
        head = [label, "dense" if sparsity is None else f"{sparsity} %"]
        head += ["" if printed is None else f"{printed:.1f}", "" if other is None else f"{other[0]:.2f}"]
        lines.append("| " + " | ".join(head + score_cells(mine)) + " |")
    return lines


def score_cells(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return single and averaged accuracy, NLL, ECE, the three sparsities and n of the seeds of one cell.

    Example:
        >>> score_cells([])
        ['', '', '', '', '', '', '', '0']
    """
    if not rows:
        return [""] * 7 + ["0"]
    scores = [("accuracy_single", 100, 2), ("accuracy_mean", 100, 2), ("nll", 1, 3), ("ece", 1, 3)]
    cells = [mean_and_spread([factor * row[key] for row in rows], digits) for key, factor, digits in scores]
    for key in ("sparsity_prunable", "sparsity_all"):
        cells.append(f"{100 * sum(row[key] for row in rows) / len(rows):.1f} %")
    left = sum(row["madds"] / row["madds_dense"] for row in rows) / len(rows)
    return [*cells, f"{100 * left:.1f} %", str(len(rows))]


def mean_and_spread(values: Iterable[float | None], digits: int) -> str:
    """Return "mean ± standard deviation" of what is known; of a single value, the value.

    Example:
        >>> mean_and_spread([94.0, 96.0], 1), mean_and_spread([95.0], 1), mean_and_spread([None], 1)
        ('95.0 ± 1.4', '95.0', '–')
    """
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = f"{statistics.fmean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.{digits}f}"


def _sources(table: str) -> list[str]:
    return sorted({source for block in TABLES[table] for _, source in block.elsewhere.values()})
