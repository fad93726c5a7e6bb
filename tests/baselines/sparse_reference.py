"""A tiny network whose training can be written down in NumPy, to pin the sparse-training methods line by line."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from bayesprune.baselines.dsr import DynamicSparseReparameterization
from bayesprune.baselines.magnitude import GradualMagnitudePruning
from bayesprune.baselines.rigl import RigL
from bayesprune.baselines.set import SET
from bayesprune.baselines.sparse_momentum import SparseMomentum
from bayesprune.samplers import CVAdam

SHAPES = [(7, 9), (4, 7)]
LR, MOMENTUM, DECAY = 0.05, 0.9, 0.01

# Every method with settings under which a run of 12 steps renews its masks several times.
METHODS = {
    "sparse_momentum": (SparseMomentum, {"every": 3, "end_step": 12}),
    "dsr": (DynamicSparseReparameterization, {"every": 2, "end_step": 11, "threshold": 0.02}),
    "set": (SET, {"every": 3, "end_step": 10}),
    "rigl": (RigL, {"every": 2, "end_step": 9}),
    "gmp": (GradualMagnitudePruning, {"every": 2, "end_step": 9}),
}
DYNAMIC = [name for name in METHODS if name != "gmp"]
OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "cv_adam": lambda params: CVAdam(params, lr=0.05, num_data=100, seed=3),
}


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(step)
    return rng.normal(size=(9, 11)), rng.normal(size=(4, 11))


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(inputs, outputs, bias=False) for outputs, inputs in SHAPES)).double()


def sgd(model: nn.Module, momentum: float = MOMENTUM) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=momentum, weight_decay=DECAY)


def step_torch(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, closure: bool = False) -> None:
    inputs, targets = (torch.from_numpy(a) for a in batch(step))

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = 0.5 * (model(inputs.T) - targets.T).square().sum(1).mean()
        value.backward()
        return value

    if closure:
        optimizer.step(loss)
    else:
        loss()
        optimizer.step()


class Twin:
    """The same network, gradient and momentum SGD in NumPy."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = [param.detach().numpy().copy() for param in model.parameters()]
        self.momenta = [np.zeros_like(w) for w in self.weights]
        self.masks = [np.ones(w.shape, dtype=bool) for w in self.weights]

    def gradients(self, step: int) -> list[np.ndarray]:
        inputs, targets = batch(step)
        first, second = self.weights
        error = (second @ first @ inputs - targets) / inputs.shape[1]
        return [second.T @ error @ inputs.T, error @ (first @ inputs).T]

    def descend(self, step: int) -> None:
        for i, gradient in enumerate(self.gradients(step)):
            self.momenta[i] = MOMENTUM * self.momenta[i] + gradient + DECAY * self.weights[i]
            self.weights[i] = self.weights[i] - LR * self.momenta[i]

    def mask(self, momenta: bool = True) -> None:
        self.weights = [w * m for w, m in zip(self.weights, self.masks)]
        if momenta:
            self.momenta = [v * m for v, m in zip(self.momenta, self.masks)]

    def check(self, model: nn.Module, method) -> None:
        for param, weight, mask, kept in zip(model.parameters(), self.weights, self.masks, method.keep_masks.values()):
            np.testing.assert_array_equal(kept.numpy(), mask)
            np.testing.assert_allclose(param.detach().numpy(), weight, rtol=1e-12, atol=1e-14)
            assert ((param.detach().numpy() == 0) >= ~mask).all()


def pick(values: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` smallest of the marked entries, by sorting them all."""
    places = sorted(np.flatnonzero(among), key=lambda i: (values.ravel()[i], i))[:count]
    chosen = np.zeros(values.size, dtype=bool)
    chosen[places] = True
    return chosen.reshape(values.shape)


def draw(among: np.ndarray, count: int, generator: torch.Generator) -> np.ndarray:
    """``count`` marked entries at random: those of the smallest of one uniform number each."""
    return pick(torch.rand(among.shape, generator=generator).numpy(), among, count)


def start_at_random(twin: Twin, counts: list[int], seed: int) -> torch.Generator:
    generator = torch.Generator().manual_seed(seed)
    twin.masks = [draw(mask, count, generator) for mask, count in zip(twin.masks, counts)]
    twin.mask()
    return generator
