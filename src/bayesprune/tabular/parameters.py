"""What can be set about the estimators, and the sizes that follow from it."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from bayesprune.common.checks import check_choice
from bayesprune.tabular.columns import column_number
from bayesprune.tabular.plan import Plan
from bayesprune.tabular.sampling import SamplingSettings
from bayesprune.tabular.trainer import ChainSettings

_CHOICES = {
    "select": ("auto", "fdr", "probability", "number", "prediction"),
    "feedback": ("none", "masked"),
    "variance": ("auto", "constant", "network"),
    "activation": ("auto", "relu", "tanh", "silu"),
}
MANY_ROWS = 1000  # from which the automatic network reads features of the inputs and may have a variance of its own
_DEEP = (32, 32, 32, 32)  # of the automatic network from there on
_COUNTS = ("n_chains", "candidates", "search_steps", "evidence_steps", "fit_steps", "n_starts", "batch_size")


def _is_listed(value: Any) -> bool:
    """Return whether a value lists others: a sequence or an array of some dimension, no text."""
    return isinstance(value, Collection) and not isinstance(value, str) and getattr(value, "ndim", 1) > 0


class Parameters(BaseEstimator):
    """The parameters that the regressor and the classifier share; `SparseBNNRegressor` says what they mean."""

    def __init__(
        self,
        *,
        hidden_layer_sizes: Any = "auto",
        activation: str = "auto",
        feedback: str = "none",
        n_chains: Any = "auto",
        select: str = "auto",
        fdr: float = 0.05,
        probability: float = 0.5,
        n_inputs: int | None = None,
        expected_inputs: Any = "auto",
        groups: Any = None,
        refit: bool = True,
        variance: str = "auto",
        candidates: Any = "auto",
        search_steps: Any = "auto",
        evidence_steps: Any = "auto",
        fit_steps: Any = "auto",
        n_starts: Any = "auto",
        batch_size: Any = "auto",
        n_jobs: int | None = None,
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
        self.variance = variance
        self.candidates = candidates
        self.search_steps = search_steps
        self.evidence_steps = evidence_steps
        self.fit_steps = fit_steps
        self.n_starts = n_starts
        self.batch_size = batch_size
        self.n_jobs = n_jobs
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
        if self.n_jobs is not None and not (
            isinstance(self.n_jobs, Integral) and (self.n_jobs >= 1 or self.n_jobs == -1)
        ):
            raise ValueError(f"n_jobs={self.n_jobs!r} must be None, a whole number of at least 1, or -1 for all cores")
        for name in ("refit", "verbose"):
            value = getattr(self, name)
            if not isinstance(value, (bool, np.bool_, Integral)) or (name == "refit" and value not in (0, 1)):
                more = "" if name == "refit" else " or a whole number"
                raise ValueError(f"{name}={value!r} must be True or False{more}")
        groups = () if self.groups is None else self.groups
        if not _is_listed(groups) or not all(_is_listed(group) for group in groups):
            raise ValueError(f"groups={self.groups!r} must be lists of columns, as in groups=[['a', 'b']]")
        sizes = self.hidden_layer_sizes
        if sizes != "auto" and not all(isinstance(size, Integral) and int(size) >= 1 for size in np.atleast_1d(sizes)):
            raise ValueError(f"hidden_layer_sizes={sizes!r} must be 'auto' or whole numbers of at least 1")

    def _units(self, names: Sequence[str], members: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Return the encoded columns of everything that is selected as a whole: the groups, then the other columns."""
        groups = () if self.groups is None else self.groups
        given = [[column_number("groups", one, names, len(members)) for one in group] for group in groups]
        together = {column for group in given for column in group}
        if sum(map(len, given)) != len(together):
            raise ValueError(f"groups={self.groups!r} name a column twice: every column belongs to one group")
        alone = [[column] for column in range(len(members)) if column not in together]
        units = [sorted(place for column in unit for place in members[column]) for unit in [*given, *alone]]
        return [np.array(unit) for unit in units if unit]

    def _seed(self) -> int:
        """Return a seed from `random_state`: a number, a generator of either kind of numpy's, or None."""
        if isinstance(self.random_state, np.random.Generator):
            return int(self.random_state.integers(2**31 - 1))
        try:
            return int(check_random_state(self.random_state).randint(2**31 - 1))
        except ValueError:
            raise ValueError(
                f"random_state={self.random_state!r} must be a whole number, a generator of numpy, or None"
            ) from None

    def _threads(self) -> int:
        """Return how many threads a fit may use."""
        return 1 if self.n_jobs is None else self.n_jobs if self.n_jobs > 0 else os.cpu_count() or 1

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
            for_prediction=None if self.select == "auto" and self.refit else self.select == "prediction",
        )

    def _sampling(self, n: int) -> tuple[SamplingSettings, ...]:
        """Return how the predictive network of n rows is sampled: the ways of which one is chosen by left-out rows."""
        auto = self.hidden_layer_sizes == "auto"
        hidden = (64, 64) if auto else tuple(int(size) for size in np.atleast_1d(self.hidden_layer_sizes))
        small, many = max(hidden, default=0) < 16, auto and n >= MANY_ROWS
        chain = ChainSettings(lr=0.3, beta1=0.9, precision=1.0, temperature=1.0, damping=0)
        variance = "network" if self.variance == "network" else "constant"
        starts, burn_in = (
            self._number("n_starts", 32 if small else 10),
            self._number("fit_steps", 2500 if small else 1500),
        )
        starts = starts if small else max(5, starts)
        plain = SamplingSettings(
            hidden=hidden,
            activation=self._activation("tanh" if auto else "relu"),
            starts=starts,
            kept=min(starts, 6) if small else starts,
            unseen=0 if small else 1 if starts < 8 else 2,
            burn_in=burn_in,
            cycles=2,
            cycle_steps=max(20, burn_in // 2 if variance == "network" else burn_in * 4 // 15),
            samples=5,
            chain=chain,
            variance=variance,
        )
        if variance == "network":
            plain = replace(plain, chain=replace(chain, lr=0.001, preconditioner="rms"), burn_in_temperature=0.0)
        if not many:
            precisions = (0.3,) if small else (1.0, 10.0, 100.0)
            return tuple(replace(plain, chain=replace(plain.chain, precision=one)) for one in precisions)
        burn_in, starts = self._number("fit_steps", 3000), max(5, self._number("n_starts", 12))
        deep = replace(
            plain,
            hidden=_DEEP,
            activation=self._activation("silu"),
            starts=starts,
            kept=starts,
            unseen=1 if starts < 8 else 2,
            burn_in=burn_in,
            cycles=1,
            cycle_steps=max(20, burn_in // 2),
            samples=8,
            chain=replace(chain, lr=0.001, preconditioner="rms"),
            temperatures=(0.2, 1.0),
            variance=self.variance,
            burn_in_temperature=0.0,
            features=True,
            whole=True,
        )
        return deep, plain

    def _number(self, name: str, automatic: int) -> int:
        value = getattr(self, name)
        return automatic if value == "auto" else int(value)

    def _activation(self, automatic: str) -> str:
        return automatic if self.activation == "auto" else self.activation

    def _plain_parameters(self) -> dict[str, Any]:
        """Return the parameters as JSON can hold them."""
        parameters = {}
        for name, value in self.get_params(deep=False).items():
            value = value.item() if isinstance(value, np.generic) else value
            if name == "groups" and value is not None:
                value = [[one if isinstance(one, str) else int(one) for one in members] for members in value]
            if isinstance(value, (np.random.Generator, np.random.RandomState)):
                value = None
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
