"""Several chains of one recipe: each a run of its own, on processes of their own where torchrun started several."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bayesprune.baselines import independent_seeds
from bayesprune.common.tensors import PLAIN, write_tensors
from bayesprune.posterior import SampleStore, bulk_ess, classification_metrics, predict, rank_rhat
from bayesprune.train import folder as names
from bayesprune.train.config import RunConfig
from bayesprune.train.evaluation import load_trained
from bayesprune.train.parallel import launched
from bayesprune.train.run import train
from bayesprune.train.settings import as_dict

CHAINS = "chains.json"


def train_chains(
    config: RunConfig,
    out: str | os.PathLike[str],
    chains: int,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    r"""Train chains that share nothing but the recipe, and put their samples into one store.

    Chain c is a whole run in OUT/chain-ccc, from initial weights, batches and noise of its own seed. Under torchrun process r
    of R runs the chains r, r + R, …, without speaking to the others; one process runs them one after another. Then the first
    process writes all samples into OUT/samples, and R-hat and the effective sample size of the samples' mean log-likelihood
    and accuracy on the test rows, over chains × draws, into OUT/chains.json.

    Args:
        config: What to run; its seed is the root of the chains' seeds.
        out: Folder; shared by all machines.
        chains: How many.
        data_dir: Folder of the data set, where it needs one.
        resume: Go on where the folder stands.
        quiet: Print nothing.

    Returns:
        The content of chains.json; of the other processes, None for what only the first knows.

    Raises:
        ValueError: Fewer than one chain, or fewer chains than processes.

    Example:
        >>> import tempfile
        >>> from bayesprune.train.recipes import recipe
        >>> config = recipe("digits-cvadam", ["epochs=1", "cycles=1", "samples_per_cycle=1", "train_size=128"])
        >>> train_chains(config, tempfile.mkdtemp(), 2, quiet=True)["num_samples"]
        2

    Reference:
        Vehtari et al. (2021), "Rank-normalization, folding, and localization: an improved R-hat".
    """
    rank, processes, _ = launched()
    if chains < max(1, processes):
        raise ValueError(
            f"chains={chains} leaves some of the {processes} processes without one; start as many as chains."
        )
    out, seeds = Path(out), independent_seeds(config.seed, chains)
    runs = [out / f"chain-{chain:03d}" for chain in range(chains)]
    with _by_itself():
        for chain in range(rank, chains, processes):
            own = replace(config, seed=seeds[chain])
            train(own, runs[chain], data_dir=data_dir, resume=resume, quiet=quiet or rank > 0)
    if rank:
        return {"chains": chains, "seeds": seeds, "num_samples": None}
    while not all((run / names.RESULT).exists() for run in runs):  # torchrun ends this process if another one fails
        time.sleep(0.5)
    return _merged(config, out, runs, seeds, data_dir)


@contextmanager
def _by_itself() -> Iterator[None]:
    """Let this process train as if it were the only one."""
    held = os.environ.pop("TORCHELASTIC_RUN_ID", None)
    try:
        yield
    finally:
        if held is not None:
            os.environ["TORCHELASTIC_RUN_ID"] = held


def _merged(
    config: RunConfig, out: Path, runs: list[Path], seeds: list[int], data_dir: str | os.PathLike[str] | None
) -> dict[str, Any]:
    """Write one store, the first chain's network, and how well the chains agree."""
    model, _, data, _ = load_trained(runs[0], data_dir)
    store, draws = SampleStore(out / names.SAMPLES), []
    store.truncate(0)
    for chain, run in enumerate(runs):
        samples = SampleStore(run / names.SAMPLES)
        draws.append(len(samples))
        for index, info in enumerate(samples.infos):
            store.collect(samples.load_(index, model), **{**info, "chain": chain})
    model = load_trained(runs[0], data_dir)[0]
    names.write_json(out / names.CONFIG, as_dict(config))
    write_tensors(out / names.MODEL, model.state_dict(), PLAIN)
    result: dict[str, Any] = {
        "chains": len(runs), "seeds": seeds, "num_samples": len(store), "draws": draws, "rhat": {}, "ess": {}, "average": None,
    }  # fmt: skip
    if len(store):
        found = predict(model, store, data.loader("test", batch_size=256), keep_members=True)
        assert found.labels is not None and found.members is not None
        result["average"] = classification_metrics(found.probabilities, found.labels)
        traces = {
            "log likelihood": found.members.gather(2, found.labels.view(1, -1, 1).expand(len(store), -1, 1))
            .log()
            .mean((1, 2)),
            "accuracy": found.member_accuracy(),
        }
        if min(draws) >= 4:
            for name, values in traces.items():
                trace = torch.stack([each[-min(draws) :] for each in values.split(draws)])
                result["rhat"][name], result["ess"][name] = float(rank_rhat(trace)), float(bulk_ess(trace))
    names.write_json(out / CHAINS, result)
    names.sign(out)
    return names.read_json(out / CHAINS)
