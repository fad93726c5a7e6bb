"""A fitted selection as plain data: probabilities of the inputs, the effects of those selected, the history."""

from __future__ import annotations

from typing import Any

import numpy as np

from bayesprune.tabular.effects import ROWS, direction, main_effect, partial_dependence, total_effect
from bayesprune.tabular.encode import Encoding

CURVES = 24  # selected inputs whose curves are computed; each takes some twenty predictions of all rows
_POINTS = 400  # of a path over training
_DIGITS = 6


def describe_inputs(estimator: Any, encoding: Encoding) -> dict[str, list[Any]]:
    """Collect what the estimator says of each input; the columns of a group speak with one voice.

    An input has the highest inclusion probability and the lowest q-value of its columns, and is selected if one is.

    Args:
        estimator: fitted, with ``support_``, ``inclusion_probability_``, ``chain_probability_`` and ``q_value_``.
        encoding: of the inputs.

    Returns:
        Lists "name", "kind", "probability", "q_value" and "selected", an entry an input, and "chains", a list a chain.
    """
    groups = encoding.groups
    probability, q_value = np.asarray(estimator.inclusion_probability_), np.asarray(estimator.q_value_)
    support, chains = np.asarray(estimator.support_), np.asarray(estimator.chain_probability_)
    return {
        "name": [one.name for one in encoding.inputs],
        "kind": [one.kind for one in encoding.inputs],
        "probability": [_plain(probability[group].max()) for group in groups],
        "q_value": [_plain(q_value[group].min()) for group in groups],
        "selected": [bool(support[group].any()) for group in groups],
        "chains": [[_plain(chain[group].max()) for group in groups] for chain in chains],
    }


def describe_selected(
    estimator: Any, encoding: Encoding, X: np.ndarray, outputs: list[str], seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure what each selected input does to the prediction.

    Args:
        estimator: fitted.
        encoding: of the inputs.
        X: (n, p) encoded training rows; at most 400 of them, drawn by the seed, are averaged over.
        outputs: names of the outputs of `effects.draws`.
        seed: of the draw.

    Returns:
        A dict an input with "input", "kind", "probability", "chain_min", "chain_max", "q_value", "effect",
        "effect_alone" and "direction", the likeliest first and among equals the strongest; and in the same order, of
        the first 24, the curves of `partial_dependence` with "input", "kind", "outputs" and "deciles". The others have
        no "effect_alone" and no "direction".
    """
    told = describe_inputs(estimator, encoding)
    rows = X
    if len(X) > ROWS:
        rows = X[np.sort(np.random.default_rng(seed).choice(len(X), ROWS, replace=False))]
    found = []
    for at, (one, group) in enumerate(zip(encoding.inputs, encoding.groups)):
        if told["selected"][at]:
            found.append((at, one, group, total_effect(estimator, rows, group, seed)))
    found.sort(key=lambda entry: (-round(told["probability"][entry[0]] or 0, 3), -entry[3]))
    entries: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for at, one, group, total in found:
        chains = [chain[at] for chain in told["chains"]]
        entry: dict[str, Any] = {
            "input": one.name,
            "kind": one.kind,
            "probability": told["probability"][at],
            "chain_min": min(chains) if chains else None,
            "chain_max": max(chains) if chains else None,
            "q_value": told["q_value"][at],
            "effect": total,
            "effect_alone": None,
            "direction": "",
        }
        entries.append(entry)
        if len(curves) == CURVES:
            continue
        curve = partial_dependence(estimator, rows, one, group)
        entry["effect_alone"] = main_effect(curve, one, rows[:, group])
        entry["direction"] = direction(curve, one, entry["effect_alone"], total, outputs)
        deciles = np.quantile(rows[:, group[0]], np.linspace(0.1, 0.9, 9)).tolist() if one.kind == "number" else []
        curves.append({"input": one.name, "kind": one.kind, "outputs": outputs, **curve, "deciles": deciles})
    return entries, curves


def describe_history(estimator: Any, encoding: Encoding) -> dict[str, Any]:
    """Take the paths of inclusion probabilities and the losses over training, thinned to a few hundred epochs.

    Args:
        estimator: fitted; what its ``history_`` does not have is left out.
        encoding: of the inputs.

    Returns:
        "epoch", "threshold", "loss" (a list a chain) and "paths" (dicts "input", "selected", "path"); "numbers" (dict
        "inputs", "loss", "taken") where the number of inputs was cross-validated.
    """
    history = getattr(estimator, "history_", None) or {}
    if "epoch" not in history or not len(history["epoch"]):
        return {}
    epoch = np.asarray(history["epoch"])
    kept = np.unique(np.linspace(0, len(epoch) - 1, min(len(epoch), _POINTS)).round().astype(int))
    told: dict[str, Any] = {"epoch": epoch[kept].tolist()}
    if "threshold" in history:
        told["threshold"] = _line(np.asarray(history["threshold"])[kept])
    if "loss" in history:
        loss = np.asarray(history["loss"], dtype=float)
        told["loss"] = [_line(chain) for chain in loss.reshape(len(epoch), -1)[kept].T]
    if "path" in history:
        support, paths = np.asarray(estimator.support_), np.asarray(history["path"], dtype=float)[kept]
        columns = np.asarray(history["path_inputs"]).astype(int)
        told["paths"] = [
            {"input": encoding.columns[column], "selected": bool(support[column]), "path": _line(paths[:, i])}
            for i, column in enumerate(columns)
        ]
    if "number" in history:
        numbers, loss = np.asarray(history["number"]), np.asarray(history["number_loss"], dtype=float)
        taken = int(np.asarray(history["number_taken"])[0])
        told["numbers"] = {"inputs": numbers.tolist(), "loss": _line(loss), "taken": taken}
    return told


def _line(values: np.ndarray) -> list[float | None]:
    return [_plain(value) for value in values]


def _plain(value: Any) -> float | None:
    """A number with as many digits as matter; None if it is not finite."""
    return float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None
