"""Your own network on your own Dataset: sampled and pruned by channels in one run, killed, resumed bit for bit, made small, exported.

python examples/own_model.py [--out FOLDER]            needs `pip install "bayesprune[train,export]"`
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

import bayesprune as bp
from bayesprune.train import RunConfig, Splits, load_trained, override, train

CONFIG = override(RunConfig(), {
    "method": "emmcmc", "lr": 0.003, "temperature": 0.01, "epochs": 6, "batch_size": 64, "samples_per_cycle": 4, "sample_every": 0.5,
    "groups": "channel", "scope": "layer", "target_sparsity": 0.6, "every": 4, "checkpoint_minutes": 0.005, "device": "cpu", "threads": 1,
})  # fmt: skip


class Digits(Dataset):
    """Handwritten digits, those for training shifted by up to a pixel."""

    def __init__(self, train: bool) -> None:
        part, self.train = slice(None, 1300) if train else slice(1300, None), train
        images, labels = load_digits(return_X_y=True)
        self.images, self.labels = (
            torch.tensor(images[part], dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1,
            labels[part],
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        shift = torch.randint(-1, 2, (2,)).tolist() if self.train else [0, 0]
        return self.images[index].roll(shift, (1, 2)), int(self.labels[index])


def network() -> nn.Module:
    """Return a network that the library has never seen."""
    return nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1),
                         nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))  # fmt: skip


def fit(folder: Path) -> dict[str, Any]:
    """Train, or go on where a run was killed."""
    return train(CONFIG, folder, model=network, data=Splits(Digits(True), Digits(False)), resume=True, quiet=True)


def main() -> dict[str, Any]:
    """Train once in peace and once with a kill; compare, compact, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=tempfile.mkdtemp(), help="folder to write (default: a temporary one)")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the run that is to be killed
    arguments = parser.parse_args()
    if arguments.only:
        return fit(Path(arguments.only))
    out = Path(arguments.out)
    child = subprocess.Popen([sys.executable, __file__, "--only", str(out / "run")])
    while child.poll() is None and not list(out.glob("run/checkpoint.safetensors")):
        time.sleep(0.01)
    child.kill()
    killed = child.wait() < 0
    result, whole = fit(out / "run"), fit(out / "whole")
    first, second = (load_file(str(out / name / "model.safetensors")) for name in ("run", "whole"))
    assert killed and all(torch.equal(first[name], second[name]) for name in first), "not bit for bit"

    model, samples, _, _ = load_trained(out / "run", model=network, data=Splits(Digits(True), Digits(False)))
    example = torch.zeros(2, 1, 8, 8)
    small = bp.compact(model, example_input=example)
    ensemble = bp.Ensemble(small.model, [small.convert(sample) for sample in samples])
    bp.save(ensemble, out / "model", example_input=example)
    difference = bp.deploy.export_onnx(ensemble, out / "model" / "model.onnx", example_input=example)
    print(small.report, f"accuracy {result['accuracy_mean']:.3f}, ONNX differs by {difference:.1e}", sep="\n")
    return {"result": result, "whole": whole, "network": model, "small": small, "difference": difference}


if __name__ == "__main__":
    main()
