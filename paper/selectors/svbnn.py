"""SVBNN: spike-and-slab variational inference with binary-concrete gates, and Adam."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesprune.common.checks import check_number
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
from paper.selectors.svbnn_posterior import SpikeSlabPosterior, prior_log_inclusion

RECORDS = 100


class SVBNN(SelectionEstimator):
    """Sparse variational Bayesian network (Bai, Song and Cheng 2020); see the two subclasses.

    Adam on (B/n)·KL(q, prior) + Σ over a batch of B rows of −log p(y | x, w), one draw w of `SpikeSlabPosterior` a
    step. An input is selected if any of its first-layer weights has φ > ½; predictions average `n_draws` networks.

    The defaults are the paper's, and its budget in steps: 7000 epochs of 6 batches. Most of it goes into closing gates:
    on 10,000 rows of Example 1 the bound has all but stopped falling after 20,000 steps, on Example 2 (2000 inputs)
    after 80,000; `history_["n_selected"]` shows whether it has.

    Args:
        hidden_layer_sizes: units of the hidden layers.
        activation: "relu" or "tanh".
        steps: steps of Adam.
        step_size: of Adam.
        batch_size: B.
        slab_scale: σ₀, the prior's standard deviation of weights that are not zero.
        gate_temperature: temperature of the binary-concrete gates.
        n_draws: networks to average when predicting.
        **keywords: `standardize` and `random_state`, see `SelectionEstimator`.

    Attributes:
        support_: selected columns (p,), True = selected.
        inclusion_probability_: largest φ among a column's first-layer weights (p,).
        prior_log_inclusion_: log λ.
        history_: "step" (t,), "loss" (t,), the mean negative log-likelihood of that step's batch at that step's draw,
            "kl" (t,) and "n_selected" (t,). The negative evidence bound of a row is loss + kl/n.
        n_iter_: steps taken.

    Raises:
        FloatingPointError: the parameters are no longer finite.

    Reference:
        Bai, Song and Cheng 2020, "Efficient Variational Inference for Sparse Deep Learning with Theoretical
        Guarantee", arXiv 2011.07439.
    """

    _task: str
    _width: int
    _sigma2: float

    def __init__(
        self,
        *,
        hidden_layer_sizes: tuple[int, ...] = (5, 3),
        activation: str = "relu",
        steps: int = 42_000,
        step_size: float = 5e-3,
        batch_size: int = 512,
        slab_scale: float = 1.3,
        gate_temperature: float = 0.5,
        n_draws: int = 30,
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.steps = steps
        self.step_size = step_size
        self.batch_size = batch_size
        self.slab_scale = slab_scale
        self.gate_temperature = gate_temperature
        self.n_draws = n_draws

    def _train(self, X: Tensor, y: Tensor) -> None:
        check_integer("steps", self.steps, 1)
        check_integer("batch_size", self.batch_size, 1)
        draws = check_integer("n_draws", self.n_draws, 1)
        for name in ("step_size", "slab_scale", "gate_temperature"):
            check_number(name, getattr(self, name), minimum=0, strict=True)
        n, p = X.shape
        sizes = (p, *check_sizes(self.hidden_layer_sizes), self._width)
        network = BatchedNetwork(1, sizes, activation=self.activation)
        self.prior_log_inclusion_ = prior_log_inclusion(sizes, n)
        posterior = SpikeSlabPosterior(
            len(network.flat), self.prior_log_inclusion_, self.slab_scale, self.gate_temperature, self._generator
        )
        self._ascend_(network, posterior, X, y)
        if not torch.isfinite(posterior.parameters).all():
            raise FloatingPointError(f"step_size={self.step_size} made the fit diverge: lower it, or standardize")

        phi = network.views(posterior.phi)[0][0][0].amax(0)
        self.inclusion_probability_ = phi.numpy()
        self.support_ = self.inclusion_probability_ > 0.5
        self.n_iter_ = self.steps
        # The draws are made once, so that predictions repeat; columns that no draw reads are left out.
        flats = [posterior.draw_(torch.empty_like(network.flat), self._generator) for _ in range(draws)]
        reads = torch.stack([network.views(flat)[0][0][0].ne(0).any(0) for flat in flats]).any(0)
        self._columns = reads.nonzero()[:, 0] if reads.any() else torch.zeros(1, dtype=torch.long)
        self._network = BatchedNetwork(draws, (len(self._columns), *sizes[1:]), activation=self.activation)
        for k, flat in enumerate(flats):
            weights, biases = network.views(flat)
            weights[0] = weights[0][:, :, self._columns]
            for to, of in zip((*self._network.weights, *self._network.biases), (*weights, *biases)):
                to[k] = of[0]

    def _ascend_(self, network: BatchedNetwork, posterior: SpikeSlabPosterior, X: Tensor, y: Tensor) -> None:
        posterior.parameters.grad = posterior.gradient
        adam = torch.optim.Adam([posterior.parameters], lr=self.step_size, fused=True)
        gradient = torch.empty_like(network.flat)
        weights, biases = network.views(gradient)
        every = max(1, self.steps // RECORDS)
        records: dict[str, list[float]] = {"step": [], "loss": [], "kl": [], "n_selected": []}
        batches = iter(ShuffledBatches(X, y, self.batch_size, self._generator))
        for step in range(1, self.steps + 1):
            rows, responses = next(batches)
            posterior.draw_(network.flat, self._generator)
            outputs = network.forward(rows)
            if step % every == 0 or step == self.steps:
                loss = negative_log_likelihood(outputs, responses, self._task, self._sigma2)
                selected = network.views(posterior.theta)[0][0][0].gt(0).any(0).sum()
                for name, value in zip(records, (step, float(loss), posterior.kl(), int(selected))):
                    records[name].append(value)
            network.backward_(output_gradient_(outputs, responses, self._task, self._sigma2))
            gradient.zero_()
            network.accumulate_(rows, weights, biases)
            posterior.gradient_(gradient, len(rows) / len(X))
            adam.step()
        self.history_ = {name: np.array(values) for name, values in records.items()}


class SVBNNRegressor(RegressionMixin, SVBNN):
    """SVBNN for a number: y ~ N(f(x), σ²) with σ² given; keywords, attributes and method as in `SVBNN`.

    Args:
        noise_variance: σ², 1 as in the paper's simulations.
        **keywords: as in `SVBNN`.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).standard_normal((500, 6)).astype("float32")
        >>> y = 5 * X[:, 1] + 0.1 * X[:, 0]
        >>> model = SVBNNRegressor(hidden_layer_sizes=(4,), steps=1000, step_size=0.05, batch_size=100, random_state=0)
        >>> model.fit(X, y).get_support(indices=True)
        array([1])
    """


class SVBNNClassifier(ClassificationMixin, SVBNN):
    """SVBNN for two classes or more; keywords, attributes and method as in `SVBNN`, and `classes_`.

    Args:
        **keywords: as in `SVBNN`.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).standard_normal((500, 6)).astype("float32")
        >>> model = SVBNNClassifier(hidden_layer_sizes=(4,), steps=1000, step_size=0.05, batch_size=100, random_state=0)
        >>> model.fit(X, X[:, 2] > 0).get_support(indices=True)
        array([2])
    """
