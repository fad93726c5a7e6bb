"""What minibatches do to a sampler's temperature: the kinetic temperature beside the true one, and the suggested step size.

    python -m benchmarks.minibatch_temperature [--chains 32] [--json FILE]

Dozens of chains in one tensor, each with batches of its own, drawn independently or as shuffled epochs. The truth is measured
on the full data: at temperature T the posterior has N·E[(w − c)·∇L(w)] = d·T for every fixed c (equipartition), which on a
quadratic is the mean over directions of the chains' variance over the posterior's. All temperatures are shares of the set T.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesprune.posterior import health_report
from bayesprune.samplers import CVAdam
from bayesprune.train.folder import environment, write_json

RESULTS = Path(__file__).parent / "results" / "minibatch_temperature.json"


@dataclass(frozen=True)
class Target:
    """A posterior with data: `gradient(weights, rows)` is that of the mean loss over each chain's rows, `rows` None for all.

    `energy` is N·L of each chain, where it is given.
    """

    num_data: int
    batch: int
    decay: float
    centre: Tensor
    gradient: Callable[[Tensor, Tensor | None], Tensor]
    hessian: Tensor | None = None
    energy: Callable[[Tensor], Tensor] | None = None

    def energy_gradient(self, weight: Tensor) -> Tensor:
        """Return ∇L, with the prior, on all data."""
        return self.gradient(weight, None) + self.decay * weight


def logistic(num_data: int = 20_000, dim: int = 10, batch: int = 128, seed: int = 0) -> Target:
    """Return logistic regression on normal columns with an intercept; c is the mode."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_data, dim, generator=generator)
    x[:, 0] = 1.0
    truth = torch.randn(dim, generator=generator) / math.sqrt(dim) * 1.5
    y = (torch.rand(num_data, generator=generator) < torch.sigmoid(x @ truth)).float()
    decay = 1 / num_data

    def gradient(weight: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:
            return (torch.sigmoid(weight @ x.T) - y) @ x / num_data
        own = x[rows]
        wrong = torch.sigmoid((own @ weight[:, :, None])[..., 0]) - y[rows]
        return (wrong[:, None, :] @ own)[:, 0] / rows.shape[1]

    mode = torch.zeros(dim, dtype=torch.float64)
    for _ in range(30):  # Newton
        p = torch.sigmoid(x.double() @ mode)
        hessian = (x.double().T * (p * (1 - p))) @ x.double() / num_data + decay * torch.eye(dim, dtype=torch.float64)
        mode -= torch.linalg.solve(hessian, (p - y) @ x.double() / num_data + decay * mode)
    return Target(num_data, batch, decay, mode.float(), gradient, hessian)


def network(num_data: int = 200, batch: int = 10, hidden: int = 10, noise: float = 0.5, seed: int = 0) -> Target:
    """Return the regression 1-`hidden`-1 with tanh, unit normal priors and known noise; c is 0."""
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(num_data, generator=generator) - 2
    y = torch.sin(2 * x) + noise * torch.randn(num_data, generator=generator)

    def gradient(weight: Tensor, rows: Tensor | None) -> Tensor:
        inputs, wanted = (x[None], y[None]) if rows is None else (x[rows], y[rows])
        function, units = network_function(weight, inputs, hidden)
        wrong = (function - wanted) / (noise**2 * inputs.shape[1])
        back = (1 - units.square()) * wrong[..., None] * weight[:, None, 2 * hidden : 3 * hidden] / math.sqrt(hidden)
        outer = (wrong[:, None, :] @ units)[:, 0] / math.sqrt(hidden)
        return torch.cat([(back * inputs[..., None]).sum(1), back.sum(1), outer, wrong.sum(1, keepdim=True)], 1)

    def energy(weight: Tensor) -> Tensor:
        wrong = network_function(weight, x[None], hidden)[0] - y
        return wrong.square().sum(1) / (2 * noise**2) + weight.square().sum(1) / 2

    return Target(num_data, batch, 1 / num_data, torch.zeros(3 * hidden + 1), gradient, energy=energy)


def network_function(weight: Tensor, x: Tensor, hidden: int = 10) -> tuple[Tensor, Tensor]:
    """Return the outputs (chains, rows) of each chain's network at its own or shared inputs, and the hidden units."""
    slope, shift, outer, last = weight.split([hidden, hidden, hidden, 1], dim=1)
    units = torch.tanh(slope[:, None] * x[..., None] + shift[:, None])
    return (units @ outer[:, :, None])[..., 0] / math.sqrt(hidden) + last, units


def batches(target: Target, chains: int, kind: str, seed: int) -> Iterator[Tensor | None]:
    """Yield each chain's rows for ever: "full" (None), "independent" draws or "shuffled" epochs."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        if kind == "full":
            yield None
        elif kind == "independent":
            yield torch.randint(target.num_data, (chains, target.batch), generator=generator)
        else:
            order = torch.rand(chains, target.num_data, generator=generator).argsort(dim=1)
            yield from order.split(target.batch, dim=1)[: target.num_data // target.batch]


def run(
    target: Target,
    *,
    kind: str,
    steps: int,
    burn_in: int,
    chains: int = 32,
    seed: int = 0,
    every: int = 20,
    **settings: Any,
) -> dict[str, Any]:
    """Run chains from the posterior's own scale; return the temperatures as shares of the set one, and the sampler.

    The first half of the burn-in adapts the preconditioner. Each figure is a mean over time, with its standard error over chains.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    start, temperature = torch.randn(chains, len(target.centre), generator=generator), settings.get("temperature", 1.0)
    if target.hessian is not None:
        root = torch.linalg.cholesky(torch.linalg.inv(target.hessian) * temperature / target.num_data)
        start = target.centre + start @ root.T.float()
    weight = torch.nn.Parameter(start.clone())
    optimizer = CVAdam([weight], num_data=target.num_data, weight_decay=target.decay, seed=seed, **settings)
    shares, kinetic, squares = [], [], []
    for step, rows in zip(range(steps), batches(target, chains, kind, seed + 2)):
        optimizer.param_groups[0]["adapt"] = step < burn_in // 2
        weight.grad = target.gradient(weight.detach(), rows)
        optimizer.step()
        if step >= burn_in and step % every == 0:
            with optimizer.midpoint():
                point = weight.detach().clone()
            work = (point - target.centre) * target.energy_gradient(point)
            shares.append(target.num_data / temperature * work.mean(1))
            kinetic.append(optimizer.kinetic_temperature()[0]["mean"] / temperature)
            if target.hessian is not None:
                gap = (point - target.centre).double()
                squares.append(target.num_data / temperature * ((gap @ target.hessian) * gap).mean())
    per_chain = torch.stack(shares).mean(0)
    tau = optimizer.tau(weight)
    return {
        "kinetic": sum(kinetic) / len(kinetic),
        "true": float(per_chain.mean()),
        "true_error": float(per_chain.std() / math.sqrt(chains)),
        "laplace": float(torch.stack(squares).mean()) if squares else None,
        "tau": [float(tau.min()), float(tau.median()), float(tau.max())],
        "optimizer": optimizer,
    }


SETTINGS: dict[str, tuple[Callable[[], Target], dict[str, Any]]] = {
    "logistic, β₁ .1, T 1": (logistic, {"lr": 1.0, "betas": (0.1, 1.0)}),
    "logistic, β₁ .9, T 1": (logistic, {"lr": 1.0, "betas": (0.9, 1.0)}),
    "logistic, β₁ .1, T .01": (logistic, {"lr": 1.0, "betas": (0.1, 1.0), "temperature": 0.01}),
    "network, β₁ .9, T 1": (network, {"lr": 0.1, "betas": (0.9, 1.0)}),
}
"""The four settings, with preconditioner "paper"; "rms" runs them at its default lr."""


def measure(name: str, preconditioner: str, kind: str, chains: int) -> dict[str, Any]:
    """Return one row of the table."""
    make, settings = SETTINGS[name]
    target, settings = make(), {"preconditioner": preconditioner, **settings}
    if preconditioner == "rms":
        settings.pop("lr")
    if kind == "full":
        settings["lr"] = 0.1 if preconditioner == "paper" else 1e-3
    small = target.hessian is None
    result = run(
        target, kind=kind, steps=16_000 if small else 3000, burn_in=4000 if small else 1000, chains=chains, **settings
    )
    optimizer = result.pop("optimizer")
    row = {
        "setting": name,
        "preconditioner": preconditioner,
        "batches": kind,
        "lr": optimizer.param_groups[0]["lr"],
        **result,
    }
    row["warnings"] = health_report(optimizer=optimizer).warnings
    if kind == "full":
        return row
    row["suggested_lr"] = settings["lr"] = optimizer.suggest_lr(0.1)[0]
    slow = (
        settings.get("temperature", 1.0) < 1
    )  # too small a step for the truth: its relaxation takes 100 times as long
    steps = 2000 if slow else 40_000 if small else 15_000
    again = run(target, kind=kind, steps=steps, burn_in=steps // 3, chains=chains, **settings)
    row |= {"kinetic_at_suggested": again["kinetic"], "true_at_suggested": None if slow else again["true"]}
    row |= {"true_error_at_suggested": None if slow else again["true_error"]}
    return row


def table(result: dict[str, Any]) -> str:
    """Return the rows as Markdown."""
    head = [
        "setting",
        "τ",
        "batches",
        "lr",
        "T_kin / T",
        "true T / T",
        "ratio",
        "warned",
        "suggested lr",
        "there: T_kin / T",
        "true",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in result["rows"]:
        end = ["–"] * 3
        if "suggested_lr" in row:
            there = row["true_at_suggested"]
            end = [
                f"{row['suggested_lr']:.2g}",
                f"{row['kinetic_at_suggested']:.3f}",
                "–" if there is None else f"{there:.2f} ± {row['true_error_at_suggested']:.2f}",
            ]
        truth = f"{row['true']:.3g} ± {row['true_error']:.2g}"
        shown = [
            row["setting"],
            row["preconditioner"],
            row["batches"],
            f"{row['lr']:g}",
            f"{row['kinetic']:.4g}",
            truth,
        ]
        shown += [f"{row['kinetic'] / row['true']:.2f}", "yes" if row["warnings"] else "no"]
        lines.append("| " + " | ".join(shown + end) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default=str(RESULTS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {"rows": [], "chains": arguments.chains, "environment": environment("cpu")}
    for preconditioner in ("paper", "rms"):
        for name in SETTINGS:
            for kind in ("full", "independent", "shuffled"):
                result["rows"].append(measure(name, preconditioner, kind, arguments.chains))
                print(table({"rows": result["rows"][-1:]}).splitlines()[-1], flush=True)
    print("\n" + table(result))
    write_json(Path(arguments.json), result)


if __name__ == "__main__":
    main()
