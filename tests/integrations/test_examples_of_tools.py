"""The Optuna and MLflow examples run with the real libraries."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bayesprune.train import recipe, train

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
TINY = [
    "train_size=96",
    "epochs=1",
    "width=4",
    "cycles=1",
    "samples_per_cycle=2",
    "sample_every=0.25",
    "validation_size=100",
]


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_property_optuna_searches_on_validation_images(capsys):
    pytest.importorskip("optuna", reason="optuna: pip install bayesprune[integrations]")
    study = example("tune_with_optuna").main(trials=2, fixed=TINY)
    assert len(study.trials) == 2 and study.best_value > 0
    assert "on the validation images" in capsys.readouterr().out


@pytest.mark.slow
def test_roundtrip_mlflow_holds_what_the_run_found(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow: pip install bayesprune[integrations]")
    result = train(recipe("digits-cvadam", TINY), tmp_path / "run", quiet=True)
    monkeypatch.chdir(tmp_path)  # artefacts go below it
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    try:
        found = mlflow.MlflowClient(uri).get_run(example("log_to_mlflow").log_run(tmp_path / "run", uri=uri))
    finally:
        mlflow.set_tracking_uri("")
    assert found.data.metrics["result.accuracy_mean"] == pytest.approx(result["accuracy_mean"])
    assert found.data.params["schedule.epochs"] == "1"
    assert [item.path for item in mlflow.MlflowClient(uri).list_artifacts(found.info.run_id)] == ["report.html"]
