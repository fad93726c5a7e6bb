"""Synthetic run folders: the files that a run writes, with numbers made up by formula."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

MakeRun = Callable[..., Path]


def bins(shift: float) -> list[dict[str, Any]]:
    rows = []
    for index in range(15):
        lower, upper = index / 15, (index + 1) / 15
        count = 0 if index < 2 else round(4 * 1.35**index)
        confidence = (lower + upper) / 2 if count else None
        accuracy = min(1.0, max(0.0, confidence - shift)) if confidence is not None else None
        row = {"lower": lower, "upper": upper, "count": float(count), "confidence": confidence, "accuracy": accuracy}
        rows.append(row)
    return rows


def history(epochs: int, per_epoch: int, level: float, pruned: bool) -> list[dict[str, Any]]:
    rows = []
    for epoch in range(1, epochs + 1):
        done = epoch / epochs
        accuracy = level * (1 - 0.55 * math.exp(-6 * done)) - 0.02 * math.cos(3 * 2 * math.pi * done)
        target = 0.9 * (1 - (1 - min(1.0, done / 0.6)) ** 3)
        rows.append(
            {
                "step": epoch * per_epoch,
                "epoch": epoch,
                "cycle": min(2, int(3 * done)),
                "lr": 0.5 * (1 + math.cos(math.pi * ((3 * done) % 1))),
                "train_loss": 2 * math.exp(-4 * done),
                "train_accuracy": min(1.0, accuracy + 0.03 * done),
                "split": "test",
                "accuracy": accuracy,
                "nll": 2 * math.exp(-4 * done) + 0.2,
                "soft_sparsity": 0.95 * (1 - math.exp(-5 * done)) if pruned else None,
                "hard_sparsity": target * 0.995 if pruned else None,
                "target_sparsity": target if pruned else None,
                "seconds": 3.0 * epoch,
            }
        )
    return rows


def result(config: dict[str, Any], level: float, pruned: bool, epochs: int, per_epoch: int) -> dict[str, Any]:
    shapes = [("stem.conv.weight", (16, 1, 3, 3))]
    shapes += [
        (f"stage{s}.block{b}.conv{c}.weight", (16 * s, 16 * s, 3, 3)) for s in (1, 2) for b in (0, 1) for c in (1, 2)
    ]
    shapes += [("head.weight", (10, 32))]
    layers = []
    for index, (name, shape) in enumerate(shapes):
        total = int(np.prod(shape))
        zeros = int(total * (0.3 + 0.06 * index)) if pruned and index < len(shapes) - 1 else 0
        layer = {"name": name, "shape": list(shape), "zeros": zeros, "total": total, "prunable": name != "head.weight"}
        layers.append({**layer, "madds": total * 64, "madds_left": (total - zeros) * 64})
    total = epochs * per_epoch
    members = [
        {"step": total * (c + 1) // 3 - 4 + s, "cycle": c, "accuracy": level - 0.03 + 0.008 * c + 0.002 * s}
        for c in range(3)
        for s in range(4)
    ]
    health = {
        "temperature": [{"mean": 3.1e-6, "min": 1.2e-6, "max": 9.9e-6}],
        "noise_to_gradient": 0.004,
        "members": 12,
        "weight_spread": 0.0713,
        "weight_spread_by_tensor": {"stem.conv.weight": 0.05},
        "disagreement": 0.021,
        "epistemic": 0.0123,
        "rhat": {"loss": 1.07},
        "ess": {"loss": 84.0},
        "warnings": ["effective temperature 3.1e-06 in group 0 (posterior: 1): an optimizer with snapshots"],
    }
    return {
        "recipe": config["recipe"],
        "method": config["method"],
        "dataset": "digits",
        "network": "digits_resnet",
        "epochs": epochs,
        "seed": config["seed"],
        "num_samples": 12,
        "accuracy_single": level - 0.011,
        "accuracy_mean": level,
        "nll_single": 0.1523,
        "nll": 0.1012,
        "brier": 0.0456,
        "ece": 0.0123,
        "ece_single": 0.0345,
        "sparsity_prunable": 0.9 if pruned else 0.0,
        "sparsity_all": 0.87 if pruned else 0.0,
        "sparsity_madds": 0.7432 if pruned else 0.0,
        "madds": 1_234_567,
        "madds_dense": 4_807_000,
        "parameters": 77_850,
        "seconds": 61.4,
        "members": members,
        "disagreement": 0.021,
        "total_entropy": 0.2,
        "aleatoric": 0.18,
        "epistemic": 0.02,
        "reliability": bins(0.02),
        "reliability_single": bins(0.09),
        "sparsity": {
            "per_layer": layers,
            "excluded": [{"name": "head", "weights": 330, "reason": "the model's output"}],
        },
        "health": health,
        "classes": [str(i) for i in range(10)],
        "environment": {},
        "config": config,
    }


def traces(steps: int, weights: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    at = np.arange(0, steps, 2)
    rate = 0.5 * (1 + np.cos(np.pi * ((3 * at / steps) % 1)))
    tensors = {"steps": at.astype(np.int64), "lr": rate.astype(np.float32)}
    for index, kind in enumerate(["input", "input", "output", "output"]):
        start = generator.normal(0, 0.08, size=(1, weights))
        ending = 0.0 if index % 2 else 1.4
        walk = generator.normal(0, 0.004, size=(len(at), weights)) * np.sqrt(rate)[:, None]
        fade = np.linspace(1, ending, len(at))[:, None]
        path = start * fade + walk.cumsum(0) * fade
        tensors[f"{kind}:stage1.block0.conv1.weight:{index}"] = path.astype(np.float32)
    return tensors


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run folder below `tmp_path` and return its path."""
    return maker(tmp_path)


@pytest.fixture(scope="module")
def make_run_once(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Do the same for all tests of a file."""
    return maker(tmp_path_factory.mktemp("runs"))


def maker(root: Path) -> MakeRun:
    def make(
        name: str = "digits-dfp-seed0",
        *,
        recipe: str = "digits-dfp",
        method: str = "emmcmc",
        seed: int = 0,
        level: float = 0.97,
        pruned: bool = True,
        finished: bool = True,
        traced: bool = True,
        epochs: int = 18,
        done: int | None = None,
        extra: dict[str, Any] | None = None,
        weights: int = 40,
    ) -> Path:
        folder = root / name
        folder.mkdir(parents=True)
        config: dict[str, Any] = {
            "method": method,
            "recipe": recipe,
            "seed": seed,
            "data": {"dataset": "digits", "batch_size": 64, "augment": False},
            "network": {"network": "digits_resnet", "width": 16},
            "sampler": {"method": method, "lr": 1.0, "temperature": 1.0},
            "schedule": {"epochs": epochs, "cycles": 3},
            "pruning": {"target_sparsity": 0.9 if pruned else 0.0, "exclude": []},
            "runtime": {"device": "cpu"},
        }
        environment = {
            "bayesprune": "0.1.0",
            "torch": "2.4.0",
            "python": "3.10.1",
            "device": "cpu",
            "commit": None,
            "command": "bayesprune train <digits> & more",
            "started": "2024-01-02T03:04:05+00:00",
        }
        contents = {"config": config, "environment": environment}
        contents["history"] = history(epochs, 20, level, pruned)[: done or epochs]  # type: ignore[assignment]
        if finished:
            contents["result"] = {**result(config, level, pruned, epochs, 20), **(extra or {})}
        for key, value in contents.items():
            (folder / f"{key}.json").write_text(json.dumps(value), encoding="utf-8")
        if traced:
            save_file(traces(epochs * 20, weights), folder / "traces.safetensors")
        return folder

    return make
