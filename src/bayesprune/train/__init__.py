"""Training: configuration, recipes, the one loop, checkpoints."""

from bayesprune.train.chains import train_chains
from bayesprune.train.config import RunConfig
from bayesprune.train.evaluate import evaluate, load_trained
from bayesprune.train.loop import Interrupted, NonFiniteLoss, Trainer, train
from bayesprune.train.recipes import recipe
from bayesprune.train.settings import override
from bayesprune.train.tree import load_tree, save_tree

__all__ = [
    "train",
    "train_chains",
    "Trainer",
    "NonFiniteLoss",
    "Interrupted",
    "RunConfig",
    "override",
    "recipe",
    "evaluate",
    "load_trained",
    "save_tree",
    "load_tree",
]
