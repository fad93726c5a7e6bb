"""What a finished run amounts to: accuracy, calibration, uncertainty and the three sparsities, as one JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayesprune.posterior import (
    Fit,
    Prediction,
    SampleStore,
    classification_metrics,
    health_report,
    predict,
    reliability_curve,
)
from bayesprune.samplers import Sampler
from bayesprune.sparsity import sparsity_report
from bayesprune.train.config import RunConfig
from bayesprune.train.methods import dense_layers
from bayesprune.train.settings import as_dict
from bayesprune.vision import views


@dataclass(frozen=True)
class Trained:
    """What a run has come to: the network at its last iterate, its samples, and the images to test them on."""

    config: RunConfig
    model: nn.Module
    samples: SampleStore
    optimizer: torch.optim.Optimizer
    test: Iterable[Any]
    example: Tensor
    classes: list[str]
    history: list[dict[str, Any]]
    seconds: float


def run_result(trained: Trained, environment: dict[str, Any]) -> dict[str, Any]:
    """Evaluate a trained run on the test images and return the content of result.json.

    The single model is the last iterate; the average is over all samples (the last iterate alone where there are none).
    """
    config, store = trained.config, trained.samples
    single = predict(trained.model, None, trained.test)
    average = predict(trained.model, store, trained.test) if len(store) else single
    dense = dense_layers(config, trained.model)
    sparsity = sparsity_report(trained.model, exclude=dense, example_input=trained.example)
    report = sparsity.as_dict()
    health = health_report(
        optimizer=trained.optimizer if isinstance(trained.optimizer, Sampler) else None,
        samples=store if len(store) else None,
        prediction=average if len(store) else None,
        fit=_fit(trained) if len(store) else None,
    )
    alone, mean = _scores(single), _scores(average)
    return {
        "recipe": config.recipe,
        "method": config.sampler.method,
        "dataset": config.data.dataset,
        "network": config.network.network,
        "epochs": config.schedule.epochs,
        "seed": config.seed,
        "num_samples": len(store),
        "accuracy_single": alone["accuracy"],
        "accuracy_mean": mean["accuracy"],
        "nll_single": alone["nll"],
        "nll": mean["nll"],
        "brier": mean["brier"],
        "ece": mean["ece"],
        "ece_single": alone["ece"],
        "views": _viewed(trained),
        "sparsity_prunable": report["prunable"],
        "sparsity_all": report["all"],
        "sparsity_madds": report["madds"],
        "madds": report["madds_left"],
        "madds_dense": report["madds_dense"],
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "seconds": round(trained.seconds, 2),
        "members": _members(trained, average),
        "disagreement": float(average.disagreement.mean()),
        "total_entropy": float(average.total.mean()),
        "aleatoric": float(average.aleatoric.mean()),
        "epistemic": float(average.epistemic.mean()),
        "reliability": _reliability(average),
        "reliability_single": _reliability(single),
        "sparsity": report,
        "health": health.as_dict(),
        "classes": trained.classes,
        "environment": environment,
        "config": as_dict(config),
    }


def _fit(trained: Trained) -> Fit | None:
    """Return the last epoch's training loss beside that of a uniform prediction."""
    if not trained.history:
        return None
    return Fit(members=trained.history[-1]["train_loss"], constant=math.log(len(trained.classes)))


def _viewed(trained: Trained) -> dict[str, Any] | None:
    """Return the scores of outputs averaged over the views asked for, apart from the plain ones; None where none are."""
    kind = trained.config.data.test_views
    if kind == "none":
        return None
    store, seen = trained.samples, views(kind)
    single = predict(trained.model, None, trained.test, views=seen)
    average = predict(trained.model, store, trained.test, views=seen) if len(store) else single
    alone, mean = _scores(single), _scores(average)
    return {
        "kind": kind, "accuracy_single": alone["accuracy"], "accuracy_mean": mean["accuracy"],
        "nll_single": alone["nll"], "nll": mean["nll"], "ece_single": alone["ece"], "ece": mean["ece"],
    }  # fmt: skip


def _scores(prediction: Prediction) -> dict[str, float]:
    assert prediction.labels is not None
    return classification_metrics(prediction.probabilities, prediction.labels)


def _members(trained: Trained, average: Prediction) -> list[dict[str, Any]]:
    """Return step, cycle and accuracy of each sample."""
    if not len(trained.samples):
        return []
    assert average.labels is not None
    correct = (average.member_classes == average.labels).double().mean(1).tolist()
    return [
        {"step": info["step"], "cycle": info["cycle"], "accuracy": accuracy}
        for info, accuracy in zip(trained.samples.infos, correct)
    ]


def _reliability(prediction: Prediction) -> list[dict[str, float]]:
    assert prediction.labels is not None
    curve = reliability_curve(prediction.probabilities, prediction.labels, bins=15)
    columns = ("lower", "upper", "count", "confidence", "accuracy")
    return [dict(zip(columns, map(float, row))) for row in zip(*(getattr(curve, name) for name in columns))]
