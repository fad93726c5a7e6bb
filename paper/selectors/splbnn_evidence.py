"""How SPLBNN ranks its starts: the Laplace approximation of the evidence, and BIC."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paper.selectors.likelihood import negative_log_likelihood
from paper.selectors.network import BatchedNetwork
from paper.selectors.splbnn_prior import MixturePrior

LARGEST_HESSIAN = 1000


def log_evidence(
    network: BatchedNetwork,
    keep: Tensor,
    X: Tensor,
    y: Tensor,
    prior: MixturePrior,
    task: str,
    noise_variance: float = 1.0,
) -> Tensor:
    """Return each sparse network's log evidence in the Laplace approximation.

    −n·h(w) + (d/2)·log(2π/n) − ½·log|∇²h(w)| with n·h = −log likelihood − log π, over the d connections that are kept;
    |·| is the product of the eigenvalues' absolute values, as the network may rest a little off its mode. Networks of
    more than 1000 connections are far from sparse: their determinant is taken as 1 rather than computed.

    Args:
        network: K networks.
        keep: mask over `network.flat`, True = kept.
        X: rows (n, p).
        y: responses (n,).
        prior: π.
        task: the likelihood, see `negative_log_likelihood`.
        noise_variance: σ² of a Gaussian likelihood.

    Returns:
        float64 tensor (K,), −inf where a network is not finite.

    Example:
        >>> network = BatchedNetwork(1, (1, 1), dtype=torch.float64)
        >>> network.flat.fill_(0.1)
        tensor([0.1000, 0.1000], dtype=torch.float64)
        >>> X = torch.ones(4, 1, dtype=torch.float64)
        >>> log_evidence(network, network.flat > 0, X, X[:, 0], MixturePrior(), "gaussian").shape
        torch.Size([1])

    Reference:
        Sun, Song and Liang 2021, section 3.3 (Bayesian evidence).
    """
    X, n = X.double(), len(X)
    y = y if task == "softmax" else y.double()
    out = []
    for flat, kept in zip(_rows(network, network.flat), _rows(network, keep)):
        if not torch.isfinite(flat).all():
            out.append(-math.inf)
            continue
        single = BatchedNetwork(1, network.sizes, activation=network.activation, dtype=torch.float64)
        w = flat[kept].double().requires_grad_(True)
        full = torch.zeros(len(kept), dtype=torch.float64).masked_scatter(kept, w)
        f = _outputs(single, full, X)
        loss = negative_log_likelihood(f, y, task, noise_variance)[0]
        d = len(w)
        value = -n * loss.item() + prior.log_density(w).sum().item() + 0.5 * d * math.log(2 * math.pi / n)
        # Paper: it takes no account of networks too large for a Hessian; here they are ranked without a determinant.
        if 0 < d <= LARGEST_HESSIAN and math.isfinite(value):
            # The prior's part in closed form: twice differentiating its logarithm by autograd gives NaN in the tails.
            hessian = _hessian(loss, w) + torch.diag(prior.curvature(w.detach()) / n)
            eigenvalues = torch.linalg.eigvalsh(hessian).abs()
            value -= 0.5 * float(eigenvalues.clamp_min(torch.finfo(torch.float64).tiny).log().sum())
        out.append(value if math.isfinite(value) else -math.inf)
    return torch.tensor(out, dtype=torch.float64)


def bic(network: BatchedNetwork, keep: Tensor, X: Tensor, y: Tensor, task: str, noise_variance: float = 1.0) -> Tensor:
    """Return each sparse network's Bayesian information criterion, 2·n·(mean negative log-likelihood) + d·log n.

    Args:
        network: K networks.
        keep: mask over `network.flat`, True = kept.
        X: rows (n, p).
        y: responses (n,).
        task: the likelihood, see `negative_log_likelihood`.
        noise_variance: σ² of a Gaussian likelihood.

    Returns:
        float64 tensor (K,), inf where a network is not finite.

    Example:
        >>> network = BatchedNetwork(1, (1, 1))
        >>> bic(network, network.flat == 0, torch.zeros(4, 1), torch.zeros(4), "binary")
        tensor([8.3178], dtype=torch.float64)

    Reference:
        Sun, Song and Liang 2021, section 3.3.
    """
    loss = negative_log_likelihood(network.predict(X).double(), y, task, noise_variance)
    d = torch.stack([row.sum() for row in _rows(network, keep)]).double()
    return (2 * len(X) * loss + d * math.log(len(X))).nan_to_num(math.inf, math.inf)


def _rows(network: BatchedNetwork, flat: Tensor) -> list[Tensor]:
    """Cut a buffer over all networks into one flat buffer for each."""
    weights, biases = network.views(flat)
    parts = [part for pair in zip(weights, biases) for part in pair]
    return [torch.cat([part[k].reshape(-1) for part in parts]) for k in range(network.networks)]


def _outputs(shape: BatchedNetwork, flat: Tensor, X: Tensor) -> Tensor:
    """Run the network by autograd, which differentiates it twice."""
    weights, biases = shape.views(flat)
    z = X.T.unsqueeze(0)
    for layer, (weight, bias) in enumerate(zip(weights, biases)):
        z = weight @ z + bias
        if layer < len(weights) - 1:
            z = torch.relu(z) if shape.activation == "relu" else torch.tanh(z)
    return z


def _hessian(value: Tensor, w: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, w, create_graph=True)
    rows = [torch.autograd.grad(g, w, retain_graph=True, materialize_grads=True)[0] for g in gradient]
    return torch.stack(rows)
