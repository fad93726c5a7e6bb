"""Training of many chains at once: one likelihood, CV-Adam, and what search, evidence and sampling share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bayesprune.samplers import CVAdam, CycleClock
from bayesprune.samplers.preconditioner import Preconditioner
from bayesprune.sparsity.pruner import Pruner
from bayesprune.tabular.chains import ChainMLP
from bayesprune.tabular.progress import step_done
from bayesprune.tabular.rows import Rows, principal_directions

_SLOWNESS = 0.98  # of the running residual variance
_LOG_VARIANCE = (-12.0, 6.0)  # of a standardised response, between which a network's second output counts


def log_variances(outputs: Tensor) -> Tensor:
    """Return the log variances that (…, 2) outputs of a regression name, within bounds."""
    return outputs[..., 1].clamp(*_LOG_VARIANCE)


@dataclass(frozen=True)
class ChainSettings:
    """How chains move.

    Args:
        lr: peak step size l.
        beta1: momentum retention β₁.
        precision: prior precision δ of every weight; the weight decay is δ over the number of training rows.
        largest_decay: bound on that weight decay. Where it exceeds what a column's correlation with the response pulls
            with, a network that starts next to zero stays there. Leave it infinite where a prior is meant.
        temperature: T of the posterior, with the residual variance that each chain estimates for itself.
        cold: leave the residual variance out of the loss (it is then ½ squared error of the standardised response), so
            that step sizes do not change as the fit improves; T is small in a search and means no posterior.
        dual_lr: η.
        damping: leading principal directions of the inputs along which the first layer's gradient is scaled down to
            the next eigenvalue. p columns of common correlation c have one direction of variance 1 + (p − 1)c, which
            would bound every step.
        preconditioner: "paper" or "rms" of `CVAdam`; the second's step sizes are Adam's, over 1/(1 − β₁).
    """

    lr: float = 0.1
    beta1: float = 0.9
    precision: float = 30.0
    largest_decay: float = math.inf
    temperature: float = 1.0
    cold: bool = False
    dual_lr: float = 0.1
    damping: int = 2
    preconditioner: Preconditioner = "paper"

    def decay(self, num_data: float) -> float:
        """Return the weight decay for a number of training rows."""
        return min(self.precision / num_data, self.largest_decay)


def log_likelihood(outputs: Tensor, y: Tensor, variance: Tensor | None) -> Tensor:
    """Return log p(y | outputs) of every row and chain.

    log N(y; f, σ²) for a regression, σ² = exp f₂ with a second output; for labels log softmax(f)[y], or log sigmoid(±f)
    with a single output.

    Args:
        outputs: f, (C, B, k).
        y: (C, B), float for a regression, class numbers otherwise.
        variance: σ² of each chain, (C,); None for labels and for a second output.

    Returns:
        (C, B).

    Example:
        >>> log_likelihood(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.long), None)
        tensor([[-0.6931]])
    """
    if y.is_floating_point():
        log_v = log_variances(outputs) if variance is None else variance[:, None].log()
        return -0.5 * ((y - outputs[..., 0]).square() * (-log_v).exp() + log_v + math.log(2 * math.pi))
    if outputs.shape[-1] == 1:
        return F.logsigmoid(outputs[..., 0] * (2 * y - 1))
    return outputs.log_softmax(-1).gather(-1, y[..., None])[..., 0]


class ChainTrainer:
    """Moves the chains of a `ChainMLP` with CV-Adam on rows of their data sets.

    Args:
        net: the chains.
        rows: the rows: of one data set for several chains, or of as many as there are chains.
        weights: (C, n + B) weight of each row in each chain beside the rows' own, 0 = held out; None uses all rows.
        settings: how they move.
        seed: of the injected noise.

    Example:
        >>> import numpy as np
        >>> from bayesprune.tabular.rows import Standardiser
        >>> X = np.random.default_rng(0).standard_normal((50, 3)); y = X[:, 0]
        >>> generator = torch.Generator().manual_seed(0)
        >>> rows = Rows([X], [y], [Standardiser.of(X, y)], 50, generator)
        >>> trainer = ChainTrainer(ChainMLP(2, (3, 8, 1), generator=generator), rows, None, ChainSettings(), seed=0)
        >>> bool(trainer.run(200)[-1].max() < 0.3)
        True
    """

    def __init__(
        self, net: ChainMLP, rows: Rows, weights: Tensor | None, settings: ChainSettings, *, seed: int
    ) -> None:
        self.net, self.rows, self.settings = net, rows, settings
        self.regression = rows.y.is_floating_point()
        self.own_variance = self.regression and net.sizes[-1] == 2  # the second output is log σ²
        self.weights, self.num_data = self._learning(weights)
        self.optimizer = CVAdam(
            net.parameters(),
            lr=settings.lr,
            betas=(settings.beta1, 1.0),
            num_data=self.num_data,
            weight_decay=settings.decay(self.num_data),
            temperature=settings.temperature,
            preconditioner=settings.preconditioner,
            dual_lr=settings.dual_lr,
            seed=seed,
            nonfinite="ignore",  # one tensor holds many networks: one that diverges must not stop the others
        )
        self.variance = torch.ones(net.chains)
        self.temperature = settings.temperature
        self.pruner: Pruner | None = None
        self.steps_done = 0
        self._damp: tuple[Tensor, Tensor, Tensor] | None = None
        if settings.damping and rows.p > 1:
            directions, values = principal_directions(rows.inputs(0, min(1000, rows.count)), settings.damping)
            rest = values[:, -1:].clamp_min(1e-6)
            self._damp = (directions, 1 - rest / values[:, :-1].clamp_min(1e-6), rest.clamp_min(1.0))

    def _learning(self, weights: Tensor | None) -> tuple[Tensor | None, float]:
        """Return the weight of each row in each chain, and how many rows those are."""
        if self.rows.weight is not None:
            own = self.rows.weight.repeat_interleave(self.net.chains // len(self.rows.y), dim=0)
            weights = own if weights is None else weights * own
        held = 0.0 if weights is None else 1.0 - float(weights[:, : self.rows.count].mean())
        return weights, max(1.0, self.rows.count * (1.0 - held))

    def learn_from_all(self) -> None:
        """Go on with the rows that chains have left out."""
        self.weights, self.num_data = self._learning(None)
        for group in self.optimizer.param_groups:
            group["num_data"], group["weight_decay"] = self.num_data, self.settings.decay(self.num_data)

    def run(
        self,
        steps: int,
        lr: Callable[[int], float] | CycleClock | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """Make `steps` steps; returns the loss of each chain at each step: ½ squared error, with a variance of the
        network's own ½(r²/σ² + log σ²), or cross-entropy.

        Args:
            steps: how many.
            lr: factor on the peak step size at a step, or a clock.
            on_step: called after each step with its number.
        """
        losses = []
        for step in range(steps):
            factor = lr.lr(step) if isinstance(lr, CycleClock) else lr(step) if lr else 1.0
            losses.append(self._step(factor))
            if on_step:
                on_step(step)
        return losses

    def _step(self, factor: float) -> Tensor:
        start = self.rows.window()
        x, y = self.rows.inputs(start), self._responses(start)
        weights = None if self.weights is None else self.weights[:, start : start + x.shape[1]]
        outputs = self.net(x)
        each = self._losses(outputs, y)
        loss = each.mean(1) if weights is None else (each * weights).sum(1) / weights.sum(1).clamp_min(1e-6)
        scale, temperature = self._scale()
        for group in self.optimizer.param_groups:
            group["lr"], group["temperature"] = self.settings.lr * factor, temperature
        self.optimizer.zero_grad()
        (loss if scale is None else loss * scale).sum().backward()
        self._damp_()
        self.optimizer.step()
        self.steps_done += 1
        step_done()
        detached = loss.detach()
        if self.regression and not self.own_variance:
            blend = max(1 - _SLOWNESS, 1.0 / self.steps_done)
            self.variance.mul_(1 - blend).add_(2 * detached, alpha=blend).clamp_min_(1e-6)
        return detached

    def _losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return (C, B) losses: what the noise's own constants add is left out."""
        if self.own_variance:
            return -log_likelihood(outputs, y, None) - 0.5 * math.log(2 * math.pi)
        return 0.5 * (outputs[..., 0] - y).square() if self.regression else -log_likelihood(outputs, y, None)

    def _scale(self) -> tuple[Tensor | None, float]:
        """Return a factor on each chain's loss and the temperature that go with its residual variance σ²."""
        # ½r²/σ² at temperature T is s·½r²/σ² at temperature s·T, for any s > 0 (the prior is scaled alike): with s the
        # smallest σ² no factor exceeds 1, and step sizes need not know the noise.
        if not self.regression or self.own_variance or self.settings.cold:
            return None, self.temperature
        smallest = self.variance.min()
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.settings.decay(self.num_data) * float(smallest)
        return smallest / self.variance, self.temperature * float(smallest)

    def _damp_(self) -> None:
        if self._damp is None:
            return
        directions, share, rest = self._damp
        weight = self.net.first.weight
        assert weight.grad is not None
        gradient = weight.grad.view(directions.shape[0], -1, directions.shape[1])
        along = torch.bmm(gradient, directions) * share[:, None, :]
        gradient.sub_(torch.bmm(along, directions.transpose(1, 2))).div_(rest[:, None])

    def _responses(self, start: int) -> Tensor:
        y = self.rows.responses(start)
        return y.repeat_interleave(self.net.chains // len(y), dim=0) if len(y) != self.net.chains else y
