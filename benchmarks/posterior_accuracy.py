"""Are the samples those of the posterior, and how many are they worth? Known Gaussians, and logistic regression beside NUTS.

    python -m benchmarks.posterior_accuracy [--nuts-python PYTHON] [--only gaussian logistic] [--json FILE]

Gaussian: 50 dimensions, condition number 10⁴, along the axes and rotated; every sampler at the same share of its largest stable
step. Logistic regression, full batch: 64 chains in one tensor, midpoints, against a long NUTS run (float64). Step size by one rule:
3,000 steps at the default lr (½ of 1/λ without one) learn the preconditioner, which then stands still; lr is SHARE of
2(1+β₁)/λ, λ the largest eigenvalue of τ^½Hτ^½ at any chain's weights by power iteration on gradient differences. NUTS is numpyro's,
in a process of its own under PYTHON (this one if it has numpyro); both keep to one core. Rates are per second of processor time.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesprune.posterior.diagnostics import bulk_ess
from bayesprune.samplers import PSGLD, SGHMC, SGLD, CVAdam, Sampler, set_adapt
from bayesprune.samplers.temperature import betas_of
from bayesprune.train.folder import environment, write_json

RESULTS = Path(__file__).parent / "results" / "posterior_accuracy.json"
NUTS = Path(__file__).parent / "nuts_chains.py"
NUTS_RUNS = {
    "NUTS, reference": "--chains 16 --samples 4000 --seed 7 --x64",
    "NUTS, 1 chain": "--samples 3000",
    "NUTS, 16 chains at once": "--chains 16",
    "NUTS, 64 chains at once": "--chains 64 --samples 300",
}
CORE_SECONDS = {"core_seconds": "sampling", "warmup_core_seconds": "warmup"}
SHARE = 0.25
Gradient = Callable[[Tensor], Tensor]
"""∇L, with the prior, of chains in rows."""

SAMPLERS: dict[str, tuple[Callable[..., Sampler], dict[str, Any]]] = {
    "CVAdam rms": (CVAdam, {"preconditioner": "rms"}),
    "CVAdam rms, β₁ .5": (CVAdam, {"preconditioner": "rms", "betas": (0.5, 1.0)}),
    "CVAdam rms, β₁ .1": (CVAdam, {"preconditioner": "rms", "betas": (0.1, 1.0)}),
    "CVAdam paper": (CVAdam, {"preconditioner": "paper", "lr": 0.3}),
    "CVAdam none": (CVAdam, {"preconditioner": "none", "lr": 0.3}),
    "SGHMC": (SGHMC, {"lr": 0.3}),
    "SGLD": (SGLD, {"lr": 0.3}),
    "PSGLD": (PSGLD, {}),
}


def largest_curvature(gradient: Gradient, weight: Tensor, tau: Tensor, rounds: int = 60) -> float:
    """Return the largest eigenvalue of τ^½Hτ^½ over the chains, by power iteration on central differences of the gradient."""
    root, seed = tau.sqrt(), torch.Generator().manual_seed(0)
    direction = torch.randn(weight.shape, generator=seed)
    for _ in range(rounds):
        direction = direction / direction.norm(dim=1, keepdim=True)
        move = root * direction
        step = 1e-2 / move.norm(dim=1, keepdim=True)
        direction = root * (gradient(weight + step * move) - gradient(weight - step * move)) / (2 * step)
    return float(direction.norm(dim=1).max())


def sample(
    name: str,
    gradient: Gradient,
    start: Tensor,
    number: int,
    *,
    warmup: int,
    burn_in: int,
    steps: int,
    every: int,
    first_lr: float | None = None,
) -> dict[str, Any]:
    """Warm up, set the step by the rule, and sample; return midpoints, iterates (chains, draws, dim) and what they took."""
    make, settings = SAMPLERS[name]
    settings = settings | ({"lr": first_lr} if first_lr and "lr" in settings else {})
    weight = torch.nn.Parameter(start.clone())
    optimizer = make([weight], num_data=number, weight_decay=0.0, seed=0, **settings)  # the gradient has the prior
    group, begin = optimizer.param_groups[0], time.process_time()
    for _ in range(warmup):
        weight.grad = gradient(weight.detach())
        optimizer.step()
    set_adapt(optimizer, False)
    tau, beta1 = optimizer.tau(weight), betas_of(group)[0]
    group["lr"] = SHARE * 2 * (1 + beta1) / largest_curvature(gradient, weight.detach(), tau)
    optimizer.state[weight]["momentum"].zero_()
    middle, raw = [], []
    for step in range(-burn_in, steps):
        if step == 0:
            warm, begin = time.process_time() - begin, time.process_time()
        weight.grad = gradient(weight.detach())
        optimizer.step()
        if step >= 0 and step % every == 0:
            raw.append(weight.detach().clone())
            with optimizer.midpoint():
                middle.append(weight.detach().clone())
    seconds = time.process_time() - begin
    return {
        "midpoints": torch.stack(middle, 1), "iterates": torch.stack(raw, 1), "tau": tau, "lr": group["lr"], "beta1": beta1,
        "kinetic_temperature": optimizer.kinetic_temperature()[0]["mean"], "warmup_core_seconds": warm, "core_seconds": seconds,
    }  # fmt: skip


def gaussian_rows(chains: int = 200, dim: int = 50, condition: float = 1e4, steps: int = 8000) -> list[dict[str, Any]]:
    """Return a row a sampler and orientation: effective samples a step of the slowest direction, and the law."""
    number, rows = 100, []
    curvature = torch.logspace(-0.5, 0.5, dim, base=condition, dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    start = (
        torch.randn(chains, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        / (number * curvature).sqrt()
    )
    for shape, turn in (("aligned", torch.eye(dim, dtype=torch.float64)), ("rotated", basis)):
        hessian = (turn * curvature) @ turn.T
        matrix = hessian.float()
        for name in SAMPLERS:
            first = 0.5 / float(curvature[-1])
            found = sample(name, lambda w, m=matrix: w @ m, (start @ turn.T).float(), number, warmup=1000, burn_in=500,
                           steps=steps, every=4, first_lr=first)  # fmt: skip
            draws = found.pop("midpoints").double() @ turn
            squares = draws.square().mean(1) * (
                number * curvature
            )  # (chains, dim), ratio of the variance to the posterior's
            raw = (found.pop("iterates").double() @ turn).square().mean((0, 1)) * (number * curvature)
            error = squares.std(0) / math.sqrt(chains)
            worst = int((squares.mean(0) - 1).abs().argmax())
            tau = found.pop("tau").double()
            root = tau.mean(0).sqrt()
            slow = float(torch.linalg.eigvalsh(root[:, None] * hessian * root)[0]) * found["lr"]
            law = slow / (2 * (1 - found["beta1"]))
            measured = float(bulk_ess(draws).min()) / (chains * steps) if steps * law > 10 else None
            rows.append({"target": shape, "sampler": name, "ess_per_step_law": law, "ess_per_step": measured,
                         "variance_ratio_worst": float(squares.mean(0)[worst]), "standard_error_there": float(error[worst]),
                         "variance_ratio_mean": float(squares.mean()), "iterate_ratio_largest": float(raw.max()),
                         "tau_spread": float(tau.mean(0).max() / tau.mean(0).min()), **found})  # fmt: skip
            print(gaussian_table(rows[-1:]).splitlines()[-1], flush=True)
    return rows


def gaussian_table(rows: list[dict[str, Any]]) -> str:
    head = [
        "target",
        "sampler",
        "ESS a step, slowest",
        "its law",
        "variance / posterior: worst",
        "mean",
        "iterate: largest",
        "spread of τ",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        measured = "–" if r["ess_per_step"] is None else f"{r['ess_per_step']:.2g}"
        lines.append(
            f"| {r['target']} | {r['sampler']} | {measured} | {r['ess_per_step_law']:.2g} | {r['variance_ratio_worst']:.3f} "
            f"± {r['standard_error_there']:.3f} | {r['variance_ratio_mean']:.3f} | {r['iterate_ratio_largest']:.2f} "
            f"| {r['tau_spread']:.3g} |"
        )
    return "\n".join(lines)


def problems() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the design matrices with an intercept, and the labels."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    generator = np.random.default_rng(0)
    wide = generator.normal(size=(5000, 30))
    for column in range(1, 30):
        wide[:, column] = 0.8 * wide[:, column - 1] + 0.6 * wide[:, column]
    wide *= 10 ** generator.uniform(-1, 1, 30)
    truth = 0.5 * generator.normal(size=30) / wide.std(0)
    label = generator.random(5000) < 1 / (1 + np.exp(-wide @ truth))
    return {
        "breast cancer": (np.c_[np.ones(len(x)), (x - x.mean(0)) / x.std(0)], y.astype(float)),
        "synthetic": (wide, label.astype(float)),
    }


def nuts(python: str, problem: Path, folder: Path, *options: str) -> dict[str, Any]:
    """Run NUTS in a process of its own and return what it wrote."""
    out = folder / "nuts.npz"
    subprocess.run([python, str(NUTS), str(problem), str(out), *options], check=True)
    return dict(np.load(out))


def accuracy(draws: Tensor, reference: np.ndarray) -> dict[str, float]:
    """Return the largest error of a mean in posterior standard deviations, and of a standard deviation as a share."""
    flat, truth = draws.double().flatten(0, 1), torch.as_tensor(reference).double().flatten(0, 1)
    return {
        "mean_error": float(((flat.mean(0) - truth.mean(0)) / truth.std(0)).abs().max()),
        "sd_error": float((flat.std(0) / truth.std(0) - 1).abs().max()),
    }


def logistic_rows(python: str, chains: int = 64) -> list[dict[str, Any]]:
    """Return a row a sampler and data set, the reference first."""
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row | {"ess_per_core_second": row["ess"] / row["core_seconds"]})
        print(logistic_table(rows[-1:]).splitlines()[-1], flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for data, (x, y) in problems().items():
            np.savez(folder / "problem.npz", x=x, y=y, precision=1.0)
            reference = np.empty(0)
            for title, options in NUTS_RUNS.items():
                run = nuts(python, folder / "problem.npz", folder, *options.split())
                draws = run["samples"]
                reference = reference if reference.size else draws
                times = {key: float(run[f"{old}_core_seconds"]) for key, old in CORE_SECONDS.items()}
                row = {"data": data, "sampler": title, "ess": float(bulk_ess(draws).min()), "chains": draws.shape[0]}
                row |= {
                    "steps": draws.shape[1] * float(run["leapfrogs"]),
                    **accuracy(torch.as_tensor(draws), reference),
                }
                add(row | times | {"versions": {key: str(run[key]) for key in ("numpyro", "jax")}})
            inputs, labels = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y, dtype=torch.float32)
            columns, number = inputs.T.contiguous(), len(inputs)

            def gradient(w: Tensor) -> Tensor:
                return torch.addmm(w, torch.sigmoid(w @ columns).sub_(labels), inputs).div_(number)  # noqa: B023

            start = 0.1 * torch.randn(chains, inputs.shape[1], generator=torch.Generator().manual_seed(0))
            steps = 20_000 if data == "breast cancer" else 5000
            first = 0.5 / largest_curvature(gradient, start, torch.ones_like(start))
            for sampler in SAMPLERS:
                found = sample(
                    sampler, gradient, start, number, warmup=3000, burn_in=1000, steps=steps, every=10, first_lr=first
                )  # fmt: skip
                middle, raw, tau = found.pop("midpoints"), found.pop("iterates"), found.pop("tau").mean(0)
                row = {"data": data, "sampler": sampler, "ess": float(bulk_ess(middle).min()), "chains": chains}
                row |= {"steps": steps, **accuracy(middle, reference), **found}
                row["iterate_sd_error"] = accuracy(raw, reference)["sd_error"]
                add(row | {"tau_spread": float(tau.max() / tau.min())})
    return rows


def logistic_table(rows: list[dict[str, Any]]) -> str:
    head = [
        "data",
        "sampler",
        "max mean error / sd",
        "max sd error",
        "of the iterates",
        "min ESS",
        "ESS a core second",
        "warm-up, core s",
        "spread of τ",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        raw, spread = (f"{r[key]:.3g}" if key in r else "–" for key in ("iterate_sd_error", "tau_spread"))
        lines.append(f"| {r['data']} | {r['sampler']} | {r['mean_error']:.3f} | {r['sd_error']:.3f} | {raw} | {r['ess']:,.0f} | "
                     f"{r['ess_per_core_second']:,.0f} | {r['warmup_core_seconds']:.1f} | {spread} |")  # fmt: skip
    return "\n".join(lines)


def table(result: dict[str, Any]) -> str:
    """Return both tables as Markdown."""
    return "\n\n".join(
        part(result[key]) for key, part in (("gaussian", gaussian_table), ("logistic", logistic_table)) if key in result
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nuts-python", default=sys.executable, help="a Python that has numpyro")
    parser.add_argument("--only", nargs="+", choices=("gaussian", "logistic"), default=["gaussian", "logistic"])
    parser.add_argument("--json", default=str(RESULTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(arguments.json)
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    result |= {"share_of_stability_limit": SHARE, "environment": environment("cpu")}
    if "gaussian" in arguments.only:
        result["gaussian"] = gaussian_rows()
    if "logistic" in arguments.only:
        result["logistic"] = logistic_rows(arguments.nuts_python)
    print("\n" + table(result))
    write_json(path, result)


if __name__ == "__main__":
    main()
