"""What can be set about the estimators, and the sizes that follow from it."""

from __future__ import annotations

import json
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from bayesprune.common.checks import check_choice
from bayesprune.tabular.sampling import SamplingSettings
from bayesprune.tabular.selection import Plan
from bayesprune.tabular.trainer import ChainSettings

_CHOICES = {
    "select": ("fdr", "probability", "number", "prediction"),
    "feedback": ("none", "masked"),
    "activation": ("auto", "relu", "tanh", "silu"),
}
_COUNTS = ("n_chains", "candidates", "search_steps", "evidence_steps", "fit_steps", "n_starts", "batch_size")


class Parameters(BaseEstimator):
    """The parameters that the regressor and the classifier share; `SparseBNNRegressor` says what they mean."""

    def __init__(
        self,
        *,
        hidden_layer_sizes: Any = "auto",
        activation: str = "auto",
        feedback: str = "none",
        n_chains: Any = "auto",
        select: str = "fdr",
        fdr: float = 0.05,
        probability: float = 0.5,
        n_inputs: int | None = None,
        expected_inputs: Any = "auto",
        groups: Any = None,
        refit: bool = True,
        candidates: Any = "auto",
        search_steps: Any = "auto",
        evidence_steps: Any = "auto",
        fit_steps: Any = "auto",
        n_starts: Any = "auto",
        batch_size: Any = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.feedback = feedback
        self.n_chains = n_chains
        self.select = select
        self.fdr = fdr
        self.probability = probability
        self.n_inputs = n_inputs
        self.expected_inputs = expected_inputs
        self.groups = groups
        self.refit = refit
        self.candidates = candidates
        self.search_steps = search_steps
        self.evidence_steps = evidence_steps
        self.fit_steps = fit_steps
        self.n_starts = n_starts
        self.batch_size = batch_size
        self.random_state = random_state
        self.verbose = verbose

    def _check_parameters(self) -> None:
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name in ("fdr", "probability"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and 0 < float(value) < 1):
                raise ValueError(f"{name}={value!r} must lie strictly between 0 and 1")
        for name in _COUNTS:
            value = getattr(self, name)
            if value != "auto" and not (isinstance(value, Integral) and int(value) >= 1):
                raise ValueError(f"{name}={value!r} must be 'auto' or a whole number of at least 1")
        if self.select == "number" and not (isinstance(self.n_inputs, Integral) and int(self.n_inputs) >= 0):
            raise ValueError(f"n_inputs={self.n_inputs!r}: select='number' needs how many, a whole number")
        expected = self.expected_inputs
        if expected != "auto" and not (isinstance(expected, Real) and float(expected) > 0):
            raise ValueError(f"expected_inputs={expected!r} must be 'auto' or a number above 0")
        sizes = self.hidden_layer_sizes
        if sizes != "auto" and not all(isinstance(size, Integral) and int(size) >= 1 for size in np.atleast_1d(sizes)):
            raise ValueError(f"hidden_layer_sizes={sizes!r} must be 'auto' or whole numbers of at least 1")

    def _column_groups(self, p: int) -> list[np.ndarray]:
        """Return the column numbers of every input."""
        given = [np.unique(np.asarray(members, dtype=np.int64)) for members in self.groups or ()]
        together = np.concatenate(given) if given else np.zeros(0, dtype=np.int64)
        if len(np.unique(together)) != len(together):
            raise ValueError("groups name a column twice: every column belongs to one group")
        if len(together) and (together.min() < 0 or together.max() >= p):
            raise ValueError(f"groups name column {together.max()}, but X has columns 0 to {p - 1}")
        return [*given, *(np.array([column]) for column in np.setdiff1d(np.arange(p), together))]

    def _plan(self, n: int, p: int) -> Plan:
        """Return sizes and settings for n rows of p columns."""
        number = {name: None if getattr(self, name) == "auto" else int(getattr(self, name)) for name in _COUNTS}
        return Plan.of(
            n,
            p,
            feedback=self.feedback,
            chains=number["n_chains"],
            steps=number["search_steps"],
            evidence_steps=number["evidence_steps"],
            candidates=number["candidates"],
            batch_size=number["batch_size"],
            expected=None if self.expected_inputs == "auto" else float(self.expected_inputs),
            for_prediction=self.select == "prediction",
        )

    def _sampling(self, n: int) -> SamplingSettings:
        """Return how the predictive network of n rows is sampled."""
        auto = self.hidden_layer_sizes == "auto"
        hidden = (64, 64) if auto else tuple(int(size) for size in np.atleast_1d(self.hidden_layer_sizes))
        small = max(hidden, default=0) < 16
        activation = self.activation if self.activation != "auto" else ("tanh" if auto else "relu")
        starts = (32 if small else 4) if self.n_starts == "auto" else int(self.n_starts)
        burn_in = (2500 if small else 1500) if self.fit_steps == "auto" else int(self.fit_steps)
        return SamplingSettings(
            hidden=hidden,
            activation=activation,
            starts=starts,
            kept=min(starts, 6 if small else 4),
            folds=0 if small else 5,
            burn_in=burn_in,
            cycle_steps=max(20, burn_in * 4 // 15),
            chain=ChainSettings(lr=0.3, beta1=0.9, precision=0.3 if small else 1.0, temperature=1.0, damping=0),
            precisions=(1.0, 10.0, 100.0) if n < 5000 and not small else (),
        )

    def _plain_parameters(self) -> dict[str, Any]:
        """Return the parameters as JSON can hold them."""
        parameters = {}
        for name, value in self.get_params(deep=False).items():
            value = value.item() if isinstance(value, np.generic) else value
            if name == "groups" and value is not None:
                value = [[int(column) for column in members] for members in value]
            if isinstance(value, tuple):
                value = [int(size) for size in value]
            try:
                json.dumps(value)
            except TypeError:
                raise ValueError(
                    f"{name}={value!r} cannot be written: set it to a plain number, text or list"
                ) from None
            parameters[name] = value
        return parameters
