"""ResNet-20 on CIFAR-10 in a CPU budget: SGD, CV-Adam and EM-MCMC at 70 %, at equal epochs.

    python -m benchmarks.cifar10_resnet20 --data-dir DATA [--seeds 0] [--threads 1] [--precision bf16-mixed]

Runs what is missing into runs/, resumes what was stopped, and writes benchmarks/results/cifar10_resnet20.json; finished
runs that are there stay, unless their recipe has changed since.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bayesprune.report import Run, load_run, results_table
from bayesprune.train import recipe, train
from bayesprune.train.folder import write_json
from bayesprune.train.settings import as_dict

RECIPES = ("cifar10-resnet20-sgd", "cifar10-resnet20", "cifar10-resnet20-emmcmc")
RESULTS = Path(__file__).parent / "results" / "cifar10_resnet20.json"
DROPPED = ("sparsity", "classes")  # long, and derivable from the run


def finished(settings: list[str]) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the finished runs by recipe and seed, less those whose recipe says something else by now."""
    runs = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    kept = {}
    for run in runs:
        now = json.loads(json.dumps(as_dict(recipe(run["recipe"], [f"seed={run['seed']}", *settings]))))
        parts = ("data", "network", "sampler", "schedule", "pruning")
        if all(now[part][key] == value for part in parts for key, value in run["config"][part].items()):
            kept[run["recipe"], run["seed"]] = run
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--precision", default="32-true", help="bf16-mixed is faster where the processor multiplies bf16"
    )
    parser.add_argument("--only", nargs="+", default=RECIPES, choices=RECIPES)
    arguments = parser.parse_args()
    settings = [f"threads={arguments.threads}", f"precision={arguments.precision}"]
    for seed in arguments.seeds:
        for name in RECIPES:
            folder = Path(arguments.runs) / f"{name}-seed{seed}"
            if name not in arguments.only or (name, seed) in finished(settings):
                continue
            train(recipe(name, [f"seed={seed}", *settings]), folder, data_dir=arguments.data_dir, resume=True)
            result = load_run(folder).result or {}
            runs = finished(settings) | {(name, seed): {k: v for k, v in result.items() if k not in DROPPED}}
            write_json(RESULTS, [runs[key] for key in sorted(runs, key=lambda key: (key[1], RECIPES.index(key[0])))])
    runs = finished(settings)
    print(
        results_table(
            [
                Run(Path(f"{name}-seed{seed}"), runs[name, seed]["config"], result=runs[name, seed])
                for name, seed in runs
            ]
        )
    )


if __name__ == "__main__":
    main()
