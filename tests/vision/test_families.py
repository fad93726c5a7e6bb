from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from bayesprune.vision import build
from bayesprune.vision.families import (
    VGG,
    Attention,
    DenseLayer,
    TransformerBlock,
    VisionTransformer,
    densenet,
    vgg16,
    vit,
)


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        # 3x3 kernels, two numbers a BatchNorm channel, one linear layer.
        (
            lambda: vgg16(num_classes=10),
            9 * (3 * 64 + 64 * 64 + 64 * 128 + 128 * 128 + 128 * 256 + 2 * 256 * 256 + 256 * 512 + 5 * 512 * 512)
            + 2 * (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512)
            + 513 * 10,
        ),
        (lambda: densenet(num_classes=10), 769_162),  # the published 0.8 M
        # Patches, token and positions; per block two LayerNorms, four projections, two hidden layers.
        (
            lambda: vit(num_classes=10),
            49 * 192 + 66 * 192 + 6 * (4 * 192 + 4 * 193 * 192 + 193 * 768 + 769 * 192) + 2 * 192 + 193 * 10,
        ),
    ],
)
def test_parity_parameter_counts(make, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == parameters


def test_property_the_two_attentions_agree():
    torch.manual_seed(0)
    theirs, ours = nn.MultiheadAttention(12, 3, batch_first=True).double(), Attention(12, 3).double()
    weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
    with torch.no_grad():
        for layer, weight, bias in zip((ours.query, ours.key, ours.value), weights, biases):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias.normal_())
        ours.out.load_state_dict(theirs.out_proj.state_dict())
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])


@pytest.mark.parametrize("attention", ["torch", "linear"])
def test_property_smaller_images_take_the_first_positions(attention):
    torch.manual_seed(0)
    model = VisionTransformer(num_classes=3, width=16, depth=1, heads=2, image_size=16, attention=attention).eval()
    x = torch.randn(2, 3, 16, 16)
    traced = fx.symbolic_trace(model)
    with torch.no_grad():
        for size in (16, 13, 8):
            part = x[..., :size, :size]
            assert torch.equal(traced(part), model(part))
        assert torch.equal(model(x[..., :13, :13]), model(x[..., :12, :12]))  # three patches each way


def test_limit_a_block_without_output_weights_passes_its_input_on():
    block = TransformerBlock(8, 2, 12, "linear")
    for layer in (block.attention.out, block.fc2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    x = torch.randn(2, 3, 8)
    assert torch.equal(block(x), x)


def test_property_a_dense_layer_appends_and_passes_on():
    layer = DenseLayer(6, 4, 2).eval()
    x = torch.randn(2, 6, 5, 5)
    y = layer(x)
    assert y.shape == (2, 10, 5, 5) and torch.equal(y[:, :6], x)


def test_property_vgg_takes_odd_sizes_and_hidden_layers():
    model = VGG((1, 1, 1), (4, 4, 8), num_classes=3, hidden=(6, 5), pool=2, dropout=0.5)
    assert [type(layer).__name__ for layer in model.hidden] == ["Linear", "ReLU", "Dropout"] * 2
    assert model(torch.zeros(2, 3, 13, 17)).shape == (2, 3)
    assert model.hidden[0].in_features == 8 * 4


def test_error_messages():
    with pytest.raises(ValueError, match=r"depths=\(1,\) and widths=\(4, 8\): give one of each"):
        VGG((1,), (4, 8), num_classes=2)
    with pytest.raises(ValueError, match="width=10 must be a multiple of heads=4"):
        vit(num_classes=2, width=10, heads=4)
    with pytest.raises(ValueError, match="attention='flash': use 'torch'"):
        vit(num_classes=2, attention="flash")
    with pytest.raises(TypeError, match="num_classes"):
        build("vit")
