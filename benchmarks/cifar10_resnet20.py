"""ResNet-20 on CIFAR-10 in a CPU budget: SGD, CV-Adam and EM-MCMC at 70 %, at equal epochs.

    python -m benchmarks.cifar10_resnet20 --data-dir DATA [--seeds 0] [--threads 1] [--precision bf16-mixed]

Runs what is missing into runs/, resumes what was stopped, and writes benchmarks/results/cifar10_resnet20.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bayesprune.report import load_run, results_table
from bayesprune.train import recipe, train
from bayesprune.train.folder import write_json

RECIPES = ("cifar10-resnet20-sgd", "cifar10-resnet20", "cifar10-resnet20-emmcmc")
RESULTS = Path(__file__).parent / "results" / "cifar10_resnet20.json"
DROPPED = ("sparsity", "classes")  # long, and derivable from the run


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
    folders = []
    for seed in arguments.seeds:
        for name in RECIPES:
            folder = Path(arguments.runs) / f"{name}-seed{seed}"
            if name in arguments.only:
                config = recipe(
                    name, [f"seed={seed}", f"threads={arguments.threads}", f"precision={arguments.precision}"]
                )
                train(config, folder, data_dir=arguments.data_dir, resume=True)
            if (folder / "result.json").exists():
                folders.append(folder)
    runs = [load_run(folder) for folder in folders]
    write_json(RESULTS, [{k: v for k, v in (run.result or {}).items() if k not in DROPPED} for run in runs])
    print(results_table(runs))


if __name__ == "__main__":
    main()
