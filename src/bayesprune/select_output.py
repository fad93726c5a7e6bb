"""What a selection writes and prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bayesprune.common.files import replacing_folder, write_json, write_text
from bayesprune.report.selection import write_selection_report
from bayesprune.report.selection_table import selection_table

SELECTED, RESULT, MODEL, REPORT = "selected.csv", "result.json", "model", "report.html"


def write_selection(result: dict[str, Any], estimator: Any, out: Path) -> dict[str, Any]:
    """Write selected.csv, result.json, model/ and report.html beside `out`, then put them in its place as a whole."""
    with replacing_folder(out) as work:
        estimator.save(work / MODEL)
        write_text(work / SELECTED, selection_table(result["selected"], "csv"))
        result = _plain(result)
        write_selection_report(result, work / REPORT)
        write_json(work / RESULT, result)  # last: it marks a whole selection
    return result


def _plain(result: dict[str, Any]) -> dict[str, Any]:
    """The result as JSON will give it back, so that the page is the same from memory and from the file."""

    def simple(value: Any) -> Any:
        return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)

    return json.loads(json.dumps(result, default=simple), parse_constant=lambda name: None)


def is_selection(folder: Path) -> bool:
    """Return whether a folder is empty or holds what a selection leaves, and nothing else."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"a file"}
    return not names or (RESULT in names and names <= {SELECTED, RESULT, MODEL, REPORT})


def selection_summary(result: dict[str, Any], out: Path) -> str:
    """Say in a few lines what was selected, how well it predicts, and where the files are."""
    scores, data, lines = result["held_out"], result["data"], []
    if result["selected"]:
        lines.append(f"{len(result['selected'])} of {data['inputs']:,} inputs selected {result['rule']}:\n")
        lines.append(selection_table(result["selected"], most=30))
        pairs = [f"{' × '.join(one['inputs'])} ({one['strength']:.3g})" for one in result["interactions"][:5]]
        lines += [f"interactions: {', '.join(pairs)}"] if pairs else []
        wide = [f"{one['input']} (p {one['p_value']:.2g})" for one in result["on_variance"][:5]]
        lines += [f"the noise's size depends on: {', '.join(wide)}"] if wide else []
    else:
        lines.append(result["fallback"]["sentence"])
    rows = f"held-out rows ({data['rows_held_out']:,}):"
    if result["target"]["task"] == "regression":
        r2 = "" if scores["r2"] is None else f", R² {scores['r2']:.3f}"
        lines.append(
            f"{rows} RMSE {scores['rmse']:.4g} (without inputs {scores['rmse_constant']:.4g}){r2}; 90 % intervals cover "
            f"{100 * scores['coverage']:.1f} % (± {100 * scores['coverage_error']:.1f})"
        )
    else:
        lines.append(
            f"{rows} accuracy {100 * scores['accuracy']:.1f} % (without inputs "
            f"{100 * scores['accuracy_constant']:.1f} %), log loss {scores['nll']:.4g}, ECE {scores['ece']:.4f}"
        )
    lines += [f"note: {note}" for note in result["notes"]]
    lines += [
        f"{name + ':':<9}{out / file}" for name, file in (("table", SELECTED), ("model", MODEL), ("report", REPORT))
    ]
    return "\n".join(lines)
