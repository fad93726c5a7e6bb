"""What the callbacks share: the order of attaching, resuming, stepping and ending, and what each refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bayesprune as bp
from bayesprune.common.lazy import missing
from bayesprune.integrations import Attachment, PretrainedFolder
from bayesprune.integrations import lightning as lightning_place
from bayesprune.integrations import transformers as transformers_place
from integrations.resume import loader, network

CLOCK = bp.CycleClock(total_steps=8, samples_per_cycle=3, sample_every=2)  # samples after steps 3, 5 and 7


def trained(run, steps, model=None, done=0):
    model = model or network()
    optimizer = bp.CVAdam(model.parameters(), lr=1e-3, num_data=32, seed=0)
    run.attach(model, optimizer)
    run.resume(done)
    batches = list(loader())
    for step in range(done, steps):
        images, labels = batches[step % len(batches)]
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        run.stepped(model, optimizer, step)
    return model


def test_property_samples_are_the_clock_s_and_the_compact_network_is_the_masked_one():
    images = next(iter(loader()))[0]
    run = Attachment(
        lambda net, opt: bp.ForwardPruning(
            net, opt, sparsity=0.5, warmup_steps=1, ramp_end_step=6, every=1, round_to=1, example_input=images
        ),
        bp.MemorySamples(), CLOCK, compact=True, example_input=images,
    )  # fmt: skip
    model = trained(run, 8)
    assert run.compaction is None
    run.end(model)
    assert [info["step"] for info in run.samples.infos] == [3, 5, 7]
    before, after = run.compaction.report.parameters
    assert after < 0.7 * before
    torch.testing.assert_close(run.compaction.model.eval()(images), model.eval()(images), atol=1e-5, rtol=0)
    assert len([run.compaction.convert(sample) for sample in run.samples]) == 3


def test_property_a_resumed_run_drops_the_samples_after_its_checkpoint(tmp_path):
    trained(Attachment(None, bp.SampleStore(tmp_path), CLOCK), 8)
    again = Attachment(None, bp.SampleStore(tmp_path), CLOCK)
    again.resume(4)
    assert [info["step"] for info in again.samples.infos] == [3]


def test_property_a_process_that_does_not_keep_samples_leaves_the_store_alone(tmp_path):
    run = Attachment(None, bp.SampleStore(tmp_path), CLOCK)
    run.stepped(network(), torch.optim.SGD(network().parameters(), lr=0.1), 3, main=False)
    assert not run.samples.infos


def test_error_settings_that_need_each_other():
    with pytest.raises(ValueError, match=r"samples=.* and clock=None belong together"):
        Attachment(samples=bp.MemorySamples())
    with pytest.raises(ValueError, match="compact=True needs a pruner and an example_input"):
        Attachment(compact=True)


def test_error_stores_that_do_not_fit_the_run():
    samples = bp.MemorySamples()
    run = Attachment(None, samples, CLOCK)
    with pytest.raises(ValueError, match=r"after the samples of steps \[3\], the store holds those of steps \[\]"):
        run.resume(4)
    samples.collect(nn.Linear(1, 1), step=3)
    with pytest.raises(ValueError, match="a new run begins with an empty store"):
        run.resume(0)


def test_error_masks_that_the_checkpoint_could_not_give_back():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = bp.ForwardPruning(model, optimizer, sparsity=0.5, warmup_steps=1, ramp_end_step=6, groups="weight")
    with pytest.raises(ValueError, match="goes on at step 5, but the pruner was attached after"):
        Attachment(pruner).resume(5)


@pytest.mark.parametrize(
    ("place", "package"),
    [(lightning_place, "lightning"), (transformers_place, "transformers")],
    ids=["lightning", "hf"],
)
def test_error_a_missing_extra_is_named(place, package, monkeypatch):
    name = {"lightning": "LightningCallback", "transformers": "TransformersCallback"}[package]
    callback = getattr(place, name)
    monkeypatch.setattr(callback, "_absent", missing(ModuleNotFoundError(name=package), name))
    with pytest.raises(ImportError, match=rf'{name} needs (L|t)\w+: pip install "bayesprune\[integrations\]"'):
        callback()


def test_property_the_folder_s_text_names_sizes_and_filled_tensors():
    told = str(PretrainedFolder("small", {"intermediate_size": (64, 44)}, (20450, 13308, 17850), list("abcde")))
    assert told.splitlines() == [
        "small: 20,450 parameters -> 17,850 (intermediate_size 64 -> 44)",
        "4,542 of them zeros in 5 tensors whose sizes the configuration cannot express: a, b, c, d, ...",
    ]


def test_property_samples_that_an_early_end_left_out_are_named(recwarn):
    run = Attachment(None, bp.MemorySamples(), CLOCK)
    model = trained(run, 5)
    with pytest.warns(
        UserWarning, match="ended after 5 of the clock's total_steps=8 steps: 2 of 3 samples were not taken"
    ):
        run.end(model)
    whole = Attachment(None, bp.MemorySamples(), CLOCK)
    whole.end(trained(whole, 8))
    assert not recwarn.list
