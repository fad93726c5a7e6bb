"""Fitting estimators, one or many of one shape, as one batched computation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils import check_random_state

from bayesprune.tabular.prediction_sets import member_masks
from bayesprune.tabular.rows import Rows, Standardiser
from bayesprune.tabular.sampling import sample_posterior
from bayesprune.tabular.selection import Plan, find_inputs


def fit_many(estimator: Any, datasets: Sequence[tuple[Any, Any]]) -> list[Any]:
    """Fit one estimator to many data sets of one shape as a single batched computation.

    Replicates, seeds and folds share every matrix product, which costs far less than as many fits.

    Args:
        estimator: a `SparseBNNRegressor` or `SparseBNNClassifier`; it is not changed.
        datasets: pairs (X, y), all X of one shape.

    Returns:
        Fitted clones in order.

    Raises:
        ValueError: no data set, or shapes or numbers of classes that differ.

    Example:
        >>> from bayesprune.tabular import SparseBNNRegressor, fit_many
        >>> rng = np.random.default_rng(0)
        >>> data = [(X, X[:, 0]) for X in rng.standard_normal((2, 60, 5))]
        >>> quick = SparseBNNRegressor(search_steps=50, evidence_steps=30, fit_steps=50, random_state=0)
        >>> len(fit_many(quick, data))
        2
    """
    if not len(datasets):
        raise ValueError("datasets is empty: give at least one pair (X, y)")
    models = [clone(estimator) for _ in datasets]
    read = [model.read(X, y) for model, (X, y) in zip(models, datasets)]
    shapes = {table.shape for table, _ in read}
    if len(shapes) > 1:
        raise ValueError(f"datasets differ in shape, {sorted(shapes)}: fit those of one shape together")
    if len({model.outputs() for model in models}) > 1:
        raise ValueError("datasets differ in their number of classes: fit those of one number together")
    fit_together(models, [table for table, _ in read], [response for _, response in read])
    return models


def fit_together(models: Sequence[Any], tables: Sequence[Any], responses: Sequence[np.ndarray]) -> None:
    """Fit models of the same parameters, one a data set."""
    lead = models[0]
    n, p = tables[0].shape
    regression = np.issubdtype(responses[0].dtype, np.floating)
    groups, plan = lead.column_groups(p), lead.plan(n, p)
    seed = int(check_random_state(lead.random_state).randint(2**31 - 1))
    standardisers = [Standardiser.of(X, y if regression else None) for X, y in zip(tables, responses)]
    expected = None if lead.expected_inputs == "auto" else float(lead.expected_inputs)
    with torch.enable_grad():
        found = find_inputs(
            tables, responses, standardisers, lead.outputs(), plan, groups, expected=expected, fdr=lead.fdr, seed=seed
        )
    for model, selection, standardiser in zip(models, found, standardisers):
        model.inclusion_probability_ = selection.probability
        model.chain_probability_ = selection.chain_probability
        model.p_value_, model.q_value_ = selection.p_value, selection.q_value
        model.clusters_ = selection.clusters
        model.evidence_ = selection.evidence
        model.prior_ = selection.prior
        model.history_ = selection.history
        model.support_ = selection.support(
            lead.select, fdr=lead.fdr, probability=lead.probability, n_inputs=lead.n_inputs, groups=groups
        )
        gain = np.maximum(selection.gain.mean(0), 0.0)
        model.feature_importances_ = gain / gain.sum() if gain.sum() > 0 else gain
        model.standardiser_ = standardiser
        model.inputs_ = np.flatnonzero(model.support_)
        model.n_iter_ = plan.search.steps
        if lead.verbose:
            print(_sentence(model))
    if not lead.refit:
        return
    masks = [member_masks(s.sets, model.inputs_, groups) for model, s in zip(models, found) if s.sets]
    attach_networks(models, tables, responses, plan, seed + 20_000, masks)


def attach_networks(
    models: Sequence[Any],
    tables: Sequence[Any],
    responses: Sequence[np.ndarray],
    plan: Plan,
    seed: int,
    masks: Sequence[torch.Tensor] = (),
) -> None:
    """Sample the predictive networks of models that have their inputs.

    Args:
        models: with `inputs_` and `standardiser_`; `posterior_` and for a regression `noise_variance_` are set.
        tables: (n, p) each.
        responses: (n,) each.
        plan: sizes.
        seed: of everything random.
        masks: (C, inputs) of each model which of its inputs each member has; none gives all of them to all.
    """
    lead = models[0]
    # A model with fewer inputs than another has zeros behind them meanwhile.
    width = max(1, max(len(model.inputs_) for model in models))
    narrow, same = [], []
    for model, table in zip(models, tables):
        x = np.zeros((table.shape[0], width), dtype=np.float32)
        x[:, : len(model.inputs_)] = model.standardiser_.inputs(table, model.inputs_)
        narrow.append(x)
        of_y = model.standardiser_.y_mean, model.standardiser_.y_scale
        same.append(Standardiser(np.zeros(width), np.ones(width), *of_y))
    rows = Rows(narrow, responses, same, min(256, plan.batch_size), torch.Generator().manual_seed(seed))
    padded = [torch.nn.functional.pad(mask, (0, width - mask.shape[1])) for mask in masks]
    shown = torch.stack(padded) if padded else None
    with torch.enable_grad():
        posteriors = sample_posterior(rows, lead.outputs(), lead.sampling(rows.count), masks=shown, seed=seed + 1)
    for posterior, model in zip(posteriors, models):
        places = torch.arange(max(1, len(model.inputs_))).expand(posterior.net.chains, -1)
        places = places if len(model.inputs_) else torch.full_like(places, -1)
        posterior.net = posterior.net.choose(torch.arange(posterior.net.chains), places)
        model.posterior_ = posterior
        model.prior_["network_precision"] = posterior.precision
        if rows.y.is_floating_point():
            model.noise_variance_ = posterior.noise_variance * model.standardiser_.y_scale**2


def _sentence(model: Any) -> str:
    prior = model.prior_
    return (
        f"{int(model.support_.sum())} of {len(model.support_)} columns selected; the prior expects "
        f"{prior['expected_inputs']:.3g} inputs (inclusion probability {prior['inclusion_probability']:.2g}), spike decay "
        f"{prior['spike_decay']:.2g}, slab decay {prior['slab_decay']:.2g}, soft threshold {prior['soft_threshold']:.2g}, "
        f"hard threshold {prior['hard_threshold']:.2g}"
    )
