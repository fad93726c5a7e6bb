"""ArviZ: its diagnostics of exported chains agree with ours, and with the chains' own moments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bayesprune.posterior import MemorySamples, bulk_ess, from_bayesprune, rank_rhat
from integrations.resume import page_snippet


def chains(count=4, draws=60):
    """Random walks that forget slowly, as the weights of a linear layer."""
    torch.manual_seed(0)
    found = []
    for _ in range(count):
        model, samples = nn.Linear(2, 1), MemorySamples()
        for step in range(draws):
            with torch.no_grad():
                model.weight.mul_(0.7).add_(torch.randn(1, 2))
            samples.collect(model, step=step)
        found.append(samples)
    return found


def test_parity_diagnostics_agree_with_arviz():
    arviz = pytest.importorskip("arviz", reason="arviz: pip install bayesprune[integrations]")
    made = chains()
    data = from_bayesprune(made, names=["weight"])
    values = np.stack([[sample["weight"].numpy() for sample in samples] for samples in made])
    assert list(data.posterior.data_vars) == ["weight"] and data.posterior["weight"].shape == (4, 60, 1, 2)
    np.testing.assert_allclose(data.posterior["weight"].values, values)
    theirs = arviz.rhat(data)["weight"].values[0, 0], arviz.ess(data)["weight"].values[0, 0]
    ours = rank_rhat(values[:, :, 0, 0]), bulk_ess(values[:, :, 0, 0])
    assert float(ours[0]) == pytest.approx(theirs[0], rel=1e-6)
    assert float(ours[1]) == pytest.approx(theirs[1], rel=0.05)  # where the autocorrelations are cut off differs


def test_limit_unequal_chains_keep_their_last_samples():
    pytest.importorskip("arviz", reason="arviz: pip install bayesprune[integrations]")
    long, short = chains(1, 9)[0], chains(1, 4)[0]
    data = from_bayesprune([long, short])
    assert data.posterior.sizes["draw"] == 4
    np.testing.assert_allclose(data.posterior["bias"].values[0, -1], long[-1]["bias"].numpy())
    assert from_bayesprune(short).posterior.sizes["chain"] == 1


def test_error_nothing_to_export():
    with pytest.raises(ValueError, match="at least one"):
        from_bayesprune([MemorySamples()])
    with pytest.raises(ValueError, match=r"names=\['conv.*'\]: no tensor matches; there are \['bias', 'weight'\]"):
        from_bayesprune(chains(1, 2), names=["conv*"])


def test_property_the_page_s_snippet_runs_as_printed():
    arviz = pytest.importorskip("arviz", reason="arviz: pip install bayesprune[integrations]")
    snippet = page_snippet("from_bayesprune")
    made = chains(2, 8)
    exec(
        snippet.replace("head.weight", "weight"),
        {"samples_of_chain_0": made[0], "samples_of_chain_1": made[1], "arviz": arviz},
    )
