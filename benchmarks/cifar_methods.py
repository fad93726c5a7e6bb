"""The paper's methods on whitened networks: CIFAR at real accuracy, all 10,000 test images.

    python -m benchmarks.cifar_methods --data-dir DATA [--ood-dir DATA100] [--budget-minutes M] [--only PATTERN …] [--seeds 0 1 2]
    python -m benchmarks.cifar_methods --place cifar100-72 --data-dir DATA100 [--ood-dir DATA] --seeds 0 1
    python -m benchmarks.cifar_methods --device cuda --jobs 15 --data-dir DATA [--ood-dir DATA100] [--out FOLDER]
    python -m benchmarks.cifar_methods --times        # of the networks of each size, on a core that does nothing else

Runs what is missing, seed 0 of every method first, goes on with what was stopped, and never runs a finished cell again. Of
every finished run, what it says of the other CIFAR's test images, of noisy and of blurred ones is in its row; its folder is
then removed, without `--keep`; of SGD's runs the probabilities of the last weights are kept, whose average is the deep ensemble.
Equal epochs; how the settings were chosen is in docs/images.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bayesprune import vision
from bayesprune.common.files import replacing
from bayesprune.compact_run import compact_run
from bayesprune.compaction import compact
from bayesprune.posterior import classification_metrics, ood_metrics, predict
from bayesprune.train import RunConfig, recipe
from bayesprune.train.build import build_optimizer, build_pruner
from bayesprune.train.evaluation import load_trained
from bayesprune.train.folder import environment, write_json
from paper.cells import Cell, run_cells, standing
from paper.image_tables import mean_and_spread
from paper.published import chosen

RESULTS = Path(__file__).parent / "results"
TIMES = RESULTS / "cifar_times.json"
DENSE = ("sgd", "cvadam", "swag", "csghmc")
SPARSE = ("dfp", "dpf", "rigl", "gmp", "dpf-sgd", "sparse-momentum", "dsr")
CHANNELS = ("dfp-channel", "dpf-channel", "channel-gmp")
NOISE, BLUR = 0.04, 1.0  # standard deviations: of the noise as a share of white, of the blur in pixels
SAID = "probabilities.npz"  # of a run's last weights


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


def measured(run: Path, data_dir: str, ood_dir: str | None, device: str) -> dict[str, Any]:
    """Return what a row holds beside the run's own result."""
    return shifts(run, data_dir, ood_dir, device) | deployed(run, data_dir)


def shifts(run: Path, data_dir: str, ood_dir: str | None, device: str) -> dict[str, Any]:
    """Return what a run's average says of images from elsewhere, and its accuracy on noisy and blurred ones."""
    model, samples, data, config = load_trained(run, data_dir)
    assert isinstance(data, vision.ArrayDataset)
    members = samples if len(samples) else None
    model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def said(images: Tensor, labels: Tensor, members: Any = members) -> Any:
        batches = vision.BatchLoader(
            images, labels, batch_size=256, mean=data.mean, std=data.std, scale=data.scale, channels_last=True,
            device=device,
        )  # fmt: skip
        return predict(model, members, batches)

    images, labels = data.split("test")
    found: dict[str, Any] = {"noise": NOISE, "blur": BLUR}
    health = json.loads((run / "result.json").read_text(encoding="utf-8")).get("health") or {}
    found["measured_temperature"] = health.get("sample_temperature")
    mixed = config.runtime.precision == "bf16-mixed"
    with torch.autocast(device, torch.bfloat16, enabled=mixed):
        plain = said(images, labels)
        for name, change in (("noisy", noisy), ("blurred", blurred)):
            prediction = said(change(images), labels)
            scores = classification_metrics(prediction.probabilities, labels)
            found |= {f"{name}_{key}": scores[key] for key in ("accuracy", "nll", "ece")}
        if config.sampler.method == "sgd":
            alone = said(images, labels, None).probabilities.numpy().astype(np.float16)
            np.savez_compressed(run / SAID, labels=labels.numpy().astype(np.uint8), **{f"seed{config.seed}": alone})
        if ood_dir is not None:
            other_set = "cifar100" if config.data.dataset == "cifar10" else "cifar10"
            other = said(*vision.load_cifar(other_set, Path(ood_dir)).split("test"))
            found |= {f"ood_{key}": value for key, value in ood_metrics(plain.total, other.total).items()}
    return found


def deployed(run: Path, data_dir: str) -> dict[str, float]:
    """Return the megabytes of a run's last weights when what is pruned is removed."""
    with tempfile.TemporaryDirectory() as folder:
        compact_run(run, Path(folder) / "compact", members="none", data_dir=data_dir)
        size = sum(path.stat().st_size for path in (Path(folder) / "compact").rglob("*") if path.is_file())
    return {"compact_mb": size / 2**20}


def share(config: RunConfig) -> float:
    """Return the share of a recipe's prunable weights that is removed in the end: of channels all, of single weights none."""
    return config.pruning.target_sparsity if "channel" in str(config.recipe) else 0.0


def size_of(config: RunConfig) -> str:
    """Return what decides how large a recipe's network is in the end."""
    width = config.network.width or "its own"
    return f"{config.network.network} for {config.data.dataset}, width {width}, {share(config):.0%} removed"


def sized(config: RunConfig) -> torch.nn.Module:
    """Return a network of the size of a recipe's, its weights at their start."""
    width = {} if config.network.width is None else {"width": config.network.width}
    classes = 100 if config.data.dataset == "cifar100" else 10
    model = vision.build(config.network.network, num_classes=classes, **width).eval()
    if share(config):
        changed = replace(config, pruning=replace(config.pruning, every=1, prune_from=0.0, prune_until=0.5))
        optimizer = build_optimizer(changed, model, 50_000)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        pruner = build_pruner(changed, model, optimizer, 20, torch.zeros(1, 3, 32, 32))
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(8, 3, 32, 32)).logsumexp(1).mean().backward()
            optimizer.step()
        pruner.finish_()
        model = compact(model, example_input=torch.zeros(1, 3, 32, 32)).model.eval()
    return model


def write_times(rounds: int = 40) -> None:
    """Time the networks of every size in turns and write the best of each, in milliseconds."""
    torch.set_num_threads(1)
    configs = {size_of(config): config for config in map(recipe, [*names("cifar10-94"), *names("cifar100-72")])}
    models = {size: sized(config) for size, config in configs.items()}
    sizes: dict[str, dict[str, float]] = {size: {} for size in models}
    with torch.no_grad():
        for _ in range(rounds):
            for size, model in models.items():
                for batch in (1, 64):
                    inputs, start = torch.randn(batch, 3, 32, 32), time.process_time()
                    model(inputs)
                    seconds = time.process_time() - start
                    sizes[size][f"ms_{batch}"] = min(1000 * seconds, sizes[size].get(f"ms_{batch}", float("inf")))
    print(json.dumps(sizes, indent=1))
    write_json(TIMES, {"sizes": sizes, "environment": environment("cpu")})


def ledger(place: str, folder: Path | None = None) -> Path:
    """Return the file of a place's rows, wherever they ran."""
    return (folder or RESULTS) / f"{place.replace('-', '_')}.jsonl"


def ensemble_file(rows: Path) -> Path:
    """Return the file of what SGD's networks say, beside their rows."""
    return rows.with_name(f"{rows.stem}_sgd_probabilities.npz")


def _keep_probabilities(run: Path, rows: Path) -> None:
    """Add a run's test probabilities to the file beside its rows."""
    path = ensemble_file(rows)
    known = dict(np.load(path)) if path.exists() else {}
    known |= dict(np.load(run / SAID))
    with replacing(path) as fresh, fresh.open("wb") as file:
        np.savez_compressed(file, **known)


def deep_ensemble(rows: Path) -> tuple[int, dict[str, float]] | None:
    """Return how many of SGD's runs there are and what their average scores, None of fewer than two."""
    path = ensemble_file(rows)
    known = dict(np.load(path)) if path.exists() else {}
    members = [torch.from_numpy(known[name]).float() for name in sorted(known) if name.startswith("seed")]
    if len(members) < 2:
        return None
    mean = torch.stack(members).mean(0)
    return len(members), classification_metrics(mean, torch.from_numpy(known["labels"]).long())


def time_of(row: dict[str, Any], batch: int) -> float | None:
    """Return the milliseconds of a network of a row's size, None where its size was not timed."""
    sizes = json.loads(TIMES.read_text(encoding="utf-8"))["sizes"] if TIMES.exists() else {}
    return sizes.get(size_of(recipe(row["recipe"], row["changes"])), {}).get(f"ms_{batch}")


COLUMNS: dict[str, tuple[Callable[[dict[str, Any]], Any], int]] = {
    "single %": (lambda row: 100 * row["accuracy_single"], 2),
    "averaged %": (lambda row: 100 * row["accuracy_mean"], 2),
    "averaged, mirrored %": (lambda row: 100 * row["views"]["accuracy_mean"], 2),
    "NLL, single": (lambda row: row["nll_single"], 3),
    "NLL, averaged": (lambda row: row["nll"], 3),
    "ECE, single": (lambda row: row["ece_single"], 3),
    "ECE, averaged": (lambda row: row["ece"], 3),
    "zero: prunable %": (lambda row: 100 * row["sparsity_prunable"], 1),
    "M multiply-adds": (lambda row: row["madds"] / 1e6, 1),
    "MB": (lambda row: row.get("compact_mb"), 2),
    "ms, batch 1": (lambda row: time_of(row, 1), 1),
    "ms, batch 64": (lambda row: time_of(row, 64), 0),
    "AUROC, other CIFAR": (lambda row: row.get("ood_auroc"), 3),
    "noisy %": (lambda row: 100 * row["noisy_accuracy"] if row["noise"] == NOISE else None, 1),
    "blurred %": (lambda row: 100 * row["blurred_accuracy"], 1),
    "T measured": (lambda row: row.get("measured_temperature"), 3),
    "training s, one core": (lambda row: row["seconds"] if row["environment"]["device"] == "cpu" else None, 0),
}
ONCE = ("MB", "ms, batch 1", "ms, batch 64", "zero: prunable %")  # the same for all seeds


def _cells(rows: list[dict[str, Any]], columns: Iterable[str]) -> str:
    """Return the cells of a line."""
    found = []
    for name in columns:
        of, digits = COLUMNS[name]
        found.append(mean_and_spread([of(row) for row in (rows[:1] if name in ONCE else rows)], digits))
    return " | ".join(found)


def finished(path: Path) -> list[dict[str, Any]]:
    """Return a ledger's finished rows at the recipes' own settings."""
    return [row for row in standing(path)["rows"] if row["status"] == "done" and not row["changes"]]


def where(held: dict[str, Any]) -> str:
    """Return on what a row was trained, by its environment."""
    return f"{held['cpu']}, one thread a run" if held["device"] == "cpu" else f"{held['device']}, many runs at once"


def _trained_on(rows: list[dict[str, Any]]) -> str:
    """Return on what machines rows were trained, and how many on each."""
    count = Counter(f"{where(row['environment'])}, torch {row['environment']['torch']}" for row in rows)
    return "; ".join(f"{name} ({number} of {len(rows)} runs)" for name, number in count.items())


def table(place: str) -> str:
    """Return the finished cells of a place, a line a recipe: means, with the standard deviation of several."""
    path = ledger(place)
    rows = finished(path)
    lines = ["| | n | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name in [name for name in names(place) if any(row["recipe"] == name for row in rows)]:
        own = [row for row in rows if row["recipe"] == name]
        lines.append(f"| {name.removeprefix(place + '-')} | {len(own)} | {_cells(own, COLUMNS)} |")
    ensemble = deep_ensemble(path)
    if ensemble is not None:
        count, scores = ensemble
        said = {"averaged %": 100 * scores["accuracy"], "NLL, averaged": scores["nll"], "ECE, averaged": scores["ece"]}
        cells = [mean_and_spread([said.get(name)], COLUMNS[name][1]) for name in COLUMNS]
        lines.append(f"| deep ensemble of {count} SGD runs | 1 | " + " | ".join(cells) + " |")
    if not rows:
        return "Not measured yet."
    timer = json.loads(TIMES.read_text(encoding="utf-8"))["environment"] if TIMES.exists() else rows[0]["environment"]
    note = (
        f"Mean ± standard deviation over n seeds; {rows[0]['epochs']} epochs each, all 10,000 test images, last epoch. "
        f"Averaged: over the samples, SGD's over its late snapshots. Trained on {_trained_on(rows)}; "
        f"training s: of the runs on a CPU, beside other work. MB and ms: one network in float32, pruned channels "
        f"removed, single zeros not; ms: the best of 40, sizes in turns, "
        f"processor time of one thread, {timer['cpu']}, torch {timer['torch']}."
    )
    return "\n".join(lines) + f"\n\n{note}"


def short_table() -> str:
    """Return averaged accuracy, NLL and ECE of the methods that matter most."""
    words = {
        "sgd": "SGD, dense", "cvadam": "CV-Adam, dense", "dfp-90": "CV-Adam + EM-MCMC (DFP), 90 % of the weights zero",
        "gmp-90": "gradual magnitude pruning, 90 %", "rigl-90": "RigL, 90 %",
        "dfp-channel-50": "CV-Adam + EM-MCMC (DFP), half of the multiply-adds", "channel-gmp-50": "gradual L2 channel pruning, half",
        "dfp-channel-70": "CV-Adam + EM-MCMC (DFP), a third of the multiply-adds", "channel-gmp-70": "gradual L2 channel pruning, a third",
    }  # fmt: skip
    shown = ("averaged %", "NLL, averaged", "ECE, averaged", "MB")
    rows = finished(ledger("cifar10-94"))
    lines = ["| | n | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
    for name, text in words.items():
        own = [row for row in rows if row["recipe"] == f"cifar10-94-{name}"]
        lines.append(f"| {text} | {len(own)} | {_cells(own, shown)} |")
    note = "Averaged over 8 samples of the run; SGD and the baselines on it over 8 late snapshots. MB: without the pruned channels."
    return "\n".join(lines) + f"\n\n{note}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", choices=("cifar10-94", "cifar100-72"), default="cifar10-94")
    parser.add_argument("--data-dir")
    parser.add_argument("--ood-dir", help="folder of the other CIFAR; without it no strange images are shown")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--budget-minutes", type=float)
    parser.add_argument("--only", nargs="+", default=[], help="recipes or patterns, as '*-90'")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", default="runs/cifar_methods")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the rows")
    parser.add_argument("--keep", action="store_true", help="leave the run folders, of which figures can be drawn")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="try it small; such cells stand apart"
    )
    parser.add_argument("--times", action="store_true", help="time networks of each size, train nothing")
    arguments = parser.parse_args()
    if arguments.times:
        write_times()
        return
    if arguments.data_dir is None:
        parser.error("--data-dir is needed: the folder of the images")
    rows = ledger(arguments.place, arguments.out)
    settings = (*arguments.set, "threads=1", f"device={arguments.device}")
    wanted = chosen(names(arguments.place), arguments.only)
    cells = [Cell(name, seed, settings) for seed in arguments.seeds for name in wanted]
    measure = partial(measured, data_dir=arguments.data_dir, ood_dir=arguments.ood_dir, device=arguments.device)
    result = run_cells(
        cells, rows, runs=arguments.runs, data_dir=arguments.data_dir, budget_minutes=arguments.budget_minutes,
        jobs=arguments.jobs, measure=measure,
    )  # fmt: skip
    done = {row["name"] for row in result["rows"] if row["status"] == "done"}
    for cell in cells:
        run = Path(arguments.runs) / cell.name
        if cell.name in done and run.exists():
            if (run / SAID).exists() and not cell.changes:
                _keep_probabilities(run, rows)
            if not arguments.keep:
                shutil.rmtree(run)


if __name__ == "__main__":
    main()
