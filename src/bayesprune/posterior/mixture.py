from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, repr=False)
class Prediction:
    """Posterior predictive distribution of a classifier for n inputs, all on the CPU in float64; entropies in nats.

    Example:
        >>> from bayesprune.posterior import predict
        >>> prediction = predict(torch.nn.Linear(3, 2), None, torch.zeros(4, 3))
        >>> prediction.probabilities.shape, prediction.classes.shape, prediction.epistemic.tolist()
        (torch.Size([4, 2]), torch.Size([4]), [0.0, 0.0, 0.0, 0.0])
    """

    probabilities: Tensor  # (n, C): mean of the members' probabilities
    total: Tensor  # (n,): entropy of that mean
    aleatoric: Tensor  # (n,): mean of the members' entropies
    epistemic: Tensor  # (n,): total - aleatoric, the mutual information between label and weights
    disagreement: Tensor  # (n,): share of the pairs of members that choose different classes
    member_classes: Tensor  # (S, n): each member's choice
    members: Tensor | None = None  # (S, n, C), if asked for
    labels: Tensor | None = None  # (n,), if the inputs came with labels

    @property
    def classes(self) -> Tensor:
        """The most probable class of each input."""
        return self.probabilities.argmax(dim=1)

    @property
    def confidence(self) -> Tensor:
        """The probability given to that class."""
        return self.probabilities.amax(dim=1)

    def member_accuracy(self, labels: Tensor | None = None) -> Tensor:
        """The accuracy of each member by itself, to stand beside that of their average.

        Args:
            labels: (n,) class numbers; default: those that came with the inputs.

        Returns:
            (S,) shares.

        Raises:
            ValueError: if there are no labels, or their shape is not (n,).
        """
        labels = self.labels if labels is None else torch.as_tensor(labels).cpu()
        if labels is None or labels.shape != (len(self),):
            found = "none" if labels is None else f"shape {tuple(labels.shape)}"
            raise ValueError(f"labels: {found}; give one class number for each of the {len(self)} inputs")
        return (self.member_classes == labels).double().mean(dim=1)

    def __len__(self) -> int:
        return len(self.probabilities)

    def __repr__(self) -> str:
        return (
            f"Prediction({len(self):,} inputs, {self.probabilities.shape[1]} classes, {len(self.member_classes)} members; "
            f"means: confidence {self.confidence.mean():.3f}, total {self.total.mean():.3f}, aleatoric "
            f"{self.aleatoric.mean():.3f}, epistemic {self.epistemic.mean():.3f}{_labelled(self.labels)})"
        )


@dataclass(frozen=True, repr=False)
class RegressionPrediction:
    """Mean and variance of the posterior predictive for n inputs, shaped like the model's output, in float64.

    Example:
        >>> from bayesprune.posterior import predict
        >>> model = torch.nn.Linear(3, 1)
        >>> prediction = predict(model, None, torch.zeros(4, 3), task="regression", noise_variance=0.25)
        >>> prediction.variance.flatten().tolist()
        [0.25, 0.25, 0.25, 0.25]
    """

    mean: Tensor  # mean of the members' means
    variance: Tensor  # aleatoric + epistemic
    aleatoric: Tensor  # mean of the members' noise variances
    epistemic: Tensor  # variance of the members' means
    members: Tensor | None = None  # (S, n, ...): the members' means, if asked for
    labels: Tensor | None = None  # targets, if the inputs came with them

    def __len__(self) -> int:
        return len(self.mean)

    def __repr__(self) -> str:
        return (
            f"RegressionPrediction({len(self):,} inputs, outputs of shape {tuple(self.mean.shape[1:])}; means: standard "
            f"deviation {self.variance.sqrt().mean():.4g}, of it aleatoric {self.aleatoric.sqrt().mean():.4g}, epistemic "
            f"{self.epistemic.sqrt().mean():.4g}{_labelled(self.labels)})"
        )


def _labelled(labels: Tensor | None) -> str:
    """What a prediction's one-line form adds where the inputs came with labels."""
    return "" if labels is None else "; labels"


class ClassMixture:
    """Running sums over members of probabilities and entropies."""

    def __init__(self, keep: bool) -> None:
        self.kept: list[Tensor] | None = [] if keep else None
        self.choices: list[Tensor] = []
        self.probabilities = self.entropy = torch.zeros(())

    def outputs(self, logits: Tensor, _variance: float) -> tuple[Tensor, ...]:
        """Log-probabilities of one batch; in float64, for the epistemic part is a small difference of entropies."""
        if not isinstance(logits, Tensor) or logits.ndim not in (1, 2):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"model: output of shape {shape}; a classifier must give logits (n, C). Of one class for each place of a sequence or "
                "an image give forward=lambda model, x: model(x).reshape(-1, C), and labels as flat"
            )
        logits = (logits.cpu() if logits.device.type == "mps" else logits).double()
        if logits.ndim == 1 or logits.shape[1] == 1:
            logits = functional.pad(logits.reshape(-1, 1), (1, 0))
        elif len(logits) and bool((logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-3).all()):
            warnings.warn(
                "model: its outputs are probabilities, and are taken for logits; end the model before its softmax (log_softmax may stay)",
                stacklevel=2,
            )
        return (torch.log_softmax(logits, dim=1),)

    def add(self, outputs: tuple[Tensor, ...]) -> None:
        """Take in one member's outputs for all inputs."""
        (log_probabilities,) = outputs
        probabilities = log_probabilities.exp()
        entropy = torch.special.entr(probabilities).sum(dim=1)
        if self.choices:
            self.probabilities += probabilities
            self.entropy += entropy
        else:
            self.probabilities, self.entropy = probabilities.clone(), entropy
        self.choices.append(log_probabilities.argmax(dim=1))
        if self.kept is not None:
            self.kept.append(probabilities)

    def result(self, labels: Tensor | None) -> Prediction:
        """The mixture over the members so far."""
        count = len(self.choices)
        mean = self.probabilities / count
        total = torch.special.entr(mean).sum(dim=1)
        aleatoric = self.entropy / count
        choices = torch.stack(self.choices)
        votes = torch.zeros_like(mean).scatter_add_(1, choices.T, torch.ones_like(choices.T, dtype=mean.dtype))
        agreeing = (votes * (votes - 1)).sum(dim=1)
        return Prediction(
            probabilities=mean,
            total=total,
            aleatoric=aleatoric,
            epistemic=(total - aleatoric).clamp(min=0.0),  # never negative but for rounding (Jensen)
            disagreement=1 - agreeing / max(count * (count - 1), 1) if count > 1 else torch.zeros_like(total),
            member_classes=choices,
            members=torch.stack(self.kept) if self.kept is not None else None,
            labels=labels,
        )


def begin(
    task: str, batch_size: int, noise_variance: float | Sequence[float], members: int, keep: bool
) -> tuple[ClassMixture | MomentMixture, list[float]]:
    """The empty mixture of a prediction's settings, which are checked, and each member's noise variance."""
    if task not in ("classification", "regression"):
        raise ValueError(f"task={task!r}: choose 'classification' or 'regression'")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    given = torch.as_tensor(noise_variance, dtype=torch.float64)
    if not (given >= 0).all():
        raise ValueError(f"noise_variance={noise_variance}: must not be negative or NaN")
    variances: list[float] = (given.expand(members) if given.ndim == 0 else given).tolist()
    if len(variances) != members:
        raise ValueError(f"noise_variance: {len(variances)} values for {members} members; give one for each")
    return MomentMixture(keep) if task == "regression" else ClassMixture(keep), variances


class MomentMixture:
    """Welford's running mean and variance of the members' means, and the running mean of their noise variances."""

    def __init__(self, keep: bool) -> None:
        self.kept: list[Tensor] | None = [] if keep else None
        self.count = 0
        self.mean = self.squares = self.noise = torch.zeros(())

    def outputs(self, output: Any, variance: float) -> tuple[Tensor, ...]:
        """Means and noise variances of one batch; NaN where the mean is not finite."""
        if isinstance(output, (tuple, list)):
            mean, noise = output
        else:
            mean, noise = output, torch.full_like(output, variance)
        if mean.device.type == "mps":
            mean, noise = mean.cpu(), noise.cpu()
        if (noise < 0).any():
            raise ValueError("model: a negative noise variance; a regression model gives means, or (means, variances)")
        # A logit of -inf is an excluded class, but an infinite mean is a failure: the reader looks for NaN.
        mean = torch.where(mean.isfinite(), mean, torch.nan).double()
        try:
            return mean, noise.double().expand_as(mean)
        except RuntimeError as error:
            shapes = f"means of shape {tuple(mean.shape)} and noise variances of shape {tuple(noise.shape)}"
            raise ValueError(f"model: {shapes}; give both one shape") from error

    def add(self, outputs: tuple[Tensor, ...]) -> None:
        """Take in one member's outputs for all inputs."""
        mean, noise = outputs
        self.count += 1
        if self.count == 1:
            self.mean, self.squares, self.noise = mean.clone(), torch.zeros_like(mean), noise.clone()
        else:
            difference = mean - self.mean
            self.mean += difference / self.count
            self.squares += difference * (mean - self.mean)
            self.noise += noise
        if self.kept is not None:
            self.kept.append(mean)

    def result(self, labels: Tensor | None) -> RegressionPrediction:
        """The mixture over the members so far."""
        aleatoric, epistemic = self.noise / self.count, self.squares / self.count
        members = torch.stack(self.kept) if self.kept is not None else None
        return RegressionPrediction(self.mean, aleatoric + epistemic, aleatoric, epistemic, members, labels)
