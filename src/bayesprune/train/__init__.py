"""Training: configuration, recipes, the registry of methods, the one loop, checkpoints."""

from bayesprune.train import cifar_recipes, image_recipes, methods  # noqa: F401 - they register
from bayesprune.train.config import RunConfig
from bayesprune.train.evaluate import evaluate, load_trained
from bayesprune.train.loop import Interrupted, NonFiniteLoss, Trainer, train
from bayesprune.train.procedures import Procedure
from bayesprune.train.recipes import recipe
from bayesprune.train.registry import Method, register_method
from bayesprune.train.settings import override
from bayesprune.train.tree import load_tree, save_tree

__all__ = [
    "train",
    "Trainer",
    "NonFiniteLoss",
    "Interrupted",
    "RunConfig",
    "override",
    "recipe",
    "Method",
    "register_method",
    "Procedure",
    "evaluate",
    "load_trained",
    "save_tree",
    "load_tree",
]
