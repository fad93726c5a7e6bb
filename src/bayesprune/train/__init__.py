"""Training: configuration, recipes, the registry of methods, the one loop, checkpoints."""

from typing import TYPE_CHECKING

from bayesprune.common.lazy import lazy

if TYPE_CHECKING:
    from bayesprune.train.chains import train_chains
    from bayesprune.train.config import RunConfig
    from bayesprune.train.evaluation import evaluate, load_trained
    from bayesprune.train.loop import Interrupted, NonFiniteLoss, Trainer
    from bayesprune.train.procedures import Procedure
    from bayesprune.train.recipes import recipe
    from bayesprune.train.registry import Method, register_method
    from bayesprune.train.run import train
    from bayesprune.train.settings import override
    from bayesprune.train.splits import Splits
    from bayesprune.train.task import Classification, Evaluation, Regression, Task, Tokens, register_task
    from bayesprune.train.tree import load_tree, save_tree

_PLACES = {
    "bayesprune.train.chains": "train_chains",
    "bayesprune.train.config": "RunConfig",
    "bayesprune.train.evaluation": "evaluate load_trained",
    "bayesprune.train.loop": "Interrupted NonFiniteLoss Trainer",
    "bayesprune.train.procedures": "Procedure",
    "bayesprune.train.recipes": "recipe",
    "bayesprune.train.registry": "Method register_method",
    "bayesprune.train.run": "train",
    "bayesprune.train.settings": "override",
    "bayesprune.train.splits": "Splits",
    "bayesprune.train.task": "Classification Evaluation Regression Task Tokens register_task",
    "bayesprune.train.tree": "load_tree save_tree",
}

__all__ = [
    "train",
    "train_chains",
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

__getattr__ = lazy(__name__, _PLACES)
