"""Making the modules smaller, and moving constants into biases, running means or a carrier's kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bayesprune.compaction.slices import Cut, cut_of, take
from bayesprune.compaction.solve import Solution
from bayesprune.graph.analysis import Analysis, Call, Mixer
from bayesprune.graph.hooks import HOOKS
from bayesprune.graph.layers import CONVOLUTIONS, TRANSPOSED, turned_linear
from bayesprune.graph.slim_attention import SlimAttention


@torch.no_grad()
def rewrite_(model: nn.Module, a: Analysis, solution: Solution) -> list[str]:
    """Make a copy of the analysed model physically smaller, in place."""
    modules = dict(model.named_modules(remove_duplicate=False))
    notes = []
    for place, mixer in enumerate(a.mixers):
        if mixer.node in a.alive and a.fold and mixer.moves:
            notes += _move_constants_(modules, a, mixer, solution, solution.carriers.get(place))
    for call in a.calls.values():
        if call.node in a.alive:
            _shrink_(model, modules, call, solution)
    for name, (dim, atoms, node) in a.tensors.items():
        if node in a.alive and not bool(solution.kept(atoms).all()):
            path, _, which = name.rpartition(".")
            _cut_(modules[path], which, [(dim, solution.index(atoms))])
    return notes


def _move_constants_(
    modules: dict[str, nn.Module], a: Analysis, mixer: Mixer, solution: Solution, carrier: int | None
) -> list[str]:
    """Let the bias, or a carrier's kernel, stand for the constant columns that go: b ← b + Σ_j c_j Σ_k W_jk."""
    used = mixer.uses[solution.kept(mixer.target)].any(0)
    lost = used & ~solution.kept(mixer.source) & (mixer.const != 0) & ~mixer.const.isnan()
    if not lost.any():
        return []
    module: Any = modules[mixer.name]
    weight = module.weight.t() if turned_linear(module) else module.weight
    columns = lost.nonzero().flatten().to(module.weight.device)
    const = mixer.const[lost].to(weight.device)
    kernels = weight.double().index_select(1, columns)
    shape = [1, -1, *[1] * (weight.dim() - 2)]
    if not mixer.folds:
        assert carrier is not None
        share = (kernels * (const / mixer.const[carrier].to(const.device)).view(shape)).sum(1)
        weight[:, carrier] = (weight[:, carrier].double() + share).to(weight.dtype)
        return [f"{mixer.name}: {columns.numel()} constant channels carried by its channel {carrier}"]
    delta = (kernels.flatten(2).sum(2) if weight.dim() > 2 else kernels) @ const
    if module.bias is not None:
        module.bias.add_(delta.to(module.bias.dtype))
        return [f"{mixer.name}: {columns.numel()} constant channels in its bias"]
    norm = _norm_behind(modules, a, mixer)
    if norm is not None:
        mean = norm[1].running_mean
        mean.sub_(delta.to(mean.dtype))
        return [f"{mixer.name}: {columns.numel()} constant channels in the running mean of {norm[0]}"]
    module.bias = nn.Parameter(delta.to(weight.dtype), requires_grad=weight.requires_grad)
    return [f"{mixer.name}: {columns.numel()} constant channels in a bias that it did not have"]


def _norm_behind(modules: dict[str, nn.Module], a: Analysis, mixer: Mixer) -> tuple[str, Any] | None:
    """The BatchNorm that alone reads a layer, if there is one: a constant is subtracted there in any case."""
    users = list(mixer.node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    name = users[0].meta.get("name", "")
    norm: Any = modules.get(name)
    fits = isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm))
    return (name, norm) if fits and norm.running_mean is not None and name not in a.repeated else None


def _shrink_(model: nn.Module, modules: dict[str, nn.Module], call: Call, solution: Solution) -> None:
    module: Any = modules[call.name]
    cuts, rows = cut_of(call, solution, module), int(solution.kept(call.target).sum())
    if not cuts and rows == call.target.numel():
        return
    if isinstance(module, nn.MultiheadAttention):
        old, module = module, _slim(module)
        for name, held in list(modules.items()):
            if held is old:
                parent, _, child = name.rpartition(".")
                setattr(modules[parent] if parent else model, child, module)
                modules[name] = module
    for suffix, cut in cuts.items():
        path, _, name = suffix.rpartition(".")
        owner = module.get_submodule(path) if path else module
        _cut_(owner, name, cut)
    _resize_(module, rows)


def _cut_(owner: Any, name: str, cut: Cut) -> None:
    param = owner._parameters.get(name)
    if param is not None:
        setattr(owner, name, nn.Parameter(take(param, cut), requires_grad=param.requires_grad))
    else:
        owner._buffers[name] = take(owner._buffers[name], cut)


def _resize_(module: Any, rows: int) -> None:
    """Bring the module's attributes in line with its tensors."""
    if isinstance(module, SlimAttention):
        module.embed_dim = module.in_proj_weight.shape[1]
        module.num_heads = module.in_proj_weight.shape[0] // 3 // module.head_dim
        module.out_proj.out_features, module.out_proj.in_features = module.out_proj.weight.shape
        module.out_dim = module.out_proj.out_features
    elif isinstance(module, nn.RNNBase):
        module.hidden_size, module.input_size = rows, int(module.weight_ih_l0.shape[1])  # type: ignore[index, arg-type, union-attr]
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = rows
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif turned_linear(module):
        module.nx, module.nf = module.weight.shape
    elif isinstance(module, TRANSPOSED):
        module.in_channels, module.out_channels = module.weight.shape[:2]
    elif isinstance(module, CONVOLUTIONS):
        per_group = module.out_channels // module.groups
        module.out_channels = module.weight.shape[0]
        module.groups = module.out_channels // per_group if module.groups > 1 else 1
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = rows // (module.num_channels // module.num_groups)
        module.num_channels = rows
    elif isinstance(module, nn.PReLU):
        module.num_parameters = rows
    else:
        module.num_features = rows


def _slim(old: nn.MultiheadAttention) -> SlimAttention:
    """The same attention in the form that can have fewer heads; it takes over the parameters and hooks."""
    new = SlimAttention(
        old.embed_dim, old.num_heads, int(old.head_dim), bias=old.in_proj_bias is not None, dropout=old.dropout,
        batch_first=old.batch_first, device="meta",
    )  # fmt: skip
    new.in_proj_weight, new.in_proj_bias = old.in_proj_weight, old.in_proj_bias
    new.out_proj = old.out_proj
    new.training = old.training
    for name in HOOKS:
        if name in old.__dict__:
            new.__dict__[name] = old.__dict__[name]
    return new
