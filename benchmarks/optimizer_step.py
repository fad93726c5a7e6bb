"""The optimizer's step on ResNet-18's 11.2 M weights, CV-Adam beside torch's AdamW, interleaved in one run.

    python -m benchmarks.optimizer_step [--rounds 15] [--device cpu] [--json FILE]

Prints each step's median and the ratio of medians; a ratio below 1 means CV-Adam is faster. It also counts the state.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bayesprune.samplers import CVAdam
from bayesprune.train.folder import environment, write_json
from bayesprune.train.memory import keep_freed_memory
from bayesprune.vision import resnet18

RESULTS = Path(__file__).parent / "results" / "optimizer_step.json"


def model_with_gradients(device: str) -> torch.nn.Module:
    model = resnet18(num_classes=10).to(device)
    for param in model.parameters():
        param.grad = torch.randn_like(param) * 1e-3
    return model


def contenders(device: str) -> dict[str, torch.optim.Optimizer]:
    def parameters() -> list[torch.nn.Parameter]:
        return list(model_with_gradients(device).parameters())

    pruned = model_with_gradients(device)
    with_groups = CVAdam(pruned.parameters(), lr=0.1, num_data=50_000)
    for param in pruned.parameters():
        if param.dim() == 4:
            with_groups.set_weight_decay(param, torch.rand(*param.shape[:2], 1, 1, device=device) * 1e-3)
    return {
        "AdamW(foreach=True)": torch.optim.AdamW(parameters(), foreach=True),
        "AdamW(fused=True)": torch.optim.AdamW(parameters(), fused=True),
        "SGD(momentum, foreach=True)": torch.optim.SGD(parameters(), lr=0.1, momentum=0.9, foreach=True),
        "CVAdam": CVAdam(parameters(), lr=0.1, num_data=50_000),
        "CVAdam(noise='paper')": CVAdam(parameters(), lr=0.1, num_data=50_000, noise="paper"),
        "CVAdam, decay per kernel": with_groups,
        "CVAdam(implementation='plain')": CVAdam(parameters(), lr=0.1, num_data=50_000, implementation="plain"),
    }


def measure(
    steps: dict[str, Callable[[], object]], rounds: int, synchronise: Callable[[], None]
) -> dict[str, list[float]]:
    """Time the steps in turn, so that a busy machine disturbs all alike; two rounds of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(rounds + 2):
        for name, step in steps.items():
            synchronise()
            begin = time.perf_counter()
            step()
            synchronise()
            if round_number >= 2:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", default=str(RESULTS))
    parser.add_argument("--keep-memory", action="store_true", help="as in training: freed memory stays in the process")
    arguments = parser.parse_args()
    if arguments.keep_memory:
        keep_freed_memory()
    optimizers = contenders(arguments.device)
    synchronise = torch.cuda.synchronize if arguments.device.startswith("cuda") else lambda: None
    times = measure({name: o.step for name, o in optimizers.items()}, arguments.rounds, synchronise)
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = {name: min(values) for name, values in times.items()}
    peers = ("AdamW(foreach=True)", "AdamW(fused=True)")
    weights = sum(p.numel() for group in optimizers["CVAdam"].param_groups for p in group["params"])
    state = sum(
        v.numel() for s in optimizers["CVAdam"].state.values() for v in s.values() if isinstance(v, torch.Tensor)
    )
    print(f"{weights:,} weights, {torch.get_num_threads()} threads, {arguments.rounds} rounds")
    print(f"CVAdam holds {state / weights:.0f} values a weight; freed memory kept: {arguments.keep_memory}\n")
    print(f"{'':32}{'median ms':>10}{'best ms':>9}" + "".join(f"{'/ ' + peer:>23}" for peer in peers))
    for name in optimizers:
        ratios = "".join(f"{medians[name] / medians[peer]:>23.2f}" for peer in peers)
        print(f"{name:32}{medians[name]:>10.1f}{best[name]:>9.1f}{ratios}")
    write_json(
        Path(arguments.json),
        {
            "weights": weights,
            "state_values_per_weight": state / weights,
            "rounds": arguments.rounds,
            "keep_memory": arguments.keep_memory,
            "median_ms": medians,
            "best_ms": best,
            "environment": environment(arguments.device),
        },
    )


if __name__ == "__main__":
    main()
