"""A criterion and a grouper of the user's own, each one short file."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bayesprune as bp
from bayesprune.sparsity import ForwardPruning, partition

CLOCK = bp.CycleClock(total_steps=40)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


TAYLOR = '''
"""A channel's first-order Taylor score: the loss that it would cost, |sum of w * dL/dw|."""

import bayesprune as bp


def taylor(groups, optimizer):
    return [each.sums(lambda w: w * w.grad if w.grad is not None else w * 0).abs() for each in groups]


def snr(groups, optimizer):
    def ratio(w):
        state = optimizer.state[w]
        return w.abs() * state["second_moment"].sqrt() if "second_moment" in state else w.abs()

    return [each.sums(ratio) for each in groups]


def attach(model, optimizer, clock, criterion=taylor):
    return bp.ForwardPruning(model, optimizer, sparsity=0.5, clock=clock, criterion=criterion)
'''


@pytest.mark.parametrize("name", ["taylor", "snr"])
def test_property_a_criterion_is_one_file_of_25_lines(name, residual, cv_adam, train, tmp_path):
    assert len(TAYLOR.strip().splitlines()) <= 25
    scope = _loaded(TAYLOR, tmp_path / "taylor.py")
    model = residual()
    optimizer = cv_adam(model.parameters())
    pruner = scope["attach"](model, optimizer, CLOCK, scope[name])
    assert pruner.groups.kind == "channel" and f"by {name}" in repr(pruner)
    seen = []
    rank = pruner._rule._even_masks
    object.__setattr__(pruner._rule, "_even_masks", lambda *a: (seen.append(a[0]), rank(*a))[1])
    train(model, optimizer, 20)
    assert pruner.hard_sparsity == pytest.approx(0.5, abs=0.1)
    for statistic, each in zip(scope[name](pruner.groups, optimizer), pruner.groups):
        assert statistic.shape == each.shape
    assert seen and not torch.allclose(seen[0][0], pruner.groups[0].mean_square())


def test_error_a_criterion_of_another_shape(residual):
    model = residual()
    wrong = {
        "one each": lambda groups, optimizer: [],
        "it must have the mask's": lambda groups, optimizer: [torch.ones(3) for _ in groups],
        "no entry below 0 or NaN": lambda groups, optimizer: [-torch.ones(each.shape) for each in groups],
    }
    for message, criterion in wrong.items():
        pruner = ForwardPruning(model, sgd(model), sparsity=0.5, clock=CLOCK, criterion=criterion)
        with pytest.raises(ValueError, match=message):
            pruner.finish_()
    with pytest.raises(ValueError, match="give a callable of"):
        ForwardPruning(model, sgd(model), sparsity=0.5, clock=CLOCK, criterion="taylor")


HEADS = '''
"""Whole heads of an attention with one packed projection: rows of query, key and value, columns of the output."""

import bayesprune as bp
from bayesprune.sparsity import ChannelGroups, Slice


def heads(model, modules):
    found = []
    for name, module in model.named_modules():
        if f"{name}.qkv" not in modules or f"{name}.proj" not in modules:
            continue
        count, width = module.heads, module.qkv.out_features // 3
        rows, biases = (
            [
                Slice.along(f"{name}.qkv.{which}", tensor, 0, count, width // count, start)
                for start in (0, width, 2 * width)
            ]
            for which, tensor in (("weight", module.qkv.weight), ("bias", module.qkv.bias))
        )
        columns = Slice.along(f"{name}.proj.weight", module.proj.weight, 1, count)
        found.append(ChannelGroups(f"{name}.heads", "head", (count,), [*rows, columns], biases))
    return found


def attach(model, optimizer, clock):
    return bp.ForwardPruning(
        model, optimizer, sparsity=0.5, clock=clock, groups=heads, round_to=1, soft_threshold=0.01
    )
'''

BLOCKS = '''
"""Blocks of four neighbouring columns of every row."""

from bayesprune.sparsity import Groups, Slice


def blocks(model, modules):
    found = []
    for name, module in modules.items():
        rows, columns = module.weight.shape[:2]
        if module.weight.dim() == 2 and columns % 4 == 0:
            part = Slice(f"{name}.weight", module.weight, (rows, columns // 4, 4), (rows, columns // 4, 1), split=1)
            found.append(Groups(part.name, "block", (rows, columns // 4), [part]))
    return found
'''


class _Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(16, 48), nn.Linear(16, 16), 4

    def forward(self, x):
        batch, length, width = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(query, key, value)
        return x + self.proj(y.transpose(1, 2).reshape(batch, length, width))


class _Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.one, self.two, self.head = nn.Linear(6, 16), _Attention(), _Attention(), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.two(self.one(self.up(x))).mean(1))


def _loaded(source, path):
    path.write_text(source)
    scope: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    return scope


def _run(model, optimizer, steps):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x, labels = torch.randn(8, 5, 6, generator=generator), torch.randint(3, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()


def test_property_a_grouper_is_one_file_of_50_lines(tmp_path):
    assert len(HEADS.strip().splitlines()) <= 50
    torch.manual_seed(0)
    model = _Blocks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner = _loaded(HEADS, tmp_path / "heads.py")["attach"](model, optimizer, CLOCK)
    assert [(each.name, each.count, each.size) for each in pruner.groups] == [
        ("one.heads", 4, 16 * 16), ("two.heads", 4, 16 * 16)
    ]  # fmt: skip
    reasons = {each.name: each.reason for each in pruner.groups.excluded}
    assert reasons["up.weight"] == "not cut by groups='heads'" and "of kind 'head'" in repr(pruner)
    _run(model, optimizer, 24)
    assert pruner.hard_sparsity == 0.5 and all(int(mask.sum()) == 2 for mask in pruner.keep_masks.values())
    keep = pruner.keep_masks["one.heads"]
    for part in model.one.qkv.weight.view(3, 4, 4 * 16):
        assert ((part != 0).any(1) == keep).all()
    assert ((model.one.proj.weight.view(16, 4, 4) != 0).any(2).any(0) == keep).all()
    x = torch.randn(3, 7, 6)
    result = bp.compact(model, pruner, optimizer, x)
    assert torch.allclose(result.model.eval()(x), model.eval()(x), atol=1e-5)
    before, after = result.report.parameters
    assert after < 0.8 * before and [each.count for each in result.pruner.groups] == [2, 2]
    _run(result.model, result.optimizer, 4)


def test_property_a_grouper_may_split_what_no_kind_of_ours_does(tmp_path):
    torch.manual_seed(0)
    model = _Blocks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    blocks = _loaded(BLOCKS, tmp_path / "blocks.py")["blocks"]
    groups = partition(model, blocks)
    assert groups.kind == "block" and groups.total == 2 * (48 * 16 + 16 * 16) + 3 * 16
    pruner = ForwardPruning(model, optimizer, sparsity=0.5, clock=CLOCK, groups=blocks, scope="global", every=2)
    assert "head.weight" not in pruner.keep_masks  # the outputs are kept here too
    _run(model, optimizer, 24)
    zero = (model.one.qkv.weight.view(48, 4, 4) == 0).any(2)
    assert torch.equal(zero, ~pruner.keep_masks["one.qkv.weight"])
    assert sum(int((w == 0).sum()) for w in pruner.groups.weights().values()) == pruner.groups.total // 2
    with pytest.raises(ValueError, match=r"it must return sparsity\.Groups, at least one"):
        partition(model, lambda model, modules: [])
