from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bayesprune import vision
from bayesprune.sparsity import packing
from bayesprune.sparsity.packing import (
    common_mask,
    nonzero,
    pack_mask,
    pack_masks,
    pack_state,
    unpack_mask,
    unpack_state,
)


def shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (9,), (3, 5, 2), (0,), (4, 0, 2)])
def test_roundtrip_masks(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = pack_mask(mask)
    assert packed.dtype == torch.uint8 and packed.numel() == (mask.numel() + 7) // 8
    assert torch.equal(unpack_mask(packed, shape), mask)


def test_equation_first_entry_is_the_lowest_bit():
    mask = torch.zeros(10, dtype=torch.bool)
    mask[[0, 3, 9]] = True
    assert pack_mask(mask).tolist() == [0b00001001, 0b00000010]


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool],
)
def test_roundtrip_state_bit_for_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    value = (torch.randn(33, 17, generator=generator) * 3).to(dtype)
    value[torch.rand(33, 17, generator=generator) < 0.97] = 0
    if dtype.is_floating_point:
        value[0, :4] = torch.tensor([-0.0, float("nan"), float("inf"), 2.0**-24]).to(dtype)
    state = {"layer.weight": value, "whole": torch.randn(5), "layer.steps": torch.tensor(3), "empty": torch.zeros(0)}
    masks = pack_masks(state)
    assert set(masks) == {"layer.weight"}
    again = unpack_state(pack_state(state, masks), masks, shapes(state))
    assert list(again) == list(state)
    for name in state:
        assert again[name].dtype == state[name].dtype and again[name].shape == state[name].shape
        assert torch.equal(bits(again[name]), bits(state[name])), name


def test_property_minus_zero_and_nan_count_as_values():
    assert nonzero(torch.tensor([0.0, -0.0, float("nan"), 1e-45])).tolist() == [False, True, True, True]


def test_property_a_tensor_is_packed_only_if_that_is_smaller():
    # 4 k + n / 8 < 4 n  <=>  k / n < 31 / 32.
    dense = torch.ones(64)
    assert not pack_masks({"w": dense})
    dense[0] = 0
    assert not pack_masks({"w": dense})  # 4 * 63 + 8 = 260 bytes instead of 256
    dense[:3] = 0
    assert set(pack_masks({"w": dense})) == {"w"}  # 4 * 61 + 8 = 252


def test_property_one_mask_serves_several_states():
    first, second = {"w": torch.zeros(64)}, {"w": torch.zeros(64)}
    first["w"][:3], second["w"][2:6] = 1, 2
    masks = pack_masks(first, [second])
    assert torch.equal(unpack_mask(masks["w"], (64,)), common_mask([first["w"], second["w"]]))
    for state in (first, second):
        stored = pack_state(state, masks)
        assert stored["w.values"].numel() == 6
        assert torch.equal(unpack_state(stored, masks, shapes(state))["w"], state["w"])


def sparse_network(model: nn.Module, sparsity: float = 0.9, seed: int = 0) -> nn.Module:
    """A share of each convolution's and linear layer's weights at +0, under one mask for all seeds."""
    places, values = torch.Generator().manual_seed(1), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                drop = torch.rand(parameter.shape, generator=places) < sparsity
                parameter.copy_(torch.randn(parameter.shape, generator=values)).masked_fill_(drop, 0)
    return model


def store_share(name: str, members: int, folder) -> float:
    """Bytes on disk of members under one mask, as a share of their dense files; each is read back and compared."""
    masks: dict[str, torch.Tensor] = {}
    dense = packed = 0
    for member in range(members):
        state = sparse_network(vision.build(name, num_classes=10), seed=member).state_dict()
        masks = masks or pack_masks(state)
        stored = pack_state(state, masks)
        save_file(stored, folder / "packed")
        packed += os.path.getsize(folder / "packed")
        if not member:
            save_file(state, folder / "dense")
            dense = members * os.path.getsize(folder / "dense")
            save_file(masks, folder / "masks")
            packed += os.path.getsize(folder / "masks")
        again = unpack_state(stored, masks, shapes(state))
        assert all(torch.equal(bits(again[key]), bits(state[key])) for key in state)
    return packed / dense


def test_target_store_of_twelve_members_at_ninety_percent(tmp_path):
    # 10 % of the values and 1/32 of the bytes for the mask, once: 0.1 + 1 / (32 * 12), plus BatchNorm and headers.
    share = store_share("resnet20", 12, tmp_path)
    assert 0.1 < share < 0.15


@pytest.mark.slow
def test_target_store_of_twelve_wide_members_at_ninety_percent(tmp_path):
    share = store_share("wrn28_10", 12, tmp_path)
    print(f"12 members of WRN-28-10 at 90 % of the weights zero: {share:.2%} of 12 dense float32 files")
    assert share < 0.15
    assert share == pytest.approx(0.1 + 1 / (32 * 12), abs=0.003)


def test_error_packing():
    with pytest.raises(ValueError, match=r"mask: dtype torch.float32; give a boolean"):
        pack_mask(torch.ones(3))
    with pytest.raises(ValueError, match=r"uint8\[1\] for shape \[9\]; expected uint8\[2\]"):
        unpack_mask(torch.zeros(1, dtype=torch.uint8), (9,))
    with pytest.raises(ValueError, match="none given"):
        common_mask([])
    state = {"w": torch.eye(16)}
    masks = pack_masks(state)
    with pytest.raises(ValueError, match="'w' is not zero everywhere outside its mask"):
        pack_state({"w": torch.ones(16, 16)}, masks)
    stored = pack_state(state, masks)
    with pytest.raises(ValueError, match=r"'w.values' holds 3 values, its mask keeps 16"):
        unpack_state({"w.values": stored["w.values"][:3]}, masks, shapes(state))
    with pytest.raises(ValueError, match=r"tensor 'w.values' is missing"):
        unpack_state({}, masks, shapes(state))
    assert packing.VALUES == "values"
