"""Lightning's Trainer: train, save, resume, with a pruner on the optimizer."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.nn import functional as F

from integrations.resume import EPOCHS, HALF, OPTIMIZERS, PRUNERS, loader, network, same

lightning = pytest.importorskip("lightning", reason="lightning: pip install bayesprune[integrations]")


class Module(lightning.LightningModule):
    def __init__(self, optimizer: str, pruner: str, seed: int = 0) -> None:
        super().__init__()
        self.model, self.names, self.pruner = network(seed), (optimizer, pruner), None

    def training_step(self, batch, index):
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = OPTIMIZERS[self.names[0]](self.model.parameters())
        self.pruner = PRUNERS[self.names[1]](self.model, optimizer)
        return optimizer


def trainer(folder, epochs):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, enable_checkpointing=False,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.rank_zero.LightningDeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize("pruner", list(PRUNERS))
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_roundtrip_lightning_resumes_bit_for_bit(optimizer, pruner, tmp_path):
    whole, half, resumed = Module(optimizer, pruner), Module(optimizer, pruner), Module(optimizer, pruner, seed=1)
    trainer(tmp_path, EPOCHS).fit(whole, loader())
    first = trainer(tmp_path, HALF)
    first.fit(half, loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)  # nothing but tensors, numbers and strings
    assert saved["optimizer_states"][0]["bayesprune_pruners"]
    trainer(tmp_path, EPOCHS).fit(resumed, loader(), ckpt_path=tmp_path / "half.ckpt")
    same(whole, resumed, whole.pruner, resumed.pruner)
