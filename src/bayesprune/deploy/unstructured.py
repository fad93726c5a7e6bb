"""What zeros without structure do for speed in torch's own kernels, measured rather than assumed."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional as F

from bayesprune.deploy.timing import Comparison, compare_times


@dataclass(frozen=True)
class UnstructuredReport:
    """A layer with scattered zeros in stock kernels, see `unstructured_report`; ``print`` shows it as a table.

    Attributes:
        sparsity: Share of the weights that are zero, at random places.
        linear: Full weights against the same with zeros, dense kernel of a linear layer.
        convolution: The same for a 3 × 3 convolution.
        sparse_linear: Dense kernel with full weights against torch's compressed-row kernel with the zeros left out, linear
            layer, batch 64.
        sparse_linear_one: The same at batch 1.
        threads: Processor threads.

    Example:
        >>> report = unstructured_report(sparsity=0.9, seconds=0.01)
        >>> report.sparsity, report.linear.ratio > 0
        (0.9, True)
    """

    sparsity: float
    linear: Comparison
    convolution: Comparison
    sparse_linear: Comparison
    sparse_linear_one: Comparison
    threads: int

    def as_dict(self) -> dict[str, Any]:
        """The report as plain numbers."""
        return asdict(self)

    def __str__(self) -> str:
        rows = (
            ("linear 1024 x 1024, batch 64, dense kernel", self.linear),
            ("convolution 128 to 128, 3 x 3, batch 8, dense kernel", self.convolution),
            ("linear 1024 x 1024, batch 64, compressed-row kernel", self.sparse_linear),
            ("linear 1024 x 1024, batch 1, compressed-row kernel", self.sparse_linear_one),
        )
        lines = [f"{self.sparsity:.0%} of the weights zero at random places: times faster than with full weights"]
        lines += [f"  {name:<55} {row.ratio:.2f} ({row.low:.2f} to {row.high:.2f})" for name, row in rows]
        remark = "a dense kernel multiplies its zeros; torch has no compressed-row kernel for convolutions"
        return "\n".join([*lines, f"  threads: {self.threads}; {remark}"])


@torch.no_grad()
def unstructured_report(sparsity: float = 0.9, *, seconds: float = 1.0) -> UnstructuredReport:
    """Time a linear and a convolution layer whose weights are zero at random places, in torch's own kernels.

    Dense kernels do not look at values, so zeros gain nothing in them. The compressed-row kernel, which an ordinary
    ``nn.Linear`` never calls, may gain at high sparsity; there is none for convolutions.

    Args:
        sparsity: share of zeros.
        seconds: time to spend on each comparison.

    Returns:
        An `UnstructuredReport`.

    Raises:
        ValueError: if ``sparsity`` is out of range.

    Example:
        >>> report = unstructured_report(0.9, seconds=0.01)
        >>> report.linear.ratio > 0
        True
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity}: must be at least 0 and below 1")
    generator = torch.Generator().manual_seed(0)

    def zeroed(weight: torch.Tensor) -> torch.Tensor:
        return weight.where(torch.rand(weight.shape, generator=generator) >= sparsity, 0.0)

    x, weight = torch.randn(64, 1024, generator=generator), torch.randn(1024, 1024, generator=generator)
    images, kernel = torch.randn(8, 128, 16, 16, generator=generator), torch.randn(128, 128, 3, 3, generator=generator)
    holes, thin = zeroed(weight), zeroed(kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its compressed-row support a beta
        rows = holes.to_sparse_csr()
    columns, column = x.T.contiguous(), x[:1].T.contiguous()
    return UnstructuredReport(
        sparsity,
        compare_times(lambda: F.linear(x, weight), lambda: F.linear(x, holes), seconds=seconds),
        compare_times(
            lambda: F.conv2d(images, kernel, padding=1), lambda: F.conv2d(images, thin, padding=1), seconds=seconds
        ),
        compare_times(lambda: F.linear(x, weight), lambda: rows @ columns, seconds=seconds),
        compare_times(lambda: F.linear(x[:1], weight), lambda: rows @ column, seconds=seconds),
        torch.get_num_threads(),
    )
