"""The model's graph: traced with torch.fx, with the shapes that an example gives every tensor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from bayesprune.sparsity.compaction.attention import SlimAttention
from bayesprune.sparsity.compaction.errors import CompactionError

_LEAVES = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention, SlimAttention,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
)  # fmt: skip


class Tracer(fx.Tracer):
    """torch.fx's tracer, which also looks into torch's own transformer layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node of the graph."""
        if type(m) in (nn.TransformerEncoderLayer, nn.TransformerEncoder):
            return False
        return isinstance(m, _LEAVES) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Follow a module's forward; for torch's transformer layers, the plain path of it."""
        if type(m) is nn.TransformerEncoderLayer:
            forward = partial(_encoder_layer, m)
        elif type(m) is nn.TransformerEncoder:
            forward = partial(_encoder, m)
        return super().call_module(m, forward, args, kwargs)


def _encoder_layer(
    layer: Any, src: Any, src_mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False
) -> Any:
    def attend(x: Any) -> Any:
        out = layer.self_attn(
            x, x, x, attn_mask=src_mask, key_padding_mask=src_key_padding_mask, need_weights=False, is_causal=is_causal
        )
        return layer.dropout1(out[0])

    def feed(x: Any) -> Any:
        return layer.dropout2(layer.linear2(layer.dropout(layer.activation(layer.linear1(x)))))

    if layer.norm_first:
        src = src + attend(layer.norm1(src))
        return src + feed(layer.norm2(src))
    src = layer.norm1(src + attend(src))
    return layer.norm2(src + feed(src))


def _encoder(encoder: Any, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: Any = None) -> Any:
    for layer in encoder.layers:
        src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask, is_causal=bool(is_causal))
    return src if encoder.norm is None else encoder.norm(src)


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["shape"] = _shape_of(result)
        return result


def _shape_of(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.shape
    if (
        isinstance(result, (tuple, list))
        and not isinstance(result, torch.Size)
        and any(isinstance(entry, Tensor) for entry in result)
    ):
        return tuple(_shape_of(entry) for entry in result)
    return None


def trace(model: nn.Module, example: tuple[Any, ...]) -> fx.Graph:
    """Trace a model in evaluation mode; ``node.meta["shape"]`` holds each tensor's shape on the example.

    Args:
        model: The model; its modes are put back.
        example: The inputs.

    Returns:
        The graph.

    Raises:
        CompactionError: ``not-traceable`` or ``example-input``.

    Example:
        >>> graph = trace(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), (torch.zeros(4, 3),))
        >>> [(node.name, tuple(node.meta["shape"])) for node in graph.nodes if node.op == "call_module"]
        [('_0', (4, 2)), ('_1', (4, 2))]
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        try:
            graph = Tracer().trace(model)
        except Exception as error:  # torch.fx raises many types
            raise CompactionError(
                "not-traceable",
                f"torch.fx cannot follow the model's forward ({type(error).__name__}: {error}); rewrite it without "
                "control flow on tensors",
            ) from error
        try:
            with torch.no_grad():
                _Shapes(fx.GraphModule(model, graph)).run(*example)
        except Exception as error:
            raise CompactionError(
                "example-input", f"example_input does not run through the model: {type(error).__name__}: {error}"
            ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    return graph


def depends_on_mode(model: nn.Module) -> bool:
    """Whether the traced graph differs between training and evaluation (``F.dropout(x, training=self.training)``).

    Example:
        >>> depends_on_mode(nn.Sequential(nn.Linear(3, 2), nn.Dropout()))
        False
    """
    modes = {module: module.training for module in model.modules()}
    try:
        code = []
        for mode in (False, True):
            model.train(mode)
            code.append(str(Tracer().trace(model)))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return code[0] != code[1]
