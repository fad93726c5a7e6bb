"""Which rule an operation has."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from bayesprune.graph import rules_functional as functional
from bayesprune.graph import rules_joins as joins
from bayesprune.graph import rules_layers as layers
from bayesprune.graph import rules_mixing as mixing
from bayesprune.graph import rules_products as products
from bayesprune.graph import rules_recurrent as recurrent
from bayesprune.graph import rules_shapes as shapes
from bayesprune.graph.analysis import Analysis, Rule, label
from bayesprune.graph.kinds import REGISTERED
from bayesprune.graph.layers import INSTANCE_NORMS, TRANSPOSED, turned_linear
from bayesprune.graph.slim_attention import SlimAttention
from bayesprune.graph.zeros import Zeros

# Activations that mix channels, or have rules of their own.
_OTHER = {"Softmax", "Softmin", "LogSoftmax", "Softmax2d", "GLU", "MultiheadAttention", "PReLU", "RReLU"}
_ACTIVATIONS = [getattr(nn.modules.activation, name) for name in nn.modules.activation.__all__ if name not in _OTHER]
# Functions of each entry alone, under these names in torch, torch.nn.functional and of tensors, in place too.
_ELEMENTWISE = (
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "tanh", "sigmoid",
    "hardsigmoid", "softplus", "hardtanh", "softsign", "logsigmoid", "tanhshrink", "softshrink", "hardshrink",
    "threshold", "abs", "absolute", "neg", "negative", "square", "sqrt", "rsqrt", "exp", "exp2", "expm1", "log",
    "log1p", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh",
    "atanh", "sinc", "erf", "erfc", "erfinv", "sign", "sgn", "reciprocal", "pow", "clamp", "clamp_min",
    "clamp_max", "clip", "ceil", "floor", "round", "trunc", "frac", "logit", "nan_to_num", "positive",
)  # fmt: skip
_TENSOR_METHODS = [name + end for name in _ELEMENTWISE for end in ("", "_") if hasattr(torch.Tensor, name + end)]
_ELEMENTWISE_FUNCTIONS = [
    found
    for home in (torch, F)
    for name in _ELEMENTWISE
    for end in ("", "_")
    if (found := getattr(home, name + end, None)) is not None
]
_UNCHANGED: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
_POOLS: tuple[type[nn.Module], ...] = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.Upsample, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d,
    nn.ReplicationPad1d, nn.ReplicationPad2d,
)  # fmt: skip

_MODULES: dict[type[nn.Module], Rule] = {
    nn.Linear: layers.linear,
    nn.LayerNorm: layers.layer_norm,
    nn.RMSNorm: layers.layer_norm,
    nn.GroupNorm: layers.group_norm,
    nn.PReLU: layers.prelu,
    nn.Embedding: layers.embedding,
    nn.MultiheadAttention: layers.attention,
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), recurrent.recurrent),
    SlimAttention: layers.attention,
    nn.Flatten: shapes.reshape,
    nn.GLU: mixing.gated_halves,
    nn.Softmax: mixing.softmax,
    nn.PixelShuffle: mixing.pixel_shuffle,
    nn.ChannelShuffle: mixing.channel_shuffle,
    **dict.fromkeys(TRANSPOSED, mixing.transposed),
    **dict.fromkeys(functional.CONVOLUTIONS, layers.convolution),
    **dict.fromkeys(functional.BATCH_NORMS, layers.batch_norm),
    **dict.fromkeys(INSTANCE_NORMS, layers.instance_norm),
    **dict.fromkeys(_ACTIVATIONS, shapes.elementwise),
    **dict.fromkeys(_UNCHANGED, shapes.same),
    **dict.fromkeys(_POOLS, shapes.pool),
}

_FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys([*_ELEMENTWISE_FUNCTIONS, operator.neg, operator.pos, operator.pow], shapes.elementwise),
    F.linear: functional.linear,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), functional.convolution),
    F.batch_norm: functional.batch_norm,
    **dict.fromkeys((F.layer_norm, F.rms_norm, torch.layer_norm, torch.rms_norm), layers.layer_norm),
    F.glu: mixing.gated_halves,
    **dict.fromkeys((F.softmax, torch.softmax), mixing.softmax),
    **dict.fromkeys((F.pixel_shuffle, torch.pixel_shuffle), mixing.pixel_shuffle),
    **dict.fromkeys((F.channel_shuffle, torch.channel_shuffle), mixing.channel_shuffle),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.clone), shapes.same),
    **dict.fromkeys(
        (
            F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d,
            F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d,
            F.adaptive_max_pool3d, F.interpolate,
        ),
        shapes.pool,
    ),
    **dict.fromkeys((torch.mean, torch.sum, torch.amax), shapes.reduce),
    **dict.fromkeys((torch.transpose, torch.permute, torch.movedim, torch.swapaxes), shapes.permute),
    **dict.fromkeys(
        (torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unflatten), shapes.reshape
    ),
    **dict.fromkeys((torch.chunk, torch.split), shapes.chunk),
    torch.unbind: shapes.unbind,
    operator.getitem: shapes.getitem,
    operator.setitem: shapes.assigned,
    F.pad: shapes.padding,
    **dict.fromkeys(
        (
            operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv,
            torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum,
        ),
        joins.binary,
    ),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), joins.concatenate),
    F.scaled_dot_product_attention: joins.attention_scores,
    **dict.fromkeys((operator.matmul, torch.matmul, torch.bmm), products.matmul),
    torch.einsum: products.einsum,
    torch.masked_fill: products.masked,
}  # fmt: skip

_METHODS: dict[str, Rule] = {
    **dict.fromkeys(_TENSOR_METHODS, shapes.elementwise),
    "softmax": mixing.softmax,
    "expand": mixing.expand,
    **dict.fromkeys(
        ("contiguous", "clone", "detach", "to", "type_as", "float", "double", "half", "bfloat16"), shapes.same
    ),
    **dict.fromkeys(("mean", "sum", "amax"), shapes.reduce),
    **dict.fromkeys(("transpose", "permute", "movedim", "swapaxes"), shapes.permute),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), shapes.reshape),
    **dict.fromkeys(("chunk", "split"), shapes.chunk),
    "unbind": shapes.unbind,
    **dict.fromkeys(("matmul", "bmm"), products.matmul),
    **dict.fromkeys(("masked_fill", "masked_fill_"), products.masked),
    **dict.fromkeys(("add", "add_", "sub", "sub_", "mul", "mul_", "div"), joins.binary),
}

# An operation on the shape or the type of a tensor reads none of its channels.
_SILENT = ("size", "dim", "numel", "type", "is_floating_point")


def rule_for(node: fx.Node, module: nn.Module | None) -> Rule:
    """The rule of a node; one that keeps everything where none is known."""
    rule = _rule(node, module)
    by_name = (
        layers.attention, layers.linear, layers.convolution, layers.batch_norm, functional.linear, functional.convolution,
        functional.batch_norm, joins.attention_scores, joins.concatenate, _unknown, _nothing,
    )  # fmt: skip
    return rule if node.args or rule in by_name else _unknown


def analyse(model: nn.Module, graph: fx.Graph, zeros: Zeros, fold: bool, **settings: Any) -> Analysis:
    """Make one pass over the graph; the arguments are those of :class:`Analysis`."""
    a = Analysis(model, graph, zeros, fold, **settings)
    a.walk(rule_for)
    return a


def _rule(node: fx.Node, module: nn.Module | None) -> Rule:
    if module is not None and type(module) in REGISTERED:
        rule = REGISTERED[type(module)]
        if not isinstance(rule, type):
            return rule
        # As a layer without weights; those of its own would not be looked at.
        return _unknown if any(True for _ in module.parameters()) else _MODULES.get(rule, _unknown)
    if turned_linear(module):
        return layers.linear
    if module is not None:
        kind = next((each for each in type(module).__mro__ if each in _MODULES), None)
        # A subclass that computes something else under the same name is not known.
        if kind is not None and type(module).forward is kind.forward:
            return _MODULES[kind]
        return _unknown
    if node.op == "call_method":
        return _nothing if node.target in _SILENT else _METHODS.get(str(node.target), _unknown)
    if node.target is getattr:
        return _nothing
    try:
        return _FUNCTIONS.get(node.target, _unknown)
    except TypeError:
        return _unknown


def _nothing(a: Analysis, node: fx.Node, module: nn.Module | None) -> Any:
    if node.op != "call_method" and node.args[1] not in ("shape", "dtype", "device", "ndim"):
        return a.unknown(node, f"attribute {node.args[1]}")
    return None


def _unknown(a: Analysis, node: fx.Node, module: nn.Module | None) -> Any:
    what = f"module {label(node)} ({type(module).__name__})" if module is not None else f"operation {label(node)}"
    return a.unknown(node, what)
