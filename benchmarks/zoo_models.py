"""The networks of the zoo: torchvision's, timm's and transformers' as a user would bring them, and three of torch alone.

All are initialised at random, with nothing at its initial value and running statistics of a batch of noise. Nothing is
downloaded. A row names its input's size; the smaller ones are there to save time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten


@dataclass(frozen=True)
class Network:
    """One network of the zoo.

    Attributes:
        make: Builds it.
        example: An input: a tensor, a tuple, or a dict by name.
        outputs: Number of classes: the layers with as many outputs write them.
        heavy: Comes last.
    """

    make: Callable[[], nn.Module]
    example: Callable[[int], Any]
    outputs: int = 1000
    heavy: bool = False


def zoo() -> dict[str, Network]:
    """All networks by name, the heavy ones last."""
    found: dict[str, Network] = {**_torch(), **_transformers(), **_timm(), **_torchvision()}
    return dict(sorted(found.items(), key=lambda item: item[1].heavy))


def images(extent: int) -> Callable[[int], Tensor]:
    """Noise of the size of a batch of images."""
    return lambda batch: torch.randn(batch, 3, extent, extent)


def randomise_(model: nn.Module, example: Any, seed: int) -> nn.Module:
    """Move what starts at a constant, and give BatchNorm the statistics of a batch, so that nothing is zero by chance."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            if param.dim() < 2 or bool((param == param.flatten()[0]).all()):
                param.add_(0.1 * torch.randn_like(param))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0
        model.train()
        call(model, example)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 0.1
    return model.eval()


def call(model: nn.Module, example: Any) -> list[Tensor]:
    """The model's output on an example, as the list of its tensors."""
    named = example if isinstance(example, dict) else {}
    output = model(*(() if named else example if isinstance(example, tuple) else (example,)), **named)
    values = output.values() if hasattr(output, "values") and not isinstance(output, Tensor) else output
    leaves = tree_flatten(list(values) if not isinstance(values, (Tensor, tuple)) else values)[0]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


class UNet(nn.Module):
    """Three levels down, two up, joined by concatenation."""

    def __init__(self, width: int = 32, classes: int = 5) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            self._block(a, b) for a, b in ((3, width), (width, 2 * width), (2 * width, 4 * width))
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * n, n, 2, stride=2) for n in (2 * width, width))
        self.join = nn.ModuleList(self._block(2 * n, n) for n in (2 * width, width))
        self.pool = nn.MaxPool2d(2)
        self.out = nn.Conv2d(width, classes, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for a in (inputs, outputs):
            layers += [nn.Conv2d(a, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """One class a pixel."""
        first = self.down[0](x)
        second = self.down[1](self.pool(first))
        x = self.down[2](self.pool(second))
        x = self.join[0](torch.cat([second, self.up[0](x)], 1))
        return self.out(self.join[1](torch.cat([first, self.up[1](x)], 1)))


class LSTMClassifier(nn.Module):
    """Embedding, two layers of LSTM, and a hidden layer on the last state."""

    def __init__(self, words: int = 500, width: int = 64, hidden: int = 128, classes: int = 5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, hidden, num_layers=2, batch_first=True)
        self.hidden = nn.Linear(hidden, 256)
        self.out = nn.Linear(256, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """One row of classes a sequence."""
        states, _ = self.lstm(self.embedding(tokens))
        return self.out(torch.relu(self.hidden(states[:, -1])))


class Encoder(nn.Module):
    """`nn.TransformerEncoder` on vectors, and a classifier on the mean."""

    def __init__(self, width: int = 96, classes: int = 5) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """One row of classes a sequence."""
        return self.out(self.encoder(x).mean(1))


def _torch() -> dict[str, Network]:
    return {
        "U-Net": Network(UNet, images(32), 5),
        "LSTM classifier": Network(LSTMClassifier, lambda n: torch.randint(500, (n, 12)), 5),
        "nn.TransformerEncoder": Network(Encoder, lambda n: torch.randn(n, 10, 96), 5),
    }


def _tokens(batch: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(500, (batch, 16)), "attention_mask": torch.ones(batch, 16, dtype=torch.long)}


def _transformers() -> dict[str, Network]:
    sizes = {
        "Bert": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256},
        "DistilBert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 256},
    }

    def make(name: str) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            library = importlib.import_module("transformers")
            config = getattr(library, f"{name}Config")(vocab_size=500, num_labels=5, **sizes[name])
            return getattr(library, f"{name}ForSequenceClassification")(config)

        return build

    return {f"transformers {name}": Network(make(name), _tokens, 5) for name in sizes}


def _timm() -> dict[str, Network]:
    def make(name: str, settings: dict[str, Any]) -> Callable[[], nn.Module]:
        return lambda: importlib.import_module("timm").create_model(name, pretrained=False, **settings)

    chosen: dict[str, tuple[int, dict[str, Any]]] = {
        "resnet50": (64, {}),
        "efficientnet_b0": (64, {}),
        "convnext_nano": (64, {}),
        "vit_tiny_patch16_224": (64, {"img_size": 64}),
        "mixer_s32_224": (64, {"img_size": 64}),
        "mobilenetv4_conv_small": (64, {}),
    }
    return {f"timm {name}": Network(make(name, more), images(size)) for name, (size, more) in chosen.items()}


def _torchvision() -> dict[str, Network]:
    def make(name: str, settings: dict[str, Any]) -> Callable[[], nn.Module]:
        group = "models.segmentation" if name.startswith(("fcn", "deeplab")) else "models"
        more = {"weights": None, **settings}
        if group != "models":
            more["weights_backbone"] = None
        return lambda: getattr(importlib.import_module(f"torchvision.{group}"), name)(**more)

    heads, no_heads = {"aux_logits": True, "init_weights": True}, {"aux_logits": False, "init_weights": True}
    light: dict[str, tuple[str, int, dict[str, Any]]] = {
        "squeezenet1_1": ("squeezenet1_1", 64, {}),
        "shufflenet_v2_x1_0": ("shufflenet_v2_x1_0", 64, {}),
        "mnasnet1_0": ("mnasnet1_0", 64, {}),
        "mobilenet_v2": ("mobilenet_v2", 64, {}),
        "mobilenet_v3_small": ("mobilenet_v3_small", 64, {}),
        "mobilenet_v3_large": ("mobilenet_v3_large", 64, {}),
        "efficientnet_b0": ("efficientnet_b0", 64, {}),
        "googlenet without heads": ("googlenet", 96, no_heads),
        "googlenet with heads": ("googlenet", 96, heads),
        "regnet_y_400mf": ("regnet_y_400mf", 64, {}),
        "resnet50": ("resnet50", 64, {}),
        "resnext50_32x4d": ("resnext50_32x4d", 64, {}),
    }
    heavy: dict[str, tuple[str, int, dict[str, Any]]] = {
        "densenet121": ("densenet121", 64, {}),
        "convnext_tiny": ("convnext_tiny", 64, {}),
        "swin_t": ("swin_t", 64, {}),
        "efficientnet_v2_s": ("efficientnet_v2_s", 64, {}),
        "alexnet": ("alexnet", 96, {}),
        "inception_v3": ("inception_v3", 96, {**no_heads}),
        "fcn_resnet50": ("fcn_resnet50", 64, {}),
        "deeplabv3_resnet50": ("deeplabv3_resnet50", 64, {}),
        "wide_resnet50_2": ("wide_resnet50_2", 64, {}),
        "vit_b_16": ("vit_b_16", 64, {"image_size": 64}),
        "vgg16_bn": ("vgg16_bn", 64, {}),
    }
    found = {}
    for late, chosen in ((False, light), (True, heavy)):
        for title, (name, size, more) in chosen.items():
            outputs = 21 if name.startswith(("fcn", "deeplab")) else 1000
            found[f"torchvision {title}"] = Network(make(name, more), images(size), outputs, late)
    return found
