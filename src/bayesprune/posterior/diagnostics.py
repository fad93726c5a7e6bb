from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def split_rhat(chains: Any) -> Tensor:
    r"""Split R-hat: how much wider the pooled draws are than the draws of one half-chain.

    With each of the chains cut in two, n draws a half, W the mean of the halves' variances and B/n the variance of
    their means:  R-hat = √( ((n-1)/n·W + B/n) / W ). It is 1 in the limit if all halves have one mean and one variance.

    Args:
        chains: (chains, draws, ...) numbers; every further axis is another quantity.

    Returns:
        A tensor over the further axes (float64). NaN if all draws are equal, infinite if the halves are
        constant and differ.

    Raises:
        ValueError: if there are fewer than 4 draws, or a value is not finite.

    Example:
        >>> draws = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
        >>> round(split_rhat(draws).item(), 2)
        1.0

    Reference:
        Gelman et al. (2013), "Bayesian Data Analysis", 3rd edition, section 11.4.
    """
    return _rhat(_split(_chains(chains)))


def rank_rhat(chains: Any) -> Tensor:
    """Rank-normalised R-hat: the larger of split R-hat of the normal scores and of the folded draws' normal scores.

    The first sees chains of different place even if the law has no variance, the second chains of different spread.

    Args:
        chains: (chains, draws, ...) numbers.

    Returns:
        A tensor over the further axes; above 1.01 means the chains have not mixed.

    Raises:
        ValueError: as `split_rhat`.

    Example:
        >>> draws = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
        >>> draws[0] *= 3
        >>> split_rhat(draws).item() < 1.01, rank_rhat(draws).item() > 1.05
        (True, True)

    Reference:
        Vehtari et al. (2021), "Rank-normalization, folding, and localization: an improved R-hat", section 4.
    """
    split = _split(_chains(chains))
    median = split.flatten(0, 1).quantile(0.5, dim=0)
    return torch.maximum(_rhat(_normal_scores(split)), _rhat(_normal_scores((split - median).abs())))


def ess(chains: Any) -> Tensor:
    r"""Effective sample size of the mean: the number of independent draws whose mean is as precise.

    With S draws in all and ρ_t the autocorrelation pooled over the half-chains,  ESS = S / (1 + 2 Σ_{t≥1} ρ_t),  where
    the sum stops by Geyer's rule: pairs ρ_{2k} + ρ_{2k+1} are kept while positive, and made non-increasing.

    Args:
        chains: (chains, draws, ...) numbers.

    Returns:
        A tensor over the further axes; at most S·log10(S). NaN where all draws are equal.

    Raises:
        ValueError: as `split_rhat`.

    Example:
        >>> draws = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
        >>> 3000 < ess(draws).item() < 5000
        True

    Reference:
        Vehtari et al. (2021), section 3.2; Geyer (1992), "Practical Markov chain Monte Carlo", section 3.3.
    """
    return _ess(_split(_chains(chains)))


def bulk_ess(chains: Any) -> Tensor:
    """Effective sample size of the rank-normalised draws: that of the bulk of the law, whatever its tails.

    Args:
        chains: (chains, draws, ...) numbers.

    Returns:
        A tensor over the further axes; at least 100 a chain is the usual demand.

    Raises:
        ValueError: as `split_rhat`.

    Example:
        >>> draws = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
        >>> bool(torch.isclose(bulk_ess(draws), bulk_ess(draws.exp())))
        True

    Reference:
        Vehtari et al. (2021), section 4.
    """
    return _ess(_normal_scores(_split(_chains(chains))))


def loss_spikes(losses: Sequence[float], *, window: int = 16, factor: float = 3.0) -> list[int]:
    """Return the places in `losses` where a training loss leaps, or is not finite.

    Loss i is a spike where it exceeds `factor` times the median m of the last `window` losses that were none, and
    m + 10·(median absolute deviation from m).

    Args:
        losses: losses of steps or epochs, in order.
        window: how many to compare with; the first three are not judged.
        factor: how many times the median.

    Returns:
        Places in `losses`.

    Example:
        >>> loss_spikes([1.0, 0.9, 0.8, 0.8, 7.0, 0.7, float("nan")])
        [4, 6]
    """
    found: list[int] = []
    calm: list[float] = []
    for place, loss in enumerate(losses):
        recent = sorted(calm[-window:])
        leaps = not math.isfinite(loss)
        if not leaps and len(recent) >= 3:
            median = recent[len(recent) // 2]
            deviation = sorted(abs(each - median) for each in recent)[len(recent) // 2]
            leaps = loss > factor * abs(median) and loss > median + 10 * deviation
        (found.append(place) if leaps else calm.append(loss))
    return found


def _chains(chains: Any) -> Tensor:
    draws = torch.as_tensor(chains).detach().cpu().double()
    if draws.ndim < 2 or draws.shape[0] < 1 or draws.shape[1] < 4:
        raise ValueError(f"chains: shape {tuple(draws.shape)}; give (chains, draws, ...) with at least 4 draws")
    if not draws.isfinite().all():
        raise ValueError("chains: a value is NaN or infinite; leave the diverged chain out")
    return draws


def _split(draws: Tensor) -> Tensor:
    """Each chain as two; the middle draw of an odd chain is left out."""
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]])


def _variances(split: Tensor) -> tuple[Tensor, Tensor]:
    """The mean variance within the chains, and the estimate of the variance of the law."""
    n = split.shape[1]
    within = split.var(dim=1).mean(dim=0)
    return within, (n - 1) / n * within + split.mean(dim=1).var(dim=0)


def _rhat(split: Tensor) -> Tensor:
    within, pooled = _variances(split)
    return (pooled / within).sqrt()


def _normal_scores(split: Tensor) -> Tensor:
    """Φ⁻¹((r - 3/8)/(S + 1/4)) of the ranks r among all S draws; equal draws share their mean rank."""
    flat = split.flatten(0, 1)
    count = flat.shape[0]
    columns = flat.reshape(count, -1)
    ranks = torch.empty_like(columns)
    for column in range(columns.shape[1]):
        _, place, counts = columns[:, column].unique(return_inverse=True, return_counts=True)
        ranks[:, column] = (counts.cumsum(0) - (counts - 1) / 2)[place]
    return torch.special.ndtri((ranks - 0.375) / (count + 0.25)).reshape(split.shape)


def _ess(split: Tensor) -> Tensor:
    m, n = split.shape[:2]
    within, pooled = _variances(split)
    centred = split - split.mean(dim=1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * n, dim=1)  # padded to twice the length: no wrap-around
    autocovariance = torch.fft.irfft(spectrum.abs() ** 2, n=2 * n, dim=1)[:, :n].mean(dim=0) / n
    correlation = 1 - (within - autocovariance * n / (n - 1)) / pooled
    correlation[0] = 1.0
    pairs = correlation[: n // 2 * 2].reshape(n // 2, 2, *correlation.shape[1:]).sum(dim=1)
    kept = (pairs > 0).cumprod(dim=0)
    decreasing = pairs.cummin(dim=0).values * kept
    # What the first dropped pair begins with still counts if positive: it lessens the bias for antithetic chains.
    dropped = kept.sum(dim=0).clamp(max=n // 2 - 1)
    rest = correlation.gather(0, (2 * dropped).unsqueeze(0)).squeeze(0).clamp(min=0) * (kept[-1] == 0)
    time = -1 + 2 * decreasing.sum(dim=0) + rest
    size = m * n
    return torch.where(within > 0, size / time.clamp(min=1 / math.log10(size)), torch.nan)
