"""The Hugging Face Trainer: train, save, resume, with a pruner on the optimizer; a transformers model among them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesprune.sparsity import ForwardPruning
from integrations.resume import EPOCHS, HALF, OPTIMIZERS, PRUNERS, STEPS, loader, network, same

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


def trainer(folder, model, optimizer, data, epochs):
    settings = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=epochs, per_device_train_batch_size=4, save_strategy="epoch", use_cpu=True,
        lr_scheduler_type="constant", logging_strategy="no", report_to="none", disable_tqdm=True, max_grad_norm=0.0,
    )  # fmt: skip
    return transformers.Trainer(model=model, args=settings, train_dataset=data, optimizers=(optimizer, None))


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
