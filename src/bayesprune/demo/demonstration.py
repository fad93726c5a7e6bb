"""The command `bayesprune demo`: train on five folds, prune, compact, measure, print one table."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bayesprune.common.files import replacing_folder, write_json
from bayesprune.demo.bootstrap import as_plain, scores
from bayesprune.demo.cross_validation import MODELS, FoldPrediction, Job, network_of, run_jobs
from bayesprune.demo.latency import best_times
from bayesprune.demo.letters import letter_images
from bayesprune.demo.summary import text
from bayesprune.deploy import load
from bayesprune.report import load_run, write_report
from bayesprune.train.folder import environment
from bayesprune.train.loop import Interrupted
from bayesprune.vision.digits import FOLDS

METHODS = tuple(MODELS)
PAGES = ("metrics.json", "report.html")
COMPACT = "compact"
_MARKS = {**dict.fromkeys(METHODS, "config.json"), COMPACT: "architecture.json"}


def run_demo(
    out: str | os.PathLike[str] = "demo",
    settings: Sequence[str] = (),
    *,
    processes: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Cross-validate the digits with a dense network and a pruned one, make the pruned one small, print the table."""
    out = Path(out).resolve()
    if processes is not None and processes < 1:
        raise ValueError(f"processes={processes}: at least 1, or None for as many as there are cores")
    if out.exists() and not _is_demo(out):
        raise FileExistsError(f"out={str(out)!r} is in use and holds no demo; name another folder with --out.")
    start, used = time.monotonic(), _processor_seconds()
    with replacing_folder(out) as work:
        jobs = [
            Job(method, fold, tuple(settings), work / f"fold{fold}" / method)
            for fold in range(FOLDS)
            for method in METHODS
        ]
        try:
            said = run_jobs(
                jobs, processes or min(_cores(), FOLDS), lambda job, seconds: None if quiet else _say(job, seconds)
            )
        except Interrupted:
            raise Interrupted("the demo was stopped; start it again.") from None
        models: dict[str, list[FoldPrediction]] = {}
        for each in said:
            models.setdefault(each.name, []).append(each)
        first = work / "fold0"
        metrics = _metrics(models, _latencies(first), first)
        metrics["seconds"], metrics["processor_seconds"] = time.monotonic() - start, _processor_seconds() - used
        for method in METHODS:
            os.replace(first / method, work / method)
        os.replace(first / "emmcmc-ensemble", work / COMPACT)
        for fold in range(FOLDS):
            shutil.rmtree(work / f"fold{fold}")
        write_report([load_run(work / method) for method in METHODS], work / "report.html")
        write_json(work / "metrics.json", metrics)
    if not quiet:
        print(
            f"\n{text(metrics)}\n\n{out}: metrics.json, report.html, the first fold's runs and its compact ensemble. Go on with"
        )
        print(f"  bayesprune profile {out / COMPACT}\n  bayesprune compact {out / 'emmcmc'} --out small --onnx")
    return metrics


def _say(job: Job, seconds: float) -> None:
    print(f"fold {job.fold + 1} of {FOLDS}, {job.method}: trained and tested in {seconds:.0f} s", flush=True)


def _metrics(models: dict[str, list[FoldPrediction]], latencies: dict[str, Any], first: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"models": {}, "folds": FOLDS, "letters": len(letter_images())}
    for name, values in scores(models, "dense").items():  # type: ignore[arg-type]
        folds = [as_plain(each) for each in models[name]]
        sizes = {key: sum(fold[key] for fold in folds) / FOLDS for key in ("bytes", "parameters")}
        found["models"][name] = {
            **values, "bytes": round(sizes["bytes"]), "parameters": round(sizes["parameters"]), "members": folds[0]["members"],
            "latency": {batch: times[name] for batch, times in latencies.items()}, "by_fold": folds,
        }  # fmt: skip
    found["test_images"] = sum(len(each.labels) for each in models["dense"])
    found["epochs"] = load_run(first / "sgd").epochs_planned
    health = (load_run(first / "emmcmc").result or {})["health"]
    found["temperature"] = {"set": health["temperature"][0]["mean"], "measured": health["sample_temperature"]}
    found["environment"] = environment("cpu")
    return found


def _latencies(first: Path) -> dict[str, Any]:
    """The first fold's networks in turns, one thread, at two batch sizes; dense as it was trained too, the faster counts."""
    places = {name: first / f"{method}-{name}" for method, kept in MODELS.items() for name in kept}
    networks = {name: network_of(place) for name, place in places.items()}
    plain = load(places["dense"]).eval()
    found = {}
    with _one_thread():
        for batch in (1, 64):
            images = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(0))
            calls = {name: [lambda n=network, x=images: n(x)] for name, network in networks.items()}  # type: ignore[misc]
            calls["dense"].append(lambda x=images: plain(x))  # type: ignore[misc, arg-type]
            found[str(batch)] = best_times(calls, "dense")  # type: ignore[arg-type]
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _processor_seconds() -> float:
    """What this process and those of its children that have ended took of the processor."""
    taken = os.times()
    return taken.user + taken.system + taken.children_user + taken.children_system


def _cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_demo(folder: Path) -> bool:
    """Return whether a folder is empty or holds what a demo leaves, and nothing else."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"a file"}
    return names <= {*_MARKS, *PAGES} and all((folder / name / _MARKS[name]).exists() for name in names - set(PAGES))
