"""What a batch must be: targets beside a model's outputs, and finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from bayesprune.common.tensors import all_finite


def two_columns(logits: Tensor) -> Tensor:
    """Return the logits of classes 0 and 1 where there is one column, which is class 1's; else the logits."""
    return F.pad(logits, (1, 0)) if logits.ndim == 2 and logits.shape[1] == 1 else logits


def labels_for(logits: Tensor, targets: Tensor) -> Tensor:
    """Return labels as torch's cross-entropy takes them; refuse those of another shape, and on a CPU those out of range."""
    soft = targets.is_floating_point() and targets.shape == logits.shape
    if logits.ndim == 2 and not soft:
        wrong = targets.is_floating_point() or targets.shape != logits.shape[:1]
        if not wrong and targets.device.type == "cpu":
            wrong = bool((targets.ne(-100) & ((targets < 0) | (targets >= logits.shape[1]))).any())
        if wrong:
            raise ValueError(
                f"labels from {targets.min():g} to {targets.max():g} of shape {tuple(targets.shape)} and type {targets.dtype} for "
                f"logits {tuple(logits.shape)}; give class numbers of shape (n,), whole numbers from 0, each with an output of the "
                "model (squeeze a column, argmax one-hot rows), or task='regression' for numbers"
            )
    return targets if soft else targets.long()


def same_shape(mean: Tensor, targets: Tensor) -> None:
    """Refuse means of another shape than the targets."""
    if mean.shape != targets.shape:
        raise ValueError(
            f"the model gives {tuple(mean.shape)} for targets {tuple(targets.shape)}, which would broadcast; give both the same "
            "shape (squeeze the output, or unsqueeze the targets)."
        )


def finite_batch(*parts: Any) -> bool:
    """Return whether no tensor of a batch's parts, or of the tuples and mappings among them, holds NaN or infinity."""
    for part in parts:
        held = part.values() if isinstance(part, Mapping) else part if isinstance(part, (tuple, list)) else ()
        if not finite_batch(*held) or (isinstance(part, Tensor) and not all_finite(part)):
            return False
    return True
