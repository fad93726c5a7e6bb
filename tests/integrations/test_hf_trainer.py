"""The Hugging Face Trainer: train, save, resume, with a pruner on the optimizer; a transformers model among them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bayesprune as bp
from bayesprune.integrations import TransformersCallback, save_pretrained
from bayesprune.sparsity import ForwardPruning
from integrations.resume import EPOCHS, HALF, OPTIMIZERS, PRUNERS, STEPS, loader, network, page_snippet, same

transformers = pytest.importorskip("transformers", reason="transformers: pip install bayesprune[integrations]")
pytest.importorskip("accelerate", reason="accelerate: pip install bayesprune[integrations]")


class Classifier(nn.Module):
    """A network that returns its loss, as the Trainer wants it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.net = network(seed)

    def forward(self, images, labels):
        logits = self.net(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def trainer(folder, model, optimizer, data, epochs, **further):
    settings = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=epochs, per_device_train_batch_size=4, save_strategy="epoch", use_cpu=True,
        lr_scheduler_type="constant", logging_strategy="no", report_to="none", disable_tqdm=True, max_grad_norm=0.0,
    )  # fmt: skip
    return transformers.Trainer(model=model, args=settings, train_dataset=data, optimizers=(optimizer, None), **further)


def resumes(build, attach, data, folder):
    """Whether a run of EPOCHS equals one that was stopped after HALF, saved, built anew and resumed."""
    runs = []
    for name, epochs, seed in (("whole", EPOCHS, 0), ("half", HALF, 0), ("half", EPOCHS, 1)):
        model, optimizer = build(seed)
        pruner = attach(model, optimizer)
        saved = str(folder / "half" / f"checkpoint-{STEPS * HALF}") if seed else None
        trainer(folder / name, model, optimizer, data, epochs).train(resume_from_checkpoint=saved)
        runs.append((model, pruner))
    (whole, first), _, (resumed, second) = runs
    same(whole, resumed, first, second)


@pytest.mark.parametrize("pruner", list(PRUNERS))
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_roundtrip_the_trainer_resumes_bit_for_bit(optimizer, pruner, tmp_path):
    def build(seed):
        model = Classifier(seed)
        return model, OPTIMIZERS[optimizer](model.parameters())

    data = [{"images": images, "labels": labels} for images, labels in loader().dataset]
    resumes(build, lambda model, opt: PRUNERS[pruner](model.net, opt), data, tmp_path)


def test_roundtrip_a_transformer_pruned_by_channels_resumes_bit_for_bit(tmp_path):
    words = torch.randint(50, (4 * STEPS, 7), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": line, "labels": line.sum() % 2} for line in words]

    def build(seed):
        torch.manual_seed(seed)
        model = transformers.BertForSequenceClassification(
            transformers.BertConfig(
                vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                max_position_embeddings=16,
            )
        )  # fmt: skip
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3)

    def attach(model, optimizer):
        return ForwardPruning(
            model, optimizer, groups="channel", example_input={"input_ids": words[:2]}, sparsity=0.5, warmup_steps=2,
            ramp_end_step=20, every=3, round_to=1,
        )  # fmt: skip

    resumes(build, attach, data, tmp_path)


CLOCK = bp.CycleClock(total_steps=STEPS * EPOCHS, cycles=EPOCHS, samples_per_cycle=2, sample_every=1)
WORDS = torch.randint(50, (4 * STEPS, 7), generator=torch.Generator().manual_seed(1))
TEXTS = [{"input_ids": line, "labels": line.sum() % 2} for line in WORDS]
BATCH = {"input_ids": WORDS[:4]}


def bert(seed):
    torch.manual_seed(seed)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=16,
        )
    )  # fmt: skip


def channels(model, optimizer):
    return ForwardPruning(
        model,
        optimizer,
        groups="channel",
        example_input=BATCH,
        sparsity=0.4,
        warmup_steps=2,
        ramp_end_step=20,
        every=3,
        round_to=1,
    )


def test_roundtrip_the_callback_prunes_collects_resumes_and_ends_in_a_folder(tmp_path):
    runs = []
    for name, epochs, seed in (("whole", EPOCHS, 0), ("half", HALF, 0), ("half", EPOCHS, 1)):
        model = bert(seed)
        optimizer = bp.CVAdam(model.parameters(), lr=1e-3, num_data=len(TEXTS), seed=3)
        callback = TransformersCallback(
            channels, bp.SampleStore(tmp_path / f"{name}-samples"), CLOCK, compact=True, example_input=BATCH
        )
        saved = str(tmp_path / "half" / f"checkpoint-{STEPS * HALF}") if seed else None
        trainer(tmp_path / name, model, optimizer, TEXTS, epochs, callbacks=[callback]).train(
            resume_from_checkpoint=saved
        )
        runs.append((model, callback))
    (whole, first), _, (resumed, last) = runs
    same(whole, resumed, first.pruner, last.pruner)
    assert first.samples.infos == last.samples.infos and len(first.samples) == 2 * EPOCHS
    small = last.compaction
    written = save_pretrained(small, tmp_path / "small", like=resumed, example_input=BATCH)
    assert set(written.changed) == {"intermediate_size"}  # BERT has no setting for heads of a width of their own
    assert written.parameters[1] < written.parameters[2] < written.parameters[0]
    assert any("attention" in name for name in written.filled) and not any(
        "intermediate" in name for name in written.filled
    )
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    torch.testing.assert_close(again(**BATCH).logits, resumed.eval()(**BATCH).logits, atol=1e-5, rtol=0)
    sample = small.convert(last.samples[-1])
    save_pretrained(small, tmp_path / "member", like=resumed, example_input=BATCH, state=sample)
    member = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "member")
    with bp.use_sample(resumed, last.samples, -1):
        torch.testing.assert_close(member(**BATCH).logits, resumed.eval()(**BATCH).logits, atol=1e-5, rtol=0)


def test_error_a_run_with_the_trainer_s_own_optimizer_cannot_be_resumed(tmp_path):
    def run(epochs, saved=None):
        made = trainer(tmp_path, bert(0), None, TEXTS, epochs, callbacks=[TransformersCallback(channels)])
        made.train(resume_from_checkpoint=saved)

    run(1)
    with pytest.raises(ValueError, match="the pruner was attached after the optimizer's state was read"):
        run(2, str(tmp_path / f"checkpoint-{STEPS}"))


def pruned(model, example):
    """A model with two fifths of its channels gone, and its compact form."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = ForwardPruning(
        model,
        optimizer,
        groups="channel",
        sparsity=0.4,
        example_input=example,
        warmup_steps=0,
        ramp_end_step=1,
        round_to=1,
        every=1,
    )
    pruner.finish_()
    return bp.compact(model, pruner, example_input=example)


def test_roundtrip_fewer_heads_where_the_class_takes_their_width(tmp_path):
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=8,
        )
    ).eval()  # fmt: skip
    images = {"pixel_values": torch.randn(2, 3, 16, 16)}
    small = pruned(model, images)
    written = save_pretrained(small, tmp_path / "vit", like=model, example_input=images)
    assert written.changed["num_attention_heads"][1] < 4 and written.changed["intermediate_size"][1] < 64
    assert written.parameters[2] == written.parameters[1] and not written.filled
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "vit")
    torch.testing.assert_close(again(**images).logits, model(**images).logits, atol=1e-5, rtol=0)


def test_error_folders_that_no_configuration_describes(tmp_path):
    model = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
    ).eval()
    images = {"pixel_values": torch.randn(2, 3, 16, 16)}
    small = pruned(model, images)
    with pytest.raises(ValueError, match=r"like=ResNet\w+: its configuration can express none .* use bp.save"):
        save_pretrained(small, tmp_path / "resnet", like=model, example_input=images)
    assert not (tmp_path / "resnet").exists()
    with pytest.raises(TypeError, match="like=Linear is no transformers model"):
        save_pretrained(small, tmp_path / "resnet", like=nn.Linear(1, 1), example_input=images)


def test_property_the_page_s_snippet_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = transformers.TrainingArguments(
        output_dir="run", num_train_epochs=EPOCHS, per_device_train_batch_size=4, save_strategy="no", use_cpu=True,
        logging_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    scope = {"bp": bp, "bert": bert(0), "texts": TEXTS, "batch": BATCH, "steps": STEPS * EPOCHS, "arguments": arguments}
    exec(page_snippet("TransformersCallback"), scope)
    assert "intermediate_size 64 -> " in capsys.readouterr().out
    assert [info["cycle"] for info in bp.SampleStore("text-samples").infos] == [0, 0]


SIZES = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DECODERS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=32, **SIZES)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(num_key_value_heads=2, **WIDE, **SIZES)),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0, **SIZES)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(DECODERS))
def test_property_a_decoder_as_it_is_loses_hidden_units_and_says_the_same(name, tmp_path):
    torch.manual_seed(0)
    model, words = DECODERS[name](), {"input_ids": WORDS[:4].clamp(min=3)}
    assert model.config.use_cache
    example = {**words, "decoder_input_ids": WORDS[4:8]} if name == "t5" else words
    small = pruned(model, example)
    assert small.kind == "modules" and small.report.parameters[1] < 0.9 * small.report.parameters[0]
    one, other = model.eval(), small.model.eval()
    for length in (7, 5):
        cut = {key: value[:, :length] for key, value in example.items()}
        torch.testing.assert_close(other(**cut).logits, one(**cut).logits, atol=1e-5, rtol=0)
    written = [each.generate(**words, max_new_tokens=6, do_sample=False) for each in (one, other)]
    assert torch.equal(*written)
    folder = save_pretrained(small, tmp_path / "small", like=model, example_input=example)
    assert len(folder.changed) == 1 and folder.parameters[1] <= folder.parameters[2] < folder.parameters[0]
    again = type(model).from_pretrained(tmp_path / "small").eval()
    torch.testing.assert_close(again(**example).logits, one(**example).logits, atol=1e-5, rtol=0)
    bp.save(bp.Ensemble(other, [other.state_dict()] * 2), tmp_path / "pair", example_input=example)
    both = bp.load(tmp_path / "pair")(**example)["logits"]
    torch.testing.assert_close(both[1], one(**example).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("groups", ["weight", "input", "output"])
def test_parity_gpt2_s_conv1d_is_pruned_as_a_linear_layer(groups):
    torch.manual_seed(0)
    turned = torch.nn.Sequential(transformers.pytorch_utils.Conv1D(12, 8), torch.nn.ReLU(), torch.nn.Linear(12, 4))
    plain = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.ReLU(), torch.nn.Linear(12, 4))
    with torch.no_grad():
        plain[0].weight.copy_(turned[0].weight.t())
        plain[2].weight.copy_(turned[2].weight)
    for model in (turned, plain):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        ForwardPruning(
            model, optimizer, groups=groups, sparsity=0.5, warmup_steps=0, ramp_end_step=1, every=1, keep_ends=False
        ).finish_()
    assert torch.equal(turned[0].weight.t(), plain[0].weight) and (plain[0].weight == 0).any()
    report = [bp.sparsity_report(model, example_input=torch.randn(2, 8)) for model in (turned, plain)]
    assert report[0].prunable_zeros == report[1].prunable_zeros and report[0].madds_left == report[1].madds_left


def test_roundtrip_roberta_is_saved(tmp_path):
    torch.manual_seed(0)
    model = transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(max_position_embeddings=16, **WIDE, **SIZES)
    ).eval()
    bp.save(model, tmp_path / "roberta", example_input=BATCH)
    assert torch.equal(bp.load(tmp_path / "roberta")(**BATCH)["logits"], model(**BATCH).logits)
