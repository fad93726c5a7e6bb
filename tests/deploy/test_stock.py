from __future__ import annotations

import pytest
import torch
from torch import nn

from bayesprune.compaction import compact
from bayesprune.deploy import load, save
from bayesprune.deploy.architecture import describe, rebuild
from bayesprune.deploy.stock import STOCK, build_module, describe_module

# One instance of every module on the list, away from its defaults wherever it has some.
MODULES = [
    nn.Identity(), nn.Linear(3, 2, bias=False), nn.Bilinear(2, 3, 4),
    nn.Conv1d(4, 6, 3, 2, 1, 1, 2), nn.Conv2d(4, 6, (3, 1), padding="same", padding_mode="reflect", bias=False),
    nn.Conv3d(2, 2, 3, dilation=2),
    nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2), nn.ConvTranspose2d(4, 6, 3, 2, bias=False), nn.ConvTranspose3d(2, 2, 3),
    nn.Embedding(5, 3, padding_idx=1, max_norm=2.0),
    nn.MultiheadAttention(8, 2, 0.2, bias=False, add_bias_kv=True, add_zero_attn=True, kdim=3, vdim=4, batch_first=True),
    nn.TransformerEncoderLayer(8, 2, 12, 0.2, "gelu", 1e-3, True, True, False),
    nn.BatchNorm1d(3, 1e-3, None, False), nn.BatchNorm2d(3, momentum=0.2, track_running_stats=False), nn.BatchNorm3d(3),
    nn.InstanceNorm1d(3), nn.InstanceNorm2d(3, affine=True), nn.InstanceNorm3d(3, track_running_stats=True),
    nn.GroupNorm(2, 4, 1e-3, False), nn.LayerNorm((2, 3), 1e-3, bias=False), nn.LayerNorm(3, elementwise_affine=False),
    nn.RMSNorm(3, 1e-3), nn.LocalResponseNorm(2, 1e-3, 0.5, 2.0),
    nn.ReLU(True), nn.ReLU6(True), nn.SELU(True), nn.SiLU(True), nn.Mish(True), nn.Hardswish(True), nn.Hardsigmoid(True),
    nn.LeakyReLU(0.2), nn.ELU(0.5), nn.CELU(0.5), nn.PReLU(3, 0.1), nn.RReLU(0.1, 0.2), nn.GELU("tanh"),
    nn.Hardtanh(-2.0, 2.0), nn.Softplus(2.0, 10.0), nn.Threshold(0.1, 0.2), nn.Softshrink(0.2), nn.Hardshrink(0.2),
    nn.Sigmoid(), nn.Tanh(), nn.Softsign(), nn.LogSigmoid(), nn.Tanhshrink(), nn.Softmax2d(),
    nn.Softmax(1), nn.LogSoftmax(1), nn.Softmin(1), nn.GLU(1),
    nn.Dropout(0.1), nn.Dropout1d(0.1), nn.Dropout2d(0.1, True), nn.Dropout3d(0.1), nn.AlphaDropout(0.1),
    nn.FeatureAlphaDropout(0.1),
    nn.MaxPool1d(3, 2, 1, 1, True), nn.MaxPool2d((3, 2), ceil_mode=True), nn.MaxPool3d(2),
    nn.AvgPool1d(3, 2, 1, True, False), nn.AvgPool2d(2, divisor_override=3), nn.AvgPool3d(2),
    nn.AdaptiveAvgPool1d(2), nn.AdaptiveAvgPool2d((1, None)), nn.AdaptiveAvgPool3d(1),
    nn.AdaptiveMaxPool1d(2, True), nn.AdaptiveMaxPool2d(1), nn.AdaptiveMaxPool3d(1),
    nn.Flatten(2, 3), nn.Unflatten(1, (2, 2)), nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(2),
    nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True), nn.Upsample(size=(4, 4)),
    nn.ZeroPad1d(1), nn.ZeroPad2d((1, 2, 3, 4)), nn.ZeroPad3d(1), nn.ConstantPad1d(1, 2.0), nn.ConstantPad2d(1, 2.0),
    nn.ConstantPad3d(1, 2.0), nn.ReflectionPad1d(1), nn.ReflectionPad2d(1), nn.ReflectionPad3d(1), nn.ReplicationPad1d(1),
    nn.ReplicationPad2d(1), nn.ReplicationPad3d(1), nn.CircularPad1d(1), nn.CircularPad2d(1), nn.CircularPad3d(1),
    nn.LSTM(3, 4, 2, False, True, 0.5, True, 2), nn.GRU(3, 4, batch_first=True), nn.RNN(3, 4, nonlinearity="relu"),
]  # fmt: skip


def test_property_every_module_on_the_list_is_tried():
    assert {type(module) for module in MODULES} == set(STOCK.values())


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_roundtrip_constructor_arguments(module):
    name, arguments = describe_module(module, "m")
    again = build_module(name, arguments, "m")
    assert repr(again) == repr(module)
    one, other = module.state_dict(), again.state_dict()
    assert {key: (value.shape, value.dtype) for key, value in one.items()} == {
        key: (value.shape, value.dtype) for key, value in other.items()
    }
    for attribute in ("eps", "momentum", "padding_mode", "ceil_mode", "divisor_override", "dropout", "norm_first", "p",
                      "padding_idx", "max_norm", "batch_first", "add_zero_attn", "inplace", "alpha", "beta", "k"):  # fmt: skip
        if not isinstance(getattr(module, attribute, None), nn.Module):
            assert getattr(module, attribute, None) == getattr(again, attribute, None), attribute


def test_roundtrip_attributes_set_after_construction():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5))
    model[1].eps, model[1].momentum, model[2].p = 0.25, 0.75, 0.125
    again = rebuild(*describe(model))
    assert (again.get_submodule("1").eps, again.get_submodule("1").momentum, again.get_submodule("2").p) == (
        0.25, 0.75, 0.125)  # fmt: skip


def test_roundtrip_encoder_layer_and_attention_weights():
    torch.manual_seed(0)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
            self.attend = nn.MultiheadAttention(8, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y, weights = self.attend(x, x, x)
            return self.layer(y), weights

    model = Encoder().eval()
    again, x = rebuild(*describe(model)), torch.randn(3, 4, 8)
    assert all(torch.equal(one, other) for one, other in zip(model(x), again(x)))


@pytest.mark.parametrize("norm_first", [False, True])
def test_roundtrip_an_encoder_layer_that_lost_heads_is_written_by_its_parts(norm_first, tmp_path):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 4, 12, dropout=0.0, batch_first=True, norm_first=norm_first)
    model, x = nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2)), torch.randn(2, 5, 3)
    with torch.no_grad():
        layer.self_attn.out_proj.weight[:, 2:4] = 0
    small = compact(model, example_input=x, constants="keep").model.eval()
    assert small[1].self_attn.num_heads == 3
    save(small, tmp_path / "model", example_input=x)
    torch.testing.assert_close(load(tmp_path / "model")(x), model.eval()(x), rtol=1e-5, atol=1e-5)
