"""Find the inputs that matter, on real patients beside columns that are known to be useless.

    python examples/select_inputs.py

scikit-learn's diabetes data: 442 patients, ten measurements, the progress of the disease a year later. Beside every
measurement stands a copy in shuffled order: the same values, and nothing to do with the response. What is selected
among the copies is a false discovery, seen without knowing the truth about the measurements. Needs
`pip install "bayesprune[tabular]"`.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import numpy as np


def beside_shuffled_copies(seed: int) -> tuple[Any, np.ndarray]:
    """Return a data frame of the measurements and their shuffled copies, and the response."""
    from sklearn.datasets import load_diabetes

    measured, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    generator = np.random.default_rng(seed)
    columns = {f"{name}, shuffled": generator.permutation(values.to_numpy()) for name, values in measured.items()}
    return measured.assign(**columns), y.to_numpy()


def main() -> Any:
    """Split, fit, print what was found, and read the model back from its folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fdr", type=float, default=0.1, help="false-discovery rate (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from sklearn.model_selection import train_test_split

    from bayesprune.tabular import SparseBNNRegressor, load

    X, y = beside_shuffled_copies(arguments.seed)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, random_state=arguments.seed)

    model = SparseBNNRegressor(fdr=arguments.fdr, random_state=arguments.seed).fit(X_train, y_train)

    print(f"{'input':<14}  probability  by chain{'':<22}  q-value  selected")
    for j in np.argsort(-model.inclusion_probability_)[:6]:
        chains = " ".join(f"{value:.2f}" for value in model.chain_probability_[:, j])
        mark = "yes" if model.support_[j] else ""
        values = f"{model.inclusion_probability_[j]:11.2f}  {chains:<30}  {model.q_value_[j]:7.2f}"
        print(f"{model.feature_names_in_[j]:<14}  {values}  {mark}")

    copies = [name for name in model.get_feature_names_out() if name.endswith("shuffled")]
    print(f"{model.support_.sum()} of {len(model.support_)} columns selected, {len(copies)} of them a shuffled copy")

    interval = model.predict_interval(X_test, coverage=0.9)
    inside = np.mean((interval[:, 0] <= y_test) & (y_test <= interval[:, 1]))
    print(f"R² on left-out patients {model.score(X_test, y_test):.2f}; inside the 90 % interval {inside:.0%}")
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        assert np.array_equal(load(folder).predict(X_test), model.predict(X_test))
    return model


if __name__ == "__main__":
    main()
