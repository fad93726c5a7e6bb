"""Every holder of masks goes onto the compact model by the one named method, and nothing reaches past it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import bayesprune
from bayesprune.baselines import SET, DynamicSparseReparameterization, RigL, SparseMomentum
from bayesprune.compaction import compact

METHODS = {
    "set": lambda model, optimizer: SET(model, optimizer, target_sparsity=0.6, every=9),
    "rigl": lambda model, optimizer: RigL(model, optimizer, target_sparsity=0.6, every=9, end_step=90),
    "dsr": lambda model, optimizer: DynamicSparseReparameterization(model, optimizer, target_sparsity=0.6, every=9, threshold=0.1),
    "sparse momentum": lambda model, optimizer: SparseMomentum(
        model, optimizer, target_sparsity=0.6, every=9, end_step=90
    ),
}  # fmt: skip


def _unread(holder) -> None:
    """Move the masks: no weight reads the first four hidden units of the first layer, as many are kept as before."""
    state = holder.state_dict()
    keep = state["keep"]
    wanted = sum(int(mask.sum()) for mask in keep.values())
    for mask in keep.values():
        mask.fill_(True)
    keep["2.weight"][:, :4] = False
    places = torch.cat([mask.flatten() for mask in keep.values()]).nonzero().flatten()
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))
    chosen = torch.zeros(sum(mask.numel() for mask in keep.values()), dtype=torch.bool)
    chosen[places[order[:wanted]]] = True
    for mask, part in zip(keep.values(), chosen.split([mask.numel() for mask in keep.values()])):
        mask.copy_(part.view(mask.shape))
    holder.load_state_dict(state)
    holder.apply_()


def _train(model, optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x, labels = torch.randn(8, 6, generator=generator).double(), torch.randint(3, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()


@pytest.mark.parametrize("name", list(METHODS))
def test_property_a_sparse_training_method_goes_on_in_the_compact_model(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    holder = METHODS[name](model, optimizer)
    _unread(holder)
    _train(model, optimizer, range(3))
    result = compact(model, holder, optimizer, torch.randn(2, 6).double())
    small = result.pruner
    assert type(small) is type(holder) and result.model[0].out_features == 8
    _train(model, optimizer, range(3, 8))
    _train(result.model, result.optimizer, range(3, 8))
    assert small.step_count == holder.step_count == 8
    for key, tensor in model.state_dict().items():
        for dim, index in result.slices.get(key, []):
            tensor = tensor.index_select(dim, index)
        torch.testing.assert_close(result.model.state_dict()[key], tensor, rtol=1e-9, atol=1e-12)
    kept = sum(int(mask.sum()) for mask in small.keep_masks.values())
    before = {key: mask.clone() for key, mask in small.keep_masks.items()}
    _train(result.model, result.optimizer, range(8, 10))  # the masks are renewed: RigL's in the step after the ninth
    assert sum(int(mask.sum()) for mask in small.keep_masks.values()) == kept
    assert any(not torch.equal(mask, before[key]) for key, mask in small.keep_masks.items())
    assert all((param[~mask] == 0).all() for param, mask in zip(small.params, small.keep_masks.values()))


def test_property_compaction_touches_no_underscore_of_a_holder():
    # pruner_state.py read and wrote 31 private attributes of the pruner.
    for path in sorted((Path(bayesprune.__file__).parent / "compaction").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                owner = ast.unparse(node.value)
                assert owner in ("self", "cls") or node.attr in dir(torch.optim.SGD([torch.zeros(1)])) + dir(
                    nn.Module()
                ), f"{path.name}:{node.lineno}: {owner}.{node.attr}"
