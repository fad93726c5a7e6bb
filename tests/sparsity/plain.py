"""Pruners without the defaults of first contact: every kernel, all ranked together, updated after every step, at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bayesprune import sparsity

PLAIN: dict[str, Any] = {"groups": "kernel", "scope": "global", "every": 1, "keep_ends": False}


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    settings = {**PLAIN, **settings}
    if settings["scope"] == "layer":
        settings.setdefault("round_to", 1)
    if not {"sparsity", "hard_threshold", "em_only"} & set(settings):
        settings["em_only"] = True
    if "sparsity" in settings:
        settings.setdefault("warmup_steps", 0)
    return settings


def forward_pruning(model: nn.Module, optimizer: torch.optim.Optimizer, **settings: Any) -> sparsity.ForwardPruning:
    return sparsity.ForwardPruning(model, optimizer, **_settings(settings))


def feedback_pruning(model: nn.Module, optimizer: torch.optim.Optimizer, **settings: Any) -> sparsity.FeedbackPruning:
    if settings.get("form") == "dense_copy":
        settings.setdefault("every", 16)
    return sparsity.FeedbackPruning(model, optimizer, **_settings(settings))
