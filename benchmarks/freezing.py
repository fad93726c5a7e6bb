"""Forward freezing and members that share what is frozen, beside training everything at equal epochs: CIFAR-10, whitened network.

    python -m benchmarks.freezing --data-dir DATA [--seeds 0 1] [--work runs/freezing] [--set width=32 …]

A first cycle of CV-Adam trains the whole network and shows how far each part still moves in the cycle's last epoch. A second
one goes on from it three ways, each with the whole network, with the first group of convolutions frozen and with the first two:
as one cycle of as many epochs with samples at its end, or as short cycles of its own seed for each member. What is frozen is
computed without gradients and is the same tensors in every member, so that an ensemble computes it once. The stages are run
folders, which go on where they stood.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayesprune import vision
from bayesprune.deploy import Ensemble, compare_times
from bayesprune.posterior import MemorySamples, classification_metrics, predict
from bayesprune.train import RunConfig, recipe, train
from bayesprune.train.evaluation import load_trained
from bayesprune.train.folder import environment, read_json, write_json
from bayesprune.train.loop import Trainer

RESULTS = Path(__file__).parent / "results" / "freezing.json"
RECIPE, FIRST, SECOND, MEMBERS = "cifar10-94-cvadam", 10, 6, 3
FROZEN = {"nothing": 0, "first group": 1, "two groups": 2}


class Still(nn.Sequential):
    """A part that is trained no more: no gradients, and BatchNorm's statistics as they are."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__(part)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> Still:
        """Stay in evaluation mode."""
        return super().train(False)


def network(width: int, state: dict[str, Tensor], frozen: int) -> nn.Module:
    """Return the network at some weights, with its stem and so many groups frozen."""
    model = vision.build("whitened94", num_classes=10, width=width)
    model.load_state_dict(state)
    assert isinstance(model, vision.WhitenedCNN)
    if frozen:
        model.whiten.requires_grad_(False)
        for i in range(frozen):
            model.groups[i] = Still(model.groups[i])
    return model


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Return how far the weights of each part went between two samples, as a share of their norm."""
    parts: dict[str, list[str]] = {}
    for name in before:
        if before[name].is_floating_point() and "running" not in name:
            parts.setdefault(
                ".".join(name.split(".")[:2]) if name.startswith("groups") else name.split(".")[0], []
            ).append(name)
    norm = lambda part, of: sum(float(of(name).double().square().sum()) for name in parts[part]) ** 0.5  # noqa: E731
    return {part: norm(part, lambda n: after[n] - before[n]) / norm(part, lambda n: before[n]) for part in parts}


def stage(config: RunConfig, out: Path, data_dir: str, build: Callable[[], nn.Module] | None = None) -> dict[str, Any]:
    """Run a stage, or read what it said."""
    data = vision.load_cifar("cifar10", Path(data_dir)) if build else None
    return train(config, out, data_dir=data_dir, model=build, data=data, resume=out.exists(), quiet=True)


def scores(model: nn.Module, members: list[dict[str, Tensor]], data: vision.ArrayDataset) -> dict[str, float]:
    """Return what the average of some members scores on the test images."""
    held = MemorySamples()
    for state in members:
        model.load_state_dict(state)
        held.collect(model)
    with torch.autocast("cpu", torch.bfloat16):
        loader = data.loader("test", batch_size=256, shuffle=False, channels_last=True)
        found = predict(model.to(memory_format=torch.channels_last), held, loader)  # type: ignore[call-overload]
    assert found.labels is not None
    every = classification_metrics(found.probabilities, found.labels)
    return {name: every[name] for name in ("accuracy", "nll", "ece")}


def rows_of(seed: int, settings: list[str], work: Path, data_dir: str) -> list[dict[str, Any]]:
    """Return the rows of a seed."""
    base = replace(recipe(RECIPE, [*settings, "threads=1", "device=cpu", "test_views=none"]), seed=seed)
    width = base.network.width or 64
    begin = replace(
        base, schedule=replace(base.schedule, epochs=FIRST, warmup_epochs="20%", samples_per_cycle=2, sample_every=1.0)
    )
    first = stage(begin, work / f"first-{seed}", data_dir)
    trained, samples, data, _ = load_trained(work / f"first-{seed}", data_dir)
    assert isinstance(data, vision.ArrayDataset)
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    rows: list[dict[str, Any]] = [
        {"seed": seed, "what": "first cycle", "epochs": FIRST, "seconds": first["seconds"], "moved": moved(samples[0], samples[1]),
         "single": scores(trained, [state], data)},
    ]  # fmt: skip
    for name, frozen in FROZEN.items():
        for way, cycles in (("one cycle", 1), ("a cycle a member", MEMBERS)):
            schedule = replace(
                base.schedule, epochs=SECOND // cycles, warmup_epochs="10%",
                samples_per_cycle=MEMBERS if cycles == 1 else 1, sample_every=0.25,
            )  # fmt: skip
            members, seconds = [], 0.0
            for cycle in range(cycles):
                out = work / f"{way} {name} {seed} {cycle}".replace(" ", "-")
                config = replace(base, schedule=schedule, seed=100 * (seed + 1) + cycle)
                seconds += stage(config, out, data_dir, lambda frozen=frozen: network(width, state, frozen))["seconds"]  # type: ignore[misc]
                model, found, _, _ = load_trained(out, data_dir, model=network(width, state, frozen), data=data)
                members += [dict(member) for member in found]
            rows.append(
                {"seed": seed, "what": way, "frozen": name, "epochs": SECOND, "members": len(members), "seconds": seconds,
                 "single": scores(model, members[-1:], data), "average": scores(model, members, data),
                 **times(model, members)}
            )  # fmt: skip
            print({key: value for key, value in rows[-1].items() if key != "times"}, flush=True)
    return rows


def times(model: nn.Module, members: list[dict[str, Tensor]]) -> dict[str, float]:
    """Return how much faster one forward pass of the ensemble is than one of each member."""
    model = model.eval()
    ensemble, x = Ensemble(model, members).eval(), torch.randn(64, 3, 32, 32)
    with torch.no_grad():
        found = compare_times(lambda: [model(x) for _ in members], lambda: ensemble(x), seconds=10.0)
    return {"faster": found.ratio, "faster_low": found.low, "faster_high": found.high}


def step_shares(seed: int, settings: list[str], work: Path, data_dir: str, rounds: int = 15) -> dict[str, float]:
    """Return the processor time of a training step beside one that trains all, in turns from a seed's first weights."""
    base = recipe(RECIPE, [*settings, "threads=1", "device=cpu"])
    state = load_trained(work / f"first-{seed}", data_dir)[0].state_dict()
    taken: dict[str, list[float]] = {name: [] for name in FROZEN}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            name: Trainer(
                base, Path(folder) / str(frozen), data_dir=data_dir, data=vision.load_cifar("cifar10", Path(data_dir)), quiet=True,
                model=network(base.network.width or 64, state, frozen),
            )
            for name, frozen in FROZEN.items()
        }  # fmt: skip
        for _ in range(rounds + 2):
            for name, trainer in trainers.items():
                trainer.model.train()
                batch, begin = trainer.loader._next(), time.process_time()
                trainer._train_step(*batch)
                taken[name].append(time.process_time() - begin)
    whole = statistics.median(taken["nothing"][2:])
    return {name: statistics.median(seconds[2:]) / whole for name, seconds in taken.items()}


def table(result: dict[str, Any]) -> str:
    """Return a line for each way and what it freezes, means over seeds."""
    lines = [
        "| after the first cycle | frozen | n | single % | averaged % | NLL | ECE | a training step | ensemble faster |",
        "|---" * 9 + "|",
    ]
    second = [row for row in result["rows"] if row["what"] != "first cycle"]

    def mean(rows: list[dict[str, Any]], of: Callable[[dict[str, Any]], float]) -> float:
        return statistics.mean(of(row) for row in rows)

    for way, name in dict.fromkeys((row["what"], row["frozen"]) for row in second):
        own = [row for row in second if (row["what"], row["frozen"]) == (way, name)]
        average = [row["average"] for row in own]
        lines.append(
            f"| {way} | {name} | {len(own)} | {100 * mean(own, lambda row: row['single']['accuracy']):.2f} | "
            f"{100 * mean(average, lambda row: row['accuracy']):.2f} | {mean(average, lambda row: row['nll']):.3f} | "
            f"{mean(average, lambda row: row['ece']):.3f} | "
            f"{result['steps'][name]:.0%} | {mean(own, lambda row: row['faster']):.2f} × |"
        )
    moved = [row["moved"] for row in result["rows"] if row["what"] == "first cycle"]
    parts = ", ".join(f"{part} {statistics.mean(row[part] for row in moved):.3f}" for part in moved[0])
    return (
        "\n".join(lines)
        + "\n\nA training step: its processor time beside one that trains all, medians of steps in turns. "
        + f"How far each part moved in the first cycle's last epoch, as a share of its norm: {parts}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--work", type=Path, default=Path("runs/freezing"))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = read_json(arguments.out)["rows"] if arguments.out.exists() else []
    for seed in arguments.seeds:
        if not any(row["seed"] == seed for row in known):
            known += rows_of(seed, arguments.set, arguments.work, arguments.data_dir)
            about = {"recipe": RECIPE, "settings": arguments.set, "rows": known, "environment": environment("cpu")}
            shares = step_shares(seed, arguments.set, arguments.work, arguments.data_dir)
            write_json(arguments.out, about | {"steps": shares})


if __name__ == "__main__":
    main()
