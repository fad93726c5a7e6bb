"""The paper's methods on whitened networks: CIFAR at real accuracy, one core a run, all 10,000 test images.

    python -m benchmarks.cifar_methods --data-dir DATA [--ood-dir DATA100] [--budget-minutes M] [--only PATTERN …] [--seeds 0 1 2]
    python -m benchmarks.cifar_methods --place cifar100-72 --data-dir DATA100 [--ood-dir DATA] --seeds 0 1

Runs what is missing, seed 0 of every method first, goes on with what was stopped, and never runs a finished cell again. Of
every finished run, what it says of the other CIFAR's test images, of noisy and of blurred ones is added from its folder, which is
then removed. Equal epochs; settings were chosen on 5,000 held-out training images.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bayesprune import vision
from bayesprune.posterior import classification_metrics, ood_metrics, predict
from bayesprune.train.evaluation import load_trained
from bayesprune.train.folder import write_json
from paper.cells import Cell, run_cells
from paper.published import chosen

RESULTS = Path(__file__).parent / "results"
DENSE = ("sgd", "cvadam", "swag", "csghmc")
SPARSE = ("dfp", "dpf", "rigl", "gmp", "dpf-sgd", "sparse-momentum", "dsr")
CHANNELS = ("dfp-channel", "dpf-channel", "channel-gmp")
NOISE, BLUR = 0.1, 1.0  # standard deviations: of the noise as a share of white, of the blur in pixels


def names(place: str) -> list[str]:
    """Return the recipes of a place, first things first."""
    if place == "cifar100-72":
        pruned = [f"{place}-{name}-channel-{s}" for s in (50, 70, 90) for name in ("dfp", "dpf")]
        return [f"{place}-sgd", f"{place}-cvadam", *pruned]
    at_90 = [f"{place}-{name}-90" for name in (*SPARSE[:4], *CHANNELS)]
    rest = [f"{place}-{name}-{s}" for s in (95, 70, 50) for name in (SPARSE if s == 95 else CHANNELS)]
    later = [f"{place}-{name}-90" for name in SPARSE[4:]]
    return [f"{place}-sgd", f"{place}-cvadam", *at_90, *(f"{place}-{name}" for name in DENSE[2:]), *later, *rest]


def noisy(images: Tensor) -> Tensor:
    """Return pixels of 0 to 255 with the same Gaussian noise each time."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 255 * NOISE * noise).round().clamp(0, 255).to(torch.uint8)


def blurred(images: Tensor) -> Tensor:
    """Return pixels blurred by a Gaussian of 5 × 5 pixels."""
    line = torch.exp(-torch.arange(-2.0, 3.0).square() / (2 * BLUR**2))
    kernel = torch.outer(line, line) / line.sum().square()
    padded = functional.pad(images.float(), (2, 2, 2, 2), mode="reflect")
    found = functional.conv2d(padded.reshape(-1, 1, *padded.shape[2:]), kernel.view(1, 1, 5, 5))
    return found.view(images.shape).round().clamp(0, 255).to(torch.uint8)


def shifts(run: Path, data_dir: str, ood_dir: str | None) -> dict[str, Any]:
    """Return what a run's average says of images from elsewhere, and its accuracy on noisy and blurred ones."""
    model, samples, data, config = load_trained(run, data_dir)
    assert isinstance(data, vision.ArrayDataset)
    members = samples if len(samples) else None
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def said(images: Tensor, labels: Tensor) -> Any:
        batches = vision.BatchLoader(
            images, labels, batch_size=256, mean=data.mean, std=data.std, scale=data.scale, channels_last=True
        )
        return predict(model, members, batches)

    images, labels = data.split("test")
    found: dict[str, Any] = {"noise": NOISE, "blur": BLUR}
    mixed = config.runtime.precision == "bf16-mixed"
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        plain = said(images, labels)
        for name, change in (("noisy", noisy), ("blurred", blurred)):
            prediction = said(change(images), labels)
            scores = classification_metrics(prediction.probabilities, labels)
            found |= {f"{name}_{key}": scores[key] for key in ("accuracy", "nll", "ece")}
        if ood_dir is not None:
            other_set = "cifar100" if config.data.dataset == "cifar10" else "cifar10"
            other = said(*vision.load_cifar(other_set, Path(ood_dir)).split("test"))
            found |= {f"ood_{key}": value for key, value in ood_metrics(plain.total, other.total).items()}
    return found


def left(place: str, only: list[str], seeds: list[int], settings: tuple[str, ...]) -> Iterator[Cell]:
    """Return the cells in their order."""
    for seed in seeds:
        for name in chosen(names(place), only):
            yield Cell(name, seed, settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", choices=("cifar10-94", "cifar100-72"), default="cifar10-94")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--ood-dir", help="folder of the other CIFAR; without it no strange images are shown")
    parser.add_argument("--budget-minutes", type=float)
    parser.add_argument("--only", nargs="+", default=[], help="recipes or patterns, as '*-90'")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", default="runs/cifar_methods")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="try it small; such cells stand apart"
    )
    arguments = parser.parse_args()
    results = RESULTS / f"{arguments.place.replace('-', '_')}.jsonl"
    shift = results.with_name(f"{results.stem}_shift.json")
    for cell in left(arguments.place, arguments.only, arguments.seeds, (*arguments.set, "threads=1", "device=cpu")):
        result = run_cells(
            [cell], results, runs=arguments.runs, data_dir=arguments.data_dir, budget_minutes=arguments.budget_minutes
        )
        row = next((each for each in result["rows"] if each["name"] == cell.name), None)
        run = Path(arguments.runs) / cell.name
        known = json.loads(shift.read_text(encoding="utf-8")) if shift.exists() else {}
        if row is not None and row["status"] == "done" and cell.name not in known and run.exists():
            known[cell.name] = shifts(run, arguments.data_dir, arguments.ood_dir)
            write_json(shift, known)
            shutil.rmtree(run)


if __name__ == "__main__":
    main()
