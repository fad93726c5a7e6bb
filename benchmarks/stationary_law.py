"""The sampler's temperature: stationary variance over the posterior's, by simulation and by the exact law.

    python -m benchmarks.stationary_law [--chains 2000] [--json FILE]

One row for each Δt = √lr, τ and β₁: thousands of chains on a quadratic loss, started at its minimum. `exact` must be 1 (the discrete-time
law says how far off the step size puts it); `paper` is the ratio of the measured temperature to the formula's T_eff. A second table has
iterates and midpoints at shares of the largest stable step, τ·lr·H = 2(1+β₁): the midpoint must be 1 in all.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from bayesprune.samplers import CVAdam, dynamics
from bayesprune.train.folder import environment, write_json

RESULTS = Path(__file__).parent / "results" / "stationary_law.json"
NUM_DATA, DECAY = 50.0, 0.05


def variance_of_chains(
    chains: int, lr: float, tau: float, beta1: float, curvature: float, noise: str, seed: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the stationary variance of the iterate and its standard error over chains, and those of the midpoint."""
    weight = torch.nn.Parameter(torch.zeros(chains))
    optimizer = CVAdam(
        [weight], lr=0.0, num_data=NUM_DATA, betas=(beta1, 1.0), preconditioner="paper", dual_lr=0.0, weight_decay=DECAY,
        seed=seed, noise=noise,
    )  # fmt: skip
    weight.grad = torch.zeros(chains)
    optimizer.step()  # at lr = 0, it makes the state and moves nothing
    optimizer.param_groups[0]["lr"] = lr
    optimizer.state[weight]["rho"].fill_(math.log(tau / (1 - tau)))
    # the slower of the weight's drift and the momentum's friction
    relaxation = math.ceil(max((1 - beta1) / (tau * lr * curvature), 4 / (1 - beta1)))
    totals, kept = torch.zeros(2, chains, dtype=torch.float64), 0
    for step in range(20 * relaxation):
        torch.mul(weight.detach(), curvature - DECAY, out=weight.grad)
        optimizer.step()
        if step >= 4 * relaxation and step % relaxation == 0:
            totals[0] += weight.detach().double().square()
            with optimizer.midpoint():
                totals[1] += weight.detach().double().square()
            kept += 1
    iterate, middle = ((float(row.mean()), float(row.std() / math.sqrt(chains))) for row in totals / kept)
    return iterate, middle


def midpoint_rows(chains: int) -> list[dict[str, float]]:
    """Return the iterate's and the midpoint's variance over the posterior's at shares of the largest stable step."""
    rows, unit = [], 1 / NUM_DATA
    print("\nshare   β₁ | iterate: Var/Var_posterior   ± s.e.    law | midpoint   ± s.e.")
    for beta1 in (0.1, 0.5, 0.9):
        for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
            lr = share * 2 * (1 + beta1) / 0.5
            iterate, middle = variance_of_chains(chains, lr, 0.5, beta1, 1.0, "exact", 100 + len(rows))
            std = dynamics.exact_noise_std(1.0, NUM_DATA, lr, beta1, 1.0, 0.5)
            law = dynamics.stationary_variance(1.0, 0.5, lr, beta1, 1.0, std)
            row = {"share": share, "beta1": beta1, "iterate": iterate[0] / unit, "iterate_error": iterate[1] / unit,
                   "iterate_law": law / unit, "midpoint": middle[0] / unit, "midpoint_error": middle[1] / unit}  # fmt: skip
            rows.append(row)
            print(
                f"{share:5} {beta1:4} | {row['iterate']:26.3f} {row['iterate_error']:8.3f} {law / unit:6.3f} "
                f"| {row['midpoint']:8.4f} {row['midpoint_error']:8.4f}",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=2000)
    parser.add_argument("--json", default=str(RESULTS))
    arguments = parser.parse_args()
    rows = []
    print("   Δt    τ   β₁ |  exact: Var/Var_posterior   ± s.e.   law | paper: T/T_eff   ± s.e.   law |  T_eff")
    for delta_t, curvature in ((0.01, 20.0), (0.1, 1.0), (0.3, 1.0)):
        for tau in (0.1, 0.5, 0.9):
            for beta1 in (0.1, 0.5, 0.9):
                lr = delta_t**2
                posterior = 1 / (NUM_DATA * curvature)
                exact_std = dynamics.exact_noise_std(1.0, NUM_DATA, lr, beta1, 1.0, tau)
                paper_std = dynamics.paper_noise_std(dynamics.paper_noise_scale(1.0, NUM_DATA), lr, beta1)
                t_eff = dynamics.injected_temperature(paper_std, tau, lr, beta1, 1.0, NUM_DATA)
                row = {"delta_t": delta_t, "curvature": curvature, "tau": tau, "beta1": beta1, "t_eff": t_eff}
                for noise, std, unit in (("exact", exact_std, posterior), ("paper", paper_std, posterior * t_eff)):
                    seed = 2 * len(rows) + (noise == "paper")
                    (variance, error), middle = variance_of_chains(
                        arguments.chains, lr, tau, beta1, curvature, noise, seed
                    )
                    law = dynamics.stationary_variance(curvature, tau, lr, beta1, 1.0, std)
                    row |= {noise: variance / unit, f"{noise}_error": error / unit, f"{noise}_law": law / unit}
                    row |= {f"{noise}_midpoint": middle[0] / unit}
                rows.append(row)
                print(
                    f"{delta_t:5} {tau:4} {beta1:4} | {row['exact']:26.3f} {row['exact_error']:8.3f} {row['exact_law']:5.3f} "
                    f"| {row['paper']:13.3f} {row['paper_error']:8.3f} {row['paper_law']:5.3f} | {t_eff:6.3f}",
                    flush=True,
                )
    small = [row for row in rows if row["delta_t"] <= 0.1]
    for noise, what in (("exact", "variance ratio to the posterior"), ("paper", "temperature over T_eff")):
        by_law = max(abs(row[f"{noise}_law"] - 1) for row in small)
        simulated = max(abs(row[noise] - 1) for row in small)
        print(
            f"\nΔt ≤ 0.1, noise {noise}: {what} off 1 by at most {by_law:.3f} (exact law), {simulated:.3f} (simulated)"
        )
    result = {"rows": rows, "midpoint": midpoint_rows(arguments.chains), "chains": arguments.chains}
    write_json(Path(arguments.json), result | {"environment": environment("cpu")})


if __name__ == "__main__":
    main()
