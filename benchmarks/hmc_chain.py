"""One chain of `benchmarks.hmc_cifar10`: its method, its settings, its resumable training and its averaged predictions."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

from bayesprune import samplers
from bayesprune.posterior import predict
from bayesprune.samplers import CycleClock, CyclicalLR
from bayesprune.train.tree import load_tree, save_tree
from bayesprune.vision import ArrayDataset, BatchLoader, build

CHECKPOINT = "checkpoint.safetensors"
EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Protocol:
    """What all chains of a table share."""

    epochs: int = 4
    """Epochs of every chain; an ensemble's chain divides them among its members."""
    batch_size: int = 128
    width: int = 16
    samples: int = 10
    sample_every: int = 36
    """Steps between the samples at a chain's end: ten of them span the last quarter of four epochs."""
    floor: float = 0.05
    """Share of the peak lr at which a sampler's cosine ends; an optimizer's ends at 0."""
    validation: int = 5000
    temperature: float = 1.0
    screen_epochs: int = 1
    screen_samples: int = 3
    screen_every: int = 54
    precision: str = "fp32"
    compile: bool = False


@dataclass(frozen=True)
class Cell:
    """One run of the queue: a chain, or a short run that screens a setting."""

    method: str
    seed: int
    lr: float
    delta: float
    screen: bool = False

    @property
    def name(self) -> str:
        """Name of its folder."""
        return (
            f"screen-{self.method}-lr{self.lr:g}-delta{self.delta:g}" if self.screen else f"{self.method}-{self.seed}"
        )


@dataclass(frozen=True)
class Method:
    """A row of the table: its label, its optimizer and the peak step sizes that are screened."""

    label: str
    make: Callable[..., Optimizer]
    rates: tuple[float, ...]
    rates_of: str | None = None
    """Another method whose screen is used."""
    sampler: bool = True
    members: int = 1
    """Fresh networks trained one after the other within a chain; of several, each gives its last iterate alone."""
    single: bool = False
    """Show the last iterate's own row too."""


def _sgd(params: Any, cell: Cell, protocol: Protocol, num_data: int) -> Optimizer:
    return SGD(params, cell.lr, momentum=0.9, nesterov=True, weight_decay=cell.delta / num_data)


def _sampler(kind: str, **arguments: Any) -> Callable[..., Optimizer]:
    def make(params: Any, cell: Cell, protocol: Protocol, num_data: int) -> Optimizer:
        return getattr(samplers, kind)(
            params, cell.lr, num_data=num_data, temperature=protocol.temperature, weight_decay=cell.delta / num_data,
            seed=cell.seed, **arguments,
        )  # fmt: skip

    return make


METHODS = {
    "sgd": Method("SGD (Nesterov), snapshots", _sgd, (0.03, 0.1, 0.3), sampler=False, single=True),
    "ensemble": Method("deep ensemble of SGD", _sgd, (), rates_of="sgd", sampler=False, members=2),
    "sgld": Method("SGLD", _sampler("SGLD"), (0.5, 1.5)),
    "sghmc": Method("SGHMC", _sampler("SGHMC", betas=(0.9, 1.0)), (0.05, 0.15)),
    "psgld": Method("pSGLD (RMS)", _sampler("PSGLD"), (2e-3, 6e-3)),
    "cvadam-paper": Method(
        "CV-Adam, the paper's dual τ",
        _sampler("CVAdam", betas=(0.1, 1.0), preconditioner="paper", noise="exact"),
        (1.0, 3.0),
    ),
    "cvadam": Method(
        "CV-Adam, RMS τ", _sampler("CVAdam", betas=(0.9, 1.0), preconditioner="rms", noise="exact"), (3e-4, 1e-3)
    ),
}


class MixedPrecision(nn.Module):
    """A network whose convolutions run in bfloat16 under autocast and whose last layer runs in float32."""

    def __init__(self, net: nn.Module, half: bool) -> None:
        super().__init__()
        self.net, self.half = net, half

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits in float32."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            x = self.net.flatten(self.net.pool(self.net.stages(self.net.stem(x))))
        return self.net.head(x.float())


def build_network(protocol: Protocol, num_classes: int, in_channels: int) -> tuple[MixedPrecision, nn.Module]:
    """Return the network and what computes it: the same module, or its compiled form. All chains of a process share them."""
    net = build("resnet20_frn", num_classes=num_classes, in_channels=in_channels, width=protocol.width)
    model = MixedPrecision(net, protocol.precision == "bf16")
    return model, torch.compile(model, dynamic=False) if protocol.compile else model


class Chain:
    """One chain under way.

    Args:
        cell: Method, seed and settings.
        protocol: What all chains share.
        data: The images, with a validation split.
        model: The network; its weights are drawn anew.
        forward: What computes it.
    """

    def __init__(
        self, cell: Cell, protocol: Protocol, data: ArrayDataset, model: MixedPrecision, forward: nn.Module
    ) -> None:
        self.cell, self.protocol, self.data, self.model, self.forward = cell, protocol, data, model, forward
        self.method = METHODS[cell.method]
        num_data = len(data.train_images)
        self.loader = self._loader("train", protocol.batch_size, shuffle=True, drop_last=True, seed=cell.seed)
        several = self.method.members > 1
        wanted = protocol.screen_samples if cell.screen else protocol.samples
        self.clock = CycleClock(
            total_steps=len(self.loader) * (protocol.screen_epochs if cell.screen else protocol.epochs),
            cycles=self.method.members,
            samples_per_cycle=1 if several else wanted,
            sample_every=protocol.screen_every if cell.screen else protocol.sample_every,
            floor=protocol.floor if self.method.sampler else 0.0,
        )
        self.splits = ("validation",) if cell.screen else ("validation", "test")
        self._start(0)
        self.optimizer = self.method.make(model.parameters(), cell, protocol, num_data)
        self.scheduler = CyclicalLR(self.optimizer, self.clock)
        self.step, self.count, self.healthy = 0, 0, True
        self.sums: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] = {}
        self.kinetic: list[float] = []
        self.seconds = self.cpu_seconds = 0.0

    def run(self, folder: Path, stop: Callable[[], bool], checkpoint_seconds: float) -> bool:
        """Go on to the end; return False if `stop` said so before, with a checkpoint on disk."""
        folder.mkdir(parents=True, exist_ok=True)
        begun, cpu, saved = time.monotonic(), time.process_time(), time.monotonic()
        spent = (self.seconds, self.cpu_seconds)
        self.forward.train()
        batches = iter(self.loader)
        while self.step < self.clock.total_steps and self.healthy:
            asked = stop()
            if asked or time.monotonic() - saved > checkpoint_seconds:
                self.seconds = spent[0] + time.monotonic() - begun
                self.cpu_seconds = spent[1] + time.process_time() - cpu
                save_tree(folder / CHECKPOINT, self.state_dict())
                saved = time.monotonic()
            if asked:
                return False
            batch = next(batches, None)
            if batch is None:  # the epoch's end
                batches = iter(self.loader)
                continue
            self._step(*batch)
        self.seconds = spent[0] + time.monotonic() - begun
        self.cpu_seconds = spent[1] + time.process_time() - cpu
        return True

    def mean(self, split: str) -> Tensor:
        """Return the average over the samples of the class probabilities."""
        return self.sums[split] / self.count

    def row(self) -> dict[str, Any]:
        """Return what a finished chain is, without its scores."""
        return {
            "name": self.cell.name,
            "status": "done" if self.healthy else "diverged",
            "settings": {key: getattr(self.cell, key) for key in ("method", "seed", "lr", "delta", "screen")},
            "samples": self.count,
            "temperature": self.protocol.temperature if self.method.sampler else None,
            "kinetic_temperature": statistics.fmean(self.kinetic) if self.kinetic else None,
            "kinetic_temperatures": self.kinetic,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed chain needs."""
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(), "loader": self.loader.state_dict(), "sums": self.sums,
            "last": self.last, "kinetic": self.kinetic, "step": self.step, "count": self.count,
            "seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "settings": self.row()["settings"],
        }  # fmt: skip

    def resume(self, folder: Path) -> None:
        """Take up the folder's checkpoint, if there is one of these very settings."""
        path = folder / CHECKPOINT
        state = load_tree(path) if path.exists() else {"settings": None}
        if state["settings"] != self.row()["settings"]:
            return
        for name in ("model", "optimizer", "scheduler", "loader"):
            getattr(self, name).load_state_dict(state[name])
        for name in ("sums", "last", "kinetic", "step", "count", "seconds", "cpu_seconds"):
            setattr(self, name, state[name])

    def forget(self, folder: Path) -> None:
        """Remove the checkpoint of a finished chain."""
        (folder / CHECKPOINT).unlink(missing_ok=True)

    # ---- inside ---------------------------------------------------------------------------------------------------------

    def _loader(self, split: str, batch_size: int, **arguments: Any) -> BatchLoader:
        images, labels = (getattr(self.data, f"{split}_{what}") for what in ("images", "labels"))
        return BatchLoader(
            images, labels, batch_size=batch_size, mean=self.data.mean, std=self.data.std, scale=self.data.scale,
            **arguments,
        )  # fmt: skip

    def _start(self, member: int) -> None:
        """Draw the weights of one member from the chain's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * self.cell.seed + member)
            classes, channels = self.data.num_classes, self.data.in_channels
            fresh = build("resnet20_frn", num_classes=classes, in_channels=channels, width=self.protocol.width)
        self.model.net.load_state_dict(fresh.state_dict())
        self.model.zero_grad()

    def _step(self, images: Tensor, labels: Tensor) -> None:
        cycle = self.clock.cycle(self.step)
        if cycle and self.step == self.clock.start(cycle):  # the ensemble's next member
            self._start(cycle)
            self.optimizer.state.clear()
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.forward(images), labels)
        loss.backward()
        self.optimizer.step()
        if self.clock.collect(self.step):
            self._collect()
        if self.step % 50 == 0:
            self.healthy = self.healthy and math.isfinite(float(loss.detach()))
        self.scheduler.step()
        self.step += 1

    def _collect(self) -> None:
        if hasattr(self.optimizer, "kinetic_temperature"):
            self.kinetic.append(self.optimizer.kinetic_temperature()[0]["mean"])
        held = self.optimizer.midpoint() if hasattr(self.optimizer, "midpoint") else contextlib.nullcontext()
        with held:
            for split in self.splits:
                batches = self._loader(split, EVALUATION_BATCH)
                try:
                    self.last[split] = predict(self.forward, None, batches).probabilities
                except ValueError:  # outputs that are not finite
                    self.healthy = False
                    return
                self.sums[split] = self.sums.get(split, 0) + self.last[split]
        self.count += 1
