"""The HMC benchmark at a toy size: its queue, its resumption, its scores."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks import hmc_cifar10
from benchmarks.hmc_chain import METHODS, Cell, Protocol

from bayesprune.vision import ArrayDataset

TINY = Protocol(epochs=2, batch_size=8, width=2, samples=2, sample_every=2, validation=12, screen_samples=1)
TIMES = ("seconds", "cpu_seconds", "started")


@pytest.fixture
def data() -> ArrayDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(64) % 3
    return ArrayDataset(
        images[:52], labels[:52], images[52:], labels[52:], tuple("abc"), mean=(0.5,) * 3, std=(0.3,) * 3
    )


@pytest.fixture
def hmc() -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(3), 12).astype(np.float32)


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def run(data, hmc, folder, **arguments):
    return hmc_cifar10.run_queue(data, hmc, folder / "work", folder / "out.json", TINY, **arguments)


@pytest.fixture
def few_cells(monkeypatch):
    """One prior and one step size a method, so that the queue is short."""
    monkeypatch.setattr(hmc_cifar10, "DELTAS", (5.0,))
    for name in ("sgd", "cvadam"):
        monkeypatch.setitem(METHODS, name, replace(METHODS[name], rates=METHODS[name].rates[:1]))


def test_roundtrip_a_queue_stopped_at_every_few_steps_equals_an_uninterrupted_one(data, hmc, tmp_path, few_cells):
    arguments = dict(methods=("ensemble", "cvadam"), seeds=(0,))
    whole = run(data, hmc, tmp_path / "whole", **arguments)
    for _ in range(60):
        asked = iter(range(4))
        parts = run(data, hmc, tmp_path / "parts", stop=lambda: next(asked, None) is None, **arguments)  # noqa: B023
        if len(parts["chains"]) == 2:
            break
    assert [row["name"] for row in parts["chains"]] == ["ensemble-0", "cvadam-0"]
    assert without_times(parts) == without_times(whole)
    assert json.loads((tmp_path / "parts" / "out.json").read_text())["chains"][1]["samples"] == 2
    for name in ("ensemble-0", "cvadam-0"):
        one, two = (np.load(tmp_path / place / "work" / name / "test.npy") for place in ("whole", "parts"))
        assert np.array_equal(one, two)
    assert not list(tmp_path.rglob("checkpoint*"))


def test_property_all_methods_run_and_no_finished_cell_runs_again(data, hmc, tmp_path, monkeypatch):
    monkeypatch.setattr(hmc_cifar10, "cells", lambda methods, seeds, rows: [
        Cell(name, seed, (METHODS[name].rates or (0.1,))[0], 5.0) for seed in seeds for name in methods
    ])  # fmt: skip
    first = run(data, hmc, tmp_path)
    monkeypatch.setattr(hmc_cifar10, "Chain", None)
    assert without_times(run(data, hmc, tmp_path)) == without_times(first)
    assert [row["method"] for row in first["merged"]] == list(METHODS)
    text = hmc_cifar10.table(first)
    for method in METHODS.values():
        assert text.count(f"| {method.label} |") == 2 and f"| **{method.label}, merged** | all 2 |" in text


def test_equation_distance_to_hmc():
    p, q = np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([[0.25, 0.75], [0.5, 0.5]])
    assert hmc_cifar10.agreement(p, q) == 0.5
    assert hmc_cifar10.total_variation(p, q) == 0.25


def test_property_settings_are_chosen_by_validation_nll_and_a_diverged_run_never():
    tried = [Cell("sgd", 0, rate, 5.0, screen=True) for rate in (0.1, 0.2, 0.3)]
    losses = [{"validation": {"nll": 2.0}}, {"validation": {"nll": 1.0}}, {}]
    rows = {cell.name: row for cell, row in zip(tried, losses)}
    assert [hmc_cifar10.best(tried, rows, margin).lr for margin in (0, 0.9, 1.1)] == [0.2, 0.2, 0.1]
    assert hmc_cifar10.best(tried[::-1], rows, 1.1).lr == 0.2
