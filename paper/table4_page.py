"""Table 4 as Markdown, from its ledger: the paper's figures beside ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from paper.selection_rates import exact_recoveries, false_selection_rate, miss_rate
from paper.table4_blocks import DESIGNS, METHODS, VARIANTS, Table4Design
from paper.table4_job import OUTSIDE

LABELS = {
    ("dfp", "paper's"): "**DFP**, paper's network",
    ("dfp", "default"): "**DFP**, default network",
    ("dpf", "paper's"): "**DPF**, paper's network",
    ("dpf", "default"): "**DPF**, default network",
    ("true-inputs", "paper's"): "*true inputs given, paper's network*",
    ("true-inputs", "default"): "*true inputs given, default network*",
    ("boosting", "all columns"): "*boosting on all columns*",
    ("boosting", "selected columns"): "boosting, permutation importance",
    ("forest", "all columns"): "random forest on all columns",
    ("forest", "selected columns"): "random forest, impurity importance",
    ("lasso", "linear"): "lasso",
    ("svbnn", "paper's"): "SVBNN",
    ("splbnn", "paper's"): "SPLBNN",
    ("lassonet", "path"): "LassoNet",
    ("lassonet", "dense refit"): "LassoNet, dense refit",
}
_HEAD = [
    "",
    "{score}",
    "paper",
    "false selections",
    "missed",
    "exact",
    "selected",
    "paper: false, selected",
    "seconds",
    "n",
]


def table4_markdown(result: dict[str, Any]) -> str:
    """Return Table 4, one block a design.

    Means are over repetitions, each its own data set, with the standard error sd/√n. False selections are Σ|Ŝ∖S|/Σ|Ŝ| and
    missed is Σ|S∖Ŝ|/Σ|S|, pooled over repetitions.

    Args:
        result: "rows" and "commands", as of `read_table4`.

    Returns:
        Markdown.

    Example:
        >>> table4_markdown({"rows": [], "commands": []})
        'No rows yet.'
    """
    rows = result["rows"]
    if not rows:
        return "No rows yet."
    parts = []
    for block in DESIGNS.values():
        own = [row for row in rows if row["design"] == block.key]
        if own:
            parts += [f"**{block.title}**{_floor(own)}", _block(block, own)]
    return "\n\n".join([*parts, _notes(result)])


def _floor(rows: Sequence[dict[str, Any]]) -> str:
    """Say what the true function scores on the test rows, over the repetitions that are there."""
    floors = {row["repetition"]: row["floor"] for row in rows if row.get("floor") is not None}
    if not floors or rows[0]["metric"] == "accuracy":
        return ""
    return f" (the true function on these test rows: {mean_and_error(list(floors.values()), 3)})"


def _block(block: Table4Design, rows: Sequence[dict[str, Any]]) -> str:
    score = "accuracy %" if rows[0]["metric"] == "accuracy" else "mean squared error"
    head = [name.format(score=score) for name in _HEAD]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for method in METHODS:
        for network in VARIANTS[method]:
            own = [row for row in rows if (row["method"], row["network"]) == (method, network)]
            if own:
                lines.append("| " + " | ".join(_cells(block, method, network, own)) + " |")
    return "\n".join(lines)


def _cells(block: Table4Design, method: str, network: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    done = [row for row in rows if row["status"] == "done"]
    label = LABELS[method, network]
    if len(done) < len(rows):
        label += f" ({counted(rows)})"
    of_paper = block.paper.get(method) if network == "paper's" else None
    paper, paper_selection = (of_paper[0], f"{of_paper[1]}, {of_paper[2]}") if of_paper else ("", "")
    if not done:
        return [label, "–", paper, "–", "–", "–", "–", paper_selection, "–", "0"]
    factor, digits = (100, 2) if done[0]["metric"] == "accuracy" else (1, 3)
    score = mean_and_error([factor * row["score"] for row in done], digits)
    seconds = f"{sum(row['seconds'] for row in done) / len(done):.0f}"
    if done[0]["selected"] is None:
        return [label, score, paper, "", "", "", "", paper_selection, seconds, str(len(done))]
    selected, truth = [row["selected"] for row in done], [row["true_inputs"] for row in done]
    return [
        label,
        score,
        paper,
        f"{100 * false_selection_rate(selected, truth):.1f} %",
        f"{100 * miss_rate(selected, truth):.1f} %",
        f"{exact_recoveries(selected, truth)}/{len(done)}",
        f"{sum(map(len, selected)) / len(done):.1f}",
        paper_selection,
        seconds,
        str(len(done)),
    ]


def mean_and_error(values: Sequence[float], digits: int) -> str:
    """Return "mean ± standard error"; of a single value, the value.

    Example:
        >>> mean_and_error([1.0, 1.2], 2), mean_and_error([1.0], 2)
        ('1.10 ± 0.10', '1.00')
    """
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return f"{mean:.{digits}f}"
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def counted(rows: Sequence[dict[str, Any]]) -> str:
    """Return how many rows failed and how many timed out, in words.

    Example:
        >>> counted([{"status": "timed out"}, {"status": "failed"}, {"status": "done"}])
        '1 failed, 1 timed out'
    """
    statuses = [row["status"] for row in rows]
    return ", ".join(f"{statuses.count(name)} {name}" for name in ("failed", "timed out") if name in statuses)


def reasons(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for every reason for which a method gave no result.

    Example:
        >>> reasons([{"status": "failed", "reason": "no memory", "method": "lasso", "network": "linear", "design": "example2"}])
        ['example2, lasso: 1 failed (no memory)']
    """
    found: dict[tuple[str, ...], int] = {}
    for row in rows:
        if row["status"] != "done" and row["network"] == VARIANTS[row["method"]][0]:
            reason = row["reason"].replace("\n", " ")
            key = (row["design"], LABELS[row["method"], row["network"]], row["status"], reason)
            found[key] = found.get(key, 0) + 1
    return [f"{key[0]}, {key[1].strip('*')}: {count} {key[2]} ({key[3]})" for key, count in found.items()]


def _notes(result: dict[str, Any]) -> str:
    rows = result["rows"]
    ours = [
        row
        for row in rows
        if row["method"] in ("dfp", "dpf") and row["network"] == "default" and row["status"] == "done"
    ]
    exact = sum(row["selected"] == row["true_inputs"] for row in ours)
    n = max((row.get("n", 0) for row in rows), default=0)
    capped = [("outside methods", list(OUTSIDE)), ("svbnn, splbnn", ["svbnn", "splbnn"])]
    caps = {
        text: max((row.get("cap_minutes") or 0.0 for row in rows if row["method"] in names), default=0.0)
        for text, names in capped
    }
    told = ", ".join(f"{value:g} minutes for {text}" for text, value in caps.items() if value)
    notes = [
        f"Means over n repetitions ± standard error; {n:,} training rows, 5,000 test rows of their own seeds, columns in random "
        "order. *Italic*: reference rows, which select nothing. Seconds are those of one fit on one core while the other "
        "cores were busy; of a batched computation, its seconds divided by its repetitions.",
        f"DFP and DPF: one setting for all designs, exactly the true inputs in {exact} of {len(ours)} fits. Where they "
        "select the same inputs, the same network is sampled from the same seed, so that their scores agree. Outside methods "
        "use 2,000 further rows to choose their model.",
        "The paper's columns are as printed; its blocks of false discoveries and numbers selected for Examples 1 and 3 are "
        "exchanged (five and four true inputs).",
    ]
    why = reasons(rows)
    if why:
        notes.append("Without a result: " + "; ".join(why) + ".")
    if result["commands"]:
        last, hours = result["commands"][-1], sum(each["wall_seconds"] for each in result["commands"]) / 3600
        notes.append(
            f"A fit is killed after: {told}. {hours:.1f} hours of commands in all; "
            f"{last['cpu']}, {last['cores']} cores, "
            f"{last['processes']} processes of 1 thread, torch {last['torch']}, commit {last['commit']}."
        )
    return "\n\n".join(notes)
