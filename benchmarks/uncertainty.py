"""What the members are good for: eleven rows on scikit-learn's digits, an MLP and a small CNN, five splits.

    python -m benchmarks.uncertainty [--json FILE] [--splits 5] [--epochs 60] [--networks mlp cnn]

Each split has 500 test, 250 validation and 1,047 training rows, each with the classes' shares. Every method tries four
settings and keeps the one of least mean validation NLL over the splits (least of one, for the constructor's defaults);
test rows are read once, for that setting. Equal epochs and batches; `seconds` is the CPU time of one training at one thread.
Images of another distribution are the test images turned by 90 degrees (exact) and by 45 (`scipy.ndimage.rotate`,
bilinear); the area under the ROC curve tells them from the upright ones by predictive entropy or by mutual information.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import bayesprune as bp
from bayesprune.baselines import SWAG, independent_seeds, swag_lr
from bayesprune.posterior import Prediction
from bayesprune.posterior.metrics import classification_metrics, nll, ood_metrics
from bayesprune.train.folder import environment, write_json
from paper.image_tables import mean_and_spread

RESULTS = Path(__file__).parent / "results" / "uncertainty.json"
BATCH, DRAWS, PRIORS, DECAYS = 64, 30, (3.0, 10.0), (5e-4, 5e-3)
HEAD = ("accuracy", "nll", "ece", "brier", "turn90_total", "turn90_epistemic", "turn45_total", "turn45_epistemic")
TITLES = (
    "accuracy %", "NLL", "ECE", "Brier", "90°: entropy", "90°: epistemic", "45°: entropy", "45°: epistemic", "T measured", "seconds",
)  # fmt: skip
Setting = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """Standardised digits of one split, and its test images turned."""

    train: Tensor
    train_labels: Tensor
    validation: Tensor
    validation_labels: Tensor
    test: Tensor
    test_labels: Tensor
    turned: dict[str, Tensor]

    def steps(self, epochs: int, batch: int = BATCH) -> int:
        """Return the number of steps of a run."""
        return epochs * (len(self.train) // batch)


@dataclass
class Trained:
    """A model with its members (None: the model itself), the temperature it measured and the CPU seconds it took."""

    model: nn.Module
    samples: bp.MemorySamples | None
    seconds: float
    temperature: float = math.nan
    indices: list[int] | None = None

    @property
    def members(self) -> int:
        """Number of predictions that are averaged."""
        return len(self.indices or self.samples or [0])

    def predict(self, images: Tensor) -> Prediction:
        """Return the prediction of the members' average."""
        return bp.predict(self.model, self.samples, images, indices=self.indices)

    def validation_nll(self, split: Split) -> float:
        """Return the NLL on the validation rows, infinite if an output is not finite."""
        try:
            return nll(self.predict(split.validation).probabilities, split.validation_labels)
        except ValueError:
            return math.inf


class MaskedDropout(nn.Module):
    """Dropout that stays on in evaluation mode too, so that each member is a mask of one network."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` under a new mask."""
        return nn.functional.dropout(x, self.p, training=True)


@functools.cache
def digits(split: int) -> Split:
    """Return one split; the test sets of the splits overlap."""
    from scipy.ndimage import rotate
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(np.arange(len(labels)), test_size=500, stratify=labels, random_state=split)
    train, validation = train_test_split(rest, test_size=250, stratify=labels[rest], random_state=split)
    mean, std = pixels[train].mean(), pixels[train].std()
    images = pixels.reshape(-1, 8, 8)

    def ready(values: Any) -> Tensor:
        return torch.from_numpy((np.ascontiguousarray(values)[:, None] - mean) / std).float()

    turned = {
        "turn90": ready(np.rot90(images[test], axes=(1, 2))),
        "turn45": ready(rotate(images[test], 45, axes=(1, 2), reshape=False, order=1)),
    }
    targets = torch.from_numpy(labels.astype(np.int64))
    parts = [part for rows in (train, validation, test) for part in (ready(images[rows]), targets[rows])]
    return Split(*parts, turned=turned)


def network(name: str, dropout: float = 0.0) -> nn.Sequential:
    """Return an MLP 64-100-100-10 ("mlp") or a CNN of two convolutions of 16 and 32 channels ("cnn"), torch's initial weights."""
    drop = [MaskedDropout(dropout)] if dropout else []
    if name == "mlp":
        first, second = [nn.Linear(64, 100), nn.ReLU(), *drop], [nn.Linear(100, 100), nn.ReLU(), *drop]
        return nn.Sequential(nn.Flatten(), *first, *second, nn.Linear(100, 10))
    first = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), *drop]
    second = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), *drop]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(128, 10))


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, split: Split, epochs: int, seed: int, after: Callable[[int], None],
    batch: int = BATCH, augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> float:  # fmt: skip
    """Run the loop on shuffled batches, `after(step)` after each step; return its CPU seconds."""
    number, generator = len(split.train), torch.Generator().manual_seed(seed)
    start, step = time.process_time(), 0
    model.train()
    for _ in range(epochs):
        order = torch.randperm(number, generator=generator)[: number // batch * batch]
        for rows in order.view(-1, batch):
            images = augment(split.train[rows], generator) if augment else split.train[rows]
            optimizer.zero_grad()
            cross_entropy(model(images), split.train_labels[rows]).backward()
            optimizer.step()
            after(step)
            step += 1
    return time.process_time() - start


def sgd(name: str, split: Split, epochs: int, seed: int, *, lr: float, decay: float, dropout: float = 0.0) -> Trained:
    """Nesterov SGD on a cosine; with `dropout` its members are masks."""
    torch.manual_seed(seed)
    model = network(name, dropout)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, split.steps(epochs))
    seconds = train(model, optimizer, split, epochs, seed, lambda step: scheduler.step())
    if not dropout:
        return Trained(model, None, seconds)
    samples = bp.MemorySamples()
    samples.collect(model)
    return Trained(model, samples, seconds, indices=[0] * DRAWS)


def ensemble(
    name: str, split: Split, epochs: int, seed: int, *, members: int = 4, share: int = 1, **setting: float
) -> Trained:
    """Networks of independent seeds, `epochs`/`share` each."""
    samples, found = bp.MemorySamples(), []
    for member in independent_seeds(seed, members):
        found.append(sgd(name, split, max(1, epochs // share), member, **setting))
        samples.collect(found[-1].model)
    return Trained(found[-1].model, samples, sum(each.seconds for each in found))


def swag(name: str, split: Split, epochs: int, seed: int, *, lr: float, decay: float, floor: float) -> Trained:
    """SGD that stays at `floor`·lr for the last quarter, where an iterate an epoch is collected."""
    torch.manual_seed(seed)
    model, fitted, total = network(name), SWAG(), split.steps(epochs)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=decay)

    def after(step: int) -> None:
        optimizer.param_groups[0]["lr"] = swag_lr(step + 1, total, lr, floor)
        if step >= 0.75 * total and (step + 1) % (total // epochs) == 0:
            fitted.collect(model)

    seconds = train(model, optimizer, split, epochs, seed, after)
    fitted.draw(samples := bp.MemorySamples(), model, DRAWS, [], generator=torch.Generator().manual_seed(seed))
    return Trained(model, samples, seconds)


def cvadam(
    name: str | Callable[[], nn.Module], split: Split, epochs: int, seed: int, *, prior: float | None = None, batch: int = BATCH,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None, floor: float = 0.0, each: int = 3, **settings: Any,
) -> Trained:  # fmt: skip
    """CV-Adam on four cycles, `each` samples from the second half of the last two; `prior` is a weight's prior precision."""
    torch.manual_seed(seed)
    model = network(name) if isinstance(name, str) else name()
    total, number = split.steps(epochs, batch), len(split.train)
    if prior is not None:
        settings["weight_decay"] = prior / number
    optimizer = bp.CVAdam(model.parameters(), num_data=number, seed=seed, **settings)
    clock = bp.CycleClock(
        total, cycles=4, samples_per_cycle=each, sample_every=max(1, total // (8 * each)), floor=floor
    )
    scheduler, samples, measured = bp.CyclicalLR(optimizer, clock), bp.MemorySamples(), []

    def after(step: int) -> None:
        scheduler.step()
        if clock.collect(step) and step >= total // 2:
            samples.collect(model, optimizer, step=step)
            measured.append(optimizer.kinetic_temperature()[0]["mean"])

    seconds = train(model, optimizer, split, epochs, seed, after, batch, augment)
    return Trained(model, samples, seconds, float(np.mean(measured)))


def methods() -> dict[str, tuple[Callable[..., Trained], list[Setting]]]:
    """Return, for each row of the table, how it trains and the settings it tries."""
    plain = [{"lr": lr, "decay": decay} for lr in (0.1, 0.03) for decay in DECAYS]

    def sampler(lrs: tuple[float, float], **fixed: Any) -> list[Setting]:
        return [{"lr": lr, "prior": prior, **fixed} for lr in lrs for prior in PRIORS]

    return {
        "SGD": (sgd, plain),
        "CV-Adam, all defaults": (cvadam, [{}]),
        "CV-Adam, T = 1": (cvadam, sampler((1e-3, 3e-3))),
        "CV-Adam, T = 1, 20 members, lr floor 1/2": (
            cvadam,
            sampler((1e-3, 3e-3), floor=0.5, each=10, scale_decay=0.999),
        ),
        "CV-Adam, T = 0.1": (cvadam, sampler((1e-3, 3e-3), temperature=0.1)),
        'CV-Adam "paper", T = 1': (cvadam, sampler((0.1, 0.03), preconditioner="paper")),
        "CV-Adam, T = 0 (snapshots)": (cvadam, sampler((1e-3, 3e-3), temperature=0.0)),
        "SWAG": (swag, [{"lr": lr, "decay": 5e-4, "floor": floor} for lr in (0.1, 0.03) for floor in (0.5, 0.1)]),
        "MC dropout": (sgd, [{"lr": 0.1, "decay": 5e-4, "dropout": p} for p in (0.05, 0.1, 0.2, 0.4)]),
        "deep ensemble of 4": (ensemble, plain),
        "deep ensemble of 4, a quarter of the epochs each": (functools.partial(ensemble, share=4), plain),
    }


def scores(trained: Trained, split: Split) -> dict[str, float]:
    """Return all figures of one trained model on its test rows."""
    upright = trained.predict(split.test)
    found = {**classification_metrics(upright.probabilities, split.test_labels), "seconds": trained.seconds}
    for turn, images in split.turned.items():
        strange = trained.predict(images)
        for kind in ("total", "epistemic"):
            found[f"{turn}_{kind}"] = ood_metrics(getattr(upright, kind), getattr(strange, kind))["auroc"]
    return {**found, "temperature": trained.temperature, "members": trained.members}


def row(name: str, method: str, splits: int, epochs: int) -> dict[str, Any]:
    """Tune one method on one network by validation NLL and return its scores on every split."""
    make, settings = methods()[method]
    runs = [[make(name, digits(split), epochs, split, **each) for split in range(splits)] for each in settings]
    found = [float(np.mean([run.validation_nll(digits(i)) for i, run in enumerate(of_one)])) for of_one in runs]
    best = int(np.argmin(found))
    tried = [{**each, "validation_nll": value} for each, value in zip(settings, found)]
    results = [scores(run, digits(i)) for i, run in enumerate(runs[best])]
    return {"network": name, "method": method, "setting": settings[best], "tried": tried, "splits": results}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the markdown table of one network, mean ± standard deviation over splits."""
    lines = ["| " + " | ".join(["", *TITLES]) + " |", "|---" + "|---:" * len(TITLES) + "|"]
    for each in rows:
        values = {key: np.array([split[key] for split in each["splits"]], dtype=float) for key in each["splits"][0]}
        cells = [mean_and_spread(100 * values[HEAD[0]], 1), *(mean_and_spread(values[key], 3) for key in HEAD[1:])]
        heat = values["temperature"].mean()
        cells += ["–" if math.isnan(heat) else f"{heat:.2g}", f"{values['seconds'].mean():.1f}"]
        lines.append("| " + " | ".join([each["method"], *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default=str(RESULTS))
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--networks", nargs="+", default=["mlp", "cnn"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.networks:
        rows += [row(name, method, arguments.splits, arguments.epochs) for method in methods()]
        print(f"\n{name}, {arguments.epochs} epochs, {arguments.splits} splits\n")
        print(table([each for each in rows if each["network"] == name]), flush=True)
        settings = {"splits": arguments.splits, "epochs": arguments.epochs, "batch": BATCH, "draws": DRAWS}
        write_json(Path(arguments.json), {"environment": environment("cpu"), "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
