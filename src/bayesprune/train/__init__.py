"""Training: configuration, recipes, the registry of methods, the one loop, checkpoints."""

from bayesprune.train import cifar_recipes, image_recipes, methods, paper_recipes, twin_recipes  # noqa: F401 - they register
from bayesprune.train.config import RunConfig
from bayesprune.train.evaluate import evaluate, load_trained
from bayesprune.train.loop import Interrupted, NonFiniteLoss, Trainer
from bayesprune.train.procedures import Procedure
from bayesprune.train.recipes import recipe
from bayesprune.train.registry import Method, register_method
from bayesprune.train.run import train
from bayesprune.train.settings import override
from bayesprune.train.splits import Splits
from bayesprune.train.task import Classification, Evaluation, Regression, Task, Tokens, register_task
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
    "Splits",
    "Task",
    "Classification",
    "Regression",
    "Tokens",
    "Evaluation",
    "register_task",
    "evaluate",
    "load_trained",
    "save_tree",
    "load_tree",
]
