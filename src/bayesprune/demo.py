"""The main job in small: real handwritten digits, one network, three ways at equal epochs."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from bayesprune.report import load_run, results_table, write_report
from bayesprune.train import Interrupted, recipe, train
from bayesprune.train.folder import write_json

PAGES = ("metrics.json", "report.html")
METHODS = ("sgd", "cvadam", "emmcmc")
KEYS = (
    "accuracy_single", "accuracy_mean", "nll", "brier", "ece", "sparsity_prunable", "sparsity_all", "sparsity_madds",
    "madds", "madds_dense", "parameters", "num_samples", "epochs", "seconds",
)  # fmt: skip


def run_demo(
    out: str | os.PathLike[str] = "demo", settings: list[str] | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Train the digits three ways, print the table, write metrics.json and report.html.

    Args:
        out: Folder to write; an earlier demo there is replaced when this one is complete.
        settings: "key=value" overrides for all three.
        quiet: Print nothing.

    Returns:
        The content of metrics.json: one entry a method, and the environment.

    Raises:
        FileExistsError: `out` holds something else than a demo.
    """
    out = Path(out).resolve()
    if out.exists() and not _is_demo(out):
        raise FileExistsError(f"out={str(out)!r} is in use and holds no demo; name another folder with --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        results = {}
        for method in METHODS:
            if not quiet:
                print(f"--- {method}", flush=True)
            results[method] = train(recipe(f"digits-{method}", settings or []), work / method, quiet=quiet)
        metrics: dict[str, Any] = {method: {key: result[key] for key in KEYS} for method, result in results.items()}
        metrics["environment"] = results["sgd"]["environment"]
        runs = [load_run(work / method) for method in METHODS]
        write_report(runs, work / "report.html")
        write_json(work / "metrics.json", metrics)
        if not quiet:
            print(results_table(runs, fmt="text"))
        if out.exists():
            old = work.with_name(work.name + "-old")
            os.replace(out, old)
            os.replace(work, out)
            shutil.rmtree(old)
        else:
            os.replace(work, out)
    except Interrupted:
        raise Interrupted("the demo was stopped; start it again.") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not quiet:
        print(f"\nmetrics: {out / 'metrics.json'}\nreport:  {out / 'report.html'}")
    return metrics


def _is_demo(folder: Path) -> bool:
    """Return whether a folder is empty or holds what a demo leaves, and nothing else."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"a file"}
    return names <= {*METHODS, *PAGES} and all((folder / name / "config.json").exists() for name in names - set(PAGES))
