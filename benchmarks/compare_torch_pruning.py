"""Compaction beside Torch-Pruning on the same masks: what each drops, changes or refuses.

    pip install "bayesprune[compare]"
    python -m benchmarks.compare_torch_pruning [--seed 0]

Every family is pruned at random, three ways: coupled channel groups; rows alone, as groups="output" leaves them; columns
alone, as groups="input" does. Torch-Pruning is told, layer after layer, which rows (columns) are zero, and takes with each
what its dependency graph couples to it. Networks are narrow: what counts is their structure.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayesprune.compaction import CompactionError, compact
from bayesprune.deploy.profile import multiply_adds
from bayesprune.sparsity import ForwardPruning
from bayesprune.train.folder import environment, write_json
from bayesprune.vision import BasicBlock, Bottleneck, ResNet, WideResNet, mlp
from bayesprune.vision.families import VGG, DenseNet, VisionTransformer

RESULTS = Path(__file__).parent / "results" / "compare_torch_pruning.json"
SHARE = 0.5
IMAGE = (2, 3, 32, 32)
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-18": (lambda: ResNet(BasicBlock, (2, 2, 2, 2), (16, 32, 64, 128), num_classes=10), IMAGE),
    "ResNet-34": (lambda: ResNet(BasicBlock, (3, 4, 6, 3), (16, 32, 64, 128), num_classes=10), IMAGE),
    "ResNet-50": (
        lambda: ResNet(Bottleneck, (3, 4, 6, 3), (16, 32, 64, 128), num_classes=10, stem="imagenet"),
        (2, 3, 64, 64),
    ),
    "WRN-28-2": (lambda: WideResNet(28, 2, num_classes=10), IMAGE),
    "VGG-style": (lambda: VGG((2, 2, 3), (16, 32, 64), num_classes=10, hidden=(64,), pool=2), IMAGE),
    "DenseNet-style": (lambda: DenseNet((4, 4, 4), 12, num_classes=10), IMAGE),
    "MLP": (lambda: mlp([64, 128, 128, 10]), (2, 64)),
    "ViT": (lambda: VisionTransformer(num_classes=10, width=32, depth=2, heads=4), IMAGE),
}
MASKS = {"channel": "coupled channels", "output": "rows alone", "input": "columns alone"}


def network(make: Callable[[], nn.Module], shape: tuple[int, ...], seed: int) -> nn.Module:
    """A network with nothing at its initial value and running statistics of a batch, so that outputs are of order 1."""
    torch.manual_seed(seed)
    model = make().train()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.1 * torch.randn_like(param))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model(torch.randn(16, *shape[1:]))
    return model.eval()


def prune_(model: nn.Module, example: Tensor, groups: str) -> None:
    """Drop each group with the same probability; of attention whole heads."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"example_input": example} if groups == "channel" else {}
    pruner = ForwardPruning(model, optimizer, groups=groups, em_only=True, keep_ends=False, **settings)
    state, modules = pruner.state_dict(), dict(model.named_modules())
    for name, mask in state["keep"].items():
        keep = torch.rand(mask.shape) >= SHARE
        owner = modules.get(name.removesuffix(".out_proj.weight"))
        if isinstance(owner, nn.MultiheadAttention) and groups == "input":
            heads = torch.rand(owner.num_heads) >= SHARE
            keep = heads.repeat_interleave(mask.numel() // owner.num_heads).view(mask.shape)
        if groups == "output" and modules[name.removesuffix(".weight")] is list(modules.values())[-1]:
            keep = torch.ones_like(mask)  # the model's outputs stay
        state["keep"][name] = keep
    pruner.load_state_dict(state)
    pruner.apply_()
    pruner.detach()


def largest_difference(one: nn.Module, two: nn.Module, shape: tuple[int, ...]) -> float:
    """Largest difference of the outputs at two sizes, relative to the largest output where that exceeds 1."""
    sizes = [shape] if len(shape) == 2 else [shape, (3, *shape[1:2], shape[2] - 3, shape[3] - 1)]
    if any(isinstance(module, nn.MultiheadAttention) for module in one.modules()):
        sizes = [shape, (3, *shape[1:2], shape[2] // 2, shape[3] // 2)]
    worst = 0.0
    with torch.no_grad():
        for size in sizes:
            x = torch.randn(size, generator=torch.Generator().manual_seed(1))
            wanted = one.eval()(x)
            worst = max(worst, float((two.eval()(x) - wanted).abs().max() / wanted.abs().max().clamp(min=1.0)))
    return worst


def ours(model: nn.Module, example: Tensor) -> tuple[nn.Module | None, str]:
    try:
        return compact(model, example_input=example).model, ""
    except CompactionError as error:
        return None, error.reason


def theirs(model: nn.Module, example: Tensor, groups: str, careful: bool) -> tuple[nn.Module | None, str]:
    """Torch-Pruning, told layer after layer what is zero; what it would not do, or None if it failed.

    Plain, a zero row (column) is pruned as its tutorial does, with all that the graph couples to it. Careful, only channels
    of which all coupled rows, biases and normalisation pairs are zero, or all coupled columns: the check is this script's.
    """
    import torch_pruning as tp

    model = copy.deepcopy(model)
    try:
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    except Exception as error:
        return None, f"no graph: {_first_line(error)}"
    columns = groups == "input" and not careful
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and "out_proj" not in n]
    # The model's inputs and outputs are nobody's to remove; Torch-Pruning is not asked to.
    layers = layers[1:] if columns else layers[:-1]
    emptied, failed = 0, []
    for name, module in layers:
        kind = "conv" if isinstance(module, nn.Conv2d) else "linear"
        function = getattr(tp, f"prune_{kind}_{'in' if columns else 'out'}_channels")
        try:
            if careful:
                each = range(module.weight.shape[0])
                indices = [i for i in each if _agreed(graph.get_pruning_group(module, function, idxs=[i]))]
            else:
                zero = _zero(module.weight, 1 if columns else 0)
                indices = zero.nonzero().flatten().tolist()
            if not indices:
                continue
            group = graph.get_pruning_group(module, function, idxs=indices)
            if graph.check_pruning_group(group):
                group.prune()
            else:
                emptied += 1
        except Exception as error:
            failed.append(f"{name}: {_first_line(error)}")
    said = [f"leaves {emptied} layers whole that would be emptied" if emptied else "", *failed[:1]]
    return model, "; ".join(filter(None, said))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:70]}"


def _zero(weight: Tensor, axis: int) -> Tensor:
    """Which rows (axis 0) or columns (axis 1) are zero altogether."""
    return weight.detach().movedim(axis, 0).reshape(weight.shape[axis], -1).eq(0).all(1)


def _agreed(group: Any) -> bool:
    """Whether a group of one channel is zero at all that write it, or ignored by all that read it."""
    written, read = True, True
    for dependency, indices in group:
        module, does = dependency.target.module, dependency.handler.__name__
        if isinstance(module, (nn.Conv2d, nn.Linear)) and "in" in does.split("_"):
            read = read and bool(_zero(module.weight, 1)[indices].all())
        elif isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            written = written and bool(_zero(module.weight, 0)[indices].all())
            written = written and (module.bias is None or not module.bias.detach()[indices].any())
        elif isinstance(module, nn.Module) and any(True for _ in module.parameters()):
            return False  # LayerNorm, attention: other channels would feel it
    return written or read


def row(model: nn.Module, small: nn.Module | None, said: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """What came out: parameters and multiply-adds that are left, the difference of the outputs, and what was said."""
    if small is None:
        return {"said": said}
    counts = [sum(p.numel() for p in each.parameters()) for each in (model, small)]
    found: dict[str, Any] = {"parameters": counts[1] / counts[0], "said": said}
    try:
        found["difference"] = largest_difference(model, small, shape)
        found["madds"] = multiply_adds(small, (torch.zeros(shape),)) / multiply_adds(model, (torch.zeros(shape),))
    except Exception as error:
        found["said"] = "; ".join(filter(None, [said, f"does not run: {_first_line(error)}"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = []
    for family, (make, shape) in FAMILIES.items():
        for groups, masks in MASKS.items():
            model, example = network(make, shape, arguments.seed), torch.randn(shape)
            try:
                prune_(model, example, groups)
            except ValueError:  # nothing that such groups could remove
                continue
            entry: dict[str, Any] = {"family": family, "masks": masks}
            for name, (small, said) in {
                "bayesprune": ours(model, example),
                "torch_pruning": theirs(model, example, groups, careful=False),
                "torch_pruning_careful": theirs(model, example, groups, careful=True),
            }.items():
                entry[name] = row(model, small, said, shape)
            rows.append(entry)
            print(family, masks, flush=True)
    settings = {"seed": arguments.seed, "share": SHARE, "torch_pruning": version("torch-pruning")}
    result = {"rows": rows, "settings": settings, "environment": environment("cpu")}
    write_json(RESULTS, result)
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """Return the rows as a Markdown table: parameters left, the largest difference of the outputs, and what was said."""
    lines = [
        "| network | masks | ours: parameters left, difference | Torch-Pruning | Torch-Pruning, agreed channels | it says |",
        "|---|---|---|---|---|---|",
    ]
    for entry in result["rows"]:
        cells, said = [entry["family"], entry["masks"]], []
        for name in ("bayesprune", "torch_pruning", "torch_pruning_careful"):
            found = entry[name]
            left = f"{found['parameters']:.1%}" if "parameters" in found else "–"
            off = f"{found['difference']:.0e}" if "difference" in found else "does not run"
            cells.append(f"{left}, {off}")
            said += [part for part in found["said"].split("; ") if part and part not in said]
        lines.append("| " + " | ".join([*cells, "; ".join(said).replace("|", "/")]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
