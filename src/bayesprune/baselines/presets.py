"""The layers that each sparse-training method left dense as it was published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # recipes read the presets, and are listed without torch
    from torch import nn

ROLES = ("stem", "shortcuts", "head")
_SHORTCUT_NAMES = ("shortcut", "downsample")
_IMAGENET = ("resnet50",)


@dataclass(frozen=True)
class Preset:
    """What a method left dense on one family of networks.

    Attributes:
        method: Name of the method.
        data: ``"cifar"`` or ``"imagenet"``: the family of networks.
        dense: Which of the roles stem (the first layer), shortcuts (1 × 1 convolutions beside a block) and head (the
            last linear layer) stay dense. Biases and normalisation always do.
        until: Share of the run at which the masks stop changing; ours where the source says so.
        source: Where this is written.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2))
        >>> published("dsr").exclude(net)
        ('0', '3')
    """

    method: str
    data: str
    dense: tuple[str, ...]
    until: float
    source: str

    def exclude(self, model: nn.Module) -> tuple[str, ...]:
        """The names of the model's modules that stay dense, for a pruner's ``exclude``."""
        return tuple(name for role in self.dense for name in layers_of(model, role))


_RIGL_CIFAR = "google-research/rigl, cifar_resnet/resnet_train_eval.py: prune_first_layer False, prune_last_layer True"
_RIGL_IMAGENET = (
    "google-research/rigl, imagenet_resnet/imagenet_train_eval.py: first_layer_sparsity 0 (not masked), "
    "last_layer_sparsity -1 (as the rest)"
)

PRESETS: dict[tuple[str, str], Preset] = {
    (each.method, each.data): each
    for each in (
        Preset(
            "sparse_momentum", "cifar", (), 1.0,
            "TimDettmers/sparse_learning, mnist_cifar/main.py: add_module masks all but biases and BatchNorm",
        ),
        Preset(
            "sparse_momentum", "imagenet", ("stem", "shortcuts"), 1.0,
            "TimDettmers/sparse_learning, imagenet/dynamic-reparameterization/main.py ('partially dense'): "
            "remove_weight_partial_name('downsample'), remove_weight('conv1.weight')",
        ),
        Preset(
            "dsr", "cifar", ROLES, 0.95,
            "the authors' package dst, README: of WRN-28-2 24 convolutions of 1,451,520 weights are sparse; the first "
            "convolution, the shortcuts and the last layer are dense. until is ours",
        ),
        Preset(
            "dsr", "imagenet", ("stem", "shortcuts"), 0.95,
            "the authors' ResNet-50 as run in TimDettmers/sparse_learning, imagenet/dynamic-reparameterization: "
            "vanilla_downsample, plain conv1, sparse last layer; until is ours",
        ),
        Preset("set", "cifar", ("stem",), 0.75, _RIGL_CIFAR + " (its training_method='set')"),
        Preset("set", "imagenet", ("stem",), 0.75, _RIGL_IMAGENET + " (its training_method='set')"),
        Preset("rigl", "cifar", ("stem",), 0.75, _RIGL_CIFAR),
        Preset("rigl", "imagenet", ("stem",), 0.75, _RIGL_IMAGENET),
        Preset("gmp", "cifar", ("stem",), 0.75, _RIGL_CIFAR + " (its training_method='prune')"),
        Preset("gmp", "imagenet", ("stem",), 0.75, _RIGL_IMAGENET),
        Preset("dpf", "cifar", (), 0.75, "no list found for arXiv 2006.07253: nothing left dense; until is ours"),
        Preset("dpf", "imagenet", (), 0.75, "no list found for arXiv 2006.07253: nothing left dense; until is ours"),
    )
}  # fmt: skip


def published(method: str, network: str = "resnet18") -> Preset:
    """The published choice of dense layers of a method on a network.

    Args:
        method: ``"sparse_momentum"``, ``"dsr"``, ``"set"``, ``"rigl"``, ``"gmp"`` or ``"dpf"``.
        network: Name of a network: ``"resnet50"`` is of the ImageNet family, all others of CIFAR's; or the family.

    Returns:
        The preset.

    Raises:
        ValueError: If the method is unknown.

    Example:
        >>> published("dsr", "wrn28_10").dense, published("dsr", "resnet50").dense
        (('stem', 'shortcuts', 'head'), ('stem', 'shortcuts'))
    """
    data = "imagenet" if network in ("imagenet", *_IMAGENET) else "cifar"
    known = sorted({name for name, _ in PRESETS})
    if method not in known:
        raise ValueError(f"method={method!r} has no preset; choose one of {', '.join(map(repr, known))}")
    return PRESETS[method, data]


def layers_of(model: nn.Module, role: str) -> list[str]:
    """The names of a model's layers that play a role.

    Args:
        model: The model.
        role: ``"stem"``: the first prunable layer. ``"shortcuts"``: those inside modules named shortcut or downsample.
            ``"head"``: the last linear layer. First and last are as the modules were registered.

    Returns:
        Module names; empty if there are none (or if the head would be the stem).

    Raises:
        ValueError: If the role is unknown.

    Example:
        >>> from torch import nn
        >>> layers_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), "head")
        ['2']
    """
    from torch import nn

    from bayesprune.sparsity import prunable_modules

    modules, _ = prunable_modules(model)
    names = list(modules)
    if role == "stem":
        return names[:1]
    if role == "shortcuts":
        return [name for name in names if any(part in _SHORTCUT_NAMES for part in name.split("."))]
    if role == "head":
        return [name for name in names[1:] if isinstance(modules[name], nn.Linear)][-1:]
    raise ValueError(f"role={role!r} is unknown; choose one of {', '.join(map(repr, ROLES))}")
