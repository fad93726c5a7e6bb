"""The estimators: scikit-learn's contract, recovery of known inputs, reproducibility, saving, errors."""

from __future__ import annotations

import numpy as np
import pytest

from bayesprune import ArtefactError
from bayesprune.tabular import load

sklearn = pytest.importorskip("sklearn")
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from bayesprune.tabular import SparseBNNClassifier, SparseBNNRegressor, fit_many  # noqa: E402

QUICK = {"search_steps": 60, "evidence_steps": 40, "fit_steps": 80, "n_chains": 3, "n_starts": 2, "random_state": 0}
CHECKED = QUICK | {"search_steps": 40, "evidence_steps": 20, "fit_steps": 50}


def stochastic(estimator):
    """What no estimator that samples can meet to the seventh digit; tests/tabular/test_sample_weight.py has what is exact."""
    reason = "other rows, other random numbers: a weighted likelihood equals repeated rows part by part"
    return dict.fromkeys([f"check_sample_weight_equivalence_on_{kind}_data" for kind in ("dense", "sparse")], reason)


@parametrize_with_checks(
    [SparseBNNRegressor(**CHECKED), SparseBNNClassifier(**CHECKED)], expected_failed_checks=stochastic
)
def test_property_scikit_learn_contract(estimator, check):
    check(estimator)


def signal_in(columns, rows=300, seed=0):
    """Columns of which the third and the last say something of y."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((rows, columns))
    return X, 2 * X[:, 2] + np.abs(X[:, -1]) + 0.3 * rng.standard_normal(rows)


@pytest.fixture(scope="module")
def line():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, 40))
    y = 3 * X[:, 7] - 2 * np.abs(X[:, 11]) + 0.5 * rng.standard_normal(400)
    model = SparseBNNRegressor(search_steps=400, evidence_steps=100, fit_steps=400, random_state=0).fit(X, y)
    return X, y, model


def test_target_recovers_the_true_inputs_and_the_noise(line):
    _, _, model = line
    assert model.get_support(indices=True).tolist() == [7, 11]
    rng = np.random.default_rng(1)
    X = rng.standard_normal((4000, 40))
    y = 3 * X[:, 7] - 2 * np.abs(X[:, 11]) + 0.5 * rng.standard_normal(4000)
    mean, std = model.predict(X, return_std=True)
    error = np.mean((mean - y) ** 2)
    assert 0.25 * (1 - 4 * np.sqrt(2 / 4000)) < error < 0.36  # never below the noise, and within 45 % of it
    low, high = model.predict_interval(X[:1500], coverage=0.9).T
    assert 0.87 < np.mean((low < y[:1500]) & (y[:1500] < high)) < 0.95
    np.testing.assert_allclose(mean[:100], model.predict(X[:100]))
    assert (std**2 >= model.noise_variance_ * (1 - 1e-12)).all()


def test_equation_probability_and_q_value_of_the_evidence(line):
    _, _, model = line
    logit = np.log(model.prior_["inclusion_probability"] / (1 - model.prior_["inclusion_probability"]))
    np.testing.assert_allclose(
        model.inclusion_probability_, 1 / (1 + np.exp(-(model.evidence_ + logit))), rtol=1e-9, atol=1e-300
    )
    assert [cluster.members for cluster in model.clusters_] == [(7,), (11,)]
    assert all(cluster.q_value == model.q_value_[cluster.members[0]] <= 0.05 for cluster in model.clusters_)
    order = np.argsort(
        model.p_value_, kind="stable"
    )  # Benjamini and Yekutieli over 40 inputs, all clusters by themselves
    harmonic = sum(1 / i for i in range(1, 41))
    wanted = np.minimum.accumulate((model.p_value_[order] * 40 * harmonic / np.arange(1, 41))[::-1])[::-1]
    weighed = model.p_value_[order] < 1
    np.testing.assert_allclose(model.q_value_[order][weighed], np.minimum(wanted, 1)[weighed])


def test_roundtrip_saved_estimator_predicts_alike(line, tmp_path):
    X, _, model = line
    model.save(tmp_path / "model")
    back = load(tmp_path / "model")
    assert (back.predict(X) == model.predict(X)).all()
    assert back.get_params() == model.get_params()
    assert (back.transform(X) == X[:, [7, 11]]).all() and back.clusters_ == model.clusters_
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["estimator.safetensors"]
    (tmp_path / "model" / "estimator.safetensors").write_bytes(b"{}")
    with pytest.raises(ArtefactError, match=r"estimator\.safetensors"):
        load(tmp_path / "model")


def test_property_same_seed_same_result_and_global_generators_untouched():
    import torch

    X, y = signal_in(8, rows=120)
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (SparseBNNRegressor(**QUICK).fit(X, y) for _ in range(2))
    assert (torch.get_rng_state() == before[0]).all() and (np.random.get_state()[1] == before[1]).all()
    assert (first.predict(X) == second.predict(X)).all()
    assert (first.evidence_ == second.evidence_).all()


def test_property_many_at_once_find_what_each_finds_alone():
    rng = np.random.default_rng(3)
    data = []
    for column in (2, 5):
        X = rng.standard_normal((300, 12))
        data.append((X, 2 * X[:, column] + 0.3 * rng.standard_normal(300)))
    settings = QUICK | {"search_steps": 200, "evidence_steps": 80}
    models = fit_many(SparseBNNRegressor(**settings), data)
    assert [model.get_support(indices=True).tolist() for model in models] == [[2], [5]]


def test_property_groups_are_selected_together_and_classes_keep_their_labels():
    rng = np.random.default_rng(4)
    level = rng.integers(3, size=500)
    X = np.hstack([rng.standard_normal((500, 6)), np.eye(3)[level]])
    y = np.array(["red", "green", "blue"])[level]
    model = SparseBNNClassifier(groups=[[6, 7, 8]], **(QUICK | {"search_steps": 200, "evidence_steps": 80})).fit(X, y)
    assert model.get_support(indices=True).tolist() == [6, 7, 8]
    assert (model.predict(X) == y).mean() > 0.98
    assert model.classes_.tolist() == ["blue", "green", "red"]
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1.0, atol=1e-6)


def test_limit_sparse_matrix_equals_the_array(line):
    from scipy import sparse

    rng = np.random.default_rng(6)
    X = rng.standard_normal((150, 10)) * (rng.random((150, 10)) < 0.3)
    y = X[:, 1] + 0.1 * rng.standard_normal(150)
    dense = SparseBNNRegressor(**QUICK).fit(X, y)
    thin = SparseBNNRegressor(**QUICK).fit(sparse.csr_matrix(X), y)
    np.testing.assert_allclose(thin.predict(sparse.csr_matrix(X)), dense.predict(X), rtol=1e-4, atol=1e-5)


def test_target_twenty_copies_of_a_cause_are_one_finding():
    rng = np.random.default_rng(8)
    X = rng.standard_normal((300, 30))
    X[:, 1:20] = X[:, :1] + 0.02 * rng.standard_normal((300, 19))
    y = X[:, 0] - X[:, 25] + 0.5 * rng.standard_normal(300)
    model = SparseBNNRegressor(refit=False, random_state=0, search_steps=80, evidence_steps=80, n_chains=3).fit(X, y)
    assert [cluster.members for cluster in model.clusters_] == [tuple(range(20)), (25,)]
    assert model.get_support().sum() == 2 and model.get_support()[25]  # the likeliest member stands for its cluster


def test_target_levels_of_a_factor_and_parts_with_their_sum_are_found_as_a_whole():
    """Each of them is a function of the others, so that none is found given all others; a null set is not found."""
    rng = np.random.default_rng(0)
    factor, noise = rng.integers(0, 4, 400), rng.standard_normal((400, 8))
    null = np.eye(3)[rng.integers(0, 3, 400)]
    X = np.column_stack([np.eye(4)[factor], noise, noise[:, 0] + noise[:, 1], null])
    y = np.array([0.0, 1.0, 2.0, -1.0])[factor] + 1.5 * noise[:, 0] + rng.standard_normal(400)
    model = SparseBNNRegressor(refit=False, random_state=0, search_steps=80, evidence_steps=80, n_chains=3).fit(X, y)
    assert [cluster.members for cluster in model.clusters_] == [(0, 1, 2, 3), (4, 5, 12)]
    assert int(np.argmax(model.clusters_[1].shares)) == 0 and model.get_support()[4]


def test_property_what_cannot_be_singled_out_is_averaged_over_with_a_warning():
    """Thirty weak inputs: none is found, and the prediction is no constant."""
    rng = np.random.default_rng(7)
    X = rng.standard_normal((100, 30))
    y = X @ np.full(30, 0.2) + 0.7 * rng.standard_normal(100)
    with pytest.warns(UserWarning, match="no input can be singled out at fdr=1e-06: .* average over 3 networks"):
        model = SparseBNNRegressor(fdr=1e-6, **QUICK).fit(X, y)
    assert not model.get_support().any() and len(model.inputs_) and model.clusters_ == []
    assert np.corrcoef(model.predict(X), y)[0, 1] > 0.5


@pytest.mark.parametrize("level", [1.0, 0.0, -3e8])
@pytest.mark.filterwarnings("ignore:no input can be singled out")
def test_limit_a_constant_response_is_predicted_as_it_is(level):
    X = np.random.default_rng(0).standard_normal((60, 4))
    model = SparseBNNRegressor(**QUICK).fit(X, np.full(60, level))
    mean, std = model.predict(X, return_std=True)
    np.testing.assert_allclose(mean, level, rtol=1e-12, atol=1e-30)
    assert not model.support_.any() and (std > 0).all() and (std <= 1e-12 * max(abs(level), 1e-9)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"select": "best"}, "select='best' is not one of"),
        ({"fdr": 1.5}, "fdr=1.5 must lie strictly between 0 and 1"),
        ({"n_chains": 0}, "n_chains=0 must be 'auto' or a whole number"),
        ({"select": "number"}, "select='number' needs how many"),
        ({"groups": [[0, 1], [1]]}, "name a column twice"),
        ({"groups": [[99]]}, "groups name column 99"),
        ({"hidden_layer_sizes": (0,)}, "hidden_layer_sizes"),
        ({"expected_inputs": -1}, "expected_inputs=-1"),
        ({"random_state": "one"}, "random_state='one' must be a whole number"),
        ({"refit": "no"}, "refit='no' must be True or False"),
        ({"verbose": "no"}, "verbose='no' must be True or False or a whole number"),
        ({"groups": 5}, "groups=5 must be lists of columns"),
        ({"groups": np.array([0, 1])}, "must be lists of columns"),
    ],
)
def test_error_parameters_name_the_mend(settings, message):
    X = np.random.default_rng(0).standard_normal((30, 4))
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        SparseBNNRegressor(**(QUICK | settings)).fit(X, X[:, 0])


def test_error_shapes_of_many_differ():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="differ in shape"):
        fit_many(
            SparseBNNRegressor(**QUICK), [(rng.random((20, 3)), rng.random(20)), (rng.random((20, 4)), rng.random(20))]
        )


# ---- given inputs


@pytest.mark.parametrize("kind", [SparseBNNRegressor, SparseBNNClassifier])
def test_parity_given_inputs_give_the_network_of_the_fit(kind):
    estimator = kind(hidden_layer_sizes=(4,), select="number", n_inputs=3, **QUICK)
    pairs = [signal_in(30, seed=seed) for seed in range(2)]
    if kind is SparseBNNClassifier:
        pairs = [(X, y > 0) for X, y in pairs]
    fitted = fit_many(estimator, pairs)
    again = fit_many(estimator, pairs, inputs=[model.inputs_ for model in fitted])
    for one, other in zip(fitted, again):
        assert np.array_equal(one.support_, other.support_)
        assert np.array_equal(one.predict_members(pairs[0][0]), other.predict_members(pairs[0][0]))


def test_roundtrip_a_model_of_given_inputs(tmp_path):
    X, y = signal_in(30)
    model = fit_many(SparseBNNRegressor(**QUICK), [(X, y)], [[2, 5]])[0]
    model.save(tmp_path)
    assert np.array_equal(load(tmp_path).predict(X), model.predict(X))


def test_property_six_rows_are_enough_for_a_prior_that_suits_them():
    """At a precision of 1 the posterior of six rows predicts as if it had diverged; another precision is taken."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(6, 3))
    y = X[:, 0] + 0.1 * rng.normal(size=6)
    model = fit_many(SparseBNNRegressor(random_state=0, fit_steps=60), [(X, y)], [[0, 1, 2]])[0]
    assert model.prior_["network_precision"] > 1 and np.corrcoef(model.predict(X), y)[0, 1] > 0.8


def test_error_given_inputs_that_do_not_fit():
    X = np.random.default_rng(0).standard_normal((20, 4))
    with pytest.raises(ValueError, match="columns 0 to 3"):
        fit_many(SparseBNNRegressor(), [(X, X[:, 0])], [[4]])
    with pytest.raises(ValueError, match="1 against inputs: 2"):
        fit_many(SparseBNNRegressor(), [(X, X[:, 0])], [[1], [2]])
