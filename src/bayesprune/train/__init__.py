"""Training: configuration, recipes, the registry of methods, the one loop, checkpoints."""

from typing import TYPE_CHECKING

from bayesprune.common.lazy import lazy

if TYPE_CHECKING:
    from bayesprune.train.config import RunConfig
    from bayesprune.train.evaluation import evaluate, load_trained
    from bayesprune.train.loop import Interrupted, NonFiniteLoss, Trainer, train
    from bayesprune.train.procedures import Procedure
    from bayesprune.train.recipes import recipe
    from bayesprune.train.registry import Method, register_method
    from bayesprune.train.settings import override
    from bayesprune.train.tree import load_tree, save_tree

_PLACES = {
    "bayesprune.train.config": "RunConfig",
    "bayesprune.train.evaluation": "evaluate load_trained",
    "bayesprune.train.loop": "Interrupted NonFiniteLoss Trainer train",
    "bayesprune.train.procedures": "Procedure",
    "bayesprune.train.recipes": "recipe",
    "bayesprune.train.registry": "Method register_method",
    "bayesprune.train.settings": "override",
    "bayesprune.train.tree": "load_tree save_tree",
}

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

__getattr__ = lazy(__name__, _PLACES)
