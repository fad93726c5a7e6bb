"""SPLBNN: sparse networks from a mixture-of-Gaussians prior, plain SGD, a threshold, refinement and the best of K starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesprune.common.checks import check_choice, check_number
from paper.selectors.batches import ShuffledBatches
from paper.selectors.estimator import (
    ClassificationMixin,
    RegressionMixin,
    SelectionEstimator,
    check_integer,
    check_sizes,
)
from paper.selectors.likelihood import negative_log_likelihood, output_gradient_
from paper.selectors.network import BatchedNetwork
from paper.selectors.splbnn_evidence import bic, log_evidence
from paper.selectors.splbnn_prior import MixturePrior

RECORDS = 100
FLUSH, NEGLIGIBLE = 200, 1e-15  # steps between, and magnitude below which a weight is rounded to zero


class SPLBNN(SelectionEstimator):
    """Sparse deep learning with consistent selection (Sun, Song and Liang 2021); see the two subclasses.

    w ← w − step·[∇(mean negative log-likelihood of a batch) − (1/n)·∇ log π(w)] for every weight and bias, with π of
    `MixturePrior`; then weights of |w| ≤ `MixturePrior.threshold` become 0 for good and the others are refined by the
    same rule. Of the starts, all trained at once, the one of the highest evidence is kept; an input is selected if any
    of its first-layer weights survives. Columns that no start selects are left out of the refinement.

    The defaults are the paper's for 1000 inputs in a network of 5 and 3 units, budget included. For 2000 inputs and 6-4-3
    units it takes step 0.005, batches of 500 and a spike variance of 1e-4; to classify, a slab variance of 1 as well.

    Args:
        hidden_layer_sizes: units of the hidden layers.
        activation: "relu" or "tanh".
        n_starts: starts K.
        steps: steps before the threshold.
        refine_steps: steps after it.
        step_size: step.
        batch_size: rows of a batch; all starts see the same.
        spike_variance: σ₀².
        slab_variance: σ₁².
        slab_probability: λ.
        criterion: "evidence" (Laplace approximation) or "bic" chooses the start.
        **keywords: `standardize` and `random_state`, see `SelectionEstimator`.

    Attributes:
        support_: selected columns (p,), True = selected.
        inclusion_probability_: largest P(slab | w) among a column's first-layer weights at the threshold (p,); above ½
            where `support_` is True.
        start_support_: the same masks for every start (K, p).
        criterion_: log evidence, or BIC, of every start (K,).
        best_start_: number of the chosen start.
        history_: "step" (t,), and for every start (t, K): "loss", the mean negative log-likelihood of that step's
            batch, and "n_selected"; steps go on counting through the refinement.
        n_iter_: steps taken.

    Raises:
        FloatingPointError: no start stayed finite.

    Reference:
        Sun, Song and Liang 2021, "Consistent Sparse Deep Learning: Theory and Computation", arXiv 2102.13229,
        Algorithm 1.
    """

    _task: str
    _width: int
    _sigma2: float

    def __init__(
        self,
        *,
        hidden_layer_sizes: tuple[int, ...] = (5, 3),
        activation: str = "relu",
        n_starts: int = 10,
        steps: int = 80_001,
        refine_steps: int = 40_001,
        step_size: float = 0.01,
        batch_size: int = 1000,
        spike_variance: float = 5e-4,
        slab_variance: float = 0.01,
        slab_probability: float = 1e-5,
        criterion: str = "evidence",
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.n_starts = n_starts
        self.steps = steps
        self.refine_steps = refine_steps
        self.step_size = step_size
        self.batch_size = batch_size
        self.spike_variance = spike_variance
        self.slab_variance = slab_variance
        self.slab_probability = slab_probability
        self.criterion = criterion

    def _train(self, X: Tensor, y: Tensor) -> None:
        starts = check_integer("n_starts", self.n_starts, 1)
        check_integer("steps", self.steps, 1)
        check_integer("refine_steps", self.refine_steps, 0)
        check_integer("batch_size", self.batch_size, 1)
        check_choice("criterion", self.criterion, ("evidence", "bic"))
        step = check_number("step_size", self.step_size, minimum=0, strict=True)
        prior = MixturePrior(self.spike_variance, self.slab_variance, self.slab_probability)
        n, p = X.shape
        if step / (n * prior.spike_variance) >= 1:
            raise ValueError(
                f"step_size={step} overshoots zero on the spike at n={n} rows: lower it below {n * prior.spike_variance:g}, "
                "or raise spike_variance"
            )
        inner = (*check_sizes(self.hidden_layer_sizes), self._width)
        network = BatchedNetwork(starts, (p, *inner), activation=self.activation).initialise_(self._generator)
        self._records: dict[str, list[Any]] = {"step": [], "loss": [], "n_selected": []}
        self._descend_(network, X, y, prior, None, self.steps, 0)

        threshold = prior.threshold()
        kept_inputs = (network.weights[0].abs() > threshold).any(1)
        columns = kept_inputs.any(0).nonzero()[:, 0]
        if not len(columns):
            columns = torch.zeros(1, dtype=torch.long)  # a network needs an input; the mask keeps it at zero
        responsibility = prior.slab_responsibility(network.weights[0]).amax(1)
        small = BatchedNetwork(starts, (len(columns), *inner), activation=self.activation)
        for to, of in zip((*small.weights, *small.biases), (*network.weights, *network.biases)):
            to.copy_(of[:, :, columns] if to is small.weights[0] else of)
        keep = small.flat.abs() > threshold
        compact = X[:, columns].contiguous()
        self._descend_(small, compact, y, prior, keep, self.refine_steps, self.steps)

        with torch.enable_grad():
            args = (self._task, self._sigma2)
            if self.criterion == "evidence":
                value = log_evidence(small, keep, compact, y, prior, *args)
            else:
                value = bic(small, keep, compact, y, *args).detach()
        ranked = value if self.criterion == "evidence" else -value
        best = int(ranked.argmax())
        if not torch.isfinite(ranked[best]):
            raise FloatingPointError(f"step_size={step} made all {starts} starts diverge: lower it, or standardize")
        self.best_start_, self.criterion_ = best, value.numpy()
        self.start_support_ = kept_inputs.numpy()
        self.support_ = self.start_support_[best].copy()
        self.inclusion_probability_ = responsibility[best].numpy()
        self.history_ = {name: np.array(values) for name, values in self._records.items()}
        self.n_iter_ = self.steps + self.refine_steps
        del self._records
        self._network = BatchedNetwork(1, small.sizes, activation=self.activation)
        for to, of in zip((*self._network.weights, *self._network.biases), (*small.weights, *small.biases)):
            to.copy_(of[best : best + 1])
        self._columns = columns

    def _descend_(
        self,
        network: BatchedNetwork,
        X: Tensor,
        y: Tensor,
        prior: MixturePrior,
        keep: Tensor | None,
        steps: int,
        done: int,
    ) -> None:
        """Take SGD steps on the weights of all starts; with a mask, weights outside it stay 0."""
        if keep is not None:
            network.flat.mul_(keep)
        buffer, mask = torch.empty_like(network.flat), None if keep is None else keep.to(network.flat.dtype)
        every = max(1, (self.steps + self.refine_steps) // RECORDS)
        batches = iter(ShuffledBatches(X, y, self.batch_size, self._generator))
        for step in range(1, steps + 1):
            rows, responses = next(batches)
            outputs = network.forward(rows)
            if (done + step) % every == 0 or step == steps:
                loss = negative_log_likelihood(outputs, responses, self._task, self._sigma2)
                self._record(done + step, loss, network, prior)
            network.backward_(output_gradient_(outputs, responses, self._task, self._sigma2))
            prior.shrink_(network.flat, self.step_size, len(X), buffer)
            network.accumulate_(rows, network.weights, network.biases, -self.step_size / len(rows))
            if mask is not None:
                network.flat.mul_(mask)
            if step % FLUSH == 0:
                # Weights of dead units shrink geometrically; once denormal, they slow every product down many times.
                network.flat.masked_fill_(network.flat.abs() < NEGLIGIBLE, 0.0)

    def _record(self, step: int, loss: Tensor, network: BatchedNetwork, prior: MixturePrior) -> None:
        selected = (network.weights[0].abs() > prior.threshold()).any(1).sum(1)
        self._records["step"].append(step)
        self._records["loss"].append(loss.tolist())
        self._records["n_selected"].append(selected.tolist())


class SPLBNNRegressor(RegressionMixin, SPLBNN):
    """SPLBNN for a number: y ~ N(f(x), σ²) with σ² given; keywords, attributes and method as in `SPLBNN`.

    Args:
        noise_variance: σ², 1 as in the paper's simulations.
        **keywords: as in `SPLBNN`.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).standard_normal((500, 6)).astype("float32")
        >>> y = 2 * X[:, 1] + 0.1 * X[:, 0]
        >>> model = SPLBNNRegressor(hidden_layer_sizes=(4,), n_starts=4, steps=2000, refine_steps=500, random_state=0)
        >>> model.fit(X, y).get_support(indices=True)
        array([1])
    """


class SPLBNNClassifier(ClassificationMixin, SPLBNN):
    """SPLBNN for two classes or more; keywords, attributes and method as in `SPLBNN`, and `classes_`.

    Args:
        **keywords: as in `SPLBNN`.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).standard_normal((1000, 30)).astype("float32")
        >>> model = SPLBNNClassifier(
        ...     hidden_layer_sizes=(4,), n_starts=4, steps=1000, refine_steps=500, step_size=0.05, batch_size=200,
        ...     spike_variance=1e-3, slab_variance=1.0, random_state=0,
        ... )
        >>> model.fit(X, X[:, 2] > 0).get_support(indices=True)
        array([2])
    """
