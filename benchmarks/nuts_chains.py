"""NUTS on a logistic regression, for `benchmarks.posterior_accuracy`: reads an .npz, writes an .npz; needs numpyro and no torch.

    python benchmarks/nuts_chains.py PROBLEM.npz OUT.npz --chains 1 --warmup 1000 --samples 1000 [--x64]

numpyro's kernel, its warm-up and its diagonal mass matrix; the loop over samples is compiled beforehand, so that neither time
has compilation in it. The process keeps to one core; core seconds are its processor time, which other work on the machine
does not lengthen.
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
    from numpyro.infer import NUTS

    jax.config.update("jax_enable_x64", arguments.x64)
    problem = np.load(arguments.problem)
    kind = jnp.float64 if arguments.x64 else jnp.float32
    x, y, precision = jnp.asarray(problem["x"], kind), jnp.asarray(problem["y"], kind), float(problem["precision"])

    def potential(w):
        logit = x @ w
        return jnp.sum(jax.nn.softplus(logit) - y * logit) + precision / 2 * jnp.sum(w * w)

    kernel, key = NUTS(potential_fn=potential), jax.random.PRNGKey(arguments.seed)
    shape = (arguments.chains, x.shape[1]) if arguments.chains > 1 else (x.shape[1],)
    keys = jax.random.split(key, arguments.chains) if arguments.chains > 1 else key
    state = kernel.init(keys, arguments.warmup, 0.1 * jax.random.normal(key, shape, kind), (), {})

    def loop(state, length):
        def step(state, _):
            state = kernel.sample(state, (), {})
            return state, (state.z, state.num_steps)

        return jax.lax.scan(step, state, None, length=length)

    result = {}
    for name, length in (("warmup", arguments.warmup), ("sampling", arguments.samples)):
        begin = time.perf_counter()
        compiled = jax.jit(loop, static_argnums=1).lower(state, length).compile()
        result[f"{name}_compile_seconds"] = time.perf_counter() - begin
        begin, work = time.perf_counter(), time.process_time()
        state, (samples, steps) = jax.block_until_ready(compiled(state))
        result |= {f"{name}_seconds": time.perf_counter() - begin, f"{name}_core_seconds": time.process_time() - work}
    samples = np.asarray(samples)
    samples = samples.swapaxes(0, 1) if arguments.chains > 1 else samples[None]
    leapfrogs = float(np.mean(np.asarray(steps)))
    versions = {"numpyro": numpyro.__version__, "jax": jax.__version__}
    np.savez(arguments.out, samples=samples, leapfrogs=leapfrogs, **versions, **result)


if __name__ == "__main__":
    main()
