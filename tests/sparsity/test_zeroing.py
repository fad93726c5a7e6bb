from __future__ import annotations

import pytest
import torch
from torch import nn

from bayesprune.sparsity.zeroing import Zeroing


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 1, 1, 1), (1, 3, 1, 1), (4, 3, 1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_parity_with_masked_fill(dtype, shape, layout):
    generator = torch.Generator().manual_seed(0)
    tensor = (torch.randn(4, 3, 2, 2, generator=generator) * 9).to(dtype).contiguous(memory_format=layout)
    drop = torch.rand(shape, generator=generator) < 0.5
    expected = tensor.masked_fill(drop, 0)
    zero_ = Zeroing(drop)
    assert zero_(tensor) is tensor
    assert torch.equal(tensor, expected)
    assert torch.equal(zero_(tensor), expected)


def test_property_non_finite_and_negative_values_become_plus_zero():
    tensor = torch.tensor([float("nan"), float("inf"), -float("inf"), -1.0, float("nan")])
    Zeroing(torch.tensor([True, True, True, True, False]))(tensor)
    assert tensor[:4].tolist() == [0.0] * 4
    assert not torch.signbit(tensor[:4]).any()
    assert tensor[4].isnan()


def test_property_works_on_a_leaf_that_requires_gradient():
    param = nn.Parameter(torch.ones(2, 2))
    with torch.no_grad():
        Zeroing(torch.tensor([[True], [False]]))(param)
    param.sum().backward()
    assert param.tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert param.is_leaf
