"""The modules of torch that an architecture file may name, each with the constructor arguments that rebuild it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_CONV = "in_channels out_channels kernel_size stride padding dilation groups bias padding_mode"
_TRANSPOSED = "in_channels out_channels kernel_size stride padding output_padding groups bias dilation padding_mode"
_BATCH_NORM = "num_features eps momentum affine track_running_stats"
_MAX_POOL = "kernel_size stride padding dilation return_indices ceil_mode"
_RECURRENT = "input_size hidden_size num_layers bias batch_first dropout bidirectional"
_ENCODER_LAYER = "d_model nhead dim_feedforward dropout activation layer_norm_eps batch_first norm_first bias"

# Class name -> constructor arguments. An argument is read from the attribute of its name unless _READ says otherwise.
_ARGUMENTS: dict[str, str] = {
    "Identity": "",
    "Linear": "in_features out_features bias",
    "Bilinear": "in1_features in2_features out_features bias",
    "Conv1d": _CONV, "Conv2d": _CONV, "Conv3d": _CONV,
    "ConvTranspose1d": _TRANSPOSED, "ConvTranspose2d": _TRANSPOSED, "ConvTranspose3d": _TRANSPOSED,
    "Embedding": "num_embeddings embedding_dim padding_idx max_norm norm_type scale_grad_by_freq sparse",
    "MultiheadAttention": "embed_dim num_heads dropout bias add_bias_kv add_zero_attn kdim vdim batch_first",
    "TransformerEncoderLayer": _ENCODER_LAYER,
    "LSTM": _RECURRENT + " proj_size", "GRU": _RECURRENT, "RNN": _RECURRENT + " nonlinearity",
    "BatchNorm1d": _BATCH_NORM, "BatchNorm2d": _BATCH_NORM, "BatchNorm3d": _BATCH_NORM,
    "InstanceNorm1d": _BATCH_NORM, "InstanceNorm2d": _BATCH_NORM, "InstanceNorm3d": _BATCH_NORM,
    "GroupNorm": "num_groups num_channels eps affine",
    "LayerNorm": "normalized_shape eps elementwise_affine bias",
    "RMSNorm": "normalized_shape eps elementwise_affine",
    "LocalResponseNorm": "size alpha beta k",
    "ReLU": "inplace", "ReLU6": "inplace", "SELU": "inplace", "SiLU": "inplace", "Mish": "inplace",
    "Hardswish": "inplace", "Hardsigmoid": "inplace",
    "LeakyReLU": "negative_slope inplace", "ELU": "alpha inplace", "CELU": "alpha inplace",
    "PReLU": "num_parameters", "RReLU": "lower upper inplace", "GELU": "approximate",
    "Hardtanh": "min_val max_val inplace", "Softplus": "beta threshold", "Threshold": "threshold value inplace",
    "Softshrink": "lambd", "Hardshrink": "lambd",
    "Sigmoid": "", "Tanh": "", "Softsign": "", "LogSigmoid": "", "Tanhshrink": "", "Softmax2d": "",
    "Softmax": "dim", "LogSoftmax": "dim", "Softmin": "dim", "GLU": "dim",
    "Dropout": "p inplace", "Dropout1d": "p inplace", "Dropout2d": "p inplace", "Dropout3d": "p inplace",
    "AlphaDropout": "p inplace", "FeatureAlphaDropout": "p inplace",
    "MaxPool1d": _MAX_POOL, "MaxPool2d": _MAX_POOL, "MaxPool3d": _MAX_POOL,
    "AvgPool1d": "kernel_size stride padding ceil_mode count_include_pad",
    "AvgPool2d": "kernel_size stride padding ceil_mode count_include_pad divisor_override",
    "AvgPool3d": "kernel_size stride padding ceil_mode count_include_pad divisor_override",
    "AdaptiveAvgPool1d": "output_size", "AdaptiveAvgPool2d": "output_size", "AdaptiveAvgPool3d": "output_size",
    "AdaptiveMaxPool1d": "output_size return_indices", "AdaptiveMaxPool2d": "output_size return_indices",
    "AdaptiveMaxPool3d": "output_size return_indices",
    "Flatten": "start_dim end_dim", "Unflatten": "dim unflattened_size",
    "PixelShuffle": "upscale_factor", "PixelUnshuffle": "downscale_factor", "ChannelShuffle": "groups",
    "Upsample": "size scale_factor mode align_corners recompute_scale_factor",
    "ZeroPad1d": "padding", "ZeroPad2d": "padding", "ZeroPad3d": "padding",
    "ConstantPad1d": "padding value", "ConstantPad2d": "padding value", "ConstantPad3d": "padding value",
    "ReflectionPad1d": "padding", "ReflectionPad2d": "padding", "ReflectionPad3d": "padding",
    "ReplicationPad1d": "padding", "ReplicationPad2d": "padding", "ReplicationPad3d": "padding",
    "CircularPad1d": "padding", "CircularPad2d": "padding", "CircularPad3d": "padding",
}  # fmt: skip

STOCK: dict[str, type[nn.Module]] = {name: getattr(nn, name) for name in _ARGUMENTS if hasattr(nn, name)}
_NAMES = {kind: name for name, kind in STOCK.items()}
_MOST_LAYERS = 1024  # of a recurrent network, built one after the other even without memory


def _activation(module: Any) -> str:
    known = {F.relu: "relu", F.gelu: "gelu"}
    chosen = module.activation
    name = known.get(chosen) or {nn.ReLU: "relu", nn.GELU: "gelu"}.get(type(chosen))
    if name is None:
        raise ValueError(f"activation {chosen!r} of TransformerEncoderLayer; use 'relu' or 'gelu'")
    return name


_READ: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("MultiheadAttention", "bias"): lambda m: m.in_proj_bias is not None,
    ("MultiheadAttention", "add_bias_kv"): lambda m: m.bias_k is not None,
    **{(kind, "bias"): lambda m: bool(m.bias) for kind in ("LSTM", "GRU", "RNN")},
    ("PReLU", "num_parameters"): lambda m: m.weight.numel(),
    ("Upsample", "scale_factor"): lambda m: m.scale_factor if m.size is None else None,
    ("TransformerEncoderLayer", "d_model"): lambda m: m.linear1.in_features,
    ("TransformerEncoderLayer", "nhead"): lambda m: m.self_attn.num_heads,
    ("TransformerEncoderLayer", "dim_feedforward"): lambda m: m.linear1.out_features,
    ("TransformerEncoderLayer", "dropout"): lambda m: m.dropout.p,
    ("TransformerEncoderLayer", "activation"): _activation,
    ("TransformerEncoderLayer", "layer_norm_eps"): lambda m: m.norm1.eps,
    ("TransformerEncoderLayer", "batch_first"): lambda m: m.self_attn.batch_first,
    ("TransformerEncoderLayer", "bias"): lambda m: m.linear1.bias is not None,
}


def is_stock(module: nn.Module) -> bool:
    """Whether a module is exactly one of torch's own that can be written by name; a subclass is not, nor what lost heads."""
    attention = getattr(module, "self_attn", None) if type(module) is nn.TransformerEncoderLayer else None
    return type(module) in _NAMES and isinstance(attention, (nn.MultiheadAttention, type(None)))


def describe_module(module: nn.Module, path: str) -> tuple[str, dict[str, Any]]:
    """The class name of a stock module and the constructor arguments that rebuild it."""
    name = _NAMES[type(module)]
    for part in module.modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            if getattr(part, kind):
                raise ValueError(f"model: module {path!r} has hooks ({kind}), which a file cannot hold; remove them")
    arguments = {argument: _read(name, argument, module) for argument in _ARGUMENTS[name].split()}
    twin = build_module(name, arguments, path)
    wanted, found = _tensors(module), _tensors(twin)
    if wanted != found or repr(module) != repr(twin):
        odd = sorted({*wanted.items()} ^ {*found.items()})
        raise ValueError(
            f"model: module {path!r} is not what nn.{name} builds from its attributes "
            f"({odd[0] if odd else repr(module)}); undo weight normalisation or pruning hooks, and set attributes to match"
        )
    return name, arguments


def build_module(name: str, arguments: dict[str, Any], path: str) -> nn.Module:
    """Build a stock module by name, its tensors on the meta device."""
    if name not in STOCK:
        raise ValueError(f"module {path!r}: nn.{name} is not on the list of modules that a file may name")
    expected = set(_ARGUMENTS[name].split())
    if set(arguments) != expected:
        raise ValueError(f"module {path!r}: nn.{name} takes {sorted(expected)}, the file gives {sorted(arguments)}")
    if isinstance(layers := arguments.get("num_layers"), int) and layers > _MOST_LAYERS:
        raise ValueError(f"module {path!r}: num_layers={layers} is more than {_MOST_LAYERS}")
    try:
        with torch.device("meta"):
            return STOCK[name](**arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError, ArithmeticError) as error:
        raise ValueError(f"module {path!r}: nn.{name} refuses {arguments}: {error}") from error


def _read(name: str, argument: str, module: nn.Module) -> Any:
    if (name, argument) in _READ:
        return _READ[name, argument](module)
    value = getattr(module, argument)
    return value is not None if argument == "bias" else value


def _tensors(module: nn.Module) -> dict[str, tuple[int, ...]]:
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: tuple(tensor.shape) for name, tensor in named}
