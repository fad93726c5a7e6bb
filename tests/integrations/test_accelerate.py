"""accelerate: a prepared optimizer is pruned, and its state resumes with the masks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import bayesprune as bp
from integrations.resume import EPOCHS, HALF, OPTIMIZERS, PRUNERS, loader, network, same

accelerate = pytest.importorskip("accelerate", reason="accelerate: pip install bayesprune[integrations]")


class Run:
    """A training loop as accelerate's quick tour has it; the pruner is given what ``prepare`` returned."""

    def __init__(self, optimizer: str, pruner: str, seed: int = 0) -> None:
        self.accelerator = accelerate.Accelerator(cpu=True)
        model = network(seed)
        prepared = self.accelerator.prepare(model, OPTIMIZERS[optimizer](model.parameters()), loader())
        self.model, self.optimizer, self.batches = prepared
        self.pruner = PRUNERS[pruner](self.model, self.optimizer)

    def train(self, epochs: int) -> None:
        for _ in range(epochs):
            for images, labels in self.batches:
                self.optimizer.zero_grad()
                self.accelerator.backward(F.cross_entropy(self.model(images), labels))
                self.optimizer.step()


@pytest.mark.parametrize("pruner", list(PRUNERS))
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_roundtrip_accelerate_resumes_bit_for_bit(optimizer, pruner, tmp_path):
    whole, half, resumed = Run(optimizer, pruner), Run(optimizer, pruner), Run(optimizer, pruner, seed=1)
    whole.train(EPOCHS)
    half.train(HALF)
    half.accelerator.save_state(str(tmp_path))
    resumed.accelerator.load_state(str(tmp_path))
    resumed.train(EPOCHS - HALF)
    same(whole.model, resumed.model, whole.pruner, resumed.pruner)


def test_parity_a_prepared_optimizer_is_asked_like_the_one_inside():
    run = Run("cv_adam", "forward")
    run.train(EPOCHS)
    inner = run.optimizer.optimizer
    prepared, plain = bp.MemorySamples(), bp.MemorySamples()
    prepared.collect(run.model, run.optimizer)
    plain.collect(run.model, inner)
    assert prepared.infos == plain.infos and "kinetic_temperature" in prepared.infos[0]
    assert all(torch.equal(prepared[0][name], plain[0][name]) for name in plain[0])
    assert any(not torch.equal(plain[0][name], value) for name, value in run.model.state_dict().items())  # the midpoint
    one, other = (bp.health_report(optimizer=each, samples=plain) for each in (run.optimizer, inner))
    assert one == other and one.temperature
    small = bp.compact(run.model, run.pruner, optimizer=run.optimizer, example_input=next(iter(loader()))[0])
    assert type(small.optimizer) is bp.CVAdam
