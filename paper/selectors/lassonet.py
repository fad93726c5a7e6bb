"""LassoNet (the package of that name): its path, the model chosen on validation rows, with and without a dense refit."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from paper.designs import SimulatedData
from paper.selectors.comparators import Found
from paper.selectors.rule import RULE, row_losses, smallest_within_one_error


def lassonet(data: SimulatedData, seed: int, **settings: Any) -> list[Found]:
    """Follow LassoNet's path on standardised columns, choose a model of it, and refit it densely on what it selects.

    The package's own settings (full batches, a factor of 1.02 between penalties, an automatic first penalty) take hours at
    10,000 rows, and its step of 1e-3 on the path diverges on columns of correlation 0.5, whose Gram matrix has one large
    eigenvalue. Here: batches of 250 rows, penalties from 10 on by a factor of 1.25, at most 5 epochs at each, patience 2,
    Adam with step 1e-3 for the dense start and SGD with step 1e-4 and momentum 0.9 on the path. Early stopping and the
    choice of the model use the validation rows; `RULE` chooses.

    Args:
        data: the data set.
        seed: of the network and the batches.
        **settings: keywords of LassoNet (`lambda_start="auto"`: the package follows its own path to the end); "steps", of
            Adam and of SGD; and "path_minutes": the path ends where it stands after so long, which "path_complete" among
            the settings of the result then says.

    Returns:
        The variants "path" and "dense refit".

    Raises:
        ImportError: the package lassonet is not installed.
    """
    try:
        from lassonet import LassoNetClassifier, LassoNetRegressor
    except ImportError as error:
        raise ImportError("LassoNet needs its package: pip install lassonet") from error
    import torch

    chosen: dict[str, Any] = {
        "hidden_dims": (64,), "M": 10, "batch_size": 250, "lambda_start": 10.0, "path_multiplier": 1.25,
        "n_iters": (50, 5), "patience": (5, 2), "steps": (1e-3, 1e-4), "path_minutes": 8.0,
    } | settings  # fmt: skip
    automatic = chosen["lambda_start"] == "auto"
    own = ("path_minutes", "steps") if automatic else ("path_minutes", "path_multiplier", "lambda_start", "steps")
    keywords = {name: value for name, value in chosen.items() if name not in own}
    keywords["optim"] = (
        functools.partial(torch.optim.Adam, lr=chosen["steps"][0]),
        functools.partial(torch.optim.SGD, lr=chosen["steps"][1], momentum=0.9),
    )
    keywords |= {"verbose": 0, "device": torch.device("cpu"), "random_state": seed, "torch_seed": seed}
    regression = data.task == "regression"
    kind: Any = LassoNetRegressor if regression else LassoNetClassifier
    mean, scale = data.X_train.mean(0), data.X_train.std(0)
    X, X_validation, X_test = ((x - mean) / scale for x in (data.X_train, data.X_validation, data.X_test))
    shift, unit = (float(data.y_train.mean()), float(data.y_train.std())) if regression else (0.0, 1.0)
    y, y_validation = data.y_train, data.y_validation
    if regression:
        y, y_validation = (y - shift) / unit, (y_validation - shift) / unit

    def scores(net: Any, rows: np.ndarray) -> np.ndarray:
        return net.predict(rows)[:, 0] * unit + shift if regression else net.predict_proba(rows)

    begin, ended = time.monotonic(), {"path_complete": True}

    def penalties() -> Iterator[float]:
        value = chosen["lambda_start"]
        while True:
            yield value
            value *= chosen["path_multiplier"]
            if time.monotonic() - begin > 60 * chosen["path_minutes"]:
                ended["path_complete"] = False
                return

    net = kind(**keywords)
    path = net.path(
        X, y, X_val=X_validation, y_val=y_validation, lambda_seq=None if automatic else penalties(),
        return_state_dicts=True, disable_lambda_warning=True,
    )  # fmt: skip
    sizes = [int(item.selected.sum()) for item in path]
    losses = [row_losses(data.task, scores(net.load(item), X_validation), data.y_validation) for item in path]
    best = smallest_within_one_error(sizes, losses)
    selected = np.flatnonzero(path[best].selected.numpy())
    told = chosen | ended | {"path_models": len(path), "penalty": float(path[best].lambda_), "rule": RULE}
    found = [Found("path", _labels(scores(net.load(path[best]), X_test), regression), selected, told)]
    if not len(selected):
        return [*found, Found("dense refit", found[0].prediction, selected, told)]
    dense = kind(**keywords)
    part = X[:, selected]
    dense.path(part, y, X_val=X_validation[:, selected], y_val=y_validation, lambda_seq=[])
    found.append(Found("dense refit", _labels(scores(dense, X_test[:, selected]), regression), selected, told))
    return found


def _labels(scores: np.ndarray, regression: bool) -> np.ndarray:
    return scores if regression else scores.argmax(1)
