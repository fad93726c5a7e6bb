"""The predictive network on inputs that are given, without a search for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state

from bayesprune.tabular.rows import Standardiser
from bayesprune.tabular.together import attach_networks


def fit_given(
    estimator: Any, datasets: Sequence[tuple[Any, Any]], inputs: Sequence[Sequence[int] | np.ndarray]
) -> list[Any]:
    """Sample the predictive network on given columns of many data sets of one shape, as one batched computation.

    What a fit samples on the columns it has selected is sampled on `inputs` instead: with the columns of an earlier fit
    this gives another network for the same selection, without searching again.

    Args:
        estimator: a `SparseBNNRegressor` or `SparseBNNClassifier`; it is not changed. Its parameters of the search
            and of the selection do nothing.
        datasets: pairs (X, y), all X of one shape.
        inputs: the columns to use of each data set, by number.

    Returns:
        Fitted clones in order. Their `support_` is what was given, and inclusion probabilities are 1 and 0.

    Raises:
        ValueError: no data set, as many `inputs` as there are not data sets, a column that is not there, or shapes or
            numbers of classes that differ.

    Example:
        >>> from bayesprune.tabular import SparseBNNRegressor
        >>> X = np.random.default_rng(0).standard_normal((60, 5))
        >>> quick = SparseBNNRegressor(hidden_layer_sizes=(4,), fit_steps=50, n_starts=4, random_state=0)
        >>> fit_given(quick, [(X, X[:, 3])], [[3]])[0].get_support(indices=True)
        array([3])
    """
    if not len(datasets) or len(datasets) != len(inputs):
        raise ValueError(f"datasets: {len(datasets)} against inputs: {len(inputs)}; give one set of columns for each")
    models = [clone(estimator) for _ in datasets]
    read = [model.read(X, y) for model, (X, y) in zip(models, datasets)]
    tables, responses = [table for table, _ in read], [response for _, response in read]
    shapes = {table.shape for table in tables}
    if len(shapes) > 1:
        raise ValueError(f"datasets differ in shape, {sorted(shapes)}: fit those of one shape together")
    if len({model.outputs() for model in models}) > 1:
        raise ValueError("datasets differ in their number of classes: fit those of one number together")
    n, p = tables[0].shape
    regression = np.issubdtype(responses[0].dtype, np.floating)
    standardisers = [Standardiser.of(X, y if regression else None) for X, y in zip(tables, responses)]
    for model, given, standardiser in zip(models, inputs, standardisers):
        columns = np.unique(np.asarray(given, dtype=np.int64))
        if len(columns) and (columns[0] < 0 or columns[-1] >= p):
            raise ValueError(f"inputs={columns.tolist()} name a column that is not there: X has columns 0 to {p - 1}")
        model.support_ = np.zeros(p, dtype=bool)
        model.support_[columns] = True
        model.inclusion_probability_ = model.support_.astype(np.float64)
        model.chain_probability_ = model.inclusion_probability_[None].copy()
        model.q_value_ = 1.0 - model.inclusion_probability_
        model.evidence_ = np.zeros(p)
        model.feature_importances_ = model.inclusion_probability_ / max(1, len(columns))
        model.prior_, model.history_, model.n_iter_ = {}, {}, 0
        model.standardiser_, model.inputs_ = standardiser, columns
    lead = models[0]
    seed = int(check_random_state(lead.random_state).randint(2**31 - 1)) + 20_000  # as in a fit
    attach_networks(models, tables, responses, lead.plan(n, p), seed)
    return models
