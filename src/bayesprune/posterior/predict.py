from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from bayesprune.common.modes import device_of, preserved
from bayesprune.common.tensors import all_finite
from bayesprune.posterior.mixture import ClassMixture, MomentMixture, Prediction, RegressionPrediction, begin
from bayesprune.posterior.samples import Samples


@contextmanager
def use_sample(model: nn.Module, samples: Samples, index: int) -> Iterator[nn.Module]:
    """Let the model be one posterior sample, in evaluation mode, inside the ``with`` block.

    Args:
        model: a model of the architecture that was collected.
        samples: a `SampleStore` or `MemorySamples`.
        index: which sample; negative counts from the end.

    Raises:
        ValueError: if the architecture differs.
        IndexError: if there is no such sample.

    Example:
        >>> from bayesprune.posterior import MemorySamples
        >>> model, samples = nn.Linear(2, 1), MemorySamples()
        >>> _ = samples.collect(model)
        >>> _ = nn.init.zeros_(model.weight)
        >>> with use_sample(model, samples, 0) as member:
        ...     print(member.weight.abs().sum().item() > 0, member.training)
        True False
        >>> model.weight.abs().sum().item(), model.training
        (0.0, True)
    """
    with preserved(model):
        samples.load_(index, model)
        torch.clear_autocast_cache()  # see predict
        yield model.eval()


@overload
def predict(
    model: nn.Module,
    samples: Samples | None,
    inputs: Tensor | Iterable[Any],
    *,
    batch_size: int = ...,
    device: torch.device | str | None = ...,
    task: Literal["classification"] = ...,
    indices: Sequence[int] | None = ...,
    keep_members: bool = ...,
    forward: Callable[[nn.Module, Any], Any] | None = ...,
    views: Sequence[Callable[[Tensor], Tensor]] = ...,
) -> Prediction: ...


@overload
def predict(
    model: nn.Module,
    samples: Samples | None,
    inputs: Tensor | Iterable[Any],
    *,
    batch_size: int = ...,
    device: torch.device | str | None = ...,
    task: Literal["regression"],
    indices: Sequence[int] | None = ...,
    keep_members: bool = ...,
    forward: Callable[[nn.Module, Any], Any] | None = ...,
    noise_variance: float | Sequence[float] = ...,
    views: Sequence[Callable[[Tensor], Tensor]] = ...,
) -> RegressionPrediction: ...


def predict(
    model: nn.Module,
    samples: Samples | None,
    inputs: Tensor | Iterable[Any],
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    task: Literal["classification", "regression"] = "classification",
    indices: Sequence[int] | None = None,
    keep_members: bool = False,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    noise_variance: float | Sequence[float] = 0.0,
    views: Sequence[Callable[[Tensor], Tensor]] = (),
) -> Prediction | RegressionPrediction:
    r"""Average the members' predictions, holding one member in memory at a time.

    Classification, with S = the number of members and p_s = softmax(model_s(x)) (an output of one column is a logit of
    class 1, and gives two columns):

        p(y | x) = (1/S) Σ_s p_s(y | x),   total = H[p],   aleatoric = (1/S) Σ_s H[p_s],   epistemic = total - aleatoric

    Regression, with mean m_s(x) and noise variance v_s(x) (law of total variance):

        mean = (1/S) Σ_s m_s,    aleatoric = (1/S) Σ_s v_s,    epistemic = (1/S) Σ_s (m_s - mean)²

    Args:
        model: a model of the architecture that was collected. It comes back with its own weights and train mode.
        samples: the members; None takes the model's present weights as the only one.
        inputs: a tensor of inputs, a mapping of tensors by name, or an iterable of batches: a tensor, a tuple or list of inputs and
            labels (of inputs alone), or a mapping of tensors. These are passed by name, "labels" or "label" left out. Inputs may
            be tuples, lists or mappings of tensors. It is read once per member and must give the same batches in the same order
            each time; this is checked.
        batch_size: inputs a forward pass, when ``inputs`` is a tensor or a mapping.
        device: where to compute; default: where the model is. The model returns to its own device.
        task: what the model's output is: logits (n, C), or means (or a pair of means and variances).
        indices: which samples to use, default all.
        keep_members: also return every member's probabilities (or means): S times the memory of the result.
        forward: (model, inputs of a batch) → output; default: the model's own call, of its output the ``logits`` where it has
            such an attribute or key.
        noise_variance: for regression, the variance of the noise when the model gives means only; one number, or one
            for each member used.
        views: functions of a batch of inputs, such as `vision.views("mirror")`; a member's outputs are averaged over them
            (test-time augmentation). None given: the inputs as they are.

    Returns:
        A `Prediction` or a `RegressionPrediction`, on the CPU in float64.

    Raises:
        ValueError: if there are no members or no inputs, the architecture differs, a batch has three parts or more, the
            batches differ between members, the output has the wrong shape, or a member's output is not finite (the message says which).

    Example:
        >>> from bayesprune.posterior import MemorySamples
        >>> model, samples = nn.Linear(3, 2), MemorySamples()
        >>> for step in range(4):
        ...     nn.init.normal_(model.weight)
        ...     samples.collect(model, step=step)  # doctest: +ELLIPSIS
        Parameter...
        >>> prediction = predict(model, samples, torch.randn(5, 3))
        >>> prediction.probabilities.shape, bool((prediction.epistemic >= 0).all())
        (torch.Size([5, 2]), True)

    Reference:
        Depeweg et al. (2018), "Decomposition of uncertainty in Bayesian deep learning and reinforcement learning", for
        both splits.
    """
    chosen = _choose(samples, indices)
    mixture, variances = begin(task, batch_size, noise_variance, len(chosen), keep_members)
    if len(chosen) > 1 and isinstance(inputs, Iterator):
        raise ValueError("inputs: an iterator can be read only once; pass a tensor, a list of batches or a DataLoader")
    home = device_of(model)
    target = torch.device(device) if device is not None else home
    reader = _Reader(inputs, batch_size, target)
    with preserved(model), torch.no_grad(), _moved(model, target, home):
        for index, variance in zip(chosen, variances):
            if samples is not None and index is not None:
                samples.load_(index, model)
                torch.clear_autocast_cache()  # under autocast it would still hold the weights of the member before
            model.eval()
            name = "the model" if index is None else f"sample {index}"
            mixture.add(reader.run(partial(_outputs, forward or call, model, mixture, variance, views), name))
    return mixture.result(reader.labels)


def _choose(samples: Samples | None, indices: Sequence[int] | None) -> Sequence[int | None]:
    if samples is None:
        if indices is not None:
            raise ValueError(f"indices={indices!r}: there are no samples to choose from; pass samples, or leave it out")
        return [None]
    chosen = list(range(len(samples)) if indices is None else indices)
    if not chosen:
        raise ValueError(f"samples={samples!r} indices={indices!r}: no members; collect some, or pass samples=None")
    for index in chosen:
        if not -len(samples) <= index < len(samples):
            raise ValueError(f"indices: {index} is out of range, there are {len(samples)} samples")
    return chosen


def call(model: nn.Module, inputs: Any) -> Any:
    """A model's output for a batch: called by name with a mapping; its ``logits`` where it has such an attribute or key."""
    return answer(model(**inputs) if isinstance(inputs, Mapping) else model(inputs))


def answer(output: Any) -> Any:
    """What a model says: its output, or the ``logits`` of it where there are such."""
    return output.get("logits", output) if isinstance(output, Mapping) else getattr(output, "logits", output)


def _outputs(
    forward: Callable[[nn.Module, Any], Any],
    model: nn.Module,
    mixture: ClassMixture | MomentMixture,
    variance: float,
    views: Sequence[Callable[[Tensor], Tensor]],
    batch: Any,
) -> tuple[Tensor, ...]:
    """Return a member's outputs of a batch, averaged over the views."""
    if not views:
        return mixture.outputs(forward(model, batch), variance)
    found = [forward(model, view(batch)) for view in views]
    pairs = isinstance(found[0], (tuple, list))
    mean: Any = tuple(sum(part) / len(views) for part in zip(*found)) if pairs else sum(found) / len(views)
    return mixture.outputs(mean, variance)


def in_batches(inputs: Tensor | Mapping[str, Any] | Iterable[Any], batch_size: int) -> Iterable[Any]:
    """A tensor, or tensors by name, cut into batches; what a loader gives as it is."""
    if isinstance(inputs, Tensor):
        return inputs.split(batch_size)
    if not isinstance(inputs, Mapping):
        return inputs
    starts = range(0, len(next(iter(inputs.values()), ())), batch_size)
    return [{name: value[start : start + batch_size] for name, value in inputs.items()} for start in starts]


def split_batch(batch: Any) -> tuple[Any, Any]:
    """A batch's inputs and its labels (None where it has none): a tensor, a pair, or a mapping with "labels" or "label"."""
    if isinstance(batch, Mapping):
        labels = next((name for name in ("labels", "label") if name in batch), None)
        return {name: value for name, value in batch.items() if name != labels}, batch.get(labels)
    if isinstance(batch, (tuple, list)):
        if not 1 <= len(batch) <= 2:
            raise ValueError(
                f"inputs: a batch of {len(batch)} parts, of which it is not known what is an input and what a label; give "
                "(inputs, labels), where inputs may be a tuple, or a mapping of names to tensors (in training a Task's `split` "
                "can choose)"
            )
        return batch[0], batch[1] if len(batch) == 2 else None
    return batch, None


def tensors_of(inputs: Any) -> list[Tensor]:
    """All tensors of a batch's inputs: a tensor, or tuples, lists and mappings of such."""
    if isinstance(inputs, Tensor):
        return [inputs]
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, (tuple, list)) else None
    if parts is None:
        raise ValueError(
            f"inputs: a batch holds a {type(inputs).__name__}; expected a tensor, (inputs, labels), or a mapping of tensors"
        )
    return [tensor for part in parts for tensor in tensors_of(part)]


def moved(inputs: Any, device: torch.device) -> Any:
    """A batch's inputs on a device, built as they were."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {name: moved(part, device) for name, part in inputs.items()}
    return [moved(part, device) for part in inputs]


def marks(tensor: Tensor) -> Tensor:
    """One number for each row of a tensor, which another row, or the same in another order, does not give."""
    flat = tensor.reshape(len(tensor), -1)
    places = torch.arange(1, flat.shape[1] + 1, dtype=torch.float64)
    weights = 0.5 + (places * 0.6180339887498949).remainder(1.0)  # all above 0, no two alike
    return (flat.to(torch.float32) @ weights.to(flat.device, torch.float32)).cpu()


@contextmanager
def _moved(model: nn.Module, target: torch.device, home: torch.device) -> Iterator[None]:
    try:
        if target != home:
            model.to(target)
        yield
    finally:
        if target != home:
            model.to(home)


class _Reader:
    """Runs a function over the batches and checks that every pass sees the same ones."""

    def __init__(self, inputs: Tensor | Iterable[Any], batch_size: int, device: torch.device) -> None:
        self.inputs, self.batch_size, self.device = inputs, batch_size, device
        self.labels: Tensor | None = None
        self.seen: Tensor | None = None

    def run(self, function: Callable[[Any], tuple[Tensor, ...]], name: str) -> tuple[Tensor, ...]:
        """The function's outputs over all batches, each concatenated and on the CPU."""
        outputs: list[list[Tensor]] = []
        labels: list[Tensor] = []
        seen: list[Tensor] = []
        for batch in in_batches(self.inputs, self.batch_size):
            inputs, target = split_batch(batch)
            tensors = tensors_of(inputs)
            if not tensors:
                raise ValueError(
                    "inputs: a batch holds no tensor; expected a tensor, (inputs, labels), or a mapping of tensors"
                )
            if not len(tensors[0]):
                continue
            known = [*tensors, target] if isinstance(target, Tensor) and target.ndim else tensors
            seen.extend(
                marks(tensor) for tensor in known
            )  # they tell a reshuffled or augmented pass from the first one
            output = function(moved(inputs, self.device))
            if any(part.isnan().any() for part in output):
                if not all(map(all_finite, tensors)):
                    raise ValueError(
                        "inputs: a batch holds NaN or infinity, and so do the outputs; repair or leave out its examples"
                    )
                raise ValueError(f"samples: {name} gives outputs that are not finite; leave it out with indices=")
            outputs.append([part.cpu() for part in output])
            if isinstance(target, Tensor):
                labels.append(target.cpu())
        if not outputs:
            raise ValueError("inputs: no input to predict for")
        order = torch.cat(seen)
        if self.seen is None:
            self.seen = order
            self.labels = torch.cat(labels) if labels else None
        elif order.shape != self.seen.shape or not torch.allclose(order, self.seen, rtol=1e-4, equal_nan=True):
            raise ValueError(
                "inputs: the batches changed from one member to the next; switch off shuffling, random "
                "augmentation and drop_last, or pass a tensor"
            )
        return tuple(torch.cat(parts) for parts in zip(*outputs))
