"""What the training loop costs over a bare PyTorch loop with the same network, optimizer and loader, step by step in turn in one run.

    python -m benchmarks.loop_overhead [--recipes cifar10-94-sgd ...] [--steps 40] [--json FILE]

A bare step is zero_grad, forward (in the recipe's precision), cross-entropy, backward and the optimizer's step; one follows every step
of `train`, on a network and a loader of its own. All is processor time of one thread, which on a busy machine varies less than the
clock. The share of the processor is multiply-adds (two operations each) of forward and backward passes against the rate of a plain
bf16 product, measured between the steps. The overhead is to be at most 3 %.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bayesprune.train import Interrupted, recipe, train
from bayesprune.train.build import build_augmentation, build_network, build_optimizer
from bayesprune.train.config import RunConfig
from bayesprune.train.folder import environment, write_json
from bayesprune.train.settings import override
from bayesprune.vision import ArrayDataset

RESULTS = Path(__file__).parent / "results" / "loop_overhead.json"
RECIPES = ("cifar10-94-sgd", "cifar10-resnet20-sgd", "cifar10-resnet20")
LIMIT = 0.03
_SIDE = 1536  # of the bf16 product


def pictures(number: int) -> ArrayDataset:
    """Return random images of CIFAR-10's shape."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (number, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(number) % 10
    few = images[:256], labels[:256]
    return ArrayDataset(images, labels, *few, tuple("0123456789"), mean=(0.5,) * 3, std=(0.25,) * 3)


class BareLoop:
    """A loop as one writes it by hand, one step a call."""

    def __init__(self, config: RunConfig, data: ArrayDataset) -> None:
        self.model = build_network(config, data).to(memory_format=torch.channels_last).train()
        self.optimizer = build_optimizer(config, self.model, data.count("train"))
        self.loader = data.loader(
            "train", batch_size=config.data.batch_size, drop_last=True, seed=1, channels_last=True,
            augmentation=build_augmentation(config, data),
        )  # fmt: skip
        self.half = config.runtime.precision == "bf16-mixed"
        self.smoothing = config.network.label_smoothing
        self.batches = self._endless()

    def _endless(self) -> Any:
        while True:
            yield from self.loader

    def step(self) -> float:
        """Make a step; return the processor seconds of its loader."""
        begin = time.process_time()
        images, labels = next(self.batches)
        loaded = time.process_time() - begin
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            loss = F.cross_entropy(self.model(images).float(), labels, label_smoothing=self.smoothing)
        loss.backward()
        self.optimizer.step()
        return loaded


class Watch:
    """Stands in for `train`'s `stop`: asked after every step, it times that step and then makes a bare one and a product."""

    def __init__(self, bare: BareLoop, steps: int) -> None:
        self.bare, self.steps = bare, steps
        self.ours: list[float] = []
        self.plain: list[float] = []
        self.loading: list[float] = []
        self.product: list[float] = []
        self.mark: float | None = None
        self.factors = torch.randn(2, _SIDE, _SIDE).bfloat16()

    def __call__(self) -> bool:
        """Return whether all steps are measured."""
        now = time.process_time()
        if self.mark is not None:
            self.ours.append(now - self.mark)
        begin = time.process_time()
        self.loading.append(self.bare.step())
        middle = time.process_time()
        torch.matmul(*self.factors)
        self.plain.append(middle - begin)
        self.product.append(time.process_time() - middle)
        self.mark = time.process_time()
        return len(self.ours) >= self.steps


def operations(model: nn.Module, size: tuple[int, ...]) -> float:
    """Return the floating-point operations of a forward and a backward pass for one image."""
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, *size)).sum().backward()
    return counter.get_total_flops() / 2


def measure(name: str, steps: int) -> dict[str, Any]:
    """Return a recipe's times a step, its rate and its overhead."""
    config = recipe(
        name, ["checkpoint_minutes=1000", "evaluate_every=none", "threads=1", "device=cpu", "trace_channels=0"]
    )
    batch = config.data.batch_size
    config = override(config, {"samples_per_cycle": 0, "epochs": max(config.schedule.epochs, 1 + steps // 4)})
    data = pictures(4 * batch)
    watch = Watch(BareLoop(config, data), steps)
    flops = operations(build_network(config, data), (3, 32, 32))
    with tempfile.TemporaryDirectory() as place:
        try:
            train(config, Path(place) / "run", data=data, quiet=True, stop=watch)
        except Interrupted:
            if len(watch.ours) < steps:  # by Ctrl-C
                raise
    ours, plain = (statistics.median(values[2:]) for values in (watch.ours, watch.plain))
    ratio = statistics.median(a / b for a, b in zip(watch.ours[2:], watch.plain[3:]))
    product = 2 * _SIDE**3 / min(watch.product)
    return {
        "recipe": name, "batch": batch, "steps": len(watch.ours), "ours": ours, "bare": plain, "overhead": ratio - 1,
        "loader": statistics.median(watch.loading[2:]), "images_per_second": batch / ours,
        "bare_images_per_second": batch / plain, "gflop_per_image": flops / 1e9, "gflops": flops * batch / ours / 1e9,
        "product_gflops": product / 1e9, "share_of_product": flops * batch / ours / product,
        "precision": config.runtime.precision,
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| recipe | precision | batch | images/s | bare loop | overhead | GFLOP/s | share of a bf16 product's rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| `{row['recipe']}` | {row['precision']} | {row['batch']:,} | {row['images_per_second']:.0f} | "
            f"{row['bare_images_per_second']:.0f} | {100 * row['overhead']:+.1f} % | {row['gflops']:.0f} | "
            f"{100 * row['share_of_product']:.0f} % of {row['product_gflops']:.0f} |"
        )
    return "\n".join(
        [*lines, "", f"Medians over {result['rows'][0]['steps']} steps of each loop in turn; {result['what']}."]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--steps", type=int, default=40, help="steps of each loop")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.recipes:
        row = measure(name, options.steps)
        rows.append(row)
        verdict = "" if row["overhead"] <= LIMIT else f"  above {LIMIT:.0%}"
        print(
            f"{name} ({row['precision']}, batch {row['batch']}): {row['images_per_second']:.0f} images/s, bare loop "
            f"{row['bare_images_per_second']:.0f}; overhead {row['overhead']:+.1%}{verdict}; loader {row['loader'] / row['bare']:.1%} of a "
            f"step; {row['gflops']:.0f} GFLOP/s, {row['share_of_product']:.0%} of the bf16 product's {row['product_gflops']:.0f}",
            flush=True,
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"largest memory {peak:.0f} MiB, both loops together")
    write_json(
        options.json,
        {
            "what": "processor time of one thread, a step of each loop in turn", "load_average": os.getloadavg()[0],
            "rows": rows, "peak_mib": peak, "environment": environment("cpu"),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
