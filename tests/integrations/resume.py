"""What the integrations share: a network, its pruners, and the comparison of a resumed run with an uninterrupted one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayesprune.baselines import SET
from bayesprune.samplers import CVAdam
from bayesprune.sparsity import FeedbackPruning, ForwardPruning

STEPS, EPOCHS, HALF = 8, 3, 2  # batches an epoch, epochs in all, epochs before the interruption


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def loader() -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(4 * STEPS, 2, 6, 6, generator=generator)
    return DataLoader(TensorDataset(images, torch.randint(3, (4 * STEPS,), generator=generator)), batch_size=4)


def forward(model: nn.Module, optimizer: Any) -> Any:
    return ForwardPruning(
        model, optimizer, sparsity=0.5, warmup_steps=2, ramp_end_step=20, every=3, soft_threshold=0.02, round_to=1
    )


def dense_copy(model: nn.Module, optimizer: Any) -> Any:
    return FeedbackPruning(
        model, optimizer, form="dense_copy", groups="weight", sparsity=0.5, warmup_steps=2, ramp_end_step=20, every=3
    )


def evolving(model: nn.Module, optimizer: Any) -> Any:
    return SET(model, optimizer, target_sparsity=0.5, every=3)


PRUNERS: dict[str, Callable[[nn.Module, Any], Any]] = {"forward": forward, "dense copy": dense_copy, "set": evolving}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=5e-4),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "cv_adam": lambda params: CVAdam(params, lr=0.05, num_data=100, temperature=1.0, seed=3),
}


def page_snippet(word: str) -> str:
    """The first snippet of the page on other tools that holds a word."""
    page = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")
    return next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if word in block)


def same(one: nn.Module, two: nn.Module, first: Any, second: Any) -> None:
    """Both runs ended at the same sparse weights, masks and step, bit for bit."""
    assert first.step_count == second.step_count == STEPS * EPOCHS
    assert first.hard_sparsity == second.hard_sparsity > 0.2
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values()):
        assert torch.equal(a, b), name
    for name, mask in first.keep_masks.items():
        assert torch.equal(mask, second.keep_masks[name]), name
