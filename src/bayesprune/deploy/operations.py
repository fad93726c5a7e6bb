"""The functions, methods and attributes that an architecture file may call; nothing else is ever looked up."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

_TORCH = """
    abs add addcdiv addcmul addmm amax amin arange argmax argmin as_tensor baddbmm bmm broadcast_to cat ceil chunk clamp
    clamp_max clamp_min clone concat concatenate cos cumsum diff div dot einsum empty_like eq erf exp expm1 eye flatten flip
    floor full full_like gather ge gt hstack index_add index_copy index_select layer_norm le linspace log log1p log_softmax
    logical_and logical_not logical_or logsumexp lt masked_fill matmul max maximum mean meshgrid min minimum mm movedim mul
    narrow ne neg norm numel ones ones_like outer permute pow prod ravel reciprocal relu relu_ remainder repeat_interleave
    reshape roll rsqrt scalar_tensor scatter scatter_add select sigmoid sigmoid_ sign sin softmax split split_with_sizes
    sqrt square squeeze stack std sub sum swapaxes swapdims t take_along_dim tanh tanh_ tensor tensor_split tile topk
    transpose tril triu true_divide unbind unflatten unsqueeze var vstack where zeros zeros_like _assert
"""
_FUNCTIONAL = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear celu channel_shuffle conv1d
    conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity dropout dropout1d dropout2d
    dropout3d elu elu_ embedding feature_alpha_dropout fold gelu glu group_norm hardsigmoid hardswish hardtanh instance_norm
    interpolate layer_norm leaky_relu leaky_relu_ linear local_response_norm log_softmax logsigmoid max_pool1d max_pool2d max_pool3d
    mish normalize one_hot pad pixel_shuffle pixel_unshuffle prelu relu relu6 relu_ rms_norm rrelu
    scaled_dot_product_attention selu sigmoid silu softmax softmin softplus softsign tanh tanhshrink threshold unfold
"""
_OPERATOR = """
    add and_ eq floordiv ge getitem gt iadd imul invert isub itruediv le lt matmul mod mul ne neg or_ pos pow setitem sub truediv
"""

# What a tensor's method may be. Left out on purpose: whatever leaves the graph (item, tolist, numpy), registers
# hooks, touches storage or files, or draws random numbers.
_METHODS = """
    abs add add_ amax amin argmax argmin bmm chunk clamp clamp_ clamp_max clamp_min clone contiguous cos cumsum detach dim
    div div_ double eq exp expand expand_as fill_ flatten flip float floor gather ge gt half bfloat16 index_add index_add_ index_copy
    index_copy_ index_select int le log log_softmax logsumexp long lt masked_fill masked_fill_ matmul max mean min mm movedim
    mul mul_ narrow ne neg new_empty new_full new_ones new_zeros norm numel permute pow prod reciprocal relu relu_ repeat
    repeat_interleave reshape reshape_as roll rsqrt scatter scatter_add select sigmoid sigmoid_ sin size softmax split sqrt square
    squeeze std sub sub_ sum swapaxes swapdims t tanh tanh_ tile to topk transpose tril triu type_as unbind unflatten
    unfold unsqueeze unsqueeze_ var view view_as where zero_
"""
METHODS = frozenset(_METHODS.split())

# What ``getattr`` may read of a tensor.
ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "T", "mT"})

_MODULES: dict[str, tuple[Any, str]] = {
    "torch.nn.functional": (F, _FUNCTIONAL),
    "torch": (torch, _TORCH),
    "operator": (operator, _OPERATOR),
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{prefix}.{name}": getattr(module, name)
    for prefix, (module, names) in _MODULES.items()
    for name in names.split()
    if hasattr(module, name)
}
FUNCTIONS["builtins.getattr"] = builtins.getattr

# Several names may mean one object (torch.conv2d is F.conv2d); any of them will do.
_NAMES: dict[Callable[..., Any], str] = {function: name for name, function in FUNCTIONS.items()}


def function_name(function: Callable[..., Any], node: str) -> str:
    """The name under which a file calls a function."""
    try:
        return _NAMES[function]
    except (KeyError, TypeError):
        module = getattr(function, "__module__", None)
        name = getattr(function, "__name__", repr(function))
        full = f"{module}.{name}" if module else name
        raise ValueError(
            f"node {node!r}: function {full} is not on the list of functions that a file may call"
        ) from None


def function_of(name: Any, node: str) -> Callable[..., Any]:
    """The function of a name in a file."""
    if not isinstance(name, str) or name not in FUNCTIONS:
        raise ValueError(f"node {node!r}: function {name} is not on the list of functions that a file may call")
    return FUNCTIONS[name]


def check_method(name: Any, node: str) -> str:
    """Refuse a tensor method that is not on the list; arguments and errors as `function_of`."""
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"node {node!r}: tensor method {name!r} is not on the list of methods that a file may call")
    return name


def check_attribute(args: tuple[Any, ...], kwargs: dict[str, Any], node: str) -> None:
    """Refuse a ``getattr`` of anything but a tensor's `ATTRIBUTES`."""
    if len(args) != 2 or kwargs or not isinstance(args[1], str) or args[1] not in ATTRIBUTES:
        found = args[1] if len(args) > 1 else None
        raise ValueError(f"node {node!r}: attribute {found!r} is not one of {', '.join(sorted(ATTRIBUTES))}")
