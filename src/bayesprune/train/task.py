"""What is learned: the loss of a batch, the scores of a set of examples, and what a prediction is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesprune.posterior import (
    Prediction,
    RegressionPrediction,
    Samples,
    classification_metrics,
    gaussian_nll,
    mse,
    predict,
    reliability_curve,
)
from bayesprune.posterior.metrics import SMALLEST, ReliabilityCurve, curve_of
from bayesprune.posterior.predict import call, split_batch
from bayesprune.train.targets import labels_for, same_shape, two_columns
from bayesprune.train.values import nearest

Views = Sequence[Callable[[Tensor], Tensor]]
_CHUNK = 1 << 24  # log-probabilities of a token model held at once, 128 MiB


@dataclass(frozen=True)
class Evaluation:
    """How a model, or the average over samples, does on a set of examples.

    Args:
        count: Examples; of a token model, tokens.
        scores: Of the average, by name.
        uncertainty: Means of the predictive uncertainties: total_entropy, aleatoric, epistemic, disagreement.
        members: The task's first score of each member by itself.
        curve: Confidence against accuracy in 15 bins; empty where there are no classes.
        classes: Number of classes; None where there are none.
        constant: Loss of the best constant prediction; None where there is none to name.
        recall: Share of each class that is right; None of one without examples, empty where they are not counted.
        prediction: What `predict` returned; None where it would be too large to keep.

    Example:
        >>> Evaluation(count=10, scores={"accuracy": 0.9}, uncertainty={}, members=[0.8, 0.9], curve=[]).scores["accuracy"]
        0.9
    """

    count: int
    scores: dict[str, float]
    uncertainty: dict[str, float]
    members: list[float]
    curve: list[dict[str, float]]
    classes: int | None = None
    constant: float | None = None
    recall: Sequence[float | None] = ()
    prediction: Prediction | RegressionPrediction | None = None


class Task:
    """What a run learns. A task of your own is a subclass; `register_task` gives it a name.

    Example:
        >>> class Absolute(Regression):
        ...     def loss(self, output, targets):
        ...         return (output - targets).abs().mean()
        >>> Absolute().loss(torch.zeros(2), torch.tensor([1.0, 3.0]))
        tensor(2.)
    """

    name = "task"
    shown: tuple[str, str] = ("accuracy", "nll")
    """The two scores that the history shows; both must be means over examples."""

    def split(self, batch: Any) -> tuple[Any, Any]:
        """Return a batch's inputs and targets: a pair, or a mapping whose "labels" are the targets."""
        return split_batch(batch)

    def output(self, model: nn.Module, inputs: Any) -> Any:
        """Return the model's output for inputs: called by name with a mapping, and its `logits` where it has such."""
        return call(model, inputs)

    def loss(self, output: Any, targets: Any) -> Tensor:
        """Return the mean loss of a batch, for the posterior at T = 1 the mean of −log p(target | input)."""
        raise NotImplementedError

    def tally(self, output: Any, targets: Any) -> tuple[Tensor | int, int | Tensor]:
        """Return the sum over a batch of the first score that is shown, and the number of examples it is over."""
        raise NotImplementedError

    def evaluate(
        self, model: nn.Module, samples: Samples | None, batches: Iterable[Any], views: Views = ()
    ) -> Evaluation:
        """Return the scores of the average over samples (of the model itself with None) on batches, outputs averaged over views."""
        raise NotImplementedError


@dataclass(frozen=True)
class Classification(Task):
    """One of C classes: logits (n, C), labels (n,) from 0, in training also a probability for each class (n, C); cross-entropy.

    Logits of one column are those of class 1 beside class 0.

    Args:
        label_smoothing: Share of each label spread over all classes, in training only.

    Example:
        >>> task = Classification()
        >>> round(float(task.loss(torch.zeros(3, 10), torch.tensor([1, 2, 3]))), 4)
        2.3026
    """

    label_smoothing: float = 0.0
    name = "classification"

    def loss(self, output: Any, targets: Any) -> Tensor:
        """Return the cross-entropy."""
        output = two_columns(output)
        return F.cross_entropy(output, labels_for(output, targets), label_smoothing=self.label_smoothing)

    def tally(self, output: Any, targets: Any) -> tuple[Tensor | int, int | Tensor]:
        """Return how many are right."""
        said, right = two_columns(output).argmax(1), targets.argmax(1) if targets.is_floating_point() else targets
        return (said == right).sum(), len(targets)

    def evaluate(
        self, model: nn.Module, samples: Samples | None, batches: Iterable[Any], views: Views = ()
    ) -> Evaluation:
        """Return accuracy, also averaged over classes (balanced), NLL, Brier score, calibration error and the uncertainties."""
        prediction = predict(model, samples, Pairs(self, batches), forward=self.output, views=views)
        assert prediction.labels is not None
        labels, classes = prediction.labels, prediction.probabilities.shape[1]
        scores = classification_metrics(prediction.probabilities, labels)
        counts = torch.bincount(labels, minlength=classes).double()
        recall = torch.bincount(labels[prediction.classes == labels], minlength=classes) / counts
        return Evaluation(
            len(prediction),
            scores | {"balanced_accuracy": float(recall.nanmean())},
            _uncertainty(prediction.total, prediction.aleatoric, prediction.epistemic, prediction.disagreement),
            (prediction.member_classes == labels).double().mean(1).tolist(),
            _rows(reliability_curve(prediction.probabilities, labels, bins=15)),
            classes,
            float(torch.special.entr(counts / counts.sum()).sum()),
            [share if count else None for share, count in zip(recall.tolist(), counts.tolist())],
            prediction,
        )


@dataclass(frozen=True)
class Regression(Task):
    """Numbers with Gaussian noise: means shaped like the targets, or (means, variances); −log of the normal density.

    Args:
        noise_variance: σ² of the noise where the model gives means alone; 1 suits standardised targets badly known.

    Example:
        >>> round(float(Regression(noise_variance=0.5).loss(torch.zeros(2), torch.ones(2))), 4)
        1.5724
    """

    noise_variance: float = 1.0
    name = "regression"
    shown = ("mse", "nll")

    def __post_init__(self) -> None:
        """Refuse a variance that is none."""
        if not self.noise_variance > 0:
            raise ValueError(f"noise_variance={self.noise_variance}: give the variance of the noise, above 0")

    def loss(self, output: Any, targets: Any) -> Tensor:
        """Return ½ log(2πσ²) + (y − mean)²/2σ², averaged."""
        mean, variance = self._moments(output)
        same_shape(mean, targets)
        return F.gaussian_nll_loss(mean, targets.to(mean.dtype), variance, full=True)

    def tally(self, output: Any, targets: Any) -> tuple[Tensor | int, int | Tensor]:
        """Return the sum of squared errors."""
        mean, _ = self._moments(output)
        return (mean.detach() - targets).square().sum(), targets.numel()

    def evaluate(
        self, model: nn.Module, samples: Samples | None, batches: Iterable[Any], views: Views = ()
    ) -> Evaluation:
        """Return MSE, RMSE, NLL, and the share of targets inside the central 90 % interval."""
        prediction = predict(
            model, samples, Pairs(self, batches), task="regression", forward=self.output, keep_members=True,
            noise_variance=self.noise_variance, views=views,
        )  # fmt: skip
        assert prediction.labels is not None and prediction.members is not None
        same_shape(prediction.mean, prediction.labels)
        targets, error = prediction.labels.double(), mse(prediction.mean, prediction.labels)
        inside = (targets - prediction.mean).abs() <= 1.6449 * prediction.variance.sqrt()
        scores = {
            "mse": error, "rmse": math.sqrt(error), "nll": gaussian_nll(prediction.mean, prediction.variance, targets),
            "coverage_90": float(inside.double().mean()),
        }  # fmt: skip
        uncertainty = {
            "aleatoric": float(prediction.aleatoric.mean()), "epistemic": float(prediction.epistemic.mean())
        }  # fmt: skip
        members = [mse(member, prediction.labels) for member in prediction.members]
        return Evaluation(targets.numel(), scores, uncertainty, members, [], prediction=prediction)

    def _moments(self, output: Any) -> tuple[Tensor, Tensor]:
        """Return means and variances of a model's output."""
        if isinstance(output, (tuple, list)):
            mean, variance = output
            return mean, variance.expand_as(mean)
        return output, torch.full_like(output, self.noise_variance)


@dataclass(frozen=True)
class Tokens(Task):
    """A class at every position of a sequence: logits (n, L, V), labels (n, L); cross-entropy over what is not ignored.

    Args:
        next_token: Position i predicts label i + 1, as causal language models are trained: the labels are the inputs' own
            tokens (of a mapping without "labels", its "input_ids" where "attention_mask" is 1). False: position i predicts
            label i.
        label_smoothing: Share of each label spread over all classes, in training only.
        ignore: Label of positions that count for nothing.

    Example:
        >>> logits, labels = torch.zeros(2, 3, 5), torch.tensor([[1, 2, -100], [3, 4, 0]])
        >>> round(float(Tokens().loss(logits, labels)), 4), Tokens(next_token=True).tally(logits, labels)[1].item()
        (1.6094, 3)
    """

    next_token: bool = False
    label_smoothing: float = 0.0
    ignore: int = -100
    name = "tokens"

    def split(self, batch: Any) -> tuple[Any, Any]:
        """Return inputs and labels; the inputs' own tokens are the labels of a causal model that is given none."""
        inputs, labels = split_batch(batch)
        if labels is None and self.next_token:
            tokens = inputs["input_ids"] if isinstance(inputs, Mapping) else inputs
            mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
            labels = tokens if mask is None else tokens.masked_fill(mask == 0, self.ignore)
        return inputs, labels

    def loss(self, output: Any, targets: Any) -> Tensor:
        """Return the cross-entropy over the positions that count."""
        logits, labels = self._flat(output, targets)
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, ignore_index=self.ignore)

    def tally(self, output: Any, targets: Any) -> tuple[Tensor | int, int | Tensor]:
        """Return how many tokens are right."""
        logits, labels = self._flat(output, targets)
        counted = labels != self.ignore
        return ((logits.argmax(1) == labels) & counted).sum(), counted.sum()

    def evaluate(
        self, model: nn.Module, samples: Samples | None, batches: Iterable[Any], views: Views = ()
    ) -> Evaluation:
        """Return accuracy, NLL, perplexity, Brier score and calibration error over tokens, a part of the batches at a time."""
        parts: list[dict[str, Any]] = []
        held: list[Any] = []
        limit = tokens = 0  # of the first batch alone, which tells the number of classes
        for batch in batches:
            held.append(self.split(batch))
            tokens += held[-1][1].numel()
            if tokens >= limit:
                parts.append(self._part(model, samples, held, views))
                held, tokens, limit = [], 0, _CHUNK // int(parts[0]["classes"][0])
        if held:
            parts.append(self._part(model, samples, held, views))
        if not parts:
            raise ValueError("the data to evaluate on hold no batch; give a test set with at least one sequence")
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "hits"}
        hits = sum(part["hits"] for part in parts)
        count = len(found["hit"])
        curve = curve_of(found["confidence"], found["hit"], 15)
        loss = float(-np.log(np.maximum(found["probability"], SMALLEST)).mean())
        scores = {
            "accuracy": float(found["hit"].mean()), "nll": loss, "perplexity": math.exp(min(loss, 700.0)),
            "brier": float((found["squares"] - 2 * found["probability"] + 1).mean()), "ece": curve.ece,
        }  # fmt: skip
        spread = _uncertainty(*(found[name] for name in ("total", "aleatoric", "epistemic", "disagreement")))
        classes = int(parts[0]["classes"][0])
        return Evaluation(count, scores, spread, (hits / count).tolist(), _rows(curve), classes, math.log(classes))

    def _flat(self, output: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (positions, V) and labels (positions,)."""
        if output.ndim < 3 or output.shape[:-1] != labels.shape:
            raise ValueError(
                f"a token model gave {tuple(output.shape)} for labels {tuple(labels.shape)}; logits (n, L, V) and labels (n, L) "
                "are wanted"
            )
        if self.next_token:
            output, labels = output[:, :-1], labels[:, 1:]
        return output.flatten(0, -2), labels.flatten()

    def _part(self, model: nn.Module, samples: Samples | None, pairs: list[Any], views: Views) -> dict[str, Any]:
        """Return what the scores need of each token of some batches."""
        shift = 1 if self.next_token else 0
        labels = torch.cat([label[:, shift:].flatten().cpu() for _, label in pairs])
        counted = labels != self.ignore

        def forward(model: nn.Module, inputs: Any) -> Tensor:
            logits = self.output(model, inputs)
            return logits[:, : logits.shape[1] - shift].flatten(0, -2)

        found = predict(model, samples, [(inputs, None) for inputs, _ in pairs], forward=forward, views=views)
        labels, probabilities = labels[counted], found.probabilities[counted]
        hits = (found.member_classes[:, counted] == labels).sum(1)
        values = {
            "probability": probabilities.gather(1, labels[:, None])[:, 0], "squares": probabilities.square().sum(1),
            "confidence": found.confidence[counted], "hit": found.classes[counted] == labels,
            "classes": torch.tensor([probabilities.shape[1]]),
        }  # fmt: skip
        values |= {name: getattr(found, name)[counted] for name in ("total", "aleatoric", "epistemic", "disagreement")}
        return {name: value.numpy() for name, value in values.items()} | {"hits": hits.numpy()}


_TASKS: dict[str, Callable[..., Task]] = {
    "classification": Classification,
    "regression": Regression,
    "tokens": Tokens,
}


def register_task(name: str, make: Callable[..., Task]) -> None:
    """Let `train(task=NAME)` find a task of your own.

    Args:
        name: Its name.
        make: Returns the task.

    Example:
        >>> register_task("doctest-words", Tokens)
        >>> type(build_task("doctest-words")).__name__
        'Tokens'
    """
    _TASKS[name] = make


def build_task(task: str | Task, label_smoothing: float = 0.0, **settings: Any) -> Task:
    """Return a task by its name with its settings, with the run's label smoothing where it has such."""
    if isinstance(task, str) and task not in _TASKS:
        raise ValueError(f"task={task!r}: {nearest(task, _TASKS)}")
    if not label_smoothing:
        return _TASKS[task](**settings) if isinstance(task, str) else task
    if task not in ("classification", "tokens"):
        named = task if isinstance(task, str) else type(task).__name__
        raise ValueError(
            f"label_smoothing={label_smoothing} changes nothing with task={named}; set it on the task itself, or leave it 0."
        )
    return _TASKS[str(task)](label_smoothing=label_smoothing, **settings)


class Pairs:
    """Batches as the task splits them, readable again and again."""

    def __init__(self, task: Task, batches: Iterable[Any]) -> None:
        self.task, self.batches = task, batches

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield self.task.split(batch)


def _uncertainty(total: Any, aleatoric: Any, epistemic: Any, disagreement: Any) -> dict[str, float]:
    """Return the means, by the names of result.json."""
    return {
        "disagreement": float(disagreement.mean()), "total_entropy": float(total.mean()),
        "aleatoric": float(aleatoric.mean()), "epistemic": float(epistemic.mean()),
    }  # fmt: skip


def _rows(curve: ReliabilityCurve) -> list[dict[str, float]]:
    """Return a reliability curve as rows."""
    names = ("lower", "upper", "count", "confidence", "accuracy")
    return [dict(zip(names, map(float, row))) for row in zip(*(getattr(curve, name) for name in names))]
