"""When noise helps and when it does not: predictions against the temperature, and the temperature measured beside the one set.

    python -m benchmarks.temperature_plots [--json FILE] [--figures FOLDER] [--splits 3] [--epochs 60] [--draw]

Four cases on scikit-learn's digits (`benchmarks.uncertainty` has the splits): the MLP, the small CNN, the MLP with images
shifted by up to a pixel, and the residual CNN with BatchNorm for a third of the epochs. Then the MLP over step sizes and batch sizes: at a
constant step size, the kinetic temperature over the set one and its formula T + N·τβ₂lV/(2(1−β₁)) for independent
batches. Figures of validation rows, on which defaults may be chosen; `--draw` only draws what the JSON holds.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

import bayesprune as bp
from bayesprune.posterior.metrics import classification_metrics, ood_metrics
from bayesprune.samplers.cycles import set_adapt
from bayesprune.train.folder import environment, read_json, write_json
from bayesprune.vision.small import digits_resnet
from benchmarks import uncertainty

RESULTS = Path(__file__).parent / "results" / "temperature_plots.json"
FIGURES = Path(__file__).parents[1] / "docs" / "figures"
TEMPERATURES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
LR, PRIOR, FLOOR, MEMBERS = 1e-3, 3.0, 0.2, 20
CASES = {"mlp": "MLP", "cnn": "CNN", "shifted": "MLP, shifted images", "batchnorm": "CNN with BatchNorm"}
LRS, BATCHES, BATCH = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (16, 32, 64, 128, 256), 64
CONSTANT_STEPS, MEASURED_STEPS = 1200, 200
COLOURS = ("#4269d0", "#ff725c", "#efb118", "#6cc5b0")


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return each image moved by −1, 0 or 1 pixel along both axes, what moves in taking the edge's value."""
    padded = pad(images, (1, 1, 1, 1), mode="replicate")
    down, right = torch.randint(3, (2, len(images), 1), generator=generator)
    rows, columns = down + torch.arange(8), right + torch.arange(8)
    return padded[torch.arange(len(images))[:, None, None], 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def build(case: str) -> nn.Module:
    """Return the network of a case."""
    if case == "batchnorm":
        return digits_resnet(num_classes=10)
    return uncertainty.network("cnn" if case == "cnn" else "mlp")


def sweep(case: str, temperature: float, seed: int, epochs: int) -> dict[str, float]:
    """Return validation scores of one run, and how well images turned by 90 degrees are told apart."""
    split = uncertainty.digits(seed)
    trained = uncertainty.cvadam(
        functools.partial(build, case), split, epochs // 3 if case == "batchnorm" else epochs, seed,
        lr=LR, prior=PRIOR, temperature=temperature, floor=FLOOR, each=MEMBERS // 2, augment=shifted if case == "shifted" else None,
    )  # fmt: skip
    upright = trained.predict(split.validation)
    turned = trained.predict(split.validation.rot90(1, (2, 3)))
    single = bp.predict(trained.model, None, split.validation)
    return {
        "case": case, "temperature": temperature, "seed": seed, "measured": trained.temperature,
        **classification_metrics(upright.probabilities, split.validation_labels),
        "nll_single": classification_metrics(single.probabilities, split.validation_labels)["nll"],
        "ood": ood_metrics(upright.total, turned.total)["auroc"],
        "epistemic": float(upright.epistemic.mean()),
    }  # fmt: skip


def reference(case: str, seed: int, epochs: int) -> dict[str, float]:
    """Return the validation scores of SGD at the same epochs."""
    split = uncertainty.digits(seed)
    torch.manual_seed(seed)
    model = build(case)
    epochs = epochs // 3 if case == "batchnorm" else epochs
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, split.steps(epochs))
    uncertainty.train(
        model,
        optimizer,
        split,
        epochs,
        seed,
        lambda step: scheduler.step(),
        augment=shifted if case == "shifted" else None,
    )
    upright = bp.predict(model, None, split.validation)
    turned = bp.predict(model, None, split.validation.rot90(1, (2, 3)))
    scores = classification_metrics(upright.probabilities, split.validation_labels)
    return {"case": case, "seed": seed, **scores, "ood": ood_metrics(upright.total, turned.total)["auroc"]}


def heat(lr: float, batch: int, temperature: float, seed: int = 0) -> dict[str, float]:
    """Return the kinetic temperature at a constant step size and a frozen τ, and the one that its formula gives.

    V is half the mean squared difference of two batches' gradients, along the steps of which the measurement is the mean.
    """
    split = uncertainty.digits(seed)
    torch.manual_seed(seed)
    model, number = uncertainty.network("mlp"), len(split.train)
    optimizer = bp.CVAdam(
        model.parameters(), lr=lr, num_data=number, temperature=temperature, weight_decay=PRIOR / number, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)

    def gradient() -> Tensor:
        rows = torch.randint(number, (batch,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(split.train[rows]), split.train_labels[rows]).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    added, (beta1, beta2) = [], optimizer.param_groups[0]["betas"]
    for step in range(CONSTANT_STEPS):
        if step == CONSTANT_STEPS // 2:
            set_adapt(optimizer, False)
        last = step >= CONSTANT_STEPS - MEASURED_STEPS
        other = gradient() if last else None
        here = gradient()
        if other is not None:
            tau = torch.cat([optimizer.tau(p).flatten() for p in model.parameters()])
            variance = float((tau * (here - other).square()).mean()) / 2
            added.append(number * beta2 * lr * variance / (2 * (1 - beta1)))
        optimizer.step()
    found = optimizer.kinetic_temperature()[0]["mean"]
    formula = temperature + float(np.mean(added))
    return {"lr": lr, "batch": batch, "temperature": temperature, "measured": found, "formula": formula}


def draw(result: dict[str, Any], folder: Path) -> None:
    """Draw the three figures."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})
    folder.mkdir(parents=True, exist_ok=True)
    places = np.arange(len(TEMPERATURES))
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.9), constrained_layout=True)
    for axis, (key, title) in zip(
        axes, (("nll", "NLL, validation"), ("accuracy", "accuracy %"), ("ood", "AUROC, digits turned by 90°"))
    ):
        factor = 100 if key == "accuracy" else 1
        for colour, (case, label) in zip(COLOURS, CASES.items()):
            rows = [
                [r[key] for r in result["sweep"] if r["case"] == case and r["temperature"] == t] for t in TEMPERATURES
            ]
            means = factor * np.array([np.mean(row) for row in rows])
            axis.plot(places, means, "o-", color=colour, markersize=3.5, linewidth=1.4, label=label)
            of_sgd = factor * np.mean([r[key] for r in result["sgd"] if r["case"] == case])
            axis.axhline(of_sgd, color=colour, linewidth=0.9, linestyle=":")
        axis.set_xticks(places, [f"{t:g}" for t in TEMPERATURES])
        axis.set(title=title, xlabel="temperature T")
    axes[0].set_yscale("log")
    axes[0].legend(frameon=False, fontsize=8, title="dotted: SGD", title_fontsize=8)
    figure.savefig(folder / "temperature_sweep.png")
    plt.close(figure)

    figure, axes = plt.subplots(1, 2, figsize=(7, 2.9), constrained_layout=True, sharey=True)
    for axis, key, label in zip(axes, ("lr", "batch"), ("lr, batches of 64", "batch size, lr = 1e-3")):
        for colour, temperature in zip(COLOURS, (1.0, 0.1, 0.01)):
            fixed = (("batch", BATCH),) if key == "lr" else (("lr", 1e-3),)
            rows = [r for r in result["heat"] if r["temperature"] == temperature and all(r[k] == v for k, v in fixed)]
            rows.sort(key=lambda r: r[key])
            x = [r[key] for r in rows]
            axis.loglog(
                x,
                [r["measured"] for r in rows],
                "o-",
                color=colour,
                markersize=3.5,
                linewidth=1.4,
                label=f"T = {temperature:g}",
            )
            axis.loglog(x, [r["formula"] for r in rows], "--", color=colour, linewidth=0.9)
            axis.axhline(temperature, color=colour, linewidth=0.7, linestyle=":")
        ticks = LRS if key == "lr" else BATCHES
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xticks([], minor=True)
        axis.set(xlabel=label)
    axes[0].set(ylabel="kinetic temperature", ylim=(0.007, 60))
    axes[0].legend(
        frameon=False,
        fontsize=8,
        loc="upper left",
        title="solid: measured, dashed: formula,\ndotted: set",
        title_fontsize=8,
    )
    figure.savefig(folder / "temperature_measured.png")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default=str(RESULTS))
    parser.add_argument("--figures", default=str(FIGURES))
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--draw", action="store_true", help="only draw what the JSON holds")
    arguments = parser.parse_args()
    if not arguments.draw:
        torch.set_num_threads(1)
        seeds = range(arguments.splits)
        pairs = [(lr, BATCH) for lr in LRS] + [(1e-3, batch) for batch in BATCHES if batch != BATCH]
        result = {
            "heat": [heat(lr, batch, t) for lr, batch in pairs for t in (1.0, 0.1, 0.01)],
            "sgd": [reference(case, seed, arguments.epochs) for case in CASES for seed in seeds],
            "sweep": [sweep(case, t, seed, arguments.epochs) for case in CASES for t in TEMPERATURES for seed in seeds],
            "settings": {
                "lr": LR,
                "prior": PRIOR,
                "floor": FLOOR,
                "members": MEMBERS,
                "splits": arguments.splits,
                "epochs": arguments.epochs,
            },
            "environment": environment("cpu"),
        }
        write_json(Path(arguments.json), result)
    draw(read_json(Path(arguments.json)), Path(arguments.figures))


if __name__ == "__main__":
    main()
