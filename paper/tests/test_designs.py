from __future__ import annotations

import json
import math

import numpy as np
import pytest

from paper.designs import (
    b1,
    block_correlated,
    c1,
    d1,
    design,
    designs,
    equicorrelated,
    example1,
    example1_response,
    example2,
    example2_response,
    example3,
    k1,
    n0,
    repeated_response,
    simulate,
    small_n,
    truncated_normal,
)

SMALL = {
    "example1": {"n": 60, "p": 20},
    "example2": {"n": 60, "p": 20},
    "example3": {"n": 60, "p": 20},
    "small_n": {"n": 60, "p": 20},
    "N0": {"n": 60, "p": 20},
    "K1": {"n": 60, "p": 40},
    "C1": {"n": 60, "p": 40},
    "B1": {"n": 60, "p": 20},
    "D1": {"n": 60, "p": 20},
}
ARRAYS = [f"{kind}_{split}" for kind in ("X", "y", "signal") for split in ("train", "validation", "test")]


def variance_and_error(y):
    centred = y.astype(np.float64) - y.mean(dtype=np.float64)
    variance = np.mean(centred**2)
    return variance, math.sqrt((np.mean(centred**4) - variance**2) / len(y))


def assert_same(first, second):
    for name in ARRAYS:
        a, b = getattr(first, name), getattr(second, name)
        assert a.dtype == b.dtype and np.array_equal(a, b), name


# ---- the formulas, by hand


def test_equation_example1_formulas_differ_by_one_bracket_and_one_factor():
    x1, x2, x3, x4, x5 = 0.3, -0.7, 0.9, 0.2, -0.4
    X = np.array([[x1, x2, x3, x4, x5, 99.0]])
    first = math.tanh(2 * math.tanh(2 * x1 - x2))
    b, c = math.tanh(x3 - 2 * x4), math.tanh(2 * x5)
    assert example1_response(X)[0] == pytest.approx(first + 2 * math.tanh(b - c), rel=1e-14)
    assert example1_response(X, "authors-code")[0] == pytest.approx(first + 2 * math.tanh(b) - c, rel=1e-14)
    assert example1_response(X, "sun")[0] == pytest.approx(first + 2 * math.tanh(2 * b - c), rel=1e-14)


def test_equation_example2_and_its_relatives():
    x1, x2, x3, x4, x5 = 0.3, -0.7, 0.9, 2.2, -0.4
    X = np.array([[x1, x2, x3, x4, x5]])
    rest = 5 * math.sin(x3 * x4) + 2 * x5
    expected = 5 * x2 / (1 + x1**2) + rest
    assert example2_response(X)[0] == pytest.approx(expected, rel=1e-14)
    assert example2_response(X, ratio=7.0)[0] == pytest.approx(7 * x2 / (1 + x1**2) + rest, rel=1e-14)
    other = example2_response(X[:, ::-1])[0]
    assert repeated_response(np.hstack([X, X[:, ::-1]]), 2)[0] == pytest.approx(expected + other, rel=1e-14)


def test_equation_example3_label_rule():
    data = example3(n=400, p=6, seed=2)
    for split in ("train", "validation", "test"):
        X, y, signal = data.split(split)
        for row, label, margin in zip(X[:100].astype(float), y, signal):
            x1, x2, x3, x4 = row[:4]
            value = math.exp(x1) + x2 * x2 + 5 * math.sin(x3 * x4) - 3
            assert label == int(value > 0) and margin == pytest.approx(value, abs=1e-12)
        assert y.dtype == np.int64 and data.floor(split) == 1.0
    assert data.noise_variance == 0.0 and data.true_inputs == (0, 1, 2, 3)


@pytest.mark.parametrize("name", designs())
def test_equation_response_reads_only_the_true_inputs(name):
    data = design(name, seed=5, **SMALL[name])
    X, y, signal = data.split("train")
    responses = {
        "example1": example1_response,
        "N0": lambda X: np.zeros(len(X)),
        "K1": lambda X: repeated_response(X, 6),
        "B1": lambda X: example2_response(X, 7.0),
    }
    if data.task == "classification":
        x1, x2, x3, x4 = X[:, :4].astype(float).T
        expected = np.exp(x1) + x2**2 + 5 * np.sin(x3 * x4) - 3
        assert np.array_equal(y, expected > 0)
    else:
        assert y.dtype == np.float32
        expected = responses.get(name, example2_response)(X[:, list(data.true_inputs)])
    assert data.name == name and np.allclose(signal, expected, rtol=0, atol=1e-12)
    assert data.true_inputs == tuple(range(len(data.true_inputs)))


# ---- laws; tolerances are four standard errors, plus half a unit of the stated last digit


@pytest.mark.parametrize("formula, stated", [("paper", 3.23), ("authors-code", 3.75), ("sun", 4.02)])
def test_target_variance_of_example1(formula, stated):
    data = example1(formula, n=300_000, p=5, n_validation=1, n_test=1, seed=11)
    variance, error = variance_and_error(data.y_train)
    assert error < 0.01 and abs(variance - stated) < 4 * error + 0.005


@pytest.mark.parametrize(
    "name, stated, options",
    [
        ("example2", 26.3, {}),
        ("C1", 26.3, {"p": 5, "block_size": 1}),
        ("C1", 21.9, {"p": 5, "blocks": "separate"}),
        ("B1", 15.3, {}),
        ("N0", 1.0, {}),
    ],
)
def test_target_variance_of_the_other_designs(name, stated, options):
    data = design(name, **({"n": 300_000, "p": 5, "n_validation": 1, "n_test": 1, "seed": 12} | options))
    variance, error = variance_and_error(data.y_train)
    assert error < 0.1 and abs(variance - stated) < 4 * error + 0.05


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_target_columns_are_standard_with_the_given_correlation(correlation):
    n = 50_000
    X = example1(n=n, p=12, n_validation=1, n_test=1, correlation=correlation, seed=3).X_train.astype(float)
    assert np.abs(X.mean(0)).max() < 4.5 / math.sqrt(n)
    assert np.abs(X.var(0) - 1).max() < 4.5 * math.sqrt(2 / n)
    standard = (X - X.mean(0)) / X.std(0)
    assert np.abs((standard**3).mean(0)).max() < 4.5 * math.sqrt(6 / n)
    assert np.abs((standard**4).mean(0) - 3).max() < 4.5 * math.sqrt(24 / n)
    pairs = np.corrcoef(X.T)[np.triu_indices(12, 1)]
    assert np.abs(pairs - correlation).max() < 4.5 * (1 - correlation**2) / math.sqrt(n)


def test_target_blocks_of_c1():
    n = 40_000
    settings = {"n": n, "p": 23, "n_validation": 1, "n_test": 1, "seed": 4}
    for blocks, members in (("mixed", np.arange(23) % 5), ("separate", np.r_[[0] * 5, np.arange(18) // 5 + 1])):
        X = c1(blocks=blocks, **settings).X_train
        same = members[:, None] == members
        expected = np.where(same, 0.9, 0.5)
        np.fill_diagonal(expected, 1.0)
        assert np.abs(np.corrcoef(X.T) - expected).max() < 4.5 * 0.75 / math.sqrt(n)
        assert np.abs(X.var(0) - 1).max() < 4.5 * math.sqrt(2 / n)
    true = [0, 1, 2, 3, 4]
    assert len(set((np.arange(23) % 5)[true])) == 5  # in "mixed" every true input has its own block, with null twins


def test_limit_one_correlation_throughout_is_the_plain_design():
    X = block_correlated(np.random.default_rng(0), 40_000, np.arange(6) % 3, within=0.5, between=0.5)
    pairs = np.corrcoef(X.T)[np.triu_indices(6, 1)]
    assert np.abs(pairs - 0.5).max() < 4 * 0.75 / math.sqrt(40_000)


def test_equation_half_correlation_is_the_papers_construction():
    draws = np.random.default_rng(8).standard_normal((50, 4))
    expected = (draws[:, :1] + draws[:, 1:]) / math.sqrt(2)
    assert np.allclose(equicorrelated(np.random.default_rng(8), 50, 3), expected, rtol=0, atol=1e-14)
    halved = equicorrelated(np.random.default_rng(8), 50, 3, scale=math.sqrt(0.5))
    assert np.allclose(halved, (draws[:, :1] + draws[:, 1:]) / 2, rtol=0, atol=1e-14)


def test_target_truncation():
    draws = truncated_normal(np.random.default_rng(1), (200_000,), bound=1.0)
    density, mass = math.exp(-0.5) / math.sqrt(2 * math.pi), math.erf(1 / math.sqrt(2))
    variance, error = variance_and_error(draws)
    assert np.abs(draws).max() <= 1 and abs(variance - (1 - 2 * density / mass)) < 4 * error
    untouched = np.random.default_rng(2).standard_normal((100, 3))
    assert np.array_equal(truncated_normal(np.random.default_rng(2), (100, 3)), untouched)


def test_target_noise_floor_is_one():
    squares = []
    for repetition in range(40):
        data = example2(n=5000, p=5, seed=9, repetition=repetition)
        assert data.noise_variance == 1.0
        squares += [data.floor(split) * len(data.split(split)[1]) for split in ("train", "validation", "test")]
    count = 40 * (5000 + 1000 + 5000)
    assert abs(sum(squares) / count - 1) < 4 * math.sqrt(2 / count)


def test_target_strength_and_noise_scale_their_parts():
    plain = example2(n=5000, p=5, dtype="float64")
    changed = example2(n=5000, p=5, dtype="float64", strength=0.25, noise=3.0)
    assert np.array_equal(changed.X_train, plain.X_train) and changed.noise_variance == 9.0
    assert np.allclose(changed.signal_train, 0.25 * plain.signal_train)
    assert np.allclose(changed.y_train - changed.signal_train, 3 * (plain.y_train - plain.signal_train))


def test_target_b1_columns_are_independent_and_uniform():
    X = b1(n=40_000, p=8, n_test=1, n_validation=1).X_train.astype(float)
    assert -1 <= X.min() < -0.9999 and 0.9999 < X.max() <= 1
    assert np.abs(X.mean(0)).max() < 4 * math.sqrt(1 / 3 / 40_000)
    assert np.abs((X**2).mean(0) - 1 / 3).max() < 4 * math.sqrt(4 / 45 / 40_000)
    assert np.abs(np.corrcoef(X.T)[np.triu_indices(8, 1)]).max() < 4 / math.sqrt(40_000)


def test_target_n0_tells_nothing_about_y():
    data = n0(n=20_000, p=50, n_test=1)
    correlations = [np.corrcoef(column, data.y_train)[0, 1] for column in data.X_train.T]
    assert np.abs(correlations).max() < 4.5 / math.sqrt(20_000) and not data.signal_train.any()


def test_target_null_columns_of_example2_are_marginally_correlated_with_y():
    data = example2(n=20_000, p=12, n_test=1)
    correlations = [np.corrcoef(column, data.y_train)[0, 1] for column in data.X_train[:, 5:].T]
    assert min(correlations) > 0.1


def test_property_d1_is_balanced_and_its_order_tells_nothing():
    data = d1(n=301, n_test=1000)
    assert data.y_train.sum() == 151 and data.y_test.sum() == 500 and data.y_validation.sum() == 30
    halves = data.y_test[:500].mean(), data.y_test[500:].mean()
    assert max(abs(half - 0.5) for half in halves) < 4 * math.sqrt(0.25 / 1000)
    assert abs(data.X_test[:, 4:].var() - 0.5) < 0.1  # (e + z)/2, which choosing the rows hardly changes
    assert len(np.unique(data.X_test[:, 4])) == 1000


# ---- seeds


@pytest.mark.parametrize("name", designs())
def test_roundtrip_settings_draw_the_same_data(name):
    data = design(name, seed=7, repetition=3, n_test=40, **SMALL[name])
    again = design(name, **json.loads(json.dumps(data.settings)))
    assert_same(data, again)
    assert again.settings == data.settings and data.settings["n_validation"] == len(data.y_validation) == 12


@pytest.mark.parametrize("name", designs())
def test_property_seeds_repetitions_and_splits_share_no_row(name):
    options = SMALL[name] | {"n_validation": 60, "n_test": 60}
    sets = [design(name, seed=seed, repetition=r, **options) for seed, r in ((0, 0), (0, 1), (1, 0))]
    columns = np.concatenate([data.split(split)[0] for data in sets for split in ("train", "validation", "test")])
    assert len(np.unique(columns[:, -1])) > 0.999 * len(columns)
    if sets[0].task == "regression":
        noise = [y - signal for data in sets for _, y, signal in map(data.split, ("train", "validation", "test"))]
        matrix = np.corrcoef(noise)[np.triu_indices(9, 1)]
        assert np.abs(matrix).max() < 0.6


def test_property_splits_are_uncorrelated():
    data = example2(n=20_000, p=4 + 1, n_validation=20_000, n_test=20_000, seed=1)
    limit = 4.5 / math.sqrt(20_000)
    splits = [data.split(name) for name in ("train", "validation", "test")]
    for i in range(3):
        for j in range(i):
            for t in range(5):
                assert abs(np.corrcoef(splits[i][0][:, t], splits[j][0][:, t])[0, 1]) < limit
            noise = [y - signal for _, y, signal in (splits[i], splits[j])]
            assert abs(np.corrcoef(*noise)[0, 1]) < limit
            assert abs(np.corrcoef(noise[0], splits[j][0][:, 0])[0, 1]) < limit


def test_property_repetition_is_a_child_of_the_seed():
    data = example1(n=30, p=5, seed=21, repetition=2, dtype="float64")
    train = np.random.SeedSequence(21).spawn(3)[2].spawn(3)[0]
    draws = np.random.default_rng(train.spawn(2)[0]).standard_normal((30, 6))
    assert np.allclose(data.X_train, (draws[:, :1] + draws[:, 1:]) / math.sqrt(2), rtol=0, atol=1e-14)


def test_property_first_rows_do_not_depend_on_how_many_follow():
    few, many = c1(n=700, p=30), c1(n=3000, p=30)
    assert np.array_equal(few.X_train, many.X_train[:700]) and np.array_equal(few.y_train, many.y_train[:700])
    assert np.array_equal(few.X_test, many.X_test)


def test_property_formulas_share_inputs_and_noise():
    first, second = example1("paper", n=500, p=5), example1("authors-code", n=500, p=5)
    assert np.array_equal(first.X_train, second.X_train)
    assert np.allclose(first.y_train - first.signal_train, second.y_train - second.signal_train, atol=1e-5)


def test_property_float32_and_float64_are_the_same_draw():
    single, double = example2(n=50, p=10), example2(n=50, p=10, dtype="float64")
    assert single.X_train.dtype == np.float32 and double.X_train.dtype == double.y_train.dtype == np.float64
    assert np.array_equal(single.X_train, double.X_train.astype(np.float32))
    assert np.allclose(single.y_train, double.y_train, atol=1e-4)


def test_property_global_generator_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    for name in designs():
        design(name, **SMALL[name])
    assert np.array_equal(np.random.get_state()[1], before)


def test_limit_small_n_is_its_example():
    data = small_n(500, 40, example="example1", formula="sun", seed=3)
    assert_same(data, example1("sun", n=500, p=40, seed=3))
    assert data.name == "small_n" and data.settings["example"] == "example1"
    assert_same(design("small n", n=500, p=40), example2(n=500, p=40))


def test_limit_one_block_of_k1_is_example2():
    assert_same(k1(n=50, p=10, blocks=1), example2(n=50, p=10))


# ---- messages


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: design("exmple2"), "name='exmple2' is no design: did you mean 'example2'?"),
        (lambda: example1("printed"), "formula='printed' .* 'paper', 'authors-code', 'sun'"),
        (lambda: example1_response(np.zeros((1, 5)), "printed"), "formula='printed' .* 'authors-code'"),
        (lambda: example2_response(np.zeros((3, 4))), r"X has shape \(3, 4\): give rows of at least 5 columns"),
        (lambda: example2(n=0), "n=0 .* at least 1"),
        (lambda: example2(n=50.0), "n=50.0 .* give an integer"),
        (lambda: example2(p=4), "p=4 .* at least 5"),
        (lambda: k1(p=29), "p=29 .* at least 30"),
        (lambda: k1(blocks=0), "blocks=0 .* at least 1"),
        (lambda: example2(n=9, p=5, seed=-1), "seed=-1 .* at least 0"),
        (lambda: example2(n=9, p=5, repetition=-1), "repetition=-1 .* at least 0"),
        (lambda: example2(n=9, p=5, n_test=0), "n_test=0 .* at least 1"),
        (lambda: example2(n=9, p=5, correlation=1.0), r"correlation=1.0 .* \[0, 1\)"),
        (lambda: example2(n=9, p=5, noise=-1.0), "noise=-1.0 .* at least 0"),
        (lambda: example2(n=9, p=5, dtype="float16"), "dtype='float16' .* 'float32' or 'float64'"),
        (lambda: example3(n=9, p=5, noise=0.5), "noise=0.5 changes nothing in design example3"),
        (lambda: n0(n=9, p=5, strength=2.0), "strength=2.0 changes nothing in design N0"),
        (lambda: small_n(example="K1"), "example='K1' .* 'example1', 'example2', 'example3'"),
        (lambda: c1(n=9, p=30, blocks="true"), "blocks='true' .* 'mixed' or 'separate'"),
        (lambda: c1(n=9, p=30, within=0.3), "within=0.3 is below between=0.5"),
        (lambda: c1(n=9, p=20), "p=20 gives 4 blocks .* give p of at least 21"),
        (lambda: truncated_normal(np.random.default_rng(0), (1,), bound=0.0), "bound=0.0"),
        (lambda: example2(n=9, p=5).split("valid"), "name='valid' .* 'validation'"),
    ],
)
def test_error_names_argument_value_and_mend(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_error_unknown_arguments_name_the_nearest():
    with pytest.raises(TypeError, match="B1 takes no 'corelation'"):
        design("B1", corelation=0.2)
    with pytest.raises(TypeError, match="example1 takes no 'repetitions': did you mean 'repetition'"):
        design("example1", repetitions=3)


def test_error_one_sided_labels_cannot_be_balanced():
    def inputs(generator, rows):
        return generator.standard_normal((rows, 1))

    with pytest.raises(ValueError, match="balanced=True finds hardly a row of label 1"):
        simulate("x", "classification", inputs, lambda X: -1.0 - X[:, 0] ** 2, 1, n=4, p=1, settings={}, balanced=True)
