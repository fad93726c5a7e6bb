from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from bayesprune.tabular.describe import describe_history, describe_inputs, describe_selected
from bayesprune.tabular.effects import direction, draws, interactions, main_effect, partial_dependence, total_effect
from bayesprune.tabular.frame import FrameEncoder, Input
from bayesprune.tabular.heldout import row_copies, score_classification, score_regression, split_rows

pandas = pytest.importorskip("pandas")


class Known:
    """A function of the columns as an estimator: member m predicts (1 + 0.1·z_m)·f(x) with z of mean 0."""

    def __init__(self, function, members=9, noise=1.0):
        self.function, self.noise = function, noise
        self.factors = 1 + 0.1 * np.linspace(-1, 1, members)

    def needed_names(self):
        return []  # beside what is selected

    def predict_members(self, X):
        return self.factors[:, None] * self.predict(X)

    def predict(self, X, return_std=False):
        return self.function(X.to_numpy() if isinstance(X, pandas.DataFrame) else X)

    def predict_interval(self, X, coverage=0.9):
        from scipy.special import ndtri

        half = self.noise * ndtri(0.5 + coverage / 2)
        return np.column_stack([self.function(X) - half, self.function(X) + half])


def frame(X):
    return pandas.DataFrame(X, columns=list("abcdefgh")[: X.shape[1]])


def test_property_split_holds_out_the_share_of_every_class():
    classes = np.repeat([0, 1, 2], [700, 200, 100])
    train, held = split_rows(np.arange(1000), classes, 0.2, seed=1)
    assert sorted([*train, *held]) == list(range(1000))
    assert np.bincount(classes[held]).tolist() == [140, 40, 20]
    again = split_rows(np.arange(1000), classes, 0.2, seed=1)
    assert np.array_equal(again[1], held)
    assert not np.array_equal(split_rows(np.arange(1000), classes, 0.2, seed=2)[1], held)


def test_property_copies_stay_on_one_side():
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 12, size=(2, 600))
    copies = row_copies(pandas.DataFrame({"a": a.astype(float), "b": [f"l{i}" for i in b]}))
    pairs = np.unique(np.column_stack([a, b]), axis=0, return_inverse=True)[1].ravel()
    assert len(np.unique(copies)) == len(np.unique(pairs)) == len(np.unique(np.column_stack([copies, pairs]), axis=0))
    train, held = split_rows(copies, None, 0.2, seed=0)
    assert not set(copies[train]) & set(copies[held])
    assert abs(len(held) / 600 - 0.2) < 0.02


def test_limit_missing_values_are_copies_of_each_other():
    assert row_copies(pandas.DataFrame({"a": [np.nan, np.nan, 0, -0.0], "b": [None, None, "x", "x"]})).tolist() == [
        0,
        0,
        1,
        1,
    ]


def test_error_split():
    with pytest.raises(ValueError, match=r"held_out=1\.5"):
        split_rows(np.arange(10), None, 1.5, 0)
    with pytest.raises(ValueError, match="copies of 1"):
        split_rows(np.zeros(10, dtype=int), None, 0.2, 0)


def test_target_scores_of_the_true_function():
    generator = np.random.default_rng(3)
    n = 4000
    X = generator.normal(size=(n, 2))
    y = 2 * X[:, 0] + generator.normal(size=n)
    scores, told = score_regression(Known(lambda X: 2 * X[:, 0]), X, y, 0.0)
    assert abs(scores["rmse"] ** 2 - 1) < 4 * math.sqrt(2 / n)
    assert abs(scores["rmse_constant"] ** 2 - 5) < 4 * 5 * math.sqrt(2 / n)
    assert abs(scores["mae"] - math.sqrt(2 / math.pi)) < 4 * math.sqrt((1 - 2 / math.pi) / n)
    for row in scores["calibration"]:
        level = row["nominal"]
        assert abs(row["coverage"] - level) < 4 * math.sqrt(level * (1 - level) / n)
    assert scores["coverage"] == next(row["coverage"] for row in scores["calibration"] if row["nominal"] == 0.9)
    assert scores["r2"] == pytest.approx(1 - scores["rmse"] ** 2 / scores["rmse_constant"] ** 2)
    assert scores["width"] == pytest.approx(2 * 1.6448536, abs=1e-6)
    assert np.allclose(told[:, 0], 2 * X[:, 0]) and (told[:, 1] < told[:, 0]).all() and (told[:, 0] < told[:, 2]).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_parity_roc_curves_with_sklearn(classes):
    generator = np.random.default_rng(0)
    probability = generator.dirichlet(np.ones(classes), size=300).round(1) + 1e-3  # with ties
    probability /= probability.sum(axis=1, keepdims=True)
    y = np.array([generator.choice(classes, p=row) for row in probability])

    class Fixed:
        def predict_proba(self, X):
            return probability

    scores, _ = score_classification(Fixed(), np.zeros((300, 1)), y, list("abc")[:classes], np.ones(classes))
    assert [curve["name"] for curve in scores["roc"]] == (["b"] if classes == 2 else ["a", "b", "c"])
    for curve in scores["roc"]:
        code = "abc".index(curve["name"])
        false, true, _ = roc_curve(y == code, probability[:, code], drop_intermediate=False)
        assert np.allclose(curve["false"], false) and np.allclose(curve["true"], true)
        assert curve["auroc"] == pytest.approx(roc_auc_score(y == code, probability[:, code]))
    assert scores["accuracy"] == np.mean(probability.argmax(1) == y)
    assert scores["nll_constant"] == pytest.approx(math.log(classes))
    assert sum(row["count"] for row in scores["reliability"]) == 300


def test_equation_partial_dependence_of_a_known_function():
    X = frame(np.random.default_rng(1).normal(size=(200, 3)))
    model = Known(lambda X: X[:, 0] ** 2 + X[:, 1])
    curve = partial_dependence(model, X, "a", "number")
    grid = np.array(curve["grid"])
    expected = grid**2 + X["b"].mean()
    assert np.allclose(curve["mean"][0], expected)
    assert grid[0] == pytest.approx(X["a"].quantile(0.01)) and len(grid) == 21
    low, high = np.quantile(np.multiply.outer(model.factors, expected), (0.05, 0.95), axis=0)
    assert np.allclose(curve["lower"][0], low) and np.allclose(curve["upper"][0], high)
    assert curve["members"] == 9 and np.array_equal(X, np.random.default_rng(1).normal(size=(200, 3)))


def test_property_grids():
    class Levels:
        def predict_members(self, X):
            return (X["n"].fillna(5) + (X["t"] == "m") + X["d"].dt.year).to_numpy(dtype=float)[None]

    X = pandas.DataFrame(
        {"n": np.arange(100) % 3.0, "t": list("mffff") * 20, "d": pandas.date_range("2001", periods=100, freq="40D")}
    )
    X.loc[::10, "n"] = np.nan
    few = partial_dependence(Levels(), X, "n", "number")
    assert few["grid"] == [0, 1, 2] and np.allclose(np.diff(few["mean"][0]), 1)
    levels = partial_dependence(Levels(), X, "t", "text")
    assert levels["grid"] == ["f", "m"] and np.allclose(np.diff(levels["mean"][0]), 1)
    years = partial_dependence(Levels(), X, "d", "date")
    assert len(years["grid"]) == 21 and np.allclose(np.diff(years["mean"][0]), np.diff(np.floor(years["grid"])))
    assert main_effect(years, X["d"], "d", "date") == pytest.approx(np.std(X["d"].dt.year), rel=0.05)


def test_property_outputs_of_classes():
    class Proba:
        def __init__(self, classes):
            self.classes = classes

        def predict_members(self, X):
            return np.full((2, len(X), self.classes), 1 / self.classes)

    assert draws(Proba(2), np.eye(3)).shape == (2, 3, 1) and draws(Proba(3), np.eye(4)).shape == (2, 4, 3)


def test_target_effects_of_independent_inputs():
    n = 20_000
    X = frame(np.random.default_rng(5).normal(size=(n, 4)))
    model = Known(lambda X: 3 * X[:, 0] + 2 * X[:, 1] * X[:, 2])
    # Var of f due to x with its interactions: 9; 4·E[x²] = 4 twice; 0. (f - f')²/2 is at most a product of two χ²₁, whose
    # relative variance is 8, and a row stands in two pairs of a shuffle: the relative standard error is under √(16/n).
    for column, variance in (("a", 9), ("b", 4), ("c", 4), ("d", 0)):
        assert abs(total_effect(model, X, column) ** 2 - variance) <= 4 * variance * math.sqrt(16 / n)
    few = X[:2000]
    curve = partial_dependence(model, few, "a", "number")
    # The curve is flat beyond its ends at 1 % and 99 %: 0.983 of the standard deviation is left.
    assert abs(main_effect(curve, few["a"], "a", "number") - 0.983 * 3) < 4 * 3 / math.sqrt(4000)
    curve = partial_dependence(model, few, "b", "number")
    alone = main_effect(curve, few["b"], "b", "number")
    assert alone < 0.2 and direction(curve, "number", alone, 2.0, ["y"]) == "through interactions"


def test_target_interactions_of_xor_and_of_a_product():
    n = 20_000
    X = frame(np.random.default_rng(6).normal(size=(n, 4)))
    # E (mixed difference)² / 4 is the variance of the part that needs both: 1 for XOR, 4 for 2·c·d, 0 for sums. A mixed
    # difference of 2·c·d is the product of two differences, of kurtosis 9: relative standard error under √(8·2/n).
    model = Known(lambda X: 5 * X[:, 0] + np.sign(X[:, 0] * X[:, 1]) + 2 * X[:, 2] * X[:, 3], members=2)
    found = interactions(model, X, list("abcd"))
    assert list(found)[:2] == [("c", "d"), ("a", "b")]
    for pair, variance in {("a", "b"): 1, ("c", "d"): 4}.items():
        noise = (
            0.005 * variance
        )  # the members differ by a factor of 0.9 and 1.1, and half of that variance is taken off
        assert abs(found[pair] ** 2 - variance + 2 * noise) < 4 * variance * math.sqrt(16 / n) + noise
    assert max(strength for pair, strength in found.items() if pair not in {("a", "b"), ("c", "d")}) < 1e-6


@pytest.mark.parametrize(
    ("line", "said"),
    [([0, 1, 2], "increasing"), ([2, 0.9, 1], "decreasing"), ([0, 2, 0], "not monotone"), ([0, 0, 0], "none")],
)
def test_property_direction(line, said):
    curve = {"grid": [0.0, 1.0, 2.0], "mean": [line]}
    main = main_effect(curve, pandas.Series([0.0, 1.0, 2.0]), "a", "number")
    assert main == pytest.approx(np.std(line))
    assert direction(curve, "number", main, main, ["y"]) == said
    if said != "none":
        levels = {**curve, "grid": list("uvw")}
        assert direction(levels, "text", main, main, ["y"]) == f"highest for {'uvw'[np.argmax(line)]}"
        several = {**curve, "mean": [[0.1] * 3, line]}
        assert direction(several, "number", main, main, ["p", "q"]) == f"{said} (q)"


def fitted(model, names, **told):
    """An estimator as `describe` reads it."""
    model.encoder_ = FrameEncoder(tuple(Input(name, "number") for name in names if name != "z"), {"z": "constant"})
    model.column_names_ = list(names)
    model.__dict__.update({key: np.array(value) for key, value in told.items()})
    model.evidence_ = np.zeros(len(names))
    model.variance_p_value_ = np.ones(len(names))
    return model


def test_property_inputs_in_use_are_described():
    model = fitted(
        SimpleNamespace(), "azb", support_=[True, False, False], inclusion_probability_=[0.9, 0.0, np.nan],
        q_value_=[0.1, 1.0, 0.5], chain_probability_=[[0.8, 0.0, 0.1], [1.0, 0.0, 0.3]],
    )  # fmt: skip
    told = describe_inputs(model)
    assert told["name"] == ["a", "b"] and told["selected"] == [True, False] and told["probability"] == [0.9, None]
    assert told["q_value"] == [0.1, 0.5] and told["chains"] == [[0.8, 0.1], [1.0, 0.3]]


def test_property_selected_inputs_are_ordered_and_only_the_first_have_curves(monkeypatch):
    monkeypatch.setattr("bayesprune.tabular.describe.CURVES", 2)
    X = frame(np.random.default_rng(0).normal(size=(300, 4)))
    model = fitted(
        Known(lambda X: X @ np.array([1.0, 3.0, 2.0])), "abcd", support_=[True, True, True, False],
        inclusion_probability_=[0.9, 1.0, 1.0, 0.4], q_value_=[0.03, 0.0, 0.0, 0.2],
        chain_probability_=[[0.8, 1.0, 1.0, 0.4], [1.0, 1.0, 1.0, 0.4]],
    )  # fmt: skip
    entries, curves, pairs = describe_selected(model, X, ["y"])
    assert [entry["input"] for entry in entries] == ["b", "c", "a"] and pairs == []
    assert [curve["input"] for curve in curves] == ["b", "c"]
    assert [entry["direction"] for entry in entries] == ["increasing", "increasing", ""]
    assert entries[2]["effect_alone"] is None and entries[2]["effect"] == pytest.approx(X["a"].std(), rel=0.15)
    assert (entries[2]["chain_min"], entries[2]["chain_max"]) == (0.8, 1.0)
    model.function = lambda X: X[:, 0] + np.sign(X[:, 1] * X[:, 2])
    pair = describe_selected(model, X, ["y"])[2][0]
    assert sorted(pair["inputs"]) == ["b", "c"] and pair["strength"] == pytest.approx(1, rel=0.15)


def test_property_history_is_thinned_with_both_ends():
    model = fitted(SimpleNamespace(), "ab", support_=[False, True])
    model.history_ = {
        "epoch": np.arange(1, 5001),
        "path_inputs": np.array([1, 0, 1]),  # the second column of one input is left out
        "path": np.linspace(0, 1, 15000).reshape(5000, 3),
        "loss": np.ones((5000, 3)),
        "threshold": np.full(5000, np.nan),
    }
    told = describe_history(model)
    assert len(told["epoch"]) == 400 and told["epoch"][0] == 1 and told["epoch"][-1] == 5000
    assert [(path["input"], path["selected"]) for path in told["paths"]] == [("b", True), ("a", False)]
    assert told["paths"][0]["path"][0] == 0 and len(told["loss"]) == 3
    assert told["threshold"] == [None] * 400
    model.history_ = {}
    assert describe_history(model) == {}
