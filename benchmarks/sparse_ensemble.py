"""Twelve compact members beside the one dense network: does the sparse Bayesian ensemble predict faster?

    python -m benchmarks.sparse_ensemble --data-dir DATA [--threads 2] [--seconds 6]

The members are the samples of the run of benchmarks.compact_resnet18 (which is trained first if it is missing): collected
every ten steps after 90 % of its weights were removed, so they share one keep mask and one compact architecture. All ways to
run the members are compared with the masked network of each sample, then timed in turns with the dense network. Then the same
for the run's subnetwork ensemble: twelve members that share all but the last stage and the head.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayesprune.compaction import compact
from bayesprune.deploy import Ensemble, compare_times, save
from bayesprune.deploy.ensemble import STRATEGIES
from bayesprune.deploy.folder import WEIGHTS
from bayesprune.deploy.profile import multiply_adds
from bayesprune.posterior import SampleStore, classification_metrics
from bayesprune.train.folder import environment, write_json
from bayesprune.train.memory import keep_freed_memory
from bayesprune.vision import ArrayDataset
from benchmarks.compact_resnet18 import EXAMPLE, LAST, accuracy, finished, masked, network

RESULTS = Path(__file__).parent / "results" / "sparse_ensemble.json"
BATCHES = (1, 64)


def assembled(place: Path, state: dict[str, Any]) -> tuple[nn.Module, list[dict[str, Tensor]], SampleStore]:
    """The last masked network's compact form, the samples of a store in that form, and the samples as they were."""
    result = compact(masked(state["model"]), example_input=EXAMPLE, coupling="group", constants="keep")
    samples = SampleStore(place)
    return result.model, [result.convert(samples[index]) for index in range(len(samples))], samples


def largest_difference(ensemble: Ensemble, samples: SampleStore, images: Tensor) -> float:
    """From the masked networks, member by member, relative to the largest output where that exceeds 1."""
    worst, model = 0.0, network().eval()
    with torch.no_grad():
        for index, output in enumerate(ensemble(images)):
            wanted = samples.load_(index, model).eval()(images)
            worst = max(worst, float((output - wanted).abs().max() / wanted.abs().max().clamp(min=1.0)))
    return worst


def timed(dense: list[nn.Module], run: Callable[[Tensor], Any], seconds: float) -> dict[str, Any]:
    """By batch size, the dense network beside the ensemble; in the memory format that leaves the ensemble least ahead."""
    rows = {}
    for batch in BATCHES:
        images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            found = [
                compare_times(lambda m=each, x=images: m(x).softmax(1), lambda x=images: run(x), seconds=seconds)  # type: ignore[misc]
                for each in dense
            ]
        rows[str(batch)] = asdict(min(found, key=lambda comparison: comparison.ratio))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each pair and batch size")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    folder = Path(arguments.runs) / "compact_resnet18"
    data, state = finished(folder, arguments.data_dir)
    small, members, samples = assembled(folder / "samples", state)
    dense = network().eval()
    both = [dense, network().eval().to(memory_format=LAST)]  # type: ignore[call-overload]
    images = data.loader("test", batch_size=64).first(64)
    rows = []
    for strategy in STRATEGIES:
        rows.append(measured(Ensemble(small, members, strategy=strategy), samples, images, both, arguments.seconds))  # type: ignore[arg-type]
    ensemble = Ensemble(small, members)
    _, members, samples = assembled(folder / "subnetwork", state)
    subnetwork = Ensemble(small, members)
    result = {
        "members": len(ensemble), "strategies": rows,
        "subnetwork": measured(subnetwork, samples, images, both, arguments.seconds),
        "bytes": {name: bytes_of(each) for name, each in (("all weights", ensemble), ("subnetwork", subnetwork))},
        "dense_bytes": bytes_of(Ensemble(dense, [dense.state_dict()])),
        "parameters": [sum(p.numel() for p in each.parameters()) for each in (small, dense)],
        "madds": [multiply_adds(each, (EXAMPLE,)) for each in (small, dense)],
        "accuracy": {"last iterate": accuracy(small, data), "ensemble": averaged(ensemble, data), "subnetwork": averaged(subnetwork, data)},
        "environment": environment("cpu"),
    }  # fmt: skip
    write_json(RESULTS, {**result, "verdict": verdict(result)})
    print(table(result) + "\n\n" + verdict(result))


def measured(
    ensemble: Ensemble, samples: SampleStore, images: Tensor, dense: list[nn.Module], seconds: float
) -> dict[str, Any]:
    """One way to run an ensemble: its largest difference from the masked networks, its times beside the dense network."""
    row = {"strategy": ensemble.strategy, "difference": largest_difference(ensemble, samples, images)}
    if ensemble.strategy == "auto":
        row["predict"] = timed(dense, ensemble.predict, seconds)
    row["forward"] = timed(dense if ensemble.strategy == "auto" else dense[:1], ensemble, seconds)
    print(row["strategy"], f"difference {row['difference']:.1e}", *_lines(row), sep="\n  ", flush=True)
    return row


def bytes_of(ensemble: Ensemble) -> int:
    with tempfile.TemporaryDirectory() as place:
        return (save(ensemble, Path(place) / "ensemble", example_input=EXAMPLE) / WEIGHTS).stat().st_size


def averaged(ensemble: Ensemble, data: ArrayDataset) -> float:
    prediction = ensemble.predict(data.loader("test", batch_size=256))
    assert prediction.labels is not None
    return float(classification_metrics(prediction.probabilities, prediction.labels)["accuracy"])


def _lines(row: dict[str, Any]) -> list[str]:
    return [
        f"{what}, batch {batch}: dense {1e3 * t['before']:.1f} ms, ensemble {1e3 * t['after']:.1f} ms, {t['ratio']:.2f} times "
        f"faster ({t['low']:.2f} to {t['high']:.2f})"
        for what in ("forward", "predict") if what in row for batch, t in row[what].items()
    ]  # fmt: skip


def verdict(result: dict[str, Any]) -> str:
    """The claim: twelve members at 90 % predict faster than the single dense network."""
    gone = 1 - result["parameters"][0] / result["parameters"][1]
    parts = []
    for name, row in (("all weights", result["strategies"][0]), ("the last stage and the head", result["subnetwork"])):
        times = row["predict"]
        said = ", ".join(f"{t['ratio']:.2f} ({t['low']:.2f} to {t['high']:.2f}) at batch {b}" for b, t in times.items())
        holds = [batch for batch, t in times.items() if t["low"] > 1]
        where = (
            "holds"
            if len(holds) == len(times)
            else f"holds at batch {', '.join(holds)} only"
            if holds
            else "does not hold"
        )
        parts.append(f"that differ in {name}: {said} times; faster than one dense network: {where}")
    return f"{result['members']} members at {gone:.1%} of the parameters removed, " + ". Members ".join(parts) + "."


def table(result: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    rows = [*result["strategies"], {**result["subnetwork"], "strategy": "subnetwork"}]
    batches = list(rows[0]["forward"])
    head = [
        "members run by",
        "largest difference",
        *(f"batch {b}: dense / ensemble ms | times faster" for b in batches),
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * (2 + 2 * len(batches))]
    for row in rows:
        for what in ("predict", "forward"):
            if what not in row:
                continue
            name = "`predict`" if what == "predict" else f'`strategy="{row["strategy"]}"`'
            if row["strategy"] == "subnetwork":
                name = f"subnetwork ensemble, `{'predict' if what == 'predict' else 'forward'}`"
            cells = [name, f"{row['difference']:.0e}"]
            for t in row[what].values():
                cells.append(f"{1e3 * t['before']:.1f} / {1e3 * t['after']:.1f}")
                cells.append(f"{t['ratio']:.2f} ({t['low']:.2f} to {t['high']:.2f})")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
