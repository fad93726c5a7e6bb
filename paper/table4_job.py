"""One job of Table 4: draw its data sets, run its method, and return its rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from paper.selectors import SPLBNNClassifier, SPLBNNRegressor, SVBNNClassifier, SVBNNRegressor, comparators
from paper.selectors.lassonet import lassonet
from paper.table4_blocks import BATCHED, DESIGNS, NETWORKS, Drawn, Table4Design, draw

FEEDBACK = {"dfp": "none", "dpf": "masked"}
OUTSIDE: dict[str, Callable[..., list[comparators.Found]]] = {
    "boosting": comparators.boosting,
    "forest": comparators.forest,
    "lasso": comparators.lasso,
    "lassonet": lassonet,
}


def run_table4_job(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Run one method on repetitions of one design.

    Args:
        job: "design", "method", "repetitions", "seed", and to try it small "sizes" (arguments of the design) and
            "settings" (of the method).

    Returns:
        A row for every repetition and variant of the method.
    """
    block, method, seed = DESIGNS[job["design"]], job["method"], job["seed"]
    draws = [draw(block, seed, repetition, job.get("sizes")) for repetition in job["repetitions"]]
    settings = dict(job.get("settings") or {})
    if method in BATCHED:
        found, seconds = _ours(method, block, draws, seed, settings)
    elif method in OUTSIDE:
        found, seconds = _one_each(
            lambda drawn, fit_seed: OUTSIDE[method](drawn.data, fit_seed, **settings), draws, job
        )
    else:
        found, seconds = _one_each(
            lambda drawn, fit_seed: _baseline(method, block, drawn, fit_seed, settings), draws, job
        )
    rows = []
    for repetition, drawn, variants, spent in zip(job["repetitions"], draws, found, seconds):
        for variant, (own, total) in zip(variants, spent):
            rows.append(
                row_base(job, repetition, variant.variant)
                | {
                    "status": "done",
                    "reason": "",
                    "n": len(drawn.data.y_train),
                    "p": int(drawn.data.X_train.shape[1]),
                    "score": _score(drawn, variant.prediction),
                    "floor": drawn.data.floor(),
                    "selected": None if variant.selected is None else drawn.original(variant.selected),
                    "true_inputs": list(drawn.data.true_inputs),
                    "seconds": own,
                    "chunk": len(draws) if method in BATCHED else 1,
                    "chunk_seconds": total,
                    "settings": variant.settings,
                }
            )
    return rows


def row_base(job: dict[str, Any], repetition: int, variant: str) -> dict[str, Any]:
    """Return what names a row, whatever came of it."""
    block = DESIGNS[job["design"]]
    return {
        "design": block.key,
        "repetition": repetition,
        "method": job["method"],
        "network": variant,
        "seed": job["seed"],
        "metric": "accuracy" if block.name == "example3" else "mse",
    }


def _score(drawn: Drawn, prediction: np.ndarray) -> float:
    y = drawn.data.y_test
    if drawn.data.task == "regression":
        return float(np.mean(np.square(np.asarray(prediction, dtype=np.float64) - y)))
    return float(np.mean(np.asarray(prediction) == y))


Spent = list[list[tuple[float, float]]]


def _one_each(
    fit: Callable[[Drawn, int], list[comparators.Found]], draws: Sequence[Drawn], job: dict[str, Any]
) -> tuple[list[list[comparators.Found]], Spent]:
    """Fit repetitions one after another; the seed of a fit follows from the root seed and the repetition."""
    found, spent = [], []
    for repetition, drawn in zip(job["repetitions"], draws):
        begin = time.process_time()
        variants = fit(drawn, 1000 * job["seed"] + repetition)
        seconds = time.process_time() - begin
        for variant in variants:
            if not np.isfinite(np.asarray(variant.prediction, dtype=np.float64)).all():
                raise FloatingPointError(f"{job['method']} ({variant.variant}) predicts values that are not finite")
        found.append(variants)
        spent.append([(seconds, seconds)] * len(variants))
    return found, spent


def _baseline(
    method: str, block: Table4Design, drawn: Drawn, seed: int, settings: dict[str, Any]
) -> list[comparators.Found]:
    """SPLBNN with the settings published for the example, or SVBNN with its own; the paper's network."""
    kinds: dict[tuple[str, str], Any] = {
        ("splbnn", "regression"): SPLBNNRegressor,
        ("splbnn", "classification"): SPLBNNClassifier,
        ("svbnn", "regression"): SVBNNRegressor,
        ("svbnn", "classification"): SVBNNClassifier,
    }
    keywords = (block.splbnn if method == "splbnn" else {}) | settings
    model = kinds[method, drawn.data.task](hidden_layer_sizes=block.hidden, random_state=seed, **keywords)
    model.fit(drawn.data.X_train, drawn.data.y_train)
    told = {key: value for key, value in model.get_params().items() if _plain(value)} | {
        "steps_taken": int(model.n_iter_)
    }
    if method == "splbnn":
        told["criterion_by_start"] = [float(value) for value in model.criterion_]
    return [comparators.Found("paper's", model.predict(drawn.data.X_test), model.get_support(indices=True), told)]


def _ours(
    method: str, block: Table4Design, draws: Sequence[Drawn], seed: int, settings: dict[str, Any]
) -> tuple[list[list[comparators.Found]], Spent]:
    """One search of all repetitions together, then both networks on what it selected (or on the true inputs)."""
    from bayesprune.tabular import SparseBNNClassifier, SparseBNNRegressor, fit_many

    kind: Any = SparseBNNRegressor if draws[0].data.task == "regression" else SparseBNNClassifier
    data = [(drawn.data.X_train, drawn.data.y_train) for drawn in draws]
    begin = time.process_time()
    searched: list[Any] = []
    if method == "true-inputs":
        inputs = [drawn.places() for drawn in draws]
        settings = {key: value for key, value in settings.items() if key in ("fit_steps", "n_starts", "batch_size")}
    else:
        settings = {"feedback": FEEDBACK[method], **settings}
        searched = fit_many(kind(random_state=seed, refit=False, **settings), data)
        inputs = [np.flatnonzero(model.support_) for model in searched]
    searching = time.process_time() - begin
    found: list[list[comparators.Found]] = [[] for _ in draws]
    spent: Spent = [[] for _ in draws]
    for variant, hidden in zip(NETWORKS, (block.hidden, "auto")):
        begin = time.process_time()
        estimator = kind(hidden_layer_sizes=hidden, random_state=seed, **settings)
        fitted = fit_many(estimator, data, inputs=inputs)
        total = searching + time.process_time() - begin
        for place, (model, drawn) in enumerate(zip(fitted, draws)):
            told = {key: value for key, value in model.get_params().items() if _plain(value)}
            told |= {"members": int(model.posterior_.net.chains), "activation": model.posterior_.net.activation}
            if draws[0].data.task == "regression":
                told["noise_variance"] = float(model.noise_variance_)
            if searched:
                told["search"] = _evidence(searched[place], drawn)
            selected = None if method == "true-inputs" else inputs[place]
            found[place].append(comparators.Found(variant, model.predict(drawn.data.X_test), selected, told))
            spent[place].append((total / len(draws), total))
    return found, spent


def _evidence(model: Any, drawn: Drawn) -> dict[str, Any]:
    """What a search says of the inputs that matter and of the likeliest of the others, and its prior in numbers."""
    order = np.argsort(-model.inclusion_probability_, kind="stable")
    true = set(drawn.places().tolist())
    null = next((int(place) for place in order if place not in true), None)
    return {
        "prior": {key: float(value) for key, value in model.prior_.items()},
        "steps": int(model.n_iter_),
        "true_probability": {
            str(drawn.original([place])[0]): float(model.inclusion_probability_[place]) for place in sorted(true)
        },
        "true_evidence": {str(drawn.original([place])[0]): float(model.evidence_[place]) for place in sorted(true)},
        "largest_null_probability": None if null is None else float(model.inclusion_probability_[null]),
        "largest_null_evidence": None if null is None else float(model.evidence_[null]),
    }


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_plain(item) for item in value)
    return isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))
