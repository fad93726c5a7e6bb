"""Lightning's Trainer: train, save, resume, with a pruner on the optimizer."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.nn import functional as F

import bayesprune as bp
from bayesprune.integrations import LightningCallback
from integrations.resume import EPOCHS, HALF, OPTIMIZERS, PRUNERS, STEPS, forward, loader, network, page_snippet, same

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


class Plain(Module):
    """A module that knows nothing of pruning."""

    def configure_optimizers(self):
        optimizer = OPTIMIZERS["cv_adam"](self.model.parameters())
        return [optimizer], [{"scheduler": bp.CyclicalLR(optimizer, CLOCK), "interval": "step"}]


CLOCK = bp.CycleClock(total_steps=STEPS * EPOCHS, cycles=EPOCHS, samples_per_cycle=2, sample_every=1)
IMAGES = torch.randn(2, 2, 6, 6)


def trainer(folder, epochs, **settings):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, enable_checkpointing=False,
        **settings,
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


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.rank_zero.LightningDeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_roundtrip_the_callback_prunes_collects_and_resumes_bit_for_bit(tmp_path):
    """Stopped after its second epoch, and killed in the third: the sample of the third is dropped and taken anew."""

    def callback(store):
        return LightningCallback(forward, bp.SampleStore(tmp_path / store), CLOCK, compact=True, example_input=IMAGES)

    whole, half, resumed = Plain("", ""), Plain("", ""), Plain("", "", seed=1)
    first, second = callback("whole"), callback("half")
    trainer(tmp_path, EPOCHS, callbacks=[first]).fit(whole, loader())
    stopped = trainer(tmp_path, HALF, callbacks=[second])
    stopped.fit(half, loader())
    stopped.save_checkpoint(tmp_path / "half.ckpt")
    second.samples.collect(half.model, step=STEPS * EPOCHS - 2, cycle=EPOCHS - 1)
    third = callback("half")
    trainer(tmp_path, EPOCHS, callbacks=[third]).fit(resumed, loader(), ckpt_path=tmp_path / "half.ckpt")
    same(whole.model, resumed.model, first.pruner, third.pruner)
    assert first.samples.infos == third.samples.infos and len(first.samples) == 2 * EPOCHS
    for one, other in zip(first.samples, third.samples):
        assert all(torch.equal(one[name], other[name]) for name in one)
    small = third.compaction
    assert small.report.parameters[1] < small.report.parameters[0]
    torch.testing.assert_close(small.model.eval()(IMAGES), resumed.model.eval()(IMAGES), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_error_the_callback_names_the_networks_that_there_are(tmp_path):
    callback = LightningCallback(forward, network="net")
    with pytest.raises(ValueError, match=r"network='net': Plain has no such network; choose one of \['model'\]"):
        trainer(tmp_path, 1, callbacks=[callback]).fit(Plain("", ""), loader())


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_property_accumulated_batches_are_one_step(tmp_path):
    clock = bp.CycleClock(total_steps=STEPS // 2, samples_per_cycle=2, sample_every=1)
    callback = LightningCallback(None, bp.MemorySamples(), clock)
    trainer(tmp_path, 1, callbacks=[callback], accumulate_grad_batches=2).fit(Plain("", ""), loader())
    assert [info["step"] for info in callback.samples.infos] == [STEPS // 2 - 2, STEPS // 2 - 1]


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_property_the_page_s_snippet_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {
        "bp": bp,
        "torch": torch,
        "network": network,
        "loader": loader(),
        "images": IMAGES,
        "epochs": 5,
        "num_data": 32,
    }
    exec(page_snippet("LightningCallback"), scope)
    assert len(scope["members"]) == 4
    before, after = scope["small"].report.parameters
    assert after < before
