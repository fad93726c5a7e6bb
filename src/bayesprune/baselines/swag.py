"""SWAG (Maddox et al., 2019): a Gaussian fitted to the late iterates of SGD, diagonal plus low rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bayesprune.common.modes import device_of, evaluating
from bayesprune.posterior import Samples, preserved
from bayesprune.posterior.architecture import Layout, TensorSpec, check_layout, model_tensors
from bayesprune.posterior.predict import call, moved, split_batch


class SWAG:
    r"""Collects the iterates of SGD and samples weights from the Gaussian that fits them.

    After n calls of `collect` with weights w₁ … w_n, K = `rank`:

        θ̄_n = (1/n) Σ wᵢ,    m_n = (1/n) Σ wᵢ²,    Σ_diag = m_n − θ̄_n²,    D̂ = [w_i − θ̄_i] for the last K of i ≤ n

        w ~ N(θ̄, scale·(Σ_diag/2 + D̂D̂ᵀ/(2(K−1))))  by  θ̄ + √scale·(Σ_diag^{1/2} z₁/√2 + D̂ z₂/√(2(K−1)))

    and with `rank` = 0 SWAG-Diagonal, w ~ N(θ̄, scale·Σ_diag). θ̄_i in D̂ is the mean at the time of column i. The
    published way to run it: SGD at a constant, high step size after 75–80 % of the training, `collect` once an epoch,
    30 samples, each with its normalisation statistics re-estimated (`refresh_batch_norm_`, which `draw` does).

    Args:
        rank: K, the columns kept; 20 is the paper's, 0 is SWAG-Diagonal.

    Raises:
        ValueError: `rank` is 1 or negative: the factor 1/(K−1) needs two columns.

    Example:
        >>> model, swag = nn.Linear(2, 1, bias=False), SWAG(rank=2)
        >>> for value in (1.0, 3.0):
        ...     _ = nn.init.constant_(model.weight, value)
        ...     swag.collect(model)
        >>> swag.mean["weight"], swag.variance["weight"]
        (tensor([[2., 2.]]), tensor([[1., 1.]]))
        >>> sorted(swag.sample(torch.Generator().manual_seed(0)))
        ['weight']

    Reference:
        Maddox, Garipov, Izmailov, Vetrov & Wilson, "A simple baseline for Bayesian uncertainty in deep learning",
        NeurIPS 2019, section 3 and Algorithm 1.
    """

    def __init__(self, rank: int = 20) -> None:
        if rank < 0 or rank == 1:
            raise ValueError(f"rank={rank} must be 0 (diagonal only) or at least 2: the factor 1/(rank − 1) needs it.")
        self.rank, self.count = int(rank), 0
        self.mean: dict[str, Tensor] = {}
        self.variance: dict[str, Tensor] = {}
        self.deviations: list[dict[str, Tensor]] = []
        self._buffers: dict[str, Tensor] = {}
        self._layout: Layout = {}

    @property
    def second_moment(self) -> dict[str, Tensor]:
        """m_n, the running mean of the squared weights."""
        return {name: self.variance[name] + self.mean[name].square() for name in self.mean}

    @torch.no_grad()
    def collect(self, model: nn.Module) -> None:
        """Take in the model's present weights; its buffers are kept as those of the next samples.

        Raises:
            ValueError: The architecture differs from that of the earlier calls.
        """
        tensors, layout = model_tensors(model)
        if self._layout:
            check_layout(self._layout, layout)
        self._layout = layout
        self.count += 1
        column = {}
        for name, tensor in tensors.items():
            if layout[name].kind != "parameter":
                self._buffers[name] = tensor.detach().clone()
                continue
            weight = tensor.detach()
            if self.count == 1:
                self.mean[name], self.variance[name] = weight.clone(), torch.zeros_like(weight)
                column[name] = torch.zeros_like(weight)
                continue
            # Paper: m_n − θ̄_n² cancels in float32; Welford's update of the same variance does not
            before = weight - self.mean[name]
            self.mean[name].add_(before, alpha=1 / self.count)
            column[name] = weight - self.mean[name]
            self.variance[name].lerp_(before.mul_(column[name]), 1 / self.count)
        if self.rank:
            self.deviations = [*self.deviations, column][-self.rank :]

    @torch.no_grad()
    def sample(self, generator: torch.Generator | None = None, *, scale: float = 1.0) -> dict[str, Tensor]:
        """Return a state dict drawn from the Gaussian; its buffers are those of the last model collected.

        Args:
            generator: Source of z₁ and z₂; torch's default generator if None.
            scale: Factor of the covariance; 0 gives the mean, SWA. (The released code leaves out the two factors ½ and
                then evaluates at scale 0.5, which is this at 1.)

        Returns:
            A new state dict, complete for a strict `load_state_dict`; refresh its BatchNorm statistics before use.

        Raises:
            ValueError: Fewer than two models were collected, or `scale` is negative.
        """
        if self.count < 2:
            raise ValueError(f"{self.count} models were collected; a variance needs two: call collect(model) again.")
        if scale < 0:
            raise ValueError(f"scale={scale} must be at least 0.")
        # Paper: K − 1 in the denominator; before K columns are there, their own number takes K's place
        columns = len(self.deviations)
        device = generator.device if generator is not None else torch.device("cpu")
        shared = torch.randn(columns, generator=generator, device=device).tolist()
        diagonal, low_rank = (scale / 2) ** 0.5, (scale / (2 * (columns - 1))) ** 0.5 if columns else 0.0
        if not columns:
            diagonal = scale**0.5
        drawn: dict[str, Tensor] = dict(self._buffers)
        for name, mean in self.mean.items():
            weight = torch.randn(mean.shape, generator=generator, device=device, dtype=mean.dtype).to(mean.device)
            weight.mul_(self.variance[name].clamp(min=0).sqrt_()).mul_(diagonal).add_(mean)
            for z, column in zip(shared, self.deviations):
                weight.add_(column[name], alpha=low_rank * z)
            drawn[name] = weight
        return {name: drawn[spec.tied_to or name].clone() for name, spec in self._layout.items()}

    def draw(
        self,
        samples: Samples,
        model: nn.Module,
        draws: int,
        batches: Iterable[Any],
        *,
        generator: torch.Generator | None = None,
        scale: float = 1.0,
        **info: Any,
    ) -> None:
        """Collect `draws` samples, each with its own BatchNorm statistics, for `bayesprune.posterior.predict`.

        Args:
            samples: Where they go.
            model: A model of the architecture; it comes back as it was.
            draws: How many; the paper has 30.
            batches: Training batches, read once a sample (not an iterator).
            generator: As in `sample`.
            scale: As in `sample`.
            **info: What to remember of each beside `draw` and `scale`, as in `Samples.collect`.

        Raises:
            ValueError: `batches` is an iterator, which only the first sample could read.
        """
        if isinstance(batches, Iterator):
            raise ValueError("batches: an iterator can be read only once; pass a list of batches or a loader.")
        with preserved(model):
            for draw in range(draws):
                model.load_state_dict(self.sample(generator, scale=scale))
                refresh_batch_norm_(model, batches)
                samples.collect(model, **{**info, "draw": draw, "scale": scale})

    def state_dict(self) -> dict[str, Any]:
        """Return everything that was collected: dicts, lists, numbers and tensors."""
        return {
            "rank": self.rank, "count": self.count, "mean": dict(self.mean), "variance": dict(self.variance),
            "deviations": [dict(column) for column in self.deviations], "buffers": dict(self._buffers),
            "layout": {name: [spec.dtype, list(spec.shape), spec.kind, spec.tied_to] for name, spec in self._layout.items()},
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; the tensors are copied.

        Raises:
            ValueError: The state was collected at another rank.
        """
        if state_dict["rank"] != self.rank:
            raise ValueError(f"rank={self.rank}, but the state has rank {state_dict['rank']}; build SWAG with that.")
        self.count = int(state_dict["count"])
        self.mean, self.variance, self._buffers = (
            {name: tensor.clone() for name, tensor in state_dict[key].items()}
            for key in ("mean", "variance", "buffers")
        )
        self.deviations = [{name: t.clone() for name, t in column.items()} for column in state_dict["deviations"]]
        self._layout = {
            name: TensorSpec(dtype, tuple(shape), kind, tied) for name, (dtype, shape, kind, tied) in state_dict["layout"].items()
        }  # fmt: skip


def swag_lr(step: int, total_steps: int, peak: float, floor: float, start: float = 0.75) -> float:
    """Return SWAG's step size: `peak`, then a straight line down to `floor`·`peak`, then constant while iterates are
    collected.

    Args:
        step: From 0.
        total_steps: Steps of the run.
        peak: Step size of the first half before `start`.
        floor: Share of `peak` in the collecting phase; the paper has 0.5 for residual networks on CIFAR.
        start: Share of the run at which collecting begins; the line ends at 0.9 of that.

    Example:
        >>> [round(swag_lr(step, 100, 0.1, 0.5, start=0.8), 4) for step in (0, 40, 56, 72, 99)]
        [0.1, 0.1, 0.075, 0.05, 0.05]

    Reference:
        Izmailov et al. (2018), appendix; run_swag.py of the authors.
    """
    fraction = step / (start * total_steps) if start > 0 else 1.0
    return peak * (1 - (1 - floor) * min(1.0, max(0.0, (fraction - 0.5) / 0.4)))


@torch.no_grad()
def refresh_batch_norm_(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Re-estimate the running statistics of every BatchNorm at the present weights, in place.

    Each statistic becomes the plain mean over the batches of the batch's own. Only the BatchNorm layers see training
    mode, so that dropout stays off; all modes and momenta are restored.

    Args:
        model: Any model; without BatchNorm it is left alone, and no batch is read.
        batches: Batches of inputs, tuples and lists that begin with them, or mappings of them by name, moved to the model's
            device.

    Returns:
        The same model.

    Raises:
        ValueError: There is no batch.

    Example:
        >>> model = nn.BatchNorm1d(1)
        >>> refresh_batch_norm_(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])]).running_mean
        tensor([4.])

    Reference:
        Izmailov et al. (2018), section 3.2; like `torch.optim.swa_utils.update_bn`, but for dropout.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not layers:
        return model
    with evaluating(model), _estimating(layers):
        seen = 0
        for batch in batches:
            inputs = batch[0] if isinstance(batch, (tuple, list)) else split_batch(batch)[0]
            if seen == 0:
                for layer in layers:
                    layer.reset_running_stats()
            call(model, moved(inputs, device_of(model)))
            seen += 1
        if not seen:
            raise ValueError("batches: no batch to estimate BatchNorm statistics from; pass training batches.")
    return model


@contextmanager
def _estimating(layers: list[_BatchNorm]) -> Iterator[None]:
    momenta = [(layer, layer.momentum) for layer in layers]
    try:
        for layer in layers:
            layer.train()
            layer.momentum = None  # torch's word for a cumulative mean
        yield
    finally:
        for layer, momentum in momenta:
            layer.momentum = momentum
