"""The optimizer's step on ResNet-18's 11.2 M weights, the samplers beside torch's optimizers, interleaved in one run.

    python -m benchmarks.optimizer_step [--rounds 15] [--threads 1 2] [--device cpu] [--json FILE]

Prints each step's median and the ratio of medians; a ratio below 1 means that the sampler is faster. It also counts the
state. On a GPU it adds the launches of a step and its memory traffic as a share of what a plain copy reaches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bayesprune.samplers import CVAdam
from bayesprune.train.folder import environment, write_json
from bayesprune.train.memory import keep_freed_memory
from bayesprune.vision import resnet18

RESULTS = Path(__file__).parent / "results" / "optimizer_step.json"
PEERS = ("AdamW(foreach=True)", "AdamW(fused=True)")
OURS = 'CVAdam(preconditioner="rms")'


def model_with_gradients(device: str) -> torch.nn.Module:
    model = resnet18(num_classes=10).to(device)
    for param in model.parameters():
        param.grad = torch.randn_like(param) * 1e-3
    return model


def sampler(device: str, kind: str = "rms", *, adapt: bool = True, per_kernel: bool = False, **settings: Any) -> CVAdam:
    """Return a sampler of a fresh model, by its settings."""
    model = model_with_gradients(device)
    lr = 1e-4 if kind == "rms" else 0.1
    optimizer = CVAdam(
        model.parameters(), lr=lr, num_data=50_000, betas=(0.9, 1.0), preconditioner=kind, seed=0, **settings
    )
    optimizer.param_groups[0]["adapt"] = adapt
    for param in model.parameters():
        if per_kernel and param.dim() == 4:
            optimizer.set_weight_decay(param, torch.rand(*param.shape[:2], 1, 1, device=device) * 1e-3)
    return optimizer


def contenders(device: str) -> dict[str, torch.optim.Optimizer]:
    def parameters() -> list[torch.nn.Parameter]:
        return list(model_with_gradients(device).parameters())

    rows: dict[str, torch.optim.Optimizer] = {
        "AdamW(foreach=True)": torch.optim.AdamW(parameters(), foreach=True),
        "AdamW(fused=True)": torch.optim.AdamW(parameters(), fused=True),
        "SGD(momentum, foreach=True)": torch.optim.SGD(parameters(), lr=0.1, momentum=0.9, foreach=True),
        OURS: sampler(device),
        f"{OURS}, frozen": sampler(device, adapt=False),
        f"{OURS}, decay per kernel": sampler(device, per_kernel=True),
        'CVAdam(preconditioner="paper")': sampler(device, "paper"),
        'CVAdam(preconditioner="none")': sampler(device, "none"),
        f"{OURS}, foreach": sampler(device, foreach=True),
        f"{OURS}, plain": sampler(device, foreach=False, fused=False),
    }
    if device.startswith("cuda"):
        rows[f"{OURS}, bfloat16 state"] = sampler(device, state_dtype=torch.bfloat16)
    return rows


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


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of state that every weight has; numbers and counters aside."""
    tensors = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    return sum(value.numel() * value.element_size() for value in tensors if value.dim())


def traffic(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes that a step must read and write: gradient and weight, and state both ways where it changes."""
    group = optimizer.param_groups[0]
    weights = sum(param.numel() * param.element_size() for param in group["params"])
    state = state_bytes(optimizer)
    frozen = group.get("preconditioner") == "rms" and not group["adapt"]
    return 3 * weights + (state * 3 // 2 if frozen else 2 * state)


def copy_speed(device: str) -> float:
    """Return the bytes a second, read and written, of copying 256 MiB on the device; the best of ten."""
    source = torch.empty(1 << 26, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * source.numel() * 4 / best


def device_work(step: Callable[[], object]) -> tuple[int, float]:
    """Return the launches of one step (kernels and copies), and the milliseconds that the device works on them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return len(events), sum(event.time_range.elapsed_us() for event in events) / 1e3


def compare(device: str, rounds: int) -> dict[str, Any]:
    """Return one run's figures, and print them."""
    on_gpu = device.startswith("cuda")
    optimizers = contenders(device)
    times = measure(
        {name: o.step for name, o in optimizers.items()}, rounds, torch.cuda.synchronize if on_gpu else lambda: None
    )
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = {name: min(values) for name, values in times.items()}
    weights = sum(p.numel() for group in optimizers[OURS].param_groups for p in group["params"])
    result: dict[str, Any] = {
        "weights": weights, "threads": torch.get_num_threads(), "rounds": rounds, "median_ms": medians, "best_ms": best,
        "state_values_per_weight": state_bytes(optimizers[OURS]) / 4 / weights,
    }  # fmt: skip
    print(f"{weights:,} weights, {result['threads']} threads, {rounds} rounds")
    print(f"{OURS} holds {result['state_values_per_weight']:.0f} values a weight\n")
    extra = f"{'launches':>10}{'device ms':>11}{'of a copy':>11}" if on_gpu else ""
    print(f"{'':46}{'median ms':>10}{'best ms':>9}" + "".join(f"{'/ ' + peer:>23}" for peer in PEERS) + extra)
    speed = copy_speed(device) if on_gpu else 0.0
    if on_gpu:
        result |= {"copy_bytes_per_second": speed, "launches": {}, "device_ms": {}, "share_of_copy": {}}
    for name, optimizer in optimizers.items():
        line = f"{name:46}{medians[name]:>10.2f}{best[name]:>9.2f}"
        line += "".join(f"{medians[name] / medians[peer]:>23.2f}" for peer in PEERS)
        if on_gpu:
            launches, busy = device_work(optimizer.step)
            share = traffic(optimizer) / (1e-3 * busy) / speed
            for key, value in (("launches", launches), ("device_ms", busy), ("share_of_copy", share)):
                result[key][name] = value
            line += f"{launches:>10}{busy:>11.3f}{share:>11.2f}"
        print(line, flush=True)
    return result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--threads", type=int, nargs="+", help="a comparison for each number of threads; the last is the table's"
    )
    parser.add_argument("--json", default=str(RESULTS))
    parser.add_argument("--keep-memory", action="store_true", help="as in training: freed memory stays in the process")
    arguments = parser.parse_args(argv)
    if arguments.keep_memory:
        keep_freed_memory()
    runs = []
    for threads in arguments.threads or [torch.get_num_threads()]:
        torch.set_num_threads(threads)
        runs.append(compare(arguments.device, arguments.rounds))
    where = environment(arguments.device)
    write_json(
        Path(arguments.json),
        {**runs[-1], "keep_memory": arguments.keep_memory, "others": runs[:-1], "environment": where},
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
