"""Step size and temperature by the NLL of held-out images, with Optuna.

    pip install optuna
    python examples/tune_with_optuna.py [--trials 8]

The study sees the validation images alone; what it chose is then reported on the test images, once.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from bayesprune.train import evaluate, recipe, train

FIXED = ["epochs=6", "width=12", "validation_size=200", "cycles=1", "evaluate_every=none"]


def main(trials: int = 8, fixed: list[str] = FIXED) -> Any:
    """Run the study; return it."""
    import optuna

    def objective(trial: Any) -> float:
        lr = trial.suggest_float("lr", 0.1, 2.0, log=True)
        temperature = trial.suggest_float("temperature", 1e-4, 1.0, log=True)
        with tempfile.TemporaryDirectory() as folder:
            chosen = [*fixed, f"lr={lr}", f"temperature={temperature}"]
            train(recipe("digits-cvadam", chosen), folder, quiet=True)
            return float(evaluate(folder, split="validation")["average"]["nll"])

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=trials)
    print(f"best of {trials}: {study.best_params}, NLL {study.best_value:.4f} on the validation images")
    with tempfile.TemporaryDirectory() as folder:
        chosen = [*fixed, *(f"{key}={value}" for key, value in study.best_params.items())]
        result = train(recipe("digits-cvadam", chosen), folder, quiet=True)
    print(f"on the test images: NLL {result['nll']:.4f}, accuracy {result['accuracy_mean']:.1%}")
    return study


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    main(parser.parse_args().trials)
