from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesprune.samplers import CVAdam


class Residual(nn.Module):
    """A stem, a residual block, a strided block with a projection, a head: everything that couples."""

    def __init__(self, width: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.stem_bn = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, padding=1, stride=2, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.short = nn.Conv2d(width, 2 * width, 1, stride=2, bias=False)
        self.short_bn = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_bn(self.stem(x)))
        inner = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(inner)) + x)
        x = F.relu(self.bn3(self.conv3(x)) + self.short_bn(self.short(x)))
        return self.head(x.mean((2, 3)))


def _sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=5e-4)


def _adam(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=1e-2, weight_decay=5e-4, amsgrad=True)


def _adamw(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-2, weight_decay=5e-4)


def _cv_adam(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return CVAdam(params, lr=0.05, num_data=100, weight_decay=5e-4, seed=3)


OPTIMIZERS = {"sgd": _sgd, "adam": _adam, "adamw": _adamw, "cv_adam": _cv_adam}


@pytest.fixture(params=list(OPTIMIZERS))
def make_optimizer(request: pytest.FixtureRequest) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return OPTIMIZERS[request.param]


@pytest.fixture
def optimizers() -> dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]:
    return OPTIMIZERS


@pytest.fixture
def cv_adam() -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return _cv_adam


@pytest.fixture
def residual() -> Callable[[], Residual]:
    def build(seed: int = 0) -> Residual:
        torch.manual_seed(seed)
        return Residual()

    return build


@pytest.fixture
def train() -> Callable[..., None]:
    """Optimizer steps on batches that depend on the step alone: a resumed run sees what an uninterrupted one does."""

    def run(
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        steps: range | int,
        check: Callable[[], None] | None = None,
    ) -> None:
        for step in range(steps) if isinstance(steps, int) else steps:
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(8, 2, 6, 6, generator=generator)
            labels = torch.randint(3, (8,), generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            if check is not None:
                check()

    return run


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
