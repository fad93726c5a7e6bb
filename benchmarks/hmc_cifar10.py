"""Stochastic-gradient samplers against the published predictions of full-batch HMC on CIFAR-10, T = 1, no augmentation.

    python -m benchmarks.hmc_cifar10 --data-dir DATA --hmc FILE --work DIR [--only METHOD …] [--seeds 0 1] [--epochs 4]
    python -m benchmarks.hmc_cifar10 --print

Every chain has the same epochs; an ensemble's chain is two networks of half of them. The last 5,000 training images choose the
prior precision (on SGHMC) and each method's step size, by NLL after one epoch; neither HMC's file nor a test image has a say.
The same command goes on with what was stopped and never runs a finished cell again. FILE is HMC's (10000, 10) array of class
probabilities, one row a test image in the official order. Finished chains are written to benchmarks/results/hmc_cifar10.json.
"""

from __future__ import annotations

import argparse
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesprune.posterior import accuracy, brier, ece, nll
from bayesprune.train.folder import environment, read_json, write_json
from bayesprune.vision import ArrayDataset, load_cifar
from benchmarks.hmc_chain import METHODS, Cell, Chain, Protocol, build_network

RESULTS = Path(__file__).parent / "results" / "hmc_cifar10.json"
DELTAS = (5.0, 0.2, 50.0)
"""Prior precisions: variance 1/5 and 5, between which the sources of HMC's file contradict each other, and a narrow one."""
MARGIN = 0.05
"""Validation NLL by which another prior must beat the first: runs of one epoch differ by as much from seed to seed."""
PRIOR_BY = "sghmc"
"""The prior is screened at the temperature at which it will be used; an optimizer's epoch hardly feels it."""
HOT = 1.5
"""A chain whose kinetic temperature is further than this factor from T is no sample of the posterior at T."""
PUBLISHED = [  # error %, NLL, ECE
    ("HMC (Izmailov et al. 2021), the file itself", 8.56, 0.2773, 0.052),
    ("bdlx: HMC", 10.1, 0.309, None),
    ("bdlx: SGLD", 15.3, 0.473, None),
    ("bdlx: SGLD with momentum", 12.1, 0.379, None),
    ("bdlx: Adam-preconditioned SGLD", 10.8, 0.335, None),
    ("bdlx: SGHMC", 13.2, 0.409, None),
    ("bdlx: SGNHT", 13.6, 0.424, None),
]


def agreement(probabilities: Any, reference: Any) -> float:
    """Return the share of inputs for which two predictions choose the same class."""
    return float((np.argmax(probabilities, 1) == np.argmax(reference, 1)).mean())


def total_variation(probabilities: Any, reference: Any) -> float:
    """Return the mean of ½ Σ|p − q| over the inputs."""
    return float(0.5 * np.abs(np.asarray(probabilities) - np.asarray(reference)).sum(1).mean())


def scores(probabilities: Any, labels: Any, hmc: Any = None) -> dict[str, float]:
    """Return error, NLL, ECE (15 bins) and Brier score, and agreement and total variation where HMC's rows are given."""
    p = np.asarray(probabilities, np.float64)
    p = p / p.sum(1, keepdims=True)  # stored in float32
    found = {"error": 1 - accuracy(p, labels), "nll": nll(p, labels), "ece": ece(p, labels), "brier": brier(p, labels)}
    return (
        found if hmc is None else found | {"agreement": agreement(p, hmc), "total_variation": total_variation(p, hmc)}
    )


def hold_out(data: ArrayDataset, count: int) -> ArrayDataset:
    """Return the data with the last `count` training images held out for validation."""
    return replace(
        data,
        train_images=data.train_images[:-count],
        train_labels=data.train_labels[:-count],
        validation_images=data.train_images[-count:],
        validation_labels=data.train_labels[-count:],
    )


# ---- the queue ---------------------------------------------------------------------------------------------------------


def cells(methods: Sequence[str], seeds: Sequence[int], rows: dict[str, dict[str, Any]]) -> Iterator[Cell]:
    """Yield the cells in their order: the prior, then for every seed and method its screen (once) and its chain.

    What a screen decides is read from `rows`, so that the caller must not go past a cell whose row is missing.
    """
    priors = [Cell(PRIOR_BY, 0, METHODS[PRIOR_BY].rates[0], delta, screen=True) for delta in DELTAS]
    yield from priors
    delta = best(priors, rows, MARGIN).delta
    for seed in seeds:
        for name in methods:
            screened = METHODS[name].rates_of or name
            tried = [Cell(screened, 0, rate, delta, screen=True) for rate in METHODS[screened].rates]
            yield from tried
            yield Cell(name, seed, best(tried, rows).lr, delta)


def best(tried: Sequence[Cell], rows: dict[str, dict[str, Any]], margin: float = 0) -> Cell:
    """Return the cell of least validation NLL, or the first where none beats it by more than `margin`.

    A run that diverged has none.
    """
    losses = [rows[cell.name].get("validation", {}).get("nll", float("inf")) for cell in tried]
    least = min(losses)
    return tried[0] if losses[0] - margin <= least else tried[losses.index(least)]


def finished(work: Path, protocol: Protocol) -> dict[str, dict[str, Any]]:
    """Return the rows of the work folder that were made under this protocol, by the name of their cell."""
    rows = {path.parent.name: read_json(path) for path in sorted(work.glob("*/row.json"))}
    return {
        name: row for name, row in rows.items() if row["protocol"] == _protocol(protocol, row["settings"]["screen"])
    }


def _protocol(protocol: Protocol, screen: bool) -> dict[str, Any]:
    """Return what decides a row: a screen does not depend on the chains' length."""
    ignored = ("epochs", "samples", "sample_every")
    every = asdict(protocol).items()
    return {key: value for key, value in every if (key not in ignored if screen else not key.startswith("screen_"))}


def run_queue(
    data: ArrayDataset,
    hmc: Any,
    work: Path,
    out: Path,
    protocol: Protocol,
    *,
    methods: Sequence[str] = tuple(METHODS),
    seeds: Sequence[int] = (0, 1),
    stop: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = 180,
) -> dict[str, Any]:
    """Run what is missing until all is done or `stop` says so; the results so far are on disk after every cell."""
    data, started = hold_out(data, protocol.validation), environment("cpu")
    network = build_network(protocol, data.num_classes, data.in_channels)
    while True:
        rows = finished(work, protocol)
        result = gather(rows, work, data.test_labels, hmc, protocol, started)
        write_json(out, result)
        cell = next((cell for cell in cells(methods, seeds, rows) if _differs(cell, rows)), None)
        if cell is None or stop():
            return result
        folder = work / cell.name
        if cell.name in rows:  # made with settings that a screen has since replaced
            shutil.rmtree(folder)
        chain = Chain(cell, protocol, data, *network)
        chain.resume(folder)
        if not chain.run(folder, stop, checkpoint_seconds):
            return result
        row = chain.row() | {"protocol": _protocol(protocol, cell.screen), "commit": started["commit"]}
        for split in chain.splits if chain.healthy else ():
            labels = getattr(data, f"{split}_labels")
            given = hmc if split == "test" else None
            row[split] = scores(chain.mean(split), labels, given)
            row[f"{split}_single"] = scores(chain.last[split], labels, given)
        if chain.healthy and "test" in chain.splits:
            np.save(folder / "test.npy", chain.mean("test").float().numpy())
        write_json(folder / "row.json", row)
        chain.forget(folder)
        print(f"{cell.name}: validation NLL {row.get('validation', {}).get('nll')}", flush=True)


def _differs(cell: Cell, rows: dict[str, dict[str, Any]]) -> bool:
    return cell.name not in rows or rows[cell.name]["settings"] != asdict(cell)


def gather(
    rows: dict[str, dict[str, Any]], work: Path, labels: Tensor, hmc: Any, protocol: Protocol, started: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of the results file: chains, merged chains of each method, screens, HMC's own scores."""
    chains = [row for row in rows.values() if not row["settings"]["screen"]]
    order = list(METHODS)
    chains.sort(key=lambda row: (order.index(row["settings"]["method"]), row["settings"]["seed"]))
    merged = []
    for name in METHODS:
        mine = [row for row in chains if row["settings"]["method"] == name and row["status"] == "done"]
        if len(mine) > 1:
            mean = np.mean([np.load(work / row["name"] / "test.npy").astype(np.float64) for row in mine], axis=0)
            kept = {"method": name, "chains": len(mine), "samples": sum(row["samples"] for row in mine)}
            merged.append(kept | {"test": scores(mean, labels, hmc)})
    drop = ("protocol",)
    return {
        "environment": started,
        "protocol": asdict(protocol),
        "hmc": scores(hmc, labels),
        "chains": [{key: value for key, value in row.items() if key not in drop} for row in chains],
        "merged": merged,
        "screen": [
            {"status": row["status"], "validation_nll": row.get("validation", {}).get("nll"), **row["settings"]}
            for row in rows.values()
            if row["settings"]["screen"]
        ],
    }


# ---- the table ---------------------------------------------------------------------------------------------------------

HEAD = (
    "", "chains", "counts", "error %", "NLL", "ECE", "Brier", "agreement %", "total variation", "T", "kinetic T", "samples",
    "epochs", "seconds",
)  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """Return the table in Markdown: every chain, its single last sample, the merged chains, the published rows."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---|---" + "|---:" * (len(HEAD) - 2) + "|"]
    epochs = result["protocol"]["epochs"]

    def add(label: str, chains: str, counts: str, test: dict[str, float], rest: Sequence[str]) -> None:
        cells = [f"{100 * test['error']:.2f}", *(f"{test[key]:.3f}" for key in ("nll", "ece", "brier"))]
        match = (
            [f"{100 * test['agreement']:.2f}", f"{test['total_variation']:.3f}"] if "agreement" in test else ["–"] * 2
        )
        lines.append("| " + " | ".join([label, chains, counts, *cells, *match, *rest]) + " |")

    for name, method in METHODS.items():
        for row in result["chains"]:
            if row["settings"]["method"] != name:
                continue
            seed = str(row["settings"]["seed"])
            if row["status"] != "done":
                lines.append(f"| {method.label} | {seed} | no: {row['status']}" + " | –" * (len(HEAD) - 3) + " |")
                continue
            temperature, kinetic = row["temperature"], row["kinetic_temperature"]
            heat = ["–" if value is None else f"{value:.2f}" for value in (temperature, kinetic)]
            rest = [*heat, str(row["samples"]), f"{epochs:g}", f"{row['seconds']:.0f}"]
            add(method.label, seed, verdict(row), row["test"], rest)
            if method.single:
                add(f"{method.label}, its last iterate", seed, "yes", row["test_single"], [*heat, "1", *rest[3:]])
        for row in result["merged"]:
            if row["method"] == name:
                both = f"all {row['chains']}"
                rest = ["", "", str(row["samples"]), f"{row['chains']} × {epochs:g}", ""]
                add(f"**{method.label}, merged**", both, "yes", row["test"], rest)
    add("HMC's file, scored here", "–", "–", result["hmc"], ["1", "–", "–", "–", "–"])
    for label, error, loss, calibration in PUBLISHED:
        known = [f"{error:.2f}", f"{loss:.3f}", "–" if calibration is None else f"{calibration:.3f}"]
        lines.append("| " + " | ".join([label, "–", "–", *known, *["–"] * (len(HEAD) - 6)]) + " |")
    where = result["environment"]
    chosen = {row["settings"]["method"]: f"{row['settings']['lr']:g}" for row in result["chains"]}
    deltas = sorted({row["settings"]["delta"] for row in result["chains"]})
    note = (
        f"{where['cpu']}, {where['threads']} thread, torch {where['torch']}, commit {where['commit']}; N = 45,000, batch "
        f"{result['protocol']['batch_size']}, prior precision {', '.join(f'{delta:g}' for delta in deltas)}; peak lr: "
        + ", ".join(f"{name} {rate}" for name, rate in chosen.items())
        + f". A chain counts if it ended and its kinetic temperature lies within a factor {HOT:g} of T; "
        "neither says that it has forgotten its start, for which a few epochs are short at T = 1."
    )
    return "\n".join([*lines, "", note])


def verdict(row: dict[str, Any]) -> str:
    """Return whether a finished chain counts as a sample at its temperature; an optimizer's always counts as itself."""
    temperature, kinetic = row["temperature"], row["kinetic_temperature"]
    if temperature is None or kinetic is None:
        return "yes"
    return "yes" if temperature / HOT <= kinetic <= temperature * HOT else "no: kinetic T"


# ---- the command -------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="CIFAR-10's official files")
    parser.add_argument("--hmc", type=Path, help="HMC's test probabilities, .npy")
    parser.add_argument("--work", type=Path, default=Path("runs/hmc"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=Protocol.epochs)
    parser.add_argument("--threads", type=int, default=1)
    fast = torch.cpu._is_avx512_bf16_supported()
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16" if fast else "fp32")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=fast)
    parser.add_argument("--print", action="store_true", help="print the table of the results file; run nothing")
    arguments = parser.parse_args()
    if arguments.print:
        print(table(read_json(arguments.out)))
        return
    if arguments.data_dir is None or arguments.hmc is None:
        parser.error("give --data-dir and --hmc, or --print")
    torch.set_num_threads(arguments.threads)
    protocol = Protocol(epochs=arguments.epochs, precision=arguments.precision, compile=arguments.compile)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: asked.append(received))
    hmc = np.load(arguments.hmc)
    run_queue(
        load_cifar("cifar10", arguments.data_dir), hmc, arguments.work, arguments.out, protocol,
        methods=arguments.only, seeds=arguments.seeds, stop=lambda: bool(asked),
    )  # fmt: skip


if __name__ == "__main__":
    main()
