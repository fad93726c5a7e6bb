"""Narrow networks of every family, pruned at random, for the tests of compaction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayesprune.sparsity import ForwardPruning
from bayesprune.vision import BasicBlock, Bottleneck, ResNet, WideResNet, mlp
from bayesprune.vision.families import VGG, DenseNet, VisionTransformer
from sparsity.plain import forward_pruning

IMAGE = (2, 3, 16, 16)
FAMILIES = {
    "resnet18": (lambda: ResNet(BasicBlock, (2, 2, 2, 2), (6, 8, 8, 12), num_classes=5), (2, 3, 8, 8)),
    "resnet34": (lambda: ResNet(BasicBlock, (3, 4, 6, 3), (4, 6, 6, 8), num_classes=5), (2, 3, 8, 8)),
    "resnet50": (
        lambda: ResNet(Bottleneck, (3, 4, 6, 3), (4, 6, 6, 8), num_classes=5, stem="imagenet"),
        (2, 3, 32, 32),
    ),
    "wrn28": (lambda: WideResNet(28, 1, num_classes=5), (2, 3, 8, 8)),
    "vgg": (lambda: VGG((1, 1, 2), (8, 8, 16), num_classes=5, hidden=(12,), pool=2), IMAGE),
    "densenet": (lambda: DenseNet((2, 3, 2), 4, num_classes=5), (2, 3, 8, 8)),
    "mlp": (lambda: mlp([20, 16, 16, 5]), (2, 20)),
    "vit": (lambda: _vit("torch"), IMAGE),
    "vit-linear": (lambda: _vit("linear"), IMAGE),
}


def _vit(attention: str) -> VisionTransformer:
    return VisionTransformer(num_classes=5, width=16, depth=2, heads=4, hidden=24, image_size=16, attention=attention)


def network(family: str, seed: int) -> tuple[nn.Module, Tensor]:
    """A network that has seen a few batches, with nothing at its initial value, and an input."""
    make, shape = FAMILIES[family]
    torch.manual_seed(seed)
    model = make().train()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.1 * torch.randn_like(param))
        settle_(model, torch.randn(16, *shape[1:]))
    return model, torch.randn(shape)


@torch.no_grad()
def settle_(model: nn.Module, inputs: Tensor) -> None:
    """Give BatchNorm the running statistics of a batch, so that outputs are of order 1 in evaluation mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(inputs)
    for norm in norms:
        norm.momentum = 0.1
        norm.running_var.clamp_(min=0.1)  # a channel that is constant by chance is not to be blown up


def pruned_at_random(
    model: nn.Module,
    example: Tensor,
    groups: str,
    share: float,
    optimizer: torch.optim.Optimizer | None = None,
    **settings,
) -> ForwardPruning:
    """A pruner of the model that drops each group with probability `share`; heads whole."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    if groups == "channel":
        settings["example_input"] = example
    pruner = forward_pruning(model, optimizer, groups=groups, **settings)
    state = pruner.state_dict()
    modules = dict(model.named_modules())
    for name, mask in state["keep"].items():
        keep = torch.rand(mask.shape) >= share
        heads = getattr(modules[name.removesuffix(".out_proj.weight")], "num_heads", 0) if "out_proj" in name else 0
        if name.endswith("attention.out.weight"):
            heads = 4
        if heads and groups == "input":
            keep = (torch.rand(heads) >= share).repeat_interleave(mask.numel() // heads).view(mask.shape)
        state["keep"][name] = keep
    pruner.load_state_dict(state)
    pruner.apply_()
    _calm_head_(model, example)
    return pruner


@torch.no_grad()
def _calm_head_(model: nn.Module, example: Tensor) -> None:
    """Logits of order 1: differences are judged absolutely."""
    inputs = [example] if example.dim() == 2 else [example, torch.randn(3, 3, 13, 15, dtype=example.dtype)]
    training = model.training
    largest = max(float(model.eval()(x).abs().max()) for x in inputs)
    model.train(training)
    head = model.head if hasattr(model, "head") else model[-1]
    for param in head.parameters():
        param.div_(max(1.0, largest))


def groups_of(family: str) -> str:
    """Channel groups, or, for a transformer, the columns of the layers that read heads and hidden units."""
    return "input" if family.startswith("vit") else "channel"


def train(model: nn.Module, optimizer: torch.optim.Optimizer, example: Tensor, steps: int, start: int = 0) -> None:
    """Optimizer steps on batches that depend on the step alone."""
    model.train()
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn((8, *example.shape[1:]), generator=generator, dtype=torch.float64).to(example.dtype)
        labels = torch.randint(5, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def largest_difference(one: nn.Module, two: nn.Module, *inputs: Tensor) -> float:
    """Largest absolute difference of the outputs in evaluation mode."""
    modes = one.training, two.training
    one.eval()
    two.eval()
    with torch.no_grad():
        worst = max(float((one(x) - two(x)).abs().max()) for x in inputs)
    one.train(modes[0])
    two.train(modes[1])
    return worst


def residual(seed: int = 2) -> ResNet:
    """A small residual network with statistics of its own."""
    torch.manual_seed(seed)
    model = ResNet(BasicBlock, (2, 1), (6, 8), num_classes=3)
    settle_(model, torch.randn(8, 3, 8, 8))
    return model


@torch.no_grad()
def zero_(tensor: Tensor, *index: object) -> None:
    """Set a part of a tensor to zero."""
    tensor[index] = 0
