"""What a pruner adds to a training step, by kind of groups, on ResNet-50 and a small vision transformer, interleaved in one run.

    python -m benchmarks.pruner_overhead [--rounds 2] [--batch 32] [--size 64] [--json FILE]

A plain step is forward, backward and SGD's step. A pruned one has `ForwardPruning` on its ramp (at the default period of 16 steps, one
of which updates the masks; 42 % of the weights are gone by then). All is measured in the processor time of one thread. The pruner acts
inside `optimizer.step()` alone: that is timed with and without it, in turn; forward and backward, which are the same computation, enter
with their median over all steps (on a busy machine they vary by more than the pruner costs). The ratio is (16 pruned steps)/(16 plain
steps), the updating one among them; it is to be at most 1.1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bayesprune.sparsity import ForwardPruning
from bayesprune.train.folder import environment, write_json
from bayesprune.vision import resnet50, vit

RESULTS = Path(__file__).parent / "results" / "pruner_overhead.json"
KINDS = ("weight", "kernel", "input", "output", "channel")
EVERY = 16
LIMIT = 1.1


def networks(size: int) -> dict[str, Callable[[], nn.Module]]:
    return {
        "ResNet-50": lambda: resnet50(num_classes=100),
        "ViT-tiny": lambda: vit(num_classes=100, image_size=size, patch=8, width=192, depth=12, heads=3),
    }


def run(make: Callable[[], nn.Module], images: torch.Tensor, labels: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Seconds of a plain step, and by kind the ratio of sixteen steps with a pruner to as many without."""
    torch.manual_seed(0)
    model = make().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    passes: list[float] = []

    def step() -> float:
        """Make a step and return the seconds of the optimizer's part, hooks included."""
        begin = time.thread_time()
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        middle = time.thread_time()
        optimizer.step()
        passes.append(middle - begin)
        return time.thread_time() - middle

    step()
    passes.clear()
    plain: list[float] = []
    pruned: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            pruner = ForwardPruning(
                model,
                optimizer,
                sparsity=0.9,
                warmup_steps=0,
                ramp_end_step=1600,
                groups=None if kind == "channel" else kind,  # channels are what it takes unasked
                example_input=images[:2],
            )
            pruner.step_count = 304  # a multiple of the period: 0.9·(1 − 0.81³) = 42 % are asked for
            pruner._update_()
            pruner._enforce_(updated=True)
            pruner.step_count = 317
            step()  # what was allocated for the masks is given back
            ordinary = step()  # step 319
            update = step()  # step 320
            pruner.detach()
            plain.append(step())
            pruned[kind].append((ordinary, update))
    both = statistics.median(passes)
    reference = both + statistics.median(plain)
    ratios = {}
    for kind, pairs in pruned.items():
        ordinary, update = (both + statistics.median(column) for column in zip(*pairs))
        ratios[kind] = {
            "ratio": ((EVERY - 1) * ordinary + update) / (EVERY * reference),
            "step": ordinary,
            "update_step": update,
        }
    return {
        "plain_step": reference,
        "forward_backward": both,
        "parameters": sum(p.numel() for p in model.parameters()),
        "groups": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = torch.randn(options.batch, 3, options.size, options.size)
    labels = torch.randint(100, (options.batch,))
    found = {}
    print(
        f"batch {options.batch}, {options.size} x {options.size}, one thread; ratio of 16 steps, one of them an update, to 16 plain ones"
    )
    for name, make in networks(options.size).items():
        found[name] = run(make, images, labels, options.rounds)
        print(
            f"{name}: plain step {found[name]['plain_step']:.3f} s, {found[name]['parameters']:,} parameters",
            flush=True,
        )
        for kind, row in found[name]["groups"].items():
            verdict = "" if row["ratio"] <= LIMIT else f"  above {LIMIT}"
            print(
                f"  {kind:<8} {row['ratio']:.3f} x (step {row['step']:.3f} s, with update {row['update_step']:.3f} s){verdict}"
            )
    settings = {"batch": options.batch, "size": options.size, "rounds": options.rounds, "every": EVERY, "threads": 1}
    result = {
        "what": "processor time of one thread", "load_average": os.getloadavg()[0], "settings": settings, "networks": found,
        "environment": environment("cpu"),
    }  # fmt: skip
    write_json(options.json, result)


if __name__ == "__main__":
    main()
