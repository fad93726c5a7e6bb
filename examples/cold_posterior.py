# %% [markdown]
# # A cold posterior, seen
#
#     python examples/cold_posterior.py [--plot cold_posterior.png]
#
# Bayesian linear regression with five weights and sixty rows, whose posterior is known in closed form. Two hundred chains of
# CV-Adam at T = 1 give that posterior's means and spreads; at T = 0.1 the spread shrinks by √10, and intervals of nominal 90 %
# hold much less of the posterior: cold samples are no uncertainty. Needs the core alone (the plot: extra `train`).

# %%
import argparse

import torch

import bayesprune as bp

parser = argparse.ArgumentParser()
parser.add_argument("--plot", help="file to draw the marginals of the first weight into")
arguments = parser.parse_args()

generator = torch.Generator().manual_seed(0)
n, p, noise, chains = 60, 5, 0.5, 200
X = torch.randn(n, p, generator=generator)
truth = torch.randn(p, generator=generator)
y = X @ truth + noise * torch.randn(n, generator=generator)
prior_precision = 1.0

# %% [markdown]
# ## The exact answer
#
# Precision Xᵀ X/σ² + δ, mean that times Xᵀ y/σ².

# %%
precision = X.T @ X / noise**2 + prior_precision * torch.eye(p)
covariance = precision.inverse()
mean = covariance @ (X.T @ y) / noise**2
exact = covariance.diagonal().sqrt()

# %% [markdown]
# ## Chains
#
# One parameter holds all chains: a sum over chains of the mean loss has the gradient of each chain in its own row. The loss is
# the mean negative log-likelihood of a row; `num_data` turns it into the sum.


# %%
def draw(temperature, steps=600, keep=150):
    torch.manual_seed(1)
    w = torch.nn.Parameter(mean + 0.1 * torch.randn(chains, p))
    optimizer = bp.CVAdam(
        [w], lr=0.05, num_data=n, weight_decay=prior_precision / n, temperature=temperature, preconditioner="none",
        betas=(0.5, 1.0), seed=0,
    )  # fmt: skip
    kept = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = 0.5 * (y - w @ X.T).square().mean(dim=1) / noise**2
        loss.sum().backward()
        optimizer.step()
        if step >= steps - keep and step % 10 == 0:
            with optimizer.midpoint():
                kept.append(w.detach().clone())
    return torch.cat(kept)


found = {}
for temperature in (1.0, 0.1):
    samples = draw(temperature)
    std = samples.std(dim=0)
    half = 1.645 * std
    shift = samples.mean(dim=0) - mean
    mass = torch.special.ndtr((shift + half) / exact) - torch.special.ndtr((shift - half) / exact)
    found[temperature] = samples
    print(f"T = {temperature}: spread / exact {[round(float(r), 2) for r in std / exact]}, √T = {temperature**0.5:.2f}")
    print(f"          posterior mass inside its 90 % intervals: {mass.mean():.0%}")

# %% [markdown]
# The same comparison for networks, with minibatches, is measured in docs/temperature.md.

# %%
if arguments.plot:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2))
    grid = torch.linspace(float(mean[0] - 4 * exact[0]), float(mean[0] + 4 * exact[0]), 200)
    density = torch.exp(-0.5 * ((grid - mean[0]) / exact[0]) ** 2) / (exact[0] * (2 * torch.pi) ** 0.5)
    for temperature, samples in found.items():
        axes.hist(samples[:, 0].numpy(), bins=60, density=True, alpha=0.5, label=f"T = {temperature}")
    axes.plot(grid, density, color="black", label="exact posterior")
    axes.axvline(float(truth[0]), linestyle="--", color="grey", label="true weight")
    axes.set(xlabel="first weight", yticks=[])
    axes.legend()
    figure.savefig(arguments.plot, dpi=150)
