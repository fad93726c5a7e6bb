"""Likelihoods of the variable-selection baselines: their mean negative log and its gradient, for K networks at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

TASKS = ("gaussian", "binary", "softmax")


def negative_log_likelihood(outputs: Tensor, y: Tensor, task: str, noise_variance: float = 1.0) -> Tensor:
    """Return the mean negative log-likelihood of each network.

    "gaussian": (y − f)²/(2σ²) + ½·log(2πσ²); "binary": log(1 + e^f) − y·f; "softmax": logsumexp(f) − f_y.

    Args:
        outputs: f, of shape (K, outputs, rows).
        y: responses (rows,); class numbers for "softmax", 0 and 1 for "binary".
        task: "gaussian", "binary" or "softmax".
        noise_variance: σ², for "gaussian".

    Returns:
        Tensor (K,).

    Example:
        >>> negative_log_likelihood(torch.zeros(1, 1, 2), torch.tensor([1.0, 0.0]), "binary")
        tensor([0.6931])
    """
    if task == "gaussian":
        square = (outputs[:, 0] - y).square().mean(1)
        return square / (2 * noise_variance) + 0.5 * math.log(2 * math.pi * noise_variance)
    if task == "binary":
        return (F.softplus(outputs[:, 0]) - outputs[:, 0] * y).mean(1)
    return F.cross_entropy(outputs, y.expand(len(outputs), -1), reduction="none").mean(1)


def output_gradient_(outputs: Tensor, y: Tensor, task: str, noise_variance: float = 1.0) -> Tensor:
    """Overwrite outputs f with ∂/∂f of each row's negative log-likelihood (a sum over rows, not a mean).

    "gaussian": (f − y)/σ²; "binary": sigmoid(f) − y; "softmax": softmax(f) − [class = y].

    Args:
        outputs: f, of shape (K, outputs, rows).
        y: responses (rows,).
        task: "gaussian", "binary" or "softmax".
        noise_variance: σ², for "gaussian".

    Returns:
        The same tensor.

    Example:
        >>> output_gradient_(torch.zeros(1, 1, 2), torch.tensor([1.0, 0.0]), "binary")
        tensor([[[-0.5000,  0.5000]]])
    """
    if task == "gaussian":
        outputs.sub_(y)
        return outputs if noise_variance == 1.0 else outputs.div_(noise_variance)
    if task == "binary":
        return outputs.sigmoid_().sub_(y)
    outputs.copy_(outputs.softmax(1))
    index = y.expand(len(outputs), 1, -1)
    return outputs.scatter_add_(1, index, torch.full_like(index, -1, dtype=outputs.dtype))
