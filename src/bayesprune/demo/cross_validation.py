"""One fold of the digits under one method: trained, made small where it was pruned, and asked about letters too."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesprune.compact_run import compact_run
from bayesprune.demo.letters import letter_images
from bayesprune.deploy import Ensemble, load, save
from bayesprune.posterior import Prediction
from bayesprune.train import folder as names
from bayesprune.train import recipe, train
from bayesprune.train.build import Dataset, build_data, build_network

Array = np.ndarray[Any, np.dtype[Any]]
MODELS = {"sgd": ("dense",), "emmcmc": ("network", "ensemble")}
"""What each method ends in, by the name of its folder in the run's folder."""


@dataclass(frozen=True)
class Job:
    """What one process does: a method on a fold, in a run folder of its own."""

    method: str
    fold: int
    settings: tuple[str, ...]
    out: Path


@dataclass(frozen=True)
class FoldPrediction:
    """What a model said of a fold's test images, and how strange it found them and the letters (entropy in nats)."""

    name: str
    fold: int
    labels: Array
    probabilities: Array
    strange: Array
    strange_letters: Array
    members: int
    bytes: int
    parameters: int


def run_jobs(jobs: Sequence[Job], processes: int, finished: Callable[[Job, float], None]) -> list[FoldPrediction]:
    """Run jobs, so many at a time, each with one thread."""
    found: dict[Job, list[FoldPrediction]] = {}
    if processes == 1:
        for job in jobs:
            found[job], seconds = run_job(job)
            finished(job, seconds)
        return [said for job in jobs for said in found[job]]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run_job, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                found[futures[future]], seconds = future.result()
                finished(futures[future], seconds)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [said for job in jobs for said in found[job]]


def run_job(job: Job) -> tuple[list[FoldPrediction], float]:
    """Train, compact and test; returns what the models said, and the seconds it took."""
    start = time.monotonic()
    config = recipe(f"digits-cnn-{job.method}", [f"fold={job.fold}", "threads=1", *job.settings])
    train(config, job.out, quiet=True)
    data = build_data(config)
    places = [job.out.parent / f"{job.out.name}-{name}" for name in MODELS[job.method]]
    if job.method == "sgd":
        model = names.load_model_(build_network(config, data), job.out)
        save(model, places[0], example_input=torch.zeros(2, *data.image_shape))
    else:
        for place, members in zip(places, ("none", "all")):
            compact_run(job.out, place, members=members)  # type: ignore[arg-type]
    said = [_prediction(name, place, job.fold, data) for name, place in zip(MODELS[job.method], places)]
    return said, time.monotonic() - start


def network_of(place: Path) -> Ensemble:
    """A saved model or ensemble, ready to predict: BatchNorm folded, channels last."""
    model = load(place).eval()
    return model if isinstance(model, Ensemble) else Ensemble(model, [model.state_dict()])


def _prediction(name: str, place: Path, fold: int, data: Dataset) -> FoldPrediction:
    network = network_of(place)
    images, labels = data.split("test")  # type: ignore[union-attr, misc]
    said: Any = network.predict(_normalised(images, data))
    letters: Any = network.predict(_normalised(letter_images(), data))
    return FoldPrediction(
        name, fold, labels.numpy(), said.probabilities.numpy(), _strange(said), _strange(letters), len(network),
        (place / "weights.safetensors").stat().st_size, sum(p.numel() for p in network.member(0).parameters()),
    )  # fmt: skip


def _strange(prediction: Prediction) -> Array:
    return prediction.total.numpy()


def _normalised(images: Tensor, data: Any) -> Tensor:
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    return (images / data.scale - mean) / std
