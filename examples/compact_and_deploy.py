"""Train and prune in one run, remove physically what was pruned, and use the model without its code.

    python examples/compact_and_deploy.py [--out FOLDER] [--epochs 12]

A residual CNN on scikit-learn's handwritten digits: channels are pruned while CV-Adam trains and samples. The pruned
network is made small (`compact`), the samples follow it onto the small architecture (`convert`) and become one model,
which is written as a folder (`save`), read back by `load` alone and exported with torch.export. Needs the extra `train`;
with `export`, ONNX too. `examples/serve.py FOLDER` answers requests with it.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import bayesprune as bp
from bayesprune.vision import digits_resnet, load_digits


def train(epochs: int, seed: int) -> tuple[Any, Any, Any, dict[str, torch.Tensor]]:
    """Train with channels pruned to 60 % of the prunable weights; return network, pruner, samples and the data."""
    digits = load_digits()
    x, x_test = (
        (images.float() / digits.scale - digits.mean[0]) / digits.std[0]
        for images in (digits.train_images, digits.test_images)
    )
    labels = digits.train_labels
    torch.manual_seed(seed)
    model = digits_resnet(num_classes=10, width=24)
    per_epoch = len(x) // 32
    clock = bp.CycleClock(epochs * per_epoch, cycles=1, samples_per_cycle=4, sample_every=per_epoch // 2)
    optimizer = bp.CVAdam(model.parameters(), lr=1.0, num_data=len(x), weight_decay=5e-4, temperature=1e-2, seed=seed)
    scheduler = bp.CyclicalLR(optimizer, clock)
    pruner = bp.ForwardPruning(
        model,
        optimizer,
        sparsity=0.6,
        clock=clock,
        groups="channel",
        example_input=x[:2],
        scope="global",
        keep_ends=False,
    )
    samples = bp.MemorySamples()
    for step in range(clock.total_steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(x))
        rows = order[step % per_epoch * 32 :][:32]
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), labels[rows]).backward()
        optimizer.step()
        scheduler.step()
        if clock.collect(step):
            samples.collect(model, step=step)
    return model.eval(), pruner, samples, {"x": x_test, "labels": digits.test_labels}


def main() -> dict[str, Any]:
    """Train, compact, save, load, compare; return what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="folder for the model (default: a temporary one)")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model, pruner, samples, test = train(arguments.epochs, arguments.seed)
    x = test["x"]

    small = bp.compact(model, pruner, example_input=x[:2])
    print(small.report)
    print("channel 0 of the first layer", small.report.why(small.report.layers[0].name, 0))

    print(bp.profile(small.model, dense=model, example_input=x[:2], batch_sizes=(1, 64), seconds=0.5))

    members = [small.convert(samples[i]) for i in range(len(samples))]
    ensemble = bp.Ensemble(small.model.eval(), members)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.out or f"{temporary}/model")
        bp.save(ensemble, folder, example_input=x[:2], metadata={"classes": list("0123456789")})
        loaded: Any = bp.load(folder)
        if all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
            worst = bp.export_onnx(loaded, folder / "model.onnx", example_input=x[:2])
            print(f"model.onnx: onnxruntime differs from torch by at most {worst:.1e}")
        worst = bp.export_program(loaded, folder / "model.pt2", example_input=x[:2])
        print(f"model.pt2 (torch.export): differs from torch by at most {worst:.1e}")

    predicted = loaded.predict(x).probabilities
    before = bp.predict(model, samples, x).probabilities
    accuracy = float((predicted.argmax(1) == test["labels"]).double().mean())
    difference = float((predicted - before).abs().max())
    print(
        f"{len(members)} members: accuracy {accuracy:.1%}, probabilities within {difference:.1e} of the large network's"
    )
    return {"accuracy": accuracy, "difference": difference, "parameters": small.report.parameters}


if __name__ == "__main__":
    main()
