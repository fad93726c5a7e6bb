"""Variable selection from a file: read, hold out, fit, judge, write."""

from __future__ import annotations

import ast
import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bayesprune.select_output import is_selection, selection_summary, write_selection
from bayesprune.tabular.describe import describe_history, describe_inputs, describe_selected
from bayesprune.tabular.encode import Encoding, fit_encoding
from bayesprune.tabular.files import Table, read_table
from bayesprune.tabular.heldout import row_copies, score_classification, score_regression, split_rows
from bayesprune.tabular.notes import chain_notes, data_notes, nothing_selected
from bayesprune.tabular.table_model import TableModel, needed_inputs
from bayesprune.tabular.target import Target, read_target
from bayesprune.train.folder import environment

_SHOWN = 1000  # held-out predictions in result.json
_OURS = {"groups": "--text", "random_state": "--seed", "fdr": "--fdr", "verbose": "--quiet"}  # not for --set


def run_select(
    data: str | os.PathLike[str],
    target: str,
    out: str | os.PathLike[str],
    *,
    task: str = "auto",
    fdr: float = 0.05,
    held_out: float = 0.2,
    seed: int = 0,
    drop: Sequence[str] = (),
    text: Sequence[str] = (),
    settings: Sequence[str] = (),
    quiet: bool = False,
    estimators: dict[str, Callable[..., Any]] | None = None,
) -> dict[str, Any]:
    """Select the inputs that matter for one column of a table, and write what was found.

    The estimator is fitted on the training rows only, and so is the encoding (medians, levels, constant columns); the
    held-out rows judge it. `out` receives selected.csv, result.json, model/ and report.html, all at once.

    Args:
        data: a CSV, Parquet or .npz file, see `bayesprune.tabular.files.read_table`.
        target: name of the column to predict.
        out: folder to write; an earlier selection there is replaced when this one is complete.
        task: "auto", "regression" or "classification".
        fdr: Bayesian false-discovery rate of the selected set.
        held_out: share of the rows that the estimator does not see.
        seed: of the split and of the estimator.
        drop: names of columns to leave out.
        text: names of columns that are text even if they hold numbers.
        settings: "keyword=value" for the estimator.
        quiet: print nothing.
        estimators: constructors by task; the default is `SparseBNNRegressor` and `SparseBNNClassifier`.

    Returns:
        The content of result.json.

    Raises:
        FileExistsError: `out` holds something else than a selection.
        ValueError: the data or an argument is unusable; the message names the column and the mend.
    """
    if not 0 < fdr < 1:
        raise ValueError(f"fdr={fdr}: must lie between 0 and 1")
    out = Path(out).resolve()
    if out.exists() and not is_selection(out):
        raise FileExistsError(f"out={str(out)!r} is in use and holds no selection; name another folder with --out.")
    whole = read_table(data, drop=drop, text=text)
    response = read_target(whole, target, task)
    table = Table(whole.source, {name: column for name, column in whole.columns.items() if name != target})
    table = table.take(response.rows)
    classes = response.values if response.classes else None
    copies = row_copies(table) if table.columns else np.arange(table.rows)
    train, held = split_rows(copies, classes, held_out, seed)
    learned = table.take(train)
    encoding = fit_encoding(learned, list(table.columns), text)
    X, _ = encoding.encode(learned)
    X_held, unseen = encoding.encode(table.take(held))
    estimator = _estimator(response.task, encoding, fdr, seed, settings, quiet, estimators)
    if not quiet:
        print(
            f"{whole.source}: {table.rows:,} rows ({len(held):,} held out), {len(encoding.inputs):,} inputs in "
            f"{len(encoding.columns):,} columns; target {target!r}: {response.task} ({response.why})",
            flush=True,
        )
    estimator.fit(X, response.values[train])
    result = _describe(estimator, encoding, response, (X, train), (X_held, held), seed)
    result["data"] = {
        "source": whole.source,
        "rows": table.rows,
        "rows_without_target": whole.rows - table.rows,
        "rows_train": len(train),
        "rows_held_out": len(held),
        "columns_in_file": len(whole.columns),
        "inputs": len(encoding.inputs),
        "columns": len(encoding.columns),
    }
    notes = data_notes(whole.rows, response, learned, encoding, copies)
    result["notes"] = [*notes, *unseen, *chain_notes(result["inputs"])]
    result["dropped"] = [list(pair) for pair in encoding.dropped]
    result["settings"] = {
        "task": task, "fdr": fdr, "held_out": held_out, "seed": seed, "drop": list(drop), "text": list(text),
        "estimator": {key: value for key, value in _parameters(estimator).items() if key != "groups"},
    }  # fmt: skip
    result["environment"] = environment("cpu")
    needed = needed_inputs(estimator, encoding, [row["input"] for row in result["selected"]], X_held)
    result["model"]["needed"] = list(needed)
    if result["selected"] and len(needed) > len(result["selected"]):
        result["notes"].append("The prediction depends on inputs that are not selected; all must be there to predict.")
    result = write_selection(result, TableModel(estimator, encoding, target, response.classes, needed), out)
    if not quiet:
        print(selection_summary(result, out))
    return result


def _estimator(
    task: str,
    encoding: Encoding,
    fdr: float,
    seed: int,
    settings: Sequence[str],
    quiet: bool,
    estimators: dict[str, Callable[..., Any]] | None,
) -> Any:
    """An unfitted estimator with the command's settings and the user's."""
    estimators = estimators or _estimators()
    grouped = len(encoding.columns) > len(encoding.inputs)
    ours = {"groups": encoding.groups if grouped else None, "random_state": seed, "fdr": fdr, "verbose": int(not quiet)}
    known = sorted(set(_parameters(estimators[task]())) - set(_OURS))
    chosen = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if key in _OURS:
            raise ValueError(f"--set {setting}: {key} is set by {_OURS[key]}")
        if not sign or key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            guess = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"--set {setting}: expected KEY=VALUE with a keyword of the estimator; {guess}")
        try:
            chosen[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            chosen[key] = value
    return estimators[task](**ours, **chosen)


def _estimators() -> dict[str, Callable[..., Any]]:
    from bayesprune.tabular import SparseBNNClassifier, SparseBNNRegressor

    return {"regression": SparseBNNRegressor, "classification": SparseBNNClassifier}


def _parameters(estimator: Any) -> dict[str, Any]:
    return dict(estimator.get_params(deep=False))


def _describe(
    estimator: Any,
    encoding: Encoding,
    target: Target,
    train: tuple[np.ndarray, np.ndarray],
    held: tuple[np.ndarray, np.ndarray],
    seed: int,
) -> dict[str, Any]:
    """The findings as plain data; `train` and `held` are encoded rows and their numbers."""
    y_train, y = target.values[train[1]], target.values[held[1]]
    labels = [str(label) for label in target.classes]
    if labels:
        shares = np.bincount(y_train, minlength=len(labels)).astype(float)
        scores, told = score_classification(estimator, held[0], y, labels, shares)
        spread, outputs = float(np.ptp(told, axis=0).max()), labels if len(labels) > 2 else labels[1:]
        predictions: dict[str, Any] = {}
    else:
        scores, told = score_regression(estimator, held[0], y, float(y_train.mean()))
        spread, outputs = float(np.ptp(told[:, 0]) / np.ptp(y_train)), [target.name]
        names = ("observed", "predicted", "lower", "upper")
        shown = np.unique(np.linspace(0, len(y) - 1, min(len(y), _SHOWN)).round().astype(int))
        predictions = dict(zip(names, np.column_stack([y, told])[shown].T.tolist()))
    inputs = describe_inputs(estimator, encoding)
    selected, curves = describe_selected(estimator, encoding, train[0], outputs, seed)
    rule = _rule(estimator)
    return {
        "kind": "bayesprune selection",
        "target": {"name": target.name, "task": target.task, "why": target.why, "classes": list(target.classes)},
        "rule": rule,
        "selected": selected,
        "expected_false": float(sum(1 - row["probability"] for row in selected)),
        "fallback": None if selected else nothing_selected(inputs, rule, spread),
        "held_out": scores,
        "model": {
            "members": curves[0]["members"] if curves else None,
            "noise_variance": getattr(estimator, "noise_variance_", None),
            "epochs": getattr(estimator, "n_iter_", None),
        },
        "prior": getattr(estimator, "prior_", None) or {},
        "inputs": inputs,
        "curves": curves,
        "history": describe_history(estimator, encoding),
        "predictions": predictions,
    }


def _rule(estimator: Any) -> str:
    """How the estimator selects, in words."""
    chosen = _parameters(estimator)
    how = chosen.get("select", "fdr")
    if how == "probability":
        return f"with inclusion probability above {chosen['probability']:g}"
    if how == "number":
        return f"as the {chosen['n_inputs']} likeliest"
    if how == "prediction":
        return "as those that predict best"
    return f"at a false-discovery rate of {chosen['fdr']:g}"
