"""ResNet-18 made small: file, parameters, multiply-adds and CPU time at 70, 80 and 90 % of its weights removed.

    python -m benchmarks.compact_resnet18 --data-dir DATA [--threads 2] [--seconds 6]

One run of EM-MCMC on CIFAR-10 with coupled channel groups, a few hundred steps: its ramp passes 70 and 80 % on the way to
90 %, and a snapshot is taken at each. Every snapshot is compacted (and verified), saved, and timed in turns with the dense
network. The run is kept in runs/, goes on where it was stopped, and is the one that benchmarks.sparse_ensemble measures. At
its end everything but the last stage and the head is frozen, and twelve more samples are drawn: those of a subnetwork ensemble.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bayesprune import vision
from bayesprune.compaction import CompactionReport, compact
from bayesprune.deploy import Profile, compare_times, load, profile, save
from bayesprune.posterior import SampleStore, classification_metrics, predict
from bayesprune.samplers import CVAdam, CycleClock
from bayesprune.sparsity import ForwardPruning
from bayesprune.train.folder import environment, write_json
from bayesprune.train.memory import keep_freed_memory
from bayesprune.train.tree import load_tree, save_tree
from bayesprune.vision import ArrayDataset, Augmentation

RESULTS = Path(__file__).parent / "results" / "compact_resnet18.json"
LEVELS = (0.7, 0.8, 0.9)
LAST = torch.channels_last
SEED = 0
CLOCK = CycleClock(total_steps=300, cycles=1, samples_per_cycle=12, sample_every=10)
SUBNETWORK, EVERY, LOW = (
    ("stages.3", "head"),
    5,
    0.1,
)  # what goes on moving, steps between its samples, share of the rate
RUN: dict[str, Any] = {"batch_size": 32, "lr": 0.5, "betas": (0.5, 1.0), "temperature": 1e-3, "weight_decay": 5e-4}
PRUNING: dict[str, Any] = {
    "sparsity": 0.9,
    "keep_ends": False,
    "every": 1,
    "warmup_steps": 30,
    "ramp_end_step": 180,
    "scope": "layer",
    "round_to": 16,
}
EXAMPLE = torch.zeros(2, 3, 32, 32)


def network() -> nn.Module:
    torch.manual_seed(SEED)
    return vision.build("resnet18", num_classes=10)


def snapshot(folder: Path, level: float) -> Path:
    return folder / f"at{100 * level:.0f}.safetensors"


def train(folder: Path, data: ArrayDataset) -> None:
    """Train from where the folder stands to the end; leave a snapshot of each level, 12 samples and the last state."""
    folder.mkdir(parents=True, exist_ok=True)
    model = network().to(memory_format=LAST)  # type: ignore[call-overload]
    size, rate = RUN["batch_size"], RUN["lr"]
    loader = data.loader(
        "train", batch_size=size, drop_last=True, seed=SEED, channels_last=True, augmentation=Augmentation(4)
    )
    settings = {key: RUN[key] for key in ("betas", "temperature", "weight_decay")}
    optimizer = CVAdam(model.parameters(), lr=rate, num_data=len(data.train_images), seed=SEED, **settings)
    pruner = ForwardPruning(model, optimizer, groups="channel", coupling="group", example_input=EXAMPLE, **PRUNING)
    samples = SampleStore(folder / "samples")
    step = 0
    if (folder / "state.safetensors").exists():
        state = load_tree(folder / "state.safetensors")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        pruner.load_state_dict(state["pruner"])
        loader.load_state_dict(state["loader"])
        step = state["step"]
    samples.truncate(sum(CLOCK.collect(past) for past in range(step)))

    def keep() -> None:
        save_tree(
            folder / "state.safetensors",
            {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(), "pruner": pruner.state_dict(),
                "loader": loader.state_dict(), "step": step,
            },
        )  # fmt: skip

    model.train()
    while step < CLOCK.total_steps:
        for images, labels in loader:
            for group in optimizer.param_groups:
                group["lr"] = CLOCK.lr(step, rate)
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            before = pruner.target_now
            optimizer.step()
            if CLOCK.collect(step):
                samples.collect(model, step=step)
            step += 1
            for level in LEVELS:
                if before < level <= pruner.target_now:
                    save_tree(snapshot(folder, level), {"model": model.state_dict(), "step": step})
                    keep()
            if step % 20 == 0:
                print(f"step {step}: loss {float(loss.detach()):.3f}, removed {pruner.hard_sparsity:.1%}", flush=True)
            if step == CLOCK.total_steps:
                break
    pruner.finish_()
    keep()
    move_subnetwork(model, optimizer, loader, SampleStore(folder / "subnetwork"))


def move_subnetwork(
    model: nn.Module, optimizer: CVAdam, loader: Iterable[tuple[Tensor, Tensor]], samples: SampleStore
) -> None:
    """Sample on with all but the subnetwork frozen: no gradient, and BatchNorm as in evaluation."""
    samples.truncate(0)
    optimizer.zero_grad()
    for name, module in model.named_modules():
        moves = name.startswith(SUBNETWORK)
        module.training = moves
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(moves)
    for group in optimizer.param_groups:
        group["lr"] = LOW * RUN["lr"]
    for step, (images, labels) in enumerate(islice(loader, CLOCK.samples_per_cycle * EVERY)):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        if step % EVERY == EVERY - 1:
            samples.collect(model, step=CLOCK.total_steps + step)


def finished(folder: Path, data_dir: str) -> tuple[ArrayDataset, dict[str, Any]]:
    """The data and the run's last state, trained first if need be."""
    data = vision.load_cifar("cifar10", Path(data_dir))
    path = folder / "state.safetensors"
    samples = SampleStore(folder / "subnetwork")
    if not path.exists() or load_tree(path)["step"] < CLOCK.total_steps or len(samples) < CLOCK.samples_per_cycle:
        train(folder, data)
    return data, load_tree(path)


def masked(state: dict[str, Tensor]) -> nn.Module:
    model = network()
    model.load_state_dict(state)
    return model.eval()


def accuracy(model: nn.Module, data: ArrayDataset) -> float:
    prediction = predict(model, None, data.loader("test", batch_size=256))
    assert prediction.labels is not None
    return float(classification_metrics(prediction.probabilities, prediction.labels)["accuracy"])


def variants(model: nn.Module, dense: nn.Module, seconds: float, batches: tuple[int, ...]) -> list[dict[str, Any]]:
    """The compact network with all channels as they are, and to multiples of 8 and 16; each in both memory formats."""
    rows = []
    for multiple in (1, 8, 16):
        result = compact(model, example_input=EXAMPLE, coupling="group", round_to=multiple)
        for layout in ("contiguous", "channels_last"):
            small = result.model.to(memory_format=getattr(torch, f"{layout}_format", LAST))  # type: ignore[call-overload]
            found = profile(small, dense=dense, example_input=EXAMPLE, batch_sizes=batches, seconds=seconds)
            rows.append({"round_to": multiple, "layout": layout, **_numbers(found, result.report)})
            print(f"round_to={multiple}, {layout}\n{found}\n", flush=True)
    return rows


def _numbers(found: Profile, report: CompactionReport) -> dict[str, Any]:
    latency = {str(batch): asdict(times) for batch, times in found.latency.items()}
    return {**asdict(found.compact), "latency": latency, "difference": dict(report.evaluated), "exact": report.exact}


def measure(folder: Path, data: ArrayDataset, seconds: float, batches: tuple[int, ...] = (1, 64)) -> dict[str, Any]:
    dense = network().eval()
    rows = []
    for level in LEVELS:
        state = load_tree(snapshot(folder, level))
        model = masked(state["model"])
        small = compact(model, example_input=EXAMPLE, coupling="group").model
        with tempfile.TemporaryDirectory() as place:
            path = save(small, Path(place) / "model", example_input=EXAMPLE, dense=model)
            scores = accuracy(load(path), data)
        row = {"level": level, "step": state["step"], "accuracy": scores}
        rows.append({**row, "variants": variants(model, dense, seconds, batches)})
        print(f"{level:.0%} at step {state['step']}: accuracy {scores:.2%}\n", flush=True)
    own = profile(dense, example_input=EXAMPLE, batch_sizes=(), seconds=seconds).compact
    formats = {}
    other = network().eval().to(memory_format=LAST)  # type: ignore[call-overload]
    for batch in batches:
        images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            formats[str(batch)] = asdict(
                compare_times(lambda x=images: dense(x), lambda x=images: other(x), seconds=seconds)
            )  # type: ignore[misc]
    return {"dense": {**asdict(own), "channels_last": formats}, "levels": rows}


def verdict(result: dict[str, Any]) -> str:
    """The claim: at 90 % at least 3 times as fast at batch 1 and 64, and at most 12 % of the dense file."""
    plain = result["levels"][-1]["variants"][0]
    share = plain["bytes"] / result["dense"]["bytes"]
    times = plain["latency"]
    fast = min(row["ratio"] for row in times.values())
    said = ", ".join(f"batch {b}: {r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for b, r in times.items())
    holds = "holds" if fast >= 3 and share <= 0.12 else "does not hold"
    return f"at 90 %: {share:.1%} of the dense file, times faster at {said}. At least 3 and at most 12 %: {holds}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each pair of networks and batch size")
    parser.add_argument("--train-only", action="store_true", help="leave the measurement to a later call")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    folder = Path(arguments.runs) / "compact_resnet18"
    data, _ = finished(folder, arguments.data_dir)
    if arguments.train_only:
        return
    result = measure(folder, data, arguments.seconds)
    result |= {"settings": {"seed": SEED, "steps": CLOCK.total_steps, **RUN, **PRUNING}, "verdict": verdict(result)}
    write_json(RESULTS, {**result, "environment": environment("cpu")})
    print(table(result) + "\n\n" + result["verdict"])


def table(result: dict[str, Any]) -> str:
    """Return the figures as a Markdown table: a row for each snapshot as it is, and for its fastest variant."""
    dense = result["dense"]
    batches = list(dense["channels_last"])
    lines = [
        "| | accuracy | file | parameters | multiply-adds | "
        + " | ".join(f"ms at batch {b}, dense / compact | times faster (95 %)" for b in batches) + " |",
        "|" + "---|" * (5 + 2 * len(batches)),
    ]  # fmt: skip
    for row in result["levels"]:
        plain, *others = row["variants"]
        best = min(others, key=lambda v: math.prod(t["after"] / t["before"] for t in v["latency"].values()))
        for variant in (plain, best):
            name = f"{row['level']:.0%}"
            if variant is not plain:
                name += f", `round_to={variant['round_to']}`, {variant['layout']}"
            cells = [name, f"{100 * row['accuracy']:.1f} %" if variant is plain else ""]
            cells += [f"{variant[key] / dense[key]:.1%}" for key in ("bytes", "parameters", "madds")]
            for batch in batches:
                t = variant["latency"][batch]
                cells.append(f"{1e3 * t['before']:.1f} / {1e3 * t['after']:.1f}")
                cells.append(f"**{t['ratio']:.2f}** ({t['low']:.2f} to {t['high']:.2f})")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
