"""Pieces of the page; everything that comes from a file is escaped here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from bayesprune.report.load import Run
from bayesprune.report.table import MISSING


def key_figures(run: Run) -> str:
    """Write the numbers of one finished run as tiles; nothing for an unfinished one."""
    result = run.result
    if result is None:
        return ""

    def share(key: str) -> str:
        return MISSING if result.get(key) is None else f"{100 * result[key]:.2f}%"

    def number(key: str) -> str:
        return MISSING if result.get(key) is None else f"{result[key]:.4f}"

    tiles = [
        ("Averaged accuracy", share("accuracy_mean"), f"single model: {share('accuracy_single')}"),
        ("Negative log-likelihood", number("nll"), f"single model: {number('nll_single')}"),
        ("Calibration error", number("ece"), f"single model: {number('ece_single')}"),
        ("Prunable weights at zero", share("sparsity_prunable"), f"of all parameters: {share('sparsity_all')}"),
        ("Multiply-adds removed", share("sparsity_madds"), _left(result)),
        ("Samples", f"{result.get('num_samples') or 0:,}", f"members disagree on {share('disagreement')}"),
    ]
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in tiles
    )
    return f'<dl class="tiles">{items}</dl>'


def _left(result: dict[str, Any]) -> str:
    left, dense = result.get("madds"), result.get("madds_dense")
    return "" if left is None or dense is None else f"{_short(left)} of {_short(dense)} left"


def _short(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def found_faults(run: Run) -> list[str]:
    """List what a reader must know before trusting a run: that it is unfinished, and its health warnings."""
    state = f"unfinished, after {run.epochs_done} of {run.epochs_planned or '?'} epochs: it has curves but no results"
    health = (run.result or {}).get("health") or {}
    return ([] if run.finished else [state]) + [str(text) for text in health.get("warnings") or []]


def warning_box(faults: list[tuple[str, str]]) -> str:
    """Write a box of (run, warning) pairs; nothing if there are none."""
    if not faults:
        return ""
    items = "".join(f"<li>{f'<b>{escape(name)}</b>: ' if name else ''}{escape(text)}</li>" for name, text in faults)
    return f'<aside class="warnings" aria-label="Warnings"><strong>Read with care</strong><ul>{items}</ul></aside>'


def table_legend(runs: Sequence[Run]) -> str:
    """Explain the columns of the results table."""
    if not any(run.finished for run in runs):
        return ""
    return (
        '<p class="muted">Single: the model at the end of training. Averaged: the mean of all samples\' probabilities, '
        "to which NLL (nats), Brier score and ECE (15 bins) belong too. Sparsity: share of zeros among the prunable "
        "weights and among all parameters, and share of the multiply-adds removed.</p>"
    )


def setting_differences(runs: Sequence[Run], labels: Sequence[str]) -> str:
    """Write a table of the settings in which the runs differ, so that it is plain what is being compared."""
    if len(runs) < 2:
        return ""
    flat = [dict(flatten(run.config)) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one)]
    differing = [key for key in keys if len({one.get(key, MISSING) for one in flat}) > 1]
    if not differing:
        return '<p class="muted">All runs have the same configuration.</p>'
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in labels)
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(key)}</code></th>'
        + "".join(f"<td>{escape(one.get(key, MISSING))}</td>" for one in flat)
        + "</tr>"
        for key in differing
    )
    table = f'<table><thead><tr><th scope="col">Setting</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f"<h3>Where the configurations differ</h3>\n{scroll_box(table, 'Differing settings')}"


def layer_table(sparsity: dict[str, Any]) -> str:
    """Write a sparsity report as a folded table, with what was excluded."""
    layers = sparsity.get("per_layer") or []
    if not layers:
        return ""
    names = ("Layer", "Shape", "Zeros", "Weights", "Sparsity (%)", "Multiply-adds")
    head = "".join(f'<th scope="col"{_number(i >= 2)}>{name}</th>' for i, name in enumerate(names))
    rows = []
    for row in layers:
        zeros, total, madds = row.get("zeros"), row.get("total"), row.get("madds")
        share = f"{100 * zeros / total:.2f}" if zeros is not None and total else MISSING
        cells = [f"{value:,}" if value is not None else MISSING for value in (zeros, total)]
        cells += [share, f"{madds:,}" if madds is not None else MISSING]
        shape = " × ".join(map(str, row.get("shape") or []))
        numbers = "".join(f"<td{_number(True)}>{escape(cell)}</td>" for cell in cells)
        name = f'<th scope="row"><code>{escape(str(row.get("name")))}</code></th>'
        rows.append(f"<tr>{name}<td>{escape(shape)}</td>{numbers}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    excluded = [_excluded(entry) for entry in sparsity.get("excluded") or []]
    note = f"Not prunable: {'; '.join(excluded)}." if excluded else "Nothing was excluded from pruning."
    inside = f'<div class="inside"><p class="muted">{escape(note)}</p></div>{scroll_box(table, "Sparsity by layer")}'
    return f"<details><summary>Sparsity by layer, as a table</summary>{inside}</details>"


def _excluded(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    size = f" ({entry['weights']:,} weights)" if entry.get("weights") else ""
    return f"{entry.get('name')}{size}: {entry.get('reason')}"


def health_table(health: dict[str, Any] | None) -> str:
    """Write the numbers of a health report; its warnings stand at the top of the page."""
    if not health:
        return ""
    rows: list[tuple[str, str]] = []
    for number, group in enumerate(health.get("temperature") or []):
        said = f"{_figure(group.get('mean'))} (from {_figure(group.get('min'))} to {_figure(group.get('max'))})"
        rows.append((f"Injected temperature, group {number}", said))
        if group.get("kinetic") is not None:
            rows.append((f"Measured temperature, group {number}", _figure(group["kinetic"])))
        if group.get("suggested_lr") is not None:
            rows.append((f"Step size at which minibatches add a tenth, group {number}", _figure(group["suggested_lr"])))
    for name, key in (
        ("Noise-to-gradient ratio", "noise_to_gradient"),
        ("Members", "members"),
        ("Temperature measured at the samples", "sample_temperature"),
        ("Relative spread of the weights", "weight_spread"),
        ("Disagreement between members", "disagreement"),
        ("Epistemic uncertainty", "epistemic"),
    ):
        if health.get(key) is not None:
            rows.append((name, _figure(health[key])))
    rows += [
        (f"Training loss, {name}", _figure(value))
        for name, value in (health.get("fit") or {}).items()
        if value is not None
    ]
    for name, key in (("R-hat", "rhat"), ("Bulk ESS", "ess")):
        rows += [(f"{name} of {trace}", _figure(value)) for trace, value in (health.get(key) or {}).items()]
    if not rows:
        return ""
    warned = len(health.get("warnings") or [])
    said = f"{warned} warning{'s' if warned != 1 else ''}, see the top of the page" if warned else "no warnings"
    heading = f'<h3>Posterior health</h3>\n<p class="muted">A sampler of the posterior has temperature 1; {said}.</p>'
    return f"{heading}\n{scroll_box(pair_table(rows), 'Posterior health')}"


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else MISSING


def flatten(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """List the entries of a nested dict under dotted names, the values as text."""
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            rows += flatten(item, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)))
    return rows


def pair_table(rows: Iterable[tuple[str, str]]) -> str:
    """Write names and values as a table of two columns; nothing if there are none."""
    lines = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
    return f'<table class="pairs"><tbody>{lines}</tbody></table>' if lines else ""


def folded(name: str, table: str, *, kind: str) -> str:
    """Put a table behind a heading that opens it; nothing if there is no table."""
    if not table:
        return ""
    return f'<details class="{kind}"><summary>{escape(name)}</summary>{scroll_box(table, name)}</details>'


def scroll_box(table: str, name: str) -> str:
    """Let a wide table scroll in its own box, by keyboard too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">{table}</div>'


def _number(yes: bool) -> str:
    return ' class="number"' if yes else ""
