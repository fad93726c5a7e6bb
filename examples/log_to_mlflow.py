"""A finished run in an MLflow experiment: its settings, curves, results and its page.

pip install mlflow-skinny
python examples/log_to_mlflow.py RUN [--experiment bayesprune] [--uri sqlite:///mlflow.db]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from bayesprune.report import load_run, write_report
from bayesprune.report.page import flatten


def log_run(folder: str | Path, experiment: str = "bayesprune", uri: str | None = None) -> str:
    """Log a run folder; return the id that MLflow gave it."""
    import mlflow

    if uri:
        mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment)
    run = load_run(folder)
    with mlflow.start_run(run_name=run.name) as logged:
        mlflow.log_params({key: value[:500] for key, value in flatten(run.config)})
        for row in run.history:
            numbers = {
                k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and k not in ("step", "epoch")
            }
            mlflow.log_metrics({k: v for k, v in numbers.items() if math.isfinite(v)}, step=row["step"])
        for key, value in (run.result or {}).items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                mlflow.log_metric(f"result.{key}", float(value))
        mlflow.log_artifact(str(write_report([run], run.path / "report.html")))
        return str(logged.info.run_id)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--experiment", default="bayesprune")
    parser.add_argument("--uri")
    arguments = parser.parse_args()
    print(log_run(arguments.run, arguments.experiment, arguments.uri))
