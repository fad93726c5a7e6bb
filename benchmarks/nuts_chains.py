"""NUTS on a logistic regression, for `benchmarks.posterior_accuracy`: reads an .npz, writes an .npz; needs numpyro and no torch.

    python benchmarks/nuts_chains.py PROBLEM.npz OUT.npz --chains 1 --warmup 1000 --samples 1000 [--x64]

Time is that of the second of two runs after the warm-up, so that nothing is compiled in it; the warm-up's has compilation in it.
The process keeps to one core; core seconds are its processor time, which other work on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem")
    parser.add_argument("out")
    parser.add_argument("--chains", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--x64", action="store_true")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro.infer import MCMC, NUTS

    jax.config.update("jax_enable_x64", arguments.x64)
    problem = np.load(arguments.problem)
    kind = jnp.float64 if arguments.x64 else jnp.float32
    x, y, precision = jnp.asarray(problem["x"], kind), jnp.asarray(problem["y"], kind), float(problem["precision"])

    def potential(w):
        logit = x @ w
        return jnp.sum(jax.nn.softplus(logit) - y * logit) + precision / 2 * jnp.sum(w * w)

    sampler = MCMC(
        NUTS(potential_fn=potential), num_warmup=arguments.warmup, num_samples=arguments.samples,
        num_chains=arguments.chains, chain_method="vectorized", progress_bar=False,
    )  # fmt: skip
    shape = (arguments.chains, x.shape[1]) if arguments.chains > 1 else (x.shape[1],)
    start = 0.1 * jax.random.normal(jax.random.PRNGKey(arguments.seed), shape, kind)
    begin = time.perf_counter()
    sampler.warmup(jax.random.PRNGKey(arguments.seed + 1), init_params=start, extra_fields=("num_steps",))
    warm = time.perf_counter() - begin
    for repeat in range(2):
        begin, work = time.perf_counter(), time.process_time()
        sampler.run(jax.random.PRNGKey(arguments.seed + 2 + repeat), extra_fields=("num_steps",))
        samples = np.asarray(sampler.get_samples(group_by_chain=True))
        seconds, core_seconds = time.perf_counter() - begin, time.process_time() - work
        sampler.post_warmup_state = sampler.last_state
    np.savez(
        arguments.out, samples=samples, seconds=seconds, core_seconds=core_seconds, warmup_seconds=warm,
        numpyro=numpyro.__version__, jax=jax.__version__,
        leapfrogs=float(np.mean(np.asarray(sampler.get_extra_fields()["num_steps"]))),
    )  # fmt: skip


if __name__ == "__main__":
    main()
