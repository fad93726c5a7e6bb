"""Deep ensembles: independent seeds, and the mean of the members' probabilities."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayesprune.baselines import DeepEnsemble, independent_seeds
from bayesprune.posterior import MemorySamples, SampleStore


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def test_equation_prediction_is_the_mean_of_probabilities(tmp_path):
    ensemble, inputs, members = DeepEnsemble(SampleStore(tmp_path / "members")), torch.randn(7, 4), []
    for seed in independent_seeds(3, 4):
        member = network(seed)
        member(torch.randn(16, 4) * seed)  # each member its own normalisation statistics
        members.append(member.eval()(inputs).double().softmax(1))
        ensemble.add(member, seed=seed)
    reopened = DeepEnsemble(SampleStore(tmp_path / "members"))
    assert reopened.seeds == independent_seeds(3, 4) and len(reopened) == 4
    prediction = reopened.predict(network(0), inputs)
    torch.testing.assert_close(prediction.probabilities, torch.stack(members).mean(0), rtol=1e-5, atol=1e-7)
    pair = reopened.predict(network(0), inputs, indices=[0, 1])
    torch.testing.assert_close(pair.probabilities, torch.stack(members[:2]).mean(0), rtol=1e-5, atol=1e-7)


def test_property_seeds_of_neighbouring_ensembles_share_none():
    seeds = [seed for start in range(50) for seed in independent_seeds(start, 20)]
    assert len(set(seeds)) == 1000 and all(0 <= seed < 2**31 for seed in seeds)
    assert independent_seeds(7, 3) == independent_seeds(7, 9)[:3]


def test_error_members_are_refused():
    ensemble = DeepEnsemble(MemorySamples())
    ensemble.add(network(0), seed=0)
    with pytest.raises(ValueError, match="seed=0 is in the ensemble already"):
        ensemble.add(network(1), seed=0)
    with pytest.raises(ValueError, match="tensor"):
        ensemble.add(nn.Linear(4, 3), seed=1)
    snapshots = MemorySamples()
    snapshots.collect(network(0), step=3)
    with pytest.raises(ValueError, match="entry 0 has no seed"):
        DeepEnsemble(snapshots)
    with pytest.raises(ValueError, match="count=0"):
        independent_seeds(0, 0)
