from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sparsity.plain import feedback_pruning, forward_pruning

EXAMPLE = torch.zeros(2, 2, 6, 6)
METHODS = [
    (forward_pruning, {"groups": "kernel"}),
    (forward_pruning, {"groups": "weight", "expectation": "running"}),
    (forward_pruning, {"groups": "channel", "example_input": EXAMPLE}),
    (feedback_pruning, {"groups": "input", "form": "masked"}),
    (feedback_pruning, {"groups": "kernel", "form": "dense_copy"}),
    (feedback_pruning, {"groups": "channel", "form": "dense_copy", "example_input": EXAMPLE}),
]
RAMP = {"sparsity": 0.5, "warmup_steps": 1, "ramp_end_step": 8, "every": 2, "soft_threshold": 0.02}


def _flatten(state: dict, prefix: str = "") -> tuple[dict[str, torch.Tensor], dict]:
    tensors, plain = {}, {}
    for key, value in state.items():
        if isinstance(value, dict):
            below, rest = _flatten(value, f"{prefix}{key}/")
            tensors |= below
            plain[key] = rest
        elif isinstance(value, torch.Tensor):
            tensors[f"{prefix}{key}"] = value.contiguous()
        else:
            assert isinstance(value, (int, float, str)), (prefix, key, type(value))
            plain[key] = value
    return tensors, plain


def _through_files(state: dict, folder) -> dict:
    """Safetensors for the tensors, JSON for the rest, and back."""
    tensors, plain = _flatten(state)
    save_file(tensors, folder / "masks.safetensors")
    (folder / "pruner.json").write_text(json.dumps(plain))
    back = json.loads((folder / "pruner.json").read_text())
    for path, tensor in load_file(folder / "masks.safetensors").items():
        *parents, key = path.split("/")
        place = back
        for parent in parents:
            place = place[parent]
        place[key] = tensor
    return back


@pytest.mark.parametrize(("method", "settings"), METHODS)
def test_roundtrip_resumed_through_files_equals_uninterrupted(
    method, settings, residual, make_optimizer, train, tmp_path
):
    whole = residual()
    optimizer = make_optimizer(whole.parameters())
    pruner = method(whole, optimizer, **RAMP, **settings)
    train(whole, optimizer, 12)

    half = residual()
    first = make_optimizer(half.parameters())
    interrupted = method(half, first, **RAMP, **settings)
    train(half, first, 6)
    assert 0 < interrupted.hard_sparsity < 0.55

    resumed = residual(seed=1)
    second = make_optimizer(resumed.parameters())
    again = method(resumed, second, **RAMP, **settings)
    resumed.load_state_dict(half.state_dict())
    second.load_state_dict(first.state_dict())
    again.load_state_dict(_through_files(interrupted.state_dict(), tmp_path))
    for name, mask in again.keep_masks.items():
        assert mask.dtype is torch.bool and torch.equal(mask, interrupted.keep_masks[name])
        assert torch.equal(again.soft_masks[name], interrupted.soft_masks[name])
    train(resumed, second, range(6, 12))

    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(a, b), name
    for name, mask in pruner.keep_masks.items():
        assert torch.equal(mask, again.keep_masks[name])
        assert torch.equal(pruner.soft_masks[name], again.soft_masks[name])
    assert pruner.step_count == again.step_count == 12


def test_property_state_is_a_copy_at_group_resolution(residual, cv_adam, train):
    model = residual()
    optimizer = cv_adam(model.parameters())
    pruner = forward_pruning(model, optimizer, **RAMP)
    train(model, optimizer, 4)
    state = pruner.state_dict()
    assert state["keep"]["conv1.weight"].shape == (6, 6, 1, 1)
    state["keep"]["conv1.weight"].fill_(False)
    assert pruner.keep_masks["conv1.weight"].any()


def test_roundtrip_a_target_once_met_is_not_ranked_again_after_a_resume(residual, train):
    # Kernels of nine and of one: a later ranking could fit one more small group in, which an uninterrupted run never does.
    nets = [residual(), residual()]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.0) for net in nets]
    settings = {"groups": "kernel", "sparsity": 0.5}
    pruners = [forward_pruning(net, optimizer, **settings) for net, optimizer in zip(nets, optimizers)]
    total = pruners[0].groups.total
    for share in range(40, 60):
        pruners[0].target_sparsity = share / 100
        train(nets[0], optimizers[0], 1)
        if round(share / 100 * total) > round(pruners[0].hard_sparsity * total):
            break
    else:
        pytest.fail("the walk never fell short of its target")
    nets[1].load_state_dict(nets[0].state_dict())
    pruners[1].target_sparsity = pruners[0].target_sparsity
    pruners[1].load_state_dict(pruners[0].state_dict())
    for net, optimizer in zip(nets, optimizers):
        with torch.no_grad():
            net.short.weight.mul_(1e-4)  # kernels of one weight, now the smallest of all
        train(net, optimizer, 1)
    assert pruners[0].hard_sparsity == pruners[1].hard_sparsity


def test_roundtrip_finished_pruner_stays_finished(residual, cv_adam):
    model = residual()
    pruner = forward_pruning(model, cv_adam(model.parameters()), **RAMP)
    pruner.finish_()
    twin = residual()
    again = forward_pruning(twin, cv_adam(twin.parameters()), **RAMP)
    again.load_state_dict(pruner.state_dict())
    again.apply_()
    assert again.target_now == 0.5
    for a, b in zip(model.parameters(), twin.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(kind="weight"), "groups 'weight', this pruner of version 1 and 'kernel'"),
        (lambda s: s.update(version=7), "version 7"),
        (lambda s: s["keep"].pop("head.weight"), "differ at 'head.weight'"),
        (lambda s: s["soft"].update({"conv1.weight": torch.ones(2, 2).bool()}), r"has shape \(2, 2\)"),
        (lambda s: s.update(form="masked"), "form 'masked'"),
        (lambda s: s["dense"].pop("conv1.weight"), "lacks 'conv1.weight'"),
    ],
)
def test_error_a_state_of_another_pruner_is_refused(change, message, residual, cv_adam, train):
    model = residual()
    optimizer = cv_adam(model.parameters())
    pruner = feedback_pruning(model, optimizer, form="dense_copy", groups="kernel", sparsity=0.5, every=1)
    train(model, optimizer, 2)
    state = pruner.state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        pruner.load_state_dict(state)


class _Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(2, 12, 3), nn.Conv2d(8, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        first, second = self.conv(x).relu().split([8, 4], 1)
        return self.one(first) + self.two(second)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 8, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1)
        ),
        _Split,
    ],
)
def test_roundtrip_sets_that_begin_with_the_same_weight_keep_their_own_masks(build):
    torch.manual_seed(0)
    model = build()
    pruner = forward_pruning(
        model, torch.optim.SGD(model.parameters(), lr=0.1), **RAMP, groups="channel", example_input=EXAMPLE, scope="global",
    )  # fmt: skip
    pruner.finish_()
    copy = build()
    other = forward_pruning(
        copy, torch.optim.SGD(copy.parameters(), lr=0.1), **RAMP, groups="channel", example_input=EXAMPLE, scope="global",
    )  # fmt: skip
    other.load_state_dict(pruner.state_dict())
    masks, loaded = pruner.weight_masks(), other.weight_masks()
    assert len(pruner.keep_masks) == len(pruner.groups) and masks.keys() == loaded.keys()
    assert all(torch.equal(mask, loaded[name]) for name, mask in masks.items())
