"""Filter response normalisation, and the network on which HMC was run."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from bayesprune.vision import FilterResponseNorm, resnet20_frn
from bayesprune.vision.frn import FRNBlock


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(norm: FilterResponseNorm) -> FilterResponseNorm:
    with torch.no_grad():
        norm.weight.copy_(noise(norm.channels, seed=1))
        norm.bias.copy_(noise(norm.channels, seed=2))
    return norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equation_normalisation_by_hand(dtype):
    x, norm = noise(3, 4, 5, 6).to(dtype), filled(FilterResponseNorm(4, eps=0.1)).to(dtype)
    y = norm(x)
    assert y.dtype == dtype
    for image in range(3):
        for channel in range(4):
            one = x[image, channel]
            wanted = norm.weight[channel] * one * ((one**2).sum() / 30 + 0.1) ** -0.5 + norm.bias[channel]
            torch.testing.assert_close(y[image, channel], wanted)


def test_equation_block_by_hand():
    torch.manual_seed(0)
    block, x = FRNBlock(4, 8, stride=2), noise(2, 4, 6, 6)
    conv, norm = block.shortcut
    y = functional.silu(block.norm1(functional.conv2d(x, block.conv1.weight, block.conv1.bias, stride=2, padding=1)))
    y = block.norm2(functional.conv2d(y, block.conv2.weight, block.conv2.bias, padding=1))
    wanted = functional.silu(y + norm(functional.conv2d(x, conv.weight, conv.bias, stride=2)))
    torch.testing.assert_close(block(x), wanted)


def test_property_the_mean_square_of_half_precision_images_is_taken_in_float32():
    x, norm = (noise(2, 3, 32, 32) * 30).bfloat16(), filled(FilterResponseNorm(3))
    y = norm(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, norm(x.float()).bfloat16())


def test_property_an_image_does_not_see_its_batch():
    torch.manual_seed(0)
    model, x = resnet20_frn(num_classes=10, width=4).double().train(), noise(3, 3, 16, 16).double()
    torch.testing.assert_close(model(x)[:1], model(x[:1]))
    assert torch.equal(model(x), model.eval()(x))


def test_property_the_network_has_no_buffers():
    model = resnet20_frn(num_classes=7, width=8)
    assert not list(model.buffers())
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert [stage[0].conv1.out_channels for stage in model.stages] == [8, 16, 32]
    assert model.stages[2][0](model.stages[1](model.stages[0](model.stem(torch.ones(1, 3, 32, 32))))).shape[2:] == (
        8,
        8,
    )


def test_limit_the_scale_of_a_filter_does_not_matter():
    norm, x = filled(FilterResponseNorm(4)), noise(2, 4, 5, 5)
    torch.testing.assert_close(norm(1000 * x), norm(x), rtol=1e-4, atol=1e-5)


def test_error_eps():
    with pytest.raises(ValueError, match="eps=0: give a number above 0"):
        FilterResponseNorm(4, eps=0)
