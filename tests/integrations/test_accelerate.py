"""accelerate: a prepared optimizer is pruned, and its state resumes with the masks."""

from __future__ import annotations

import pytest
from torch.nn import functional as F

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
