"""What a finished run amounts to: accuracy, calibration, uncertainty and the three sparsities, as one JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import torch
from torch import nn

from bayesprune.posterior import Fit, SampleStore, health_report
from bayesprune.samplers import Sampler
from bayesprune.sparsity import sparsity_report
from bayesprune.train.config import RunConfig
from bayesprune.train.methods import dense_layers
from bayesprune.train.settings import as_dict
from bayesprune.train.task import Evaluation, Task
from bayesprune.vision import views


@dataclass(frozen=True)
class Trained:
    """What a run has come to: the network at its last iterate, its samples, and the examples to test them on."""

    config: RunConfig
    model: nn.Module
    samples: SampleStore
    optimizer: torch.optim.Optimizer
    task: Task
    test: Iterable[Any]
    split: str
    example: Any
    reading: dict[str, Any]
    history: list[dict[str, Any]]
    seconds: float
    exact: bool = True


def run_result(trained: Trained, environment: dict[str, Any]) -> dict[str, Any]:
    """Evaluate a trained run on the test examples and return the content of result.json."""
    config, store, task = trained.config, trained.samples, trained.task
    single = task.evaluate(trained.model, None, trained.test)
    average = task.evaluate(trained.model, store, trained.test) if len(store) else single
    example = trained.example if isinstance(trained.example, torch.Tensor) else None
    report = sparsity_report(
        trained.model, exclude=dense_layers(config, trained.model), example_input=example
    ).as_dict()
    fit = None  # the last epoch's training loss beside that of a prediction that knows nothing
    if trained.history and len(store):
        fit = Fit(members=trained.history[-1]["train_loss"], constant=average.constant)
    health = health_report(
        optimizer=trained.optimizer if isinstance(trained.optimizer, Sampler) else None,
        samples=store if len(store) else None,
        prediction=average.prediction if len(store) else None,
        fit=fit,
        losses=_settled(trained.history),
    )
    return {
        "recipe": config.recipe,
        "method": config.sampler.method,
        "dataset": config.data.dataset,
        "network": config.network.network,
        "epochs": config.schedule.epochs,
        "seed": config.seed,
        "task": task.name,
        "task_settings": _settings(task),
        "split": trained.split,
        "exact": trained.exact,
        "num_samples": len(store),
        **_named(single, average),
        "views": _viewed(trained),
        "sparsity_prunable": report["prunable"],
        "sparsity_all": report["all"],
        "sparsity_madds": report["madds"],
        "madds": report["madds_left"],
        "madds_dense": report["madds_dense"],
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "seconds": round(trained.seconds, 2),
        "members": [
            {"step": info["step"], "cycle": info["cycle"], task.shown[0]: value}
            for info, value in zip(store.infos, average.members)
        ],
        **average.uncertainty,
        "recall": average.recall,
        "reliability": average.curve,
        "reliability_single": single.curve,
        "sparsity": report,
        "health": health.as_dict(),
        "images": trained.reading["images"],
        "classes": trained.reading["classes"] or [str(number) for number in range(average.classes or 0)],
        "environment": environment,
        "config": as_dict(config),
    }


def _settled(history: list[dict[str, Any]]) -> dict[int, float]:
    """Return the training losses by step, of the second half of each cycle: at a warm restart a loss may rise."""
    cycles = [row["cycle"] for row in history]
    return {
        row["step"]: row["train_loss"]
        for place, row in enumerate(history)
        if 2 * (place - cycles.index(row["cycle"])) >= cycles.count(row["cycle"])
    }


def _settings(task: Task) -> dict[str, Any]:
    """Return a task's settings that JSON can hold."""
    found: dict[str, Any] = asdict(task) if is_dataclass(task) else {}
    return {name: value for name, value in found.items() if isinstance(value, (bool, int, float, str, type(None)))}


def _viewed(trained: Trained) -> dict[str, Any] | None:
    """Return the scores of outputs averaged over the views asked for, apart from the plain ones; None where none are."""
    kind = trained.config.data.test_views
    if kind == "none":
        return None
    store, seen = trained.samples, views(kind)
    single = trained.task.evaluate(trained.model, None, trained.test, views=seen)
    average = trained.task.evaluate(trained.model, store, trained.test, views=seen) if len(store) else single
    return {"kind": kind, **_named(single, average)}


def _named(single: Evaluation, average: Evaluation) -> dict[str, float]:
    """Return the scores of the average and of the last iterate by the names of result.json."""
    scores = {("accuracy_mean" if name == "accuracy" else name): value for name, value in average.scores.items()}
    return scores | {f"{name}_single": value for name, value in single.scores.items()}
