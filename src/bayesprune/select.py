"""Variable selection from a file: read, hold out, fit, judge, write."""

from __future__ import annotations

import ast
import difflib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bayesprune.report.style import spread
from bayesprune.select_output import is_selection, selection_summary, write_selection
from bayesprune.tabular.describe import (
    describe_clusters,
    describe_history,
    describe_inputs,
    describe_selected,
    describe_variance,
)
from bayesprune.tabular.heldout import row_copies, score_classification, score_regression, split_rows
from bayesprune.tabular.notes import DataWarning, chain_notes, data_notes, further_note, nothing_selected
from bayesprune.tabular.reader import read_frame
from bayesprune.tabular.target import Target, read_target
from bayesprune.train.folder import environment

_SHOWN = 1000  # held-out predictions in result.json
_OURS = {"random_state": "--seed", "fdr": "--fdr", "verbose": "--quiet"}  # not for --set


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
    keep: Sequence[str] = (),
    settings: Sequence[str] = (),
    force: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Select the inputs that matter for one column of a table, and write what was found."""
    if not 0 < fdr < 1:
        raise ValueError(f"fdr={fdr}: must lie between 0 and 1")
    out = Path(out).resolve()
    if out.exists() and not is_selection(out):
        raise FileExistsError(f"out={str(out)!r} is in use and holds no selection; name another folder with --out.")
    if out.exists() and any(out.iterdir()) and not force:
        raise FileExistsError(f"out={str(out)!r} holds a selection; replace it with --force, or name another folder.")
    whole = read_frame(data, drop=drop, text=text, keep=keep)
    source = Path(data).name
    response = read_target(whole, target, task, source)
    frame = whole.drop(columns=target).iloc[response.rows]
    if not len(frame.columns):
        raise ValueError(f"{source} has no usable input: the target is the only column")
    copies = row_copies(frame)
    train, held = split_rows(copies, response.values if response.classes else None, held_out, seed)
    estimator = _estimator(response.task, fdr, seed, settings, quiet)
    if not quiet:
        print(
            f"{source}: {len(frame):,} rows ({len(held):,} held out), {len(frame.columns):,} columns; target {target!r}: "
            f"{response.task} ({response.why})",
            flush=True,
        )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        estimator.fit(frame.iloc[train], response.column(train))
        # Columns that are not used, and what is averaged over where nothing is found, are told below.
        doubts = [f"{str(w.message)[0].upper()}{str(w.message)[1:]}." for w in told if w.category is DataWarning]
        told.clear()
        result = _describe(estimator, response, frame, train, held, seed)
        unseen = list(dict.fromkeys(str(warning.message) for warning in told if warning.category is UserWarning))
    inputs = estimator.encoder_.inputs
    result["data"] = {
        "source": source,
        "rows": len(frame),
        "rows_without_target": len(whole) - len(frame),
        "rows_train": len(train),
        "rows_held_out": len(held),
        "columns_in_file": len(whole.columns),
        "inputs": len(inputs),
        "columns": sum(len(one.columns) for one in inputs),
    }
    notes = data_notes(len(whole), response, frame.iloc[train], estimator.encoder_, copies)
    further = further_note(estimator.further_names()) if result["selected"] else []
    result["notes"] = [*notes, *doubts, *unseen, *further, *chain_notes(result["inputs"])]
    result["dropped"] = [list(pair) for pair in estimator.encoder_.dropped.items()]
    result["settings"] = {
        "task": task, "fdr": fdr, "held_out": held_out, "seed": seed, "drop": list(drop), "text": list(text),
        "keep": list(keep), "estimator": estimator.get_params(deep=False),
    }  # fmt: skip
    result["environment"] = environment("cpu")
    result = write_selection(result, estimator, out)
    if not quiet:
        print(selection_summary(result, out))
    return result


def _estimator(task: str, fdr: float, seed: int, settings: Sequence[str], quiet: bool) -> Any:
    """An unfitted estimator with the command's settings and the user's."""
    from bayesprune.tabular import SparseBNNClassifier, SparseBNNRegressor

    kind: Any = SparseBNNRegressor if task == "regression" else SparseBNNClassifier
    known = sorted(set(kind().get_params()) - set(_OURS))
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
    return kind(random_state=seed, fdr=fdr, verbose=int(not quiet), **chosen)


def _describe(
    estimator: Any, target: Target, frame: Any, train: np.ndarray, held: np.ndarray, seed: int
) -> dict[str, Any]:
    """The findings as plain data; `train` and `held` are numbers of rows."""
    y_train, y = target.values[train], target.values[held]
    labels = [str(label) for label in target.classes]
    if labels:
        shares = np.bincount(y_train, minlength=len(labels)).astype(float)
        scores, told = score_classification(estimator, frame.iloc[held], y, labels, shares)
        outputs = labels if len(labels) > 2 else labels[1:]
        predictions: dict[str, Any] = {}
    else:
        scores, told = score_regression(estimator, frame.iloc[held], y, float(y_train.mean()))
        outputs = [target.name]
        names = ("observed", "predicted", "lower", "upper")
        predictions = dict(zip(names, np.column_stack([y, told])[spread(len(y), _SHOWN)].T.tolist()))
    inputs = describe_inputs(estimator)
    selected, curves, interacting = describe_selected(estimator, frame.iloc[train], outputs, seed)
    rule = _rule(estimator.get_params())
    return {
        "kind": "bayesprune selection",
        "target": {"name": target.name, "task": target.task, "why": target.why, "classes": list(target.classes)},
        "rule": rule,
        "selected": selected,
        "clusters": describe_clusters(estimator),
        "interactions": interacting,
        "on_variance": describe_variance(estimator),
        "expected_false": float(sum(1 - row["probability"] for row in selected)),
        "fallback": None if selected else nothing_selected(inputs, rule, estimator.needed_names()),
        "held_out": scores,
        "model": {
            "members": estimator.posterior_.net.chains,
            "noise_variance": getattr(estimator, "noise_variance_", None),
            "epochs": estimator.n_iter_,
            "needed": estimator.needed_names(),
        },
        "prior": estimator.prior_,
        "inputs": inputs,
        "curves": curves,
        "history": describe_history(estimator),
        "predictions": predictions,
    }


def _rule(chosen: dict[str, Any]) -> str:
    """How the estimator selects, in words."""
    how = chosen["select"]
    if how == "probability":
        return f"with inclusion probability above {chosen['probability']:g}"
    if how == "number":
        return f"as the {chosen['n_inputs']} likeliest"
    if how == "prediction":
        return "as those that predict best"
    return f"at a false-discovery rate of {chosen['fdr']:g}"
