"""Members that leave out some rows each, and the noise's level by the rows that are new to them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bayesprune.tabular.student import DEGREES, log_density


def learning_weights(members: int, count: int, unseen: int) -> Tensor:
    """Return (M, n) 1 where a member learns from a row, 0 in the `unseen` of M interleaved blocks that it leaves out.

    Two members to which a row is new have learnt from different rows, so that their difference shows all that averaging saves.
    """
    behind = (torch.arange(count) - torch.arange(members)[:, None]) % members
    return (behind >= unseen).float()


def at_new_rows(outputs: Tensor, members: int, unseen: int) -> Tensor:
    """Return (S, J, n, k): of (S·M, n, k) outputs at the training rows those of the J members to which a row is new.

    Example:
        >>> at_new_rows(torch.arange(3.0)[:, None, None].expand(3, 4, 1), 3, 1).flatten().tolist()
        [0.0, 1.0, 2.0, 0.0]
    """
    new = (torch.arange(outputs.shape[1]) - torch.arange(unseen)[:, None]) % members
    return torch.take_along_dim(outputs.unflatten(0, (-1, members)), new[None, :, :, None], 1)


@dataclass(frozen=True)
class Noise:
    """The noise's law: Student's t with `dof` degrees of freedom (None: normal) and scale² `factor`·v.

    Args:
        factor: f.
        dof: ν.
        density: the rows' mean log density.
    """

    factor: float
    dof: int | None
    density: float


def noise_level(means: Tensor, variances: Tensor, y: Tensor, weight: Tensor, members: int) -> Noise:
    """Return the law of the noise that suits the predictions of all members, by rows that are new to some of them.

    A row is new to J members of M. With V their variance about each other the mean of J errs by V·(1/J − 1/M) more than
    the mean of M will. So √k·(y − mean), k the share of the squared error that is left, is taken for t_ν of the scale²
    f·v + s with v the variance that the members name, s their spread, (1 − 1/M)·V and what a member's own samples spread;
    f and ν are the most likely.

    Args:
        means: (S, J, n) S samples of each of J members.
        variances: (S, J, n) as the members name them, or ones.
        y: (n,).
        weight: (n,) of the rows.
        members: M.

    Example:
        >>> y, none = torch.tensor([2.0, -2.0]), torch.zeros(3, 2, 2)
        >>> noise = noise_level(none, none + 1, y, torch.ones(2), 10)
        >>> abs(noise.factor - 4.0) < 0.05, noise.dof
        (True, None)
    """
    unseen = means.shape[1]
    own, error = means.mean(0).double(), (y - means.mean((0, 1))).double().square()
    named, spread = variances.mean((0, 1)).double().numpy(), means.var(0, unbiased=False).mean(0).double()
    share = (weight / weight.sum()).double().numpy()
    if unseen > 1:
        between = own.var(0)
        saved = float((between.numpy() / named) @ share / ((error.numpy() / named) @ share)) * (
            1 / unseen - 1 / members
        )
        error, spread = error * max(0.25, 1 - saved), spread + between * (1 - 1 / members)
    square, own_spread = error.numpy(), spread.numpy()

    def density(log_factor: float, dof: int | None) -> float:
        scale = named * math.exp(log_factor) + own_spread
        return float((log_density(square / scale, dof) - 0.5 * np.log(scale)) @ share)

    found = []
    for dof in DEGREES:
        low, high = math.log(1e-8), math.log(1e4)
        for _ in range(4):  # ever finer grids: there may be more than one top
            grid = np.linspace(low, high, 25)
            at, gap = float(grid[int(np.argmax([density(place, dof) for place in grid]))]), grid[1] - grid[0]
            low, high = at - gap, at + gap
        found.append(Noise(math.exp(at), dof, density(at, dof)))
    return max(found, key=lambda noise: noise.density)
