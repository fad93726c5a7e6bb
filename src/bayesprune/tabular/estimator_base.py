"""What the scikit-learn estimators share: parameters, reading of data, support."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from bayesprune.tabular.sampling import SamplingSettings
from bayesprune.tabular.selection import Plan
from bayesprune.tabular.trainer import ChainSettings

_SELECT = ("fdr", "probability", "number", "prediction")
_FEEDBACK = ("none", "masked")
_ACTIVATIONS = ("auto", "relu", "tanh", "silu")


class SparseBNN(SelectorMixin, BaseEstimator):
    """What the regressor and the classifier share."""

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

    # ---- fitting ----------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any) -> Any:
        """Find the inputs that matter and sample a network on them.

        Args:
            X: (n, p) array, data frame or scipy.sparse matrix, finite.
            y: (n,) response or labels.

        Returns:
            The fitted estimator.

        Raises:
            ValueError: a parameter out of its range, data that are not finite or too few rows (6 at least).
        """
        table, response = self.read(X, y)
        from bayesprune.tabular.together import fit_together

        fit_together([self], [table], [response])
        return self

    def read(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        """Check the parameters and the data; returns the table and the encoded response."""
        self._check_parameters()
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse="csr",
            dtype=[np.float64, np.float32],
            y_numeric=self._numeric,
            ensure_min_samples=2,
        )
        if X.shape[0] < 6:
            raise ValueError(
                f"X has {X.shape[0]} rows (n_samples={X.shape[0]}): give at least 6, some to learn and some to weigh"
            )
        return X, self._encode(y)

    _numeric = True

    def _encode(self, y: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def outputs(self) -> int:
        """Return the number of outputs of the networks."""
        raise NotImplementedError

    def _check_parameters(self) -> None:
        for name, choices in (("select", _SELECT), ("feedback", _FEEDBACK), ("activation", _ACTIVATIONS)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name}={value!r} is unknown: use one of {', '.join(map(repr, choices))}")
        for name in ("fdr", "probability"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and 0 < float(value) < 1):
                raise ValueError(f"{name}={value!r} must lie strictly between 0 and 1")
        for name in ("n_chains", "candidates", "search_steps", "evidence_steps", "fit_steps", "n_starts", "batch_size"):
            value = getattr(self, name)
            if value != "auto" and not (isinstance(value, Integral) and int(value) >= 1):
                raise ValueError(f"{name}={value!r} must be 'auto' or a whole number of at least 1")
        if self.select == "number" and not (isinstance(self.n_inputs, Integral) and int(self.n_inputs) >= 0):
            raise ValueError(f"n_inputs={self.n_inputs!r}: select='number' needs how many, a whole number")
        if self.expected_inputs != "auto" and not (
            isinstance(self.expected_inputs, Real) and float(self.expected_inputs) > 0
        ):
            raise ValueError(f"expected_inputs={self.expected_inputs!r} must be 'auto' or a number above 0")
        sizes = self.hidden_layer_sizes
        if sizes != "auto" and not all(isinstance(size, Integral) and int(size) >= 1 for size in np.atleast_1d(sizes)):
            raise ValueError(f"hidden_layer_sizes={sizes!r} must be 'auto' or whole numbers of at least 1")

    def column_groups(self, p: int) -> list[np.ndarray]:
        """Return the column numbers of every input."""
        if self.groups is None:
            return [np.array([column]) for column in range(p)]
        given = [np.unique(np.asarray(members, dtype=np.int64)) for members in self.groups]
        together = np.concatenate(given) if given else np.zeros(0, dtype=np.int64)
        if len(np.unique(together)) != len(together):
            raise ValueError("groups name a column twice: every column belongs to one group")
        if len(together) and (together.min() < 0 or together.max() >= p):
            raise ValueError(f"groups name column {together.max()}, but X has columns 0 to {p - 1}")
        return [*given, *(np.array([column]) for column in np.setdiff1d(np.arange(p), together))]

    def plan(self, n: int, p: int) -> Plan:
        """Return sizes and settings for n rows of p columns."""

        def number(name: str) -> int | None:
            value = getattr(self, name)
            return None if value == "auto" else int(value)

        return Plan.of(
            n,
            p,
            feedback=self.feedback,
            chains=number("n_chains"),
            steps=number("search_steps"),
            evidence_steps=number("evidence_steps"),
            candidates=number("candidates"),
            batch_size=number("batch_size"),
            expected=None if self.expected_inputs == "auto" else float(self.expected_inputs),
            for_prediction=self.select == "prediction",
        )

    def sampling(self, n: int) -> SamplingSettings:
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

    # ---- what is selected -------------------------------------------------------------------------------------------

    def _get_support_mask(self) -> np.ndarray:
        check_is_fitted(self)
        return self.support_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.non_deterministic = False
        return tags

    # ---- prediction -------------------------------------------------------------------------------------------------

    def _member_outputs(self, X: Any) -> torch.Tensor:
        """Return (M, n, k) outputs of the samples, of a standardised response or as logits."""
        check_is_fitted(self)
        if not self.refit:
            raise ValueError("refit=False selects inputs only; fit with refit=True to predict")
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
        return self.posterior_.outputs(self.standardiser_.inputs(X, self.inputs_))

    def save(self, folder: Any) -> None:
        """Write the fitted estimator to a folder as safetensors and JSON; see `bayesprune.tabular.load`."""
        from bayesprune.tabular.store import save

        save(self, folder)
