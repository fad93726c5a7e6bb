"""What the templates show of a run, as plain rows and words; the templates escape them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bayesprune.report.load import Run
from bayesprune.report.table import MISSING, shown


def found_faults(run: Run) -> list[str]:
    """List what a reader must know before trusting a run: that it is unfinished, and its health warnings."""
    state = f"unfinished, after {run.epochs_done} of {run.epochs_planned or '?'} epochs: it has curves but no results"
    health = (run.result or {}).get("health") or {}
    return ([] if run.finished else [state]) + [f"{str(text).rstrip('.')}." for text in health.get("warnings") or []]


def table_legend(runs: Sequence[Run]) -> str:
    """Explain the columns of the results table."""
    if not any(run.finished for run in runs):
        return ""
    return (
        "Single: the model at the end of training. Averaged: the mean of all samples' probabilities, to which NLL (nats), "
        "Brier score and ECE (15 bins) belong too. Sparsity: share of zeros among the prunable weights and among all "
        "parameters, and share of the multiply-adds removed."
    )


def setting_differences(runs: Sequence[Run], labels: Sequence[str]) -> dict[str, Any] | None:
    """Heads and rows of the settings in which runs differ, so that it is plain what is compared; None for a single run."""
    if len(runs) < 2:
        return None
    flat = [dict(flatten(run.config)) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one)]
    differing = [key for key in keys if len({one.get(key, MISSING) for one in flat}) > 1]
    twice = {key.rpartition(".")[2] for key in differing if "." in key}  # such as method, which a section holds too
    rows = [[key, *(_told(one.get(key, MISSING)) for one in flat)] for key in differing if key not in twice]
    return {"heads": ["Setting", *labels], "rows": rows}


def layer_rows(sparsity: dict[str, Any]) -> dict[str, Any]:
    """Heads and rows of a sparsity report, and what was excluded."""
    rows = []
    for row in sparsity.get("per_layer") or []:
        zeros, total = row.get("zeros"), row.get("total")
        share = f"{100 * zeros / total:.2f}" if zeros is not None and total else MISSING
        cells = [shown(zeros, ","), shown(total, ","), share, shown(row.get("madds"), ",")]
        rows.append([str(row.get("name")), " × ".join(map(str, row.get("shape") or [])), *cells])
    excluded = [_excluded(entry) for entry in sparsity.get("excluded") or []]
    note = f"Not prunable: {'; '.join(excluded)}." if excluded else "Nothing was excluded from pruning."
    heads = ["Layer", "Shape", "Zeros", "Weights", "Sparsity (%)", "Multiply-adds"]
    return {"heads": heads, "rows": rows, "note": note}


def _excluded(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    size = f" ({entry['weights']:,} weights)" if entry.get("weights") else ""
    return f"{entry.get('name')}{size}: {entry.get('reason')}"


def health_rows(health: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The numbers of a health report by name; its warnings stand at the top of the page."""
    if not health:
        return []
    rows: list[tuple[str, str]] = []
    for number, group in enumerate(health.get("temperature") or []):
        said = f"{shown(group.get('mean'))} (from {shown(group.get('min'))} to {shown(group.get('max'))})"
        rows.append((f"Injected temperature, group {number}", said))
        if group.get("kinetic") is not None:
            rows.append((f"Measured temperature, group {number}", shown(group["kinetic"])))
        if group.get("suggested_lr") is not None:
            rows.append((f"Step size at which minibatches add a tenth, group {number}", shown(group["suggested_lr"])))
    values = {
        "Noise-to-gradient ratio": health.get("noise_to_gradient"),
        "Members": health.get("members"),
        "Temperature measured at the samples": health.get("sample_temperature"),
        "Relative spread of the weights": health.get("weight_spread"),
        "Disagreement between members": health.get("disagreement"),
        "Epistemic uncertainty": health.get("epistemic"),
        **{f"Training loss, {name}": value for name, value in (health.get("fit") or {}).items()},
    }
    rows += [(name, shown(value)) for name, value in values.items() if value is not None]
    for name, key in (("R-hat", "rhat"), ("Bulk ESS", "ess")):
        rows += [(f"{name} of {trace}", shown(value)) for trace, value in (health.get(key) or {}).items()]
    return rows


def health_said(health: dict[str, Any] | None) -> str:
    """How many warnings a health report gave, in words."""
    warned = len((health or {}).get("warnings") or [])
    return f"{warned} warning{'s' if warned != 1 else ''}, see the top of the page" if warned else "no warnings"


def _told(value: str) -> str:
    return {"null": "not set", "true": "yes", "false": "no"}.get(value, value)


def flatten(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """List the entries of a nested dict under dotted names, the values as text."""
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            rows += flatten(item, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)))
    return rows
