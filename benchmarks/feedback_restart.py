"""DPF by kernels at 90 % through a restart of the rate, with and without the bound on thin filters' gradients.

    python -m benchmarks.feedback_restart --data-dir DATA

A half-width ResNet-20 on half-size features, 10,000 images, 10 epochs in two cycles, scored on 2,000 held-out training images.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from bayesprune.sparsity import FeedbackPruning
from bayesprune.sparsity.pruner import Pruner
from bayesprune.train.config import (
    DataConfig,
    NetworkConfig,
    PruningConfig,
    RunConfig,
    RuntimeConfig,
    SamplerConfig,
    ScheduleConfig,
)
from bayesprune.train.folder import environment, write_json
from bayesprune.train.loop import Trainer
from bayesprune.train.settings import as_dict

RESULTS = Path(__file__).parent / "results" / "feedback_restart.json"
CONFIG = RunConfig(
    recipe="feedback-restart",
    data=DataConfig("cifar10", train_size=10_000, validation_size=2000, batch_size=64),
    network=NetworkConfig("resnet20", width=8, stem_stride=2),
    sampler=SamplerConfig("emmcmc", lr=1.0, beta1=0.5, temperature=1e-4, preconditioner="paper"),
    schedule=ScheduleConfig(
        epochs=10, cycles=2, warmup_epochs=1, samples_per_cycle=8, sample_every=0.25, lr_floor=0.05
    ),
    pruning=PruningConfig(0.9, feedback="dense_copy", groups="kernel", prune_from=0.1, prune_until=0.6),
    runtime=RuntimeConfig(device="cpu", threads=1, trace_channels=0),
)


def table(result: dict[str, Any]) -> str:
    """Return the rows as a Markdown table."""
    epochs = len(result["rows"][0]["accuracy"])
    lines = [
        f"| gradient | before the restart, epoch {epochs // 2} | after it, epoch {epochs // 2 + 1} | at the end | norm of the weights |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        shown = (row["accuracy"][at] for at in (epochs // 2 - 1, epochs // 2, -1))
        lines.append(
            f"| {row['gradient']} | "
            + " | ".join(f"{100 * value:.1f} %" for value in shown)
            + f" | {row['norm']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    arguments = parser.parse_args()
    bounded, rows = FeedbackPruning._with_gradient_, []
    for name, step in (("bounded", bounded), ("as in equation 8", Pruner._with_gradient_)):
        FeedbackPruning._with_gradient_ = step  # type: ignore[method-assign]
        with tempfile.TemporaryDirectory() as place:
            trainer = Trainer(CONFIG, Path(place), data_dir=arguments.data_dir, quiet=True)
            trainer.run()
            norm = sum(float(p.detach().square().sum()) for p in trainer.model.parameters()) ** 0.5
        rows.append({"gradient": name, "accuracy": [row["accuracy"] for row in trainer.history], "norm": norm})
        print(f"{name}: {100 * rows[-1]['accuracy'][-1]:.2f} % in the end, weights of norm {norm:.1f}", flush=True)
    FeedbackPruning._with_gradient_ = bounded  # type: ignore[method-assign]
    write_json(RESULTS, {"config": as_dict(CONFIG), "rows": rows, "environment": environment("cpu")})


if __name__ == "__main__":
    main()
