"""Methods from outside: the lasso, gradient boosting, a random forest and LassoNet, each with a selection and its rule.

Each takes a data set and a seed (and settings to override) and returns its variants. Validation rows choose the model;
they are not trained on. Nothing sees the test rows before the last prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paper.designs import SimulatedData
from paper.selectors.rule import RULE, row_losses, smallest_within_one_error

SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48)


@dataclass
class Found:
    """What a variant of a method gives.

    Args:
        variant: which one.
        prediction: (n_test,) predicted means, or labels.
        selected: selected columns by place; None if the variant does not select.
        settings: what was set and what came of it.
    """

    variant: str
    prediction: np.ndarray
    selected: np.ndarray | None
    settings: dict[str, Any] = field(default_factory=dict)


def lasso(data: SimulatedData, seed: int, **settings: Any) -> list[Found]:
    """Fit LassoCV, or a logistic regression with an L1 penalty by LogisticRegressionCV, on standardised columns.

    Selected is every column with a coefficient (of any class) that is not zero at the penalty of the best 5-fold score. The folds are
    those of the training rows; the validation rows are not used.
    """
    from sklearn.linear_model import LassoCV, LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if data.task == "regression":
        chosen: dict[str, Any] = {"cv": 5, "eps": 0.01, "max_iter": 5_000} | settings
        model: Any = LassoCV(**chosen)
    else:
        solver = "liblinear" if len(np.unique(data.y_train)) == 2 else "saga"
        chosen = {"cv": 5, "solver": solver, "tol": 1e-3, "Cs": np.geomspace(3e-4, 0.3, 10).tolist()} | settings
        model = LogisticRegressionCV(**chosen, **_l1(), scoring="neg_log_loss", random_state=seed)
    pipeline = make_pipeline(StandardScaler(), model).fit(data.X_train.astype(np.float64), data.y_train)
    penalty = {"alpha": float(model.alpha_)} if data.task == "regression" else {"C": float(np.ravel(model.C_)[0])}
    rule = "coefficients that are not zero at the penalty of the best cross-validated loss"
    selected = np.flatnonzero(np.atleast_2d(model.coef_).any(0))
    return [Found("linear", pipeline.predict(data.X_test), selected, chosen | penalty | {"rule": rule})]


def _l1() -> dict[str, Any]:
    """How LogisticRegressionCV is told to use an L1 penalty: the keyword changed in scikit-learn 1.8."""
    import inspect

    from sklearn.linear_model import LogisticRegressionCV

    parameters = inspect.signature(LogisticRegressionCV).parameters
    if parameters["penalty"].default != "deprecated":
        return {"penalty": "l1"}
    return {"l1_ratios": (1.0,)} | ({"use_legacy_attributes": False} if "use_legacy_attributes" in parameters else {})


def boosting(data: SimulatedData, seed: int, **settings: Any) -> list[Found]:
    """Fit histogram gradient boosting on all columns, and again on those that permutation importance selects.

    All columns are permuted once on at most 500 validation rows; the 48 with the largest loss of accuracy are permuted
    10 times on all validation rows and ranked by the mean; boosting is fitted on the first 1, 2, 3, … of them, and
    `RULE` chooses how many.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    chosen: dict[str, Any] = {
        "learning_rate": 0.05, "max_iter": 1500, "max_leaf_nodes": 31, "early_stopping": True,
        "validation_fraction": 0.1, "n_iter_no_change": 30,
    } | settings  # fmt: skip
    kind = HistGradientBoostingRegressor if data.task == "regression" else HistGradientBoostingClassifier

    def fit(columns: np.ndarray) -> Any:
        return kind(**chosen, random_state=seed).fit(data.X_train[:, columns], data.y_train)

    every = np.arange(data.X_train.shape[1])
    whole = fit(every)
    ranked = _by_permutation(whole, data, seed)
    found = _nested("selected columns", fit, ranked, data, chosen | {"importance": "permutation"})
    whole_settings = chosen | {"iterations": int(whole.n_iter_)}
    return [Found("all columns", whole.predict(data.X_test), None, whole_settings), found]


def forest(data: SimulatedData, seed: int, **settings: Any) -> list[Found]:
    """Fit a random forest on all columns, and again on the first columns by its impurity importance.

    The 48 most important columns are ranked; a forest is fitted on the first 1, 2, 3, … of them and `RULE` chooses how
    many.
    """
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    chosen: dict[str, Any] = {"n_estimators": 100, "min_samples_leaf": 3} | settings
    kind = RandomForestRegressor if data.task == "regression" else RandomForestClassifier

    def fit(columns: np.ndarray) -> Any:
        # A tenth of a thousand columns at a split keeps the first fit in minutes; few columns are tried all.
        features = 0.1 if len(columns) > 48 else 1.0
        return kind(**chosen, max_features=features, random_state=seed).fit(data.X_train[:, columns], data.y_train)

    every = np.arange(data.X_train.shape[1])
    whole = fit(every)
    ranked = np.argsort(-whole.feature_importances_, kind="stable")[: SIZES[-1]]
    found = _nested("selected columns", fit, ranked, data, chosen | {"importance": "impurity"})
    return [Found("all columns", whole.predict(data.X_test), None, chosen), found]


def _by_permutation(model: Any, data: SimulatedData, seed: int) -> np.ndarray:
    """Return the columns by permutation importance on validation rows, the screened ones only."""
    generator = np.random.default_rng(seed)

    def importance(rows: int, columns: np.ndarray, repeats: int) -> np.ndarray:
        X, y = data.X_validation[:rows].copy(), data.y_validation[:rows]
        base = row_losses(data.task, _scores(model, X, data.task), y).mean()
        gains = np.zeros(len(columns))
        for place, column in enumerate(columns):
            own = X[:, column].copy()
            for _ in range(repeats):
                X[:, column] = generator.permutation(own)
                gains[place] += row_losses(data.task, _scores(model, X, data.task), y).mean() - base
            X[:, column] = own
        return gains / repeats

    every = np.arange(data.X_validation.shape[1])
    screened = np.argsort(-importance(500, every, 1), kind="stable")[: SIZES[-1]]
    return screened[np.argsort(-importance(len(data.X_validation), screened, 10), kind="stable")]


def _nested(
    variant: str, fit: Callable[[np.ndarray], Any], ranked: np.ndarray, data: SimulatedData, settings: dict[str, Any]
) -> Found:
    """Fit on the first k ranked columns for growing k, and let the rule choose k."""
    sizes = sorted({size for size in SIZES if size < len(ranked)} | {len(ranked)})
    models, losses = [], []
    for size in sizes:
        models.append(fit(ranked[:size]))
        prediction = _scores(models[-1], data.X_validation[:, ranked[:size]], data.task)
        losses.append(row_losses(data.task, prediction, data.y_validation))
    best = smallest_within_one_error(sizes, losses)
    selected = ranked[: sizes[best]]
    prediction = models[best].predict(data.X_test[:, selected])
    return Found(variant, prediction, selected, settings | {"sizes": sizes, "rule": RULE})


def _scores(model: Any, X: np.ndarray, task: str) -> np.ndarray:
    return model.predict(X) if task == "regression" else model.predict_proba(X)
