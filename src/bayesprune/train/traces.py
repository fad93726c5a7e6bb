"""Sample paths: every weight of a few chosen channels over training (the paper's Figure 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayesprune.common.tensors import PLAIN, write_tensors
from bayesprune.train.folder import TRACES


class ChannelTraces:
    """Record all weights that write, or read, chosen channels of one convolution, every few steps."""

    def __init__(self, model: nn.Module, channels: int, every: int) -> None:
        self.every = max(1, every)
        self._views: dict[str, Tensor] = {}
        self._rows: dict[str, list[Tensor]] = {}
        self._steps: list[int] = []
        self._lrs: list[float] = []
        kernels = [
            (f"{name}.weight", module.weight)
            for name, module in model.named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.shape[0] > 1 and module.weight.shape[1] > 1
        ]
        if not kernels or channels <= 0:
            return
        name, weight = kernels[len(kernels) // 2]
        for side, axis in (("output", 0), ("input", 1)):
            count = min(channels, weight.shape[axis])
            for channel in sorted({weight.shape[axis] * i // count for i in range(count)}):
                self._views[f"{side}:{name}:{channel}"] = weight.detach().select(axis, channel)
        self._rows = {key: [] for key in self._views}

    def record(self, step: int, lr: float) -> None:
        """Record the weights after `step`, if it is a multiple of `every`."""
        if step % self.every or not self._views:
            return
        self._steps.append(step)
        self._lrs.append(lr)
        for key, view in self._views.items():
            self._rows[key].append(view.reshape(-1).float().cpu().clone())

    def tensors(self) -> dict[str, Tensor]:
        """Return what was recorded: steps (n,), lr (n,), and (n, weights) a channel."""
        if not self._steps:
            return {}
        rows = {key: torch.stack(row) for key, row in self._rows.items()}
        return {"steps": torch.tensor(self._steps), "lr": torch.tensor(self._lrs), **rows}

    def state_dict(self) -> dict[str, Any]:
        """Return what was recorded, for a checkpoint."""
        return {"lrs": list(self._lrs), "tensors": self.tensors()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        tensors = dict(state["tensors"])
        if "steps" not in tensors or tensors.keys() - {"steps", "lr"} != self._views.keys():
            return  # nothing, or other channels, were traced before: begin anew
        self._lrs = list(state["lrs"])
        self._steps = tensors["steps"].tolist()
        self._rows = {key: list(tensors[key].unbind()) for key in self._views}

    def save(self, folder: Path) -> None:
        """Write the traces into a run folder."""
        if self._steps:
            write_tensors(folder / TRACES, self.tensors(), PLAIN)
