"""Images a second of training ResNet-18 on CIFAR-10: our loop with SGD and with CV-Adam beside a bare SGD loop, in turns.

    python -m benchmarks.gpu.throughput [--device cuda] [--batch-sizes 64 512] [--json benchmarks/results/throughput.json]

bfloat16 autocast, channels_last and torch.compile in all three; random images on the device, the same crops and mirrors.
Wanted on one H200: 25,000 images/s, and an epoch of CV-Adam at most 1.03 times SGD's. --tiny tries it on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from bayesprune.train import Trainer, recipe
from bayesprune.train.folder import environment, write_json
from benchmarks.gpu.data import tiny

RECIPES = {"our loop, SGD": "cifar10-resnet18-sgd", "our loop, CV-Adam": "cifar10-resnet18"}


def step_of_trainer(name: str, settings: list[str], data: Path) -> Callable[[], None]:
    """Return a function that takes one step of our loop."""
    trainer = Trainer(recipe(name, settings), Path(tempfile.mkdtemp()) / "run", data_dir=data, quiet=True)
    trainer.model.train()

    def step() -> None:
        trainer._train_step(*trainer.loader._next())

    return step


def bare_step(settings: list[str], data: Path, amp: bool) -> Callable[[], None]:
    """Return a function that takes one step of a bare loop: forward, cross-entropy, backward, SGD, and nothing else."""
    config = recipe(RECIPES["our loop, SGD"], settings)
    trainer = Trainer(config, Path(tempfile.mkdtemp()) / "run", data_dir=data, quiet=True)
    device, model, loader = trainer.fabric.device, trainer.model, trainer.loader
    model.train()
    forward = torch.compile(model) if trainer.config.runtime.compile else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> None:
        images, labels = loader._next()
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], steps: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--images", type=int, default=50_000, help="images a round: an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/throughput.json"))
    parser.add_argument("--tiny", action="store_true", help="16 images a round, two rounds, no compilation")
    arguments = parser.parse_args(argv)
    if arguments.tiny:
        arguments.batch_sizes, arguments.images, arguments.rounds = [8], 16, 2
    device = torch.device(arguments.device)
    data = tiny("cifar10", Path(tempfile.mkdtemp()), train=max(80, 4 * max(arguments.batch_sizes)))
    results = []
    for size in arguments.batch_sizes:
        settings = [
            f"batch_size={size}",
            "precision=bf16-mixed",
            f"compile={not arguments.tiny}",
            f"device={device.type}",
        ]
        settings += ["trace_channels=0"]
        loops = {"bare SGD": bare_step(settings, data, amp=True)}
        loops |= {label: step_of_trainer(name, settings, data) for label, name in RECIPES.items()}
        steps = arguments.images // size
        for step in loops.values():
            seconds(step, 1 if arguments.tiny else 20, device)
        taken: dict[str, list[float]] = {label: [] for label in loops}
        for _ in range(arguments.rounds):
            for label, step in loops.items():
                taken[label].append(seconds(step, steps, device))
        for label, values in taken.items():
            middle = statistics.median(values)
            row = {
                "batch_size": size, "loop": label, "images_per_second": steps * size / middle, "seconds": values,
                "over_bare_sgd": middle / statistics.median(taken["bare SGD"]),
            }  # fmt: skip
            if label == "our loop, CV-Adam":
                row["over_our_sgd"] = middle / statistics.median(taken["our loop, SGD"])
            results.append(row)
            print(
                f"batch {size:4d}  {label:18s}  {row['images_per_second']:9.0f} images/s  {row['over_bare_sgd']:.3f} of bare"
            )
    write_json(arguments.json, {"rows": results, "tiny": arguments.tiny, "environment": environment(str(device))})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
