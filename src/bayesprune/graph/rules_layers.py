"""Rules for layers with weights: what they mix, tie and keep constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from bayesprune.graph.analysis import Analysis, Mixer, argument, label
from bayesprune.graph.computed import computed_weights
from bayesprune.graph.layers import INSTANCE_NORMS, turned_linear
from bayesprune.graph.values import NAN, Value, unknown_like


def _plain(module: Any, *names: str) -> bool:
    """Whether these tensors are the module's own parameters (or None), not computed by a hook or parametrization."""
    return all(module._parameters.get(name) is not None or name in module._parameters for name in names)


def _odd(module: Any) -> str:
    return unusual(module) or "called unusually"


def unusual(module: Any) -> str:
    """Why a layer's weight is not its own; empty if it is."""
    return unusual_parameters(module, "weight", "bias")


def unusual_parameters(module: Any, *names: str) -> str:
    """Why these tensors are not the layer's own parameters; empty if they are."""
    kinds = computed_weights(module)
    if kinds:
        return f"its weight is computed by {', '.join(kinds)}"
    return "" if _plain(module, *names) else "its weight is computed"


def _double(tensor: Tensor | None, size: int, default: float) -> Tensor:
    if tensor is None:
        return torch.full((size,), default, dtype=torch.float64)
    return tensor.detach().double().cpu()


def mixed_const(a: Analysis, uses: Tensor, const: Tensor, sums: Tensor, bias: Tensor | None, folds: bool) -> Tensor:
    """What the rows of a linear map hold: Σ_j c_j W_j + b where every used column j is a constant c_j."""
    rows = uses.shape[0]
    if a.fold and folds:
        known = const.nan_to_num(nan=0.0)
        out = (sums * known).sum(1) + _double(bias, rows, 0.0)
        return torch.where((uses & const.isnan()).any(1), NAN, out)
    live = (uses & (const != 0)).any(1)  # NaN is not 0
    if a.fold:
        return torch.where(live, NAN, _double(bias, rows, 0.0))
    zero_bias = torch.ones(rows, dtype=torch.bool) if bias is None else a.zeros.of(bias)
    return torch.where(~live & zero_bias, 0.0, torch.full((rows,), NAN, dtype=torch.float64))


def _only_input(a: Analysis, node: fx.Node) -> Any:
    if len(node.args) == 1 and not node.kwargs:
        return a.read(node, node.args[0])
    given = dict(node.kwargs)
    return a.read(node, given["input"]) if not node.args and list(given) == ["input"] else None


def linear(a: Analysis, node: fx.Node, module: Any) -> Any:
    """``nn.Linear`` over the channels, which must lie along the last dimension."""
    return linear_on(a, node, module, _only_input(a, node))


def linear_on(a: Analysis, node: fx.Node, module: Any, source: Any, functional: bool = False) -> Any:
    """The same, given what it reads; as a function it does not fold constants into a bias that it does not have."""
    if not isinstance(source, Value) or not _plain(module, "weight", "bias"):
        return a.unknown(node, f"linear layer {node.meta['name']} ({_odd(module)})")
    last = len(source.shape) - 1
    if last < 1 or source.axes not in ((), (last,)):
        return a.unknown(node, f"linear layer {node.meta['name']} across the channels' dimension")
    return _mix(a, node, module, a.channels(node, source, last), last, not functional or module.bias is not None)


def convolution(a: Analysis, node: fx.Node, module: Any) -> Any:
    """``nn.Conv1d/2d/3d``, grouped too: whole groups stay or go."""
    return convolution_on(a, node, module, _only_input(a, node))


def convolution_on(a: Analysis, node: fx.Node, module: Any, source: Any, functional: bool = False) -> Any:
    """The same, given what it reads; as a function it may pad otherwise, and no constant is folded."""
    if not isinstance(source, Value) or not _plain(module, "weight", "bias"):
        return a.unknown(node, f"convolution {node.meta['name']} ({_odd(module)})")
    source = a.collapsed(source, 1)
    if len(source.shape) != module.weight.dim() or source.axes not in ((), (1,)):
        return a.unknown(node, f"convolution {node.meta['name']} across the channels' dimension")
    return _mix(a, node, module, a.channels(node, source, 1), 1, not functional and not _pads(module))


def _pads(module: Any) -> bool:
    """Whether zeros are put around the image, so that a constant channel is not constant at the border."""
    if module.padding_mode != "zeros" or module.padding == "valid":
        return False
    if module.padding == "same":
        return max(module.kernel_size) > 1
    return any(module.padding)


def _mix(a: Analysis, node: fx.Node, module: Any, source: Value, axis: int, folds: bool) -> Value:
    weight: Tensor = module.weight
    groups = int(getattr(module, "groups", 1))
    used = ~a.zeros.of(weight).flatten(2).all(2) if weight.dim() > 2 else ~a.zeros.of(weight)
    sums = weight.detach().double().cpu()
    sums = sums.flatten(2).sum(2) if sums.dim() > 2 else sums
    if turned_linear(module):
        used, sums = used.t(), sums.t()
    rows = used.shape[0]
    if groups > 1:
        used, sums = _block_diagonal(used, groups), _block_diagonal(sums, groups)
    target = Value(node.meta["shape"], (axis,), a.atoms.fresh(rows))
    if groups > 1:
        per_in, per_out = used.shape[1] // groups, rows // groups
        for g in range(groups):
            ins = source.atoms[g * per_in : (g + 1) * per_in]
            a.atoms.tie_all(torch.cat([ins, target.atoms[g * per_out : (g + 1) * per_out]]))
    reason = a.shared(node, weight, module.bias)
    if reason is not None:
        a.pin(node, source, reason)
        a.pin(node, target, reason)
    # A second call ties the rows to the first's, and reads the same weights.
    a.call(node, module, source.atoms, target.atoms)
    a.mixers.append(Mixer(node.meta["name"], node, source.atoms, target.atoms, used, source.const, folds))
    target.const = mixed_const(a, used, source.const, sums, module.bias, folds)
    return target


def _block_diagonal(matrix: Tensor, groups: int) -> Tensor:
    """(rows, columns of one group) to (rows, all columns)."""
    rows, per_in = matrix.shape
    full = torch.zeros(groups, rows // groups, groups, per_in, dtype=matrix.dtype)
    index = torch.arange(groups)
    full[index, :, index] = matrix.view(groups, rows // groups, per_in)
    return full.view(rows, groups * per_in)


def batch_norm(a: Analysis, node: fx.Node, module: Any) -> Any:
    """BatchNorm: a channel that is constant stays so; with scale and shift at zero it is zero."""
    return batch_norm_on(a, node, module, _only_input(a, node))


def batch_norm_on(a: Analysis, node: fx.Node, module: Any, source: Any, functional: bool = False) -> Any:
    """The same, given what it reads."""
    name = node.meta["name"]
    if not isinstance(source, Value) or not _plain(module, "weight", "bias"):
        return a.unknown(node, f"normalisation {name} ({_odd(module)})")
    source = a.collapsed(source, 1) if source.axes else a.channels(node, source, 1)
    if not source.on(1):
        return a.unknown(node, f"normalisation {name} across the channels' dimension")
    size = source.atoms.numel()
    reason = a.shared(node, module.weight, module.bias)
    if reason is not None:
        a.pin(node, source, reason)
    a.call(node, module, None, source.atoms)
    tracked = module.running_mean is not None
    mean = _double(module.running_mean, size, 0.0)
    if a.fold:
        scale, shift = _double(module.weight, size, 1.0), _double(module.bias, size, 0.0)
        std = (_double(module.running_var, size, 1.0) + module.eps).sqrt()
        # Without running statistics a constant is its own mean.
        const = (source.const - mean) * scale / std + shift if tracked else source.const * 0 + shift
        return source.with_const(torch.where(scale == 0, shift, const))
    no_shift = a.zeros.of(module.bias) if module.bias is not None else torch.ones(size, dtype=torch.bool)
    no_scale = torch.zeros(size, dtype=torch.bool) if module.weight is None else a.zeros.of(module.weight)
    zero = no_shift & (no_scale | ((source.const == 0) & (mean == 0)))
    return source.with_const(torch.where(zero, 0.0, unknown_like(source.const)))


def group_norm(a: Analysis, node: fx.Node, module: Any) -> Any:
    """GroupNorm: the channels of a group share their statistics, so whole groups stay or go."""
    source = a.read(node, node.args[0]) if len(node.args) == 1 else None
    name = node.meta["name"]
    if not isinstance(source, Value) or not _plain(module, "weight", "bias"):
        return a.unknown(node, f"normalisation {name}")
    source = a.collapsed(source, 1) if source.axes else a.channels(node, source, 1)
    if not source.on(1):
        return a.unknown(node, f"normalisation {name} across the channels' dimension")
    size, groups = source.atoms.numel(), int(module.num_groups)
    for group in source.atoms.view(groups, -1):
        a.atoms.tie_all(group)
    if (reason := a.shared(node, module.weight, module.bias)) is not None:
        a.pin(node, source, reason)
    a.call(node, module, None, source.atoms)
    nothing = (source.const == 0).view(groups, -1).all(1).repeat_interleave(size // groups)
    no_shift = a.zeros.of(module.bias) if module.bias is not None else torch.ones(size, dtype=torch.bool)
    no_scale = a.zeros.of(module.weight) if module.weight is not None else torch.zeros(size, dtype=torch.bool)
    shift = _double(module.bias, size, 0.0) if a.fold else torch.full((size,), NAN, dtype=torch.float64)  # it may train
    const = torch.where(nothing | no_scale, torch.where(no_shift, 0.0, shift), unknown_like(shift))
    return source.with_const(a.settled(const))


def layer_norm(a: Analysis, node: fx.Node, module: Any) -> Any:
    """LayerNorm and RMSNorm over the channels need all of them: their number is in the mean."""
    source = a.read(node, node.args[0]) if node.args else None
    name = f"{type(module).__name__} {node.meta['name']}" if module is not None else label(node)
    shape = module.normalized_shape if module is not None else argument(node, 1, "normalized_shape")
    if not isinstance(source, Value) or not isinstance(shape, (tuple, list)):
        return a.unknown(node, f"normalisation {name}")
    if any(axis >= len(source.shape) - len(shape) for axis in source.axes):
        for value in (source, *(a.values.get(arg) for arg in node.all_input_nodes[1:])):
            a.pin(node, value, f"{name} normalises over it")
    return source.with_const(unknown_like(source.const))


def instance_norm(a: Analysis, node: fx.Node, module: Any) -> Any:
    """InstanceNorm: as BatchNorm, of inputs that have a batch."""
    source = _only_input(a, node)
    rank = next(rank for rank, kind in enumerate(INSTANCE_NORMS, 3) if isinstance(module, kind))
    if isinstance(source, Value) and len(source.shape) != rank:
        return a.unknown(node, f"normalisation {node.meta['name']} without a batch")
    if isinstance(source, Value) and module.running_mean is None:
        # A constant less its mean is a rounding error over √ε.
        source = source.with_const(torch.where(source.const == 0, 0.0, NAN))
    return batch_norm_on(a, node, module, source)


def prelu(a: Analysis, node: fx.Node, module: Any) -> Any:
    """PReLU leaves zero at zero; with a slope a channel it has rows of its own."""
    source = a.read(node, node.args[0])
    if not isinstance(source, Value) or not _plain(module, "weight"):
        return a.unknown(node, f"activation {node.meta['name']}")
    if module.num_parameters > 1:
        if not source.on(1):
            return a.unknown(node, f"activation {node.meta['name']} across the channels' dimension")
        if (reason := a.shared(node, module.weight)) is not None:
            a.pin(node, source, reason)
        a.call(node, module, None, source.atoms)
    return source.with_const(torch.where(source.const == 0, 0.0, unknown_like(source.const)))


def embedding(a: Analysis, node: fx.Node, module: Any) -> Any:
    """An embedding writes its columns; what it reads are no channels."""
    shape = node.meta["shape"]
    if not _plain(module, "weight") or module.max_norm is not None:
        return a.unknown(
            node, f"embedding {node.meta['name']} ({unusual_parameters(module, 'weight') or 'with max_norm'})"
        )
    target = Value(shape, (len(shape) - 1,), a.atoms.fresh(module.embedding_dim))
    if (reason := a.shared(node, module.weight)) is not None:
        a.pin(node, target, reason)
    a.call(node, module, None, target.atoms)
    zero = a.zeros.of(module.weight).all(0)
    return target.with_const(torch.where(zero, 0.0, unknown_like(target.const.expand(zero.shape))))


def attention(a: Analysis, node: fx.Node, module: Any) -> Any:
    """``nn.MultiheadAttention`` (or its slim form): whole heads stay or go."""
    name = node.meta["name"]
    bound = dict(zip(("query", "key", "value"), node.args)) | dict(node.kwargs)
    values = [a.read(node, bound.get(key)) for key in ("query", "key", "value")]
    whole = _plain(module, "in_proj_weight") and module.in_proj_weight is not None and _plain(module.out_proj, "weight")
    extras = getattr(module, "bias_k", None) is not None or getattr(module, "add_zero_attn", False)
    if not whole or extras or not all(isinstance(v, Value) and len(v.shape) == 3 for v in values):
        return a.unknown(node, f"attention {name} (unpacked, with extra keys, or unbatched)")
    if any(v.axes not in ((), (2,)) for v in values):
        return a.unknown(node, f"attention {name} across the channels' dimension")
    cache: dict[int, Value] = {}
    sources = [cache.setdefault(id(v), a.channels(node, v, 2)) for v in values]
    for other in sources[1:]:
        a.atoms.tie(sources[0].atoms, other.atoms)  # one in_proj_weight has one set of columns
    heads, head_dim = int(module.num_heads), int(module.head_dim)
    head_atoms = a.atoms.fresh(heads)
    used = (~a.zeros.of(module.in_proj_weight)).view(3, heads, head_dim, -1).any(2)
    for part, source in zip(used, sources):
        a.mixers.append(Mixer(name, node, source.atoms, head_atoms, part, source.const, False, moves=False))
    silent = ~used[2].any(1)
    if module.in_proj_bias is not None:
        silent = silent & a.zeros.of(module.in_proj_bias).view(3, heads, head_dim)[2].all(1)
    const = torch.where(silent, 0.0, torch.full((heads,), NAN, dtype=torch.float64))
    weight, bias = module.out_proj.weight, module.out_proj.bias
    reads = (~a.zeros.of(weight)).view(weight.shape[0], heads, head_dim).any(2)
    shape = node.meta["shape"][0]
    out = Value(shape, (2,), a.atoms.fresh(weight.shape[0]))
    a.mixers.append(Mixer(name, node, head_atoms, out.atoms, reads, const, False, moves=False))
    out.const = mixed_const(a, reads, const, torch.zeros(reads.shape, dtype=torch.float64), bias, False)
    reason = a.shared(node, module.in_proj_weight, weight)
    if any(user.args[-1] == 1 and user.users for user in node.users) or any(u.op == "output" for u in node.users):
        reason = f"the attention weights of {name} are used"
    if reason is not None:
        for atoms in (head_atoms, out.atoms, sources[0].atoms):
            a.pin(node, Value(shape, (2,), atoms), reason)
    a.call(node, module, sources[0].atoms, out.atoms, head_atoms)
    rest = node.meta["shape"]
    return (out, *[Value(s, why=f"attention weights of {name}") if s is not None else None for s in rest[1:]])
