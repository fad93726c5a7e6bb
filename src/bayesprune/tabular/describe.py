"""A fitted selection as plain data: probabilities of the inputs, the effects of those selected, the history."""

from __future__ import annotations

from typing import Any

import numpy as np

from bayesprune.tabular.columns import column_numbers
from bayesprune.tabular.effects import (
    ROWS,
    direction,
    draws,
    interactions,
    main_effect,
    partial_dependence,
    total_effect,
)

CURVES = 24  # selected inputs whose curves are computed; each takes some twenty predictions of all rows
PAIRED = 12  # selected inputs whose pairs are tried
_WEAK = 0.1  # of the prediction's spread; weaker interactions are not told
_POINTS = 400  # of a path over training
_DIGITS = 6


def describe_inputs(estimator: Any) -> dict[str, list[Any]]:
    """Collect what the estimator says of each column in use."""
    kinds = {one.name: one.kind for one in estimator.encoder_.inputs}
    at = [i for i, name in enumerate(estimator.column_names_) if name in kinds]
    names = [estimator.column_names_[i] for i in at]
    return {
        "name": names,
        "kind": [kinds[name] for name in names],
        "probability": _line(estimator.inclusion_probability_[at]),
        "evidence": _line(estimator.evidence_[at]),
        "q_value": _line(estimator.q_value_[at]),
        "variance_p_value": _line(estimator.variance_p_value_[at]),
        "selected": estimator.support_[at].tolist(),
        "chains": [_line(chain[at]) for chain in estimator.chain_probability_],
    }


def describe_selected(
    estimator: Any, X: Any, outputs: list[str], seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure what each selected input does to the prediction, alone and with each of the others."""
    told = describe_inputs(estimator)
    at = {name: i for i, name in enumerate(told["name"])}
    names = [name for name, selected in zip(told["name"], told["selected"]) if selected]
    rows = X[list(dict.fromkeys([*names, *estimator.needed_names()]))]
    if len(rows) > ROWS:
        rows = rows.iloc[np.sort(np.random.default_rng(seed).choice(len(rows), ROWS, replace=False))]
    total = {name: total_effect(estimator, rows, name, seed) for name in names}
    names.sort(key=lambda name: (-round(told["probability"][at[name]] or 0, 3), -total[name]))
    entries: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for name in names:
        chains = [chain[at[name]] for chain in told["chains"]]
        entry: dict[str, Any] = {
            "input": name,
            **{key: told[key][at[name]] for key in ("kind", "probability", "evidence")},
            "chain_min": min(chains) if chains else None,
            "chain_max": max(chains) if chains else None,
            "q_value": told["q_value"][at[name]],
            "effect": total[name],
            "effect_alone": None,
            "direction": "",
        }
        entries.append(entry)
        if len(curves) == CURVES:
            continue
        kind = entry["kind"]
        curve = partial_dependence(estimator, rows, name, kind)
        entry["effect_alone"] = main_effect(curve, rows[name], name, kind)
        entry["direction"] = direction(curve, kind, entry["effect_alone"], total[name], outputs)
        deciles: list[float] = []
        if kind == "number":
            deciles = np.nanquantile(column_numbers(name, rows[name]), np.linspace(0.1, 0.9, 9)).tolist()
        curves.append({"input": name, "kind": kind, "outputs": outputs, **curve, "deciles": deciles})
    return entries, curves, _pairs(estimator, rows, names[:PAIRED], seed)


def _pairs(estimator: Any, rows: Any, names: list[str], seed: int) -> list[dict[str, Any]]:
    """Return the pairs whose interaction is worth telling."""
    if len(names) < 2:
        return []
    spread = float(np.sqrt(draws(estimator, rows).mean(axis=0).var(axis=0).sum()))
    found = interactions(estimator, rows, names, seed)
    return [
        {"inputs": list(pair), "strength": strength, "share": strength / spread}
        for pair, strength in found.items()
        if strength >= _WEAK * spread and strength > 0
    ]


def describe_clusters(estimator: Any) -> list[dict[str, Any]]:
    """Collect the findings about inputs, one or several that can stand for each other."""
    told = [
        {
            "inputs": [estimator.column_names_[member] for member in cluster.members],
            "shares": _line(cluster.shares),
            "p_value": float(cluster.p_value),
            "q_value": float(cluster.q_value),
        }
        for cluster in estimator.clusters_
    ]
    return sorted(told, key=lambda one: one["p_value"])


def describe_variance(estimator: Any) -> list[dict[str, Any]]:
    """Collect the inputs that are found to act on the noise's variance."""
    told = [
        {"input": estimator.column_names_[column], "p_value": float(estimator.variance_p_value_[column])}
        for column in np.flatnonzero(estimator.variance_support_)
    ]
    return sorted(told, key=lambda one: one["p_value"])


def describe_history(estimator: Any) -> dict[str, Any]:
    """Take the paths of inclusion probabilities and the losses over training, thinned to a few hundred epochs."""
    history = estimator.history_
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
        paths = np.asarray(history["path"], dtype=float)[kept]
        first = {int(column): i for i, column in reversed(list(enumerate(history["path_inputs"])))}
        told["paths"] = [
            {"input": estimator.column_names_[c], "selected": bool(estimator.support_[c]), "path": _line(paths[:, i])}
            for c, i in sorted(first.items(), key=lambda entry: entry[1])
        ]
    if "number" in history:
        numbers, loss = np.asarray(history["number"]), np.asarray(history["number_loss"], dtype=float)
        taken = int(np.asarray(history["number_taken"])[0])
        told["numbers"] = {"inputs": numbers.tolist(), "loss": _line(loss), "taken": taken}
    return told


def _line(values: Any) -> list[float | None]:
    """Numbers with as many digits as matter; None for those that are not finite."""
    return [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in values]
