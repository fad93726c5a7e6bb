"""skorch: a net whose optimizer is CV-Adam trains, is pruned, saved and goes on."""

from __future__ import annotations

import pytest
import torch

import bayesprune as bp
from integrations.resume import loader, network, page_snippet

skorch = pytest.importorskip("skorch", reason="skorch: pip install bayesprune[integrations]")


class Pruned(skorch.callbacks.Callback):
    """Attaches a pruner to the net's optimizer once that is there."""

    def on_train_begin(self, net, X=None, y=None, **_):
        if not hasattr(self, "pruner_"):
            self.pruner_ = bp.ForwardPruning(
                net.module_, net.optimizer_, sparsity=0.5, groups="weight", warmup_steps=1, ramp_end_step=6, every=1
            )


def data():
    batches = list(loader())
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def net(epochs, seed=0):
    x, _ = data()
    return skorch.NeuralNetClassifier(
        network(seed), criterion=torch.nn.CrossEntropyLoss, max_epochs=epochs, train_split=None, verbose=0,
        optimizer=bp.CVAdam, optimizer__lr=1e-2, optimizer__num_data=len(x), optimizer__temperature=0.01,
        optimizer__seed=0, batch_size=len(x), iterator_train__shuffle=False, warm_start=True,
        callbacks=[("pruned", Pruned())],
    )  # fmt: skip


def test_roundtrip_skorch_saves_and_goes_on_bit_for_bit(tmp_path):
    x, y = data()
    whole = net(8).fit(x, y)
    half = net(4).fit(x, y)
    files = {"f_params": tmp_path / "net.pt", "f_optimizer": tmp_path / "optimizer.pt"}
    half.save_params(**files)
    resumed = net(4, seed=1).initialize()
    dict(resumed.callbacks_)["pruned"].on_train_begin(resumed)  # masks travel in the optimizer's state
    resumed.load_params(**files)
    resumed.partial_fit(x, y)
    for one, other in zip(whole.module_.parameters(), resumed.module_.parameters()):
        assert torch.equal(one, other)
    assert dict(whole.callbacks_)["pruned"].pruner_.hard_sparsity == pytest.approx(0.5, abs=0.02)
    assert whole.predict_proba(x).shape[0] == len(x)


def test_property_the_page_s_snippet_runs_as_printed():
    x, y = data()
    scope = {"bp": bp, "torch": torch, "model": network(), "X": x, "y": y}
    exec(page_snippet("skorch"), scope)
    assert isinstance(scope["net"].optimizer_, bp.CVAdam)
