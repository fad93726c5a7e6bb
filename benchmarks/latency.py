"""How much faster a network is once channels are gone: dense, ours and Torch-Pruning's in turns, in torch and in onnxruntime.

    python -m benchmarks.latency [--extent 224] [--batch 1] [--rounds 30] [--threads 1] [--print]

See README.md beside this file for the environment (that of the zoo). Each network is pruned once by `ForwardPruning`'s own
choice of channels, to 50 and to 80 % of the weights, and compacted; Torch-Pruning takes from a copy of the same network as
many steps as bring it to the same multiply-adds, once with channels in any number and once in multiples of 8, as ours are.
A round times every network once, in an order that moves on by one each round; printed are the medians of the rounds and
dense ÷ each.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bayesprune as bp
from bayesprune.deploy.export import export_onnx
from bayesprune.deploy.profile import multiply_adds
from bayesprune.samplers import CycleClock
from bayesprune.train.folder import environment, read_json, write_json
from benchmarks.zoo import versions
from benchmarks.zoo_models import randomise_

RESULTS = Path(__file__).parent / "results" / "latency.json"
NETWORKS = ("resnet50", "mobilenet_v2")
SHARES = (0.5, 0.8)
CLASSES = 1000


def ours(model: nn.Module, example: Tensor, share: float) -> nn.Module:
    """The network with a share of its weights gone, as the documentation's first line does it."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = bp.ForwardPruning(
        model, optimizer, sparsity=share, clock=CycleClock(total_steps=1), example_input=example, prior=None
    )
    model.train()
    model(example).square().mean().backward()
    optimizer.step()
    return bp.compact(model.eval(), pruner, example_input=example).model.eval()


def theirs(model: nn.Module, example: Tensor, goal: int, multiple: int | None) -> nn.Module:
    """Torch-Pruning's network at the goal's multiply-adds: magnitude, the classifier left out."""
    import torch_pruning as tp

    model = copy.deepcopy(model)
    ignored = [m for m in model.modules() if getattr(m, "out_features", 0) == CLASSES]
    pruner = tp.pruner.BasePruner(
        model, example, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=0.9, iterative_steps=90,
        ignored_layers=ignored, round_to=multiple,
    )  # fmt: skip
    for _ in range(90):
        before = copy.deepcopy(model)
        pruner.step()
        now, last = multiply_adds(model, example), multiply_adds(before, example)
        if now <= goal:
            return model if goal - now <= last - goal else before
    return model


def sessions(networks: dict[str, nn.Module], example: Tensor, threads: int) -> dict[str, Callable[[], Any]]:
    """An onnxruntime session for each network."""
    import onnxruntime

    found: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in networks.items():
            path = Path(folder) / "model.onnx"
            export_onnx(model, path, example_input=example)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = threads, 3
            session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
            feed = {session.get_inputs()[0].name: example.numpy().astype(np.float32)}
            found[name] = lambda session=session, feed=feed: session.run(None, feed)
    return found


def times(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every call in every round, in turns."""
    names = list(calls)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 2):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = time.perf_counter()
            calls[name]()
            if turn >= 2:
                found[name].append(1000 * (time.perf_counter() - begin))
    return found


def measure(name: str, extent: int, batch: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    """All rows of one network."""
    import torchvision

    torch.manual_seed(0)
    example = torch.randn(batch, 3, extent, extent)
    dense = torchvision.models.get_model(name)
    randomise_(dense, torch.randn(8, 3, 64, 64), 0)
    dense.eval()
    networks = {"dense": dense}
    for share in SHARES:
        label = f"{share:.0%}"
        networks[f"ours, {label}"] = mine = ours(dense, torch.randn(4, 3, 64, 64), share)
        goal = multiply_adds(mine, example)
        networks[f"Torch-Pruning, {label}"] = theirs(dense, example, goal, None)
        networks[f"Torch-Pruning in multiples of 8, {label}"] = theirs(dense, example, goal, 8)

    def plain(model: nn.Module) -> Callable[[], Any]:
        def run() -> None:
            with torch.inference_mode():
                model(example)

        return run

    engines = {
        "torch": {label: plain(model) for label, model in networks.items()},
        "onnxruntime": sessions(networks, example, threads),
    }
    taken = {engine: times(calls, rounds) for engine, calls in engines.items()}
    base = multiply_adds(dense, example)
    return [
        {
            "network": name,
            "model": label,
            "parameters": sum(p.numel() for p in model.parameters()),
            "madds": multiply_adds(model, example) / base,
            **{engine: statistics.median(found[label]) for engine, found in taken.items()},
            **{
                f"{engine}_speedup": statistics.median(found["dense"]) / statistics.median(found[label])
                for engine, found in taken.items()
            },
        }
        for label, model in networks.items()
    ]


def table(result: dict[str, Any]) -> str:
    """The rows in Markdown."""
    lines = [
        "| network | model | parameters | multiply-adds | torch, ms | dense ÷ it | onnxruntime, ms | dense ÷ it |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        cells = [row["network"], row["model"], f"{row['parameters'] / 1e6:.2f} M", f"{row['madds']:.1%}"]
        cells += [
            f"{row[key]:.1f}" if not key.endswith("speedup") else f"{row[key]:.2f}"
            for key in ("torch", "torch_speedup", "onnxruntime", "onnxruntime_speedup")
        ]
        lines.append("| " + " | ".join(cells) + " |")
    where, setting = result["environment"], result["setting"]
    lines += [
        "",
        f"{where['cpu']}, {setting['threads']} thread(s), input {setting['batch']} x 3 x {setting['extent']}², ",
    ]
    lines[-1] += f"{setting['rounds']} rounds; " + ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extent", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--print", action="store_true", help="print the table of the results file; run nothing")
    options = parser.parse_args()
    if options.print:
        print(table(read_json(options.json)))
        return
    torch.set_num_threads(options.threads)
    setting = {key: getattr(options, key) for key in ("extent", "batch", "rounds", "threads")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [row for name in options.only for row in measure(name, **setting)]
    result = {"environment": environment("cpu"), "versions": versions(), "setting": setting, "rows": rows}
    write_json(options.json, result)
    print(table(result))


if __name__ == "__main__":
    main()
