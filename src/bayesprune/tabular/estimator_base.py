"""What the scikit-learn estimators share: the fit, what is selected, the state in a folder."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from bayesprune.common.modes import threads
from bayesprune.tabular.chains import ChainMLP
from bayesprune.tabular.clusters import Cluster
from bayesprune.tabular.columns import column_number, is_frame, with_text_names
from bayesprune.tabular.features import RankFeatures
from bayesprune.tabular.frame import FrameEncoder
from bayesprune.tabular.notes import DataWarning, order_note, outlier_note, variance_note
from bayesprune.tabular.parameters import Parameters
from bayesprune.tabular.prediction_sets import masks_of
from bayesprune.tabular.predictive import sample_networks, steps_of
from bayesprune.tabular.progress import progress
from bayesprune.tabular.rows import Standardiser
from bayesprune.tabular.sampling import PosteriorNetworks
from bayesprune.tabular.selection import Selection, find_inputs
from bayesprune.tabular.store import write_estimator
from bayesprune.tabular.training_data import TrainingData, read_training_data

_ARRAYS = (
    "support_", "inclusion_probability_", "chain_probability_", "p_value_", "q_value_", "evidence_", "feature_importances_", "inputs_",
    "variance_p_value_", "variance_support_",
)  # fmt: skip


class SparseBNN(SelectorMixin, Parameters):
    """What the regressor and the classifier share."""

    # ---- fitting ----------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Find the inputs that matter and sample a network on them."""
        self._fit_batch([self], [(X, y, sample_weight)], None)
        return self

    @staticmethod
    def _fit_batch(models: Sequence[SparseBNN], datasets: Sequence[tuple[Any, ...]], inputs: Any) -> None:
        """Fit models of the same parameters, one a data set: find the inputs, or take those given; then the networks."""
        data = [model._read(*given) for model, given in zip(models, datasets)]
        lead = models[0]
        shapes = {each.table.shape for each in data}
        if len(shapes) > 1:
            raise ValueError(f"datasets differ in shape, {sorted(shapes)}: fit those of one shape together")
        if any((each.names, each.members) != (data[0].names, data[0].members) for each in data):
            raise ValueError(
                "datasets differ in their columns or in the levels of text: fit those that are alike together"
            )
        if len({model._outputs() for model in models}) > 1:
            raise ValueError("datasets differ in their number of classes: fit those of one number together")
        n, p = data[0].table.shape
        plan, seed = lead._plan(n, p), lead._seed()
        tables, responses = [each.table for each in data], [each.response for each in data]
        standardisers = [model.standardiser_ for model in models]
        weights = [np.ones(n) if each.weight is None else each.weight for each in data]
        weights = weights if any(each.weight is not None for each in data) else []
        masks = []
        steps = (plan.steps if inputs is None else 0) + (steps_of(lead._sampling(n)) if lead.refit else 0)
        with threads(lead._threads()), progress(steps, bool(lead.verbose)), torch.enable_grad():
            if inputs is None:
                groups = lead._units(data[0].names, data[0].members)
                expected = None if lead.expected_inputs == "auto" else float(lead.expected_inputs)
                found = find_inputs(
                    tables, responses, standardisers, lead._outputs(), plan, groups,
                    expected=expected, fdr=lead.fdr, weights=weights, seed=seed,
                )  # fmt: skip
                for model, selection, each in zip(models, found, data):
                    model._take_selection(selection, groups, each)
                    model.n_iter_ = plan.search.steps
                masks = masks_of([s.sets for s in found], [model.inputs_ for model in models], groups, plan.chains)
            else:
                for model, columns, each in zip(models, inputs, data):
                    model._take_inputs(columns, each)
            if not lead.refit:
                return
            posteriors = sample_networks(
                tables, responses, standardisers, [model.inputs_ for model in models], lead._outputs(),
                lead._sampling(n), masks=masks, weights=weights, batch_size=min(256, plan.batch_size), seed=seed + 20_000,
            )  # fmt: skip
        for model, posterior in zip(models, posteriors):
            model._take_posterior(posterior)
            model.prior_ |= {"network_precision": posterior.precision, "network_temperature": posterior.temperature}

    def _read(self, X: Any, y: Any, sample_weight: Any = None) -> TrainingData:
        """Check the parameters and the data, and keep what predictions need of them."""
        self._check_parameters()
        data = read_training_data(self, X, y, sample_weight, self._numeric)
        data = dataclasses.replace(data, response=self._encode(data.response))
        rows = len(data.response)
        if rows < 6:
            raise ValueError(f"X has {rows} rows (n_samples={rows}): give at least 6, some to learn and some to weigh")
        note = outlier_note(data.response) if self._numeric and self.refit else ""
        if note:
            warnings.warn(note, DataWarning, stacklevel=5)
        self.encoder_, self.column_names_, self.standardiser_ = data.encoder, data.names, data.standardiser
        self.target_name_ = str(y.name) if getattr(y, "name", None) is not None else None
        return data

    def _take_selection(self, selection: Selection, groups: list[np.ndarray], data: TrainingData) -> None:
        """Keep what the search and the weighing found, for each column of X."""
        support = selection.support(
            self.select, fdr=self.fdr, probability=self.probability, n_inputs=self.n_inputs, groups=groups
        )
        own_variance = self._numeric and any(way.variance != "constant" for way in self._sampling(len(data.response)))
        self.inputs_ = selection.inputs(self.select, support, groups, own_variance)
        self.support_ = data.of_columns(support).astype(bool)
        self.inclusion_probability_ = data.of_columns(selection.probability)
        self.chain_probability_ = data.of_columns(selection.chain_probability)
        self.p_value_ = data.of_columns(selection.p_value, 1.0)
        self.q_value_ = data.of_columns(selection.q_value, 1.0)
        self.variance_p_value_ = data.of_columns(selection.variance_p_value, 1.0)
        self.variance_support_ = data.of_columns(selection.on_variance).astype(bool)
        self.evidence_ = data.of_columns(selection.evidence)
        self.clusters_ = [data.cluster(cluster) for cluster in selection.clusters]
        self.prior_ = selection.prior
        places = data.column_of(selection.history["path_inputs"])
        self.history_ = selection.history | {"path_inputs": places}
        if self.select == "auto" and selection.sets is not None and not selection.clusters:
            means = (
                f"average over {len(selection.sets.members)} networks on {len(self.inputs_)} columns that predict best together"
                if len(self.inputs_)
                else "are a constant, for no set of columns predicts better"
            )
            warnings.warn(
                f"no input can be singled out at fdr={self.fdr}: support_ is empty, and predictions {means} "
                "(see select='prediction')", UserWarning, stacklevel=5,
            )  # fmt: skip
        found, widening = np.flatnonzero(support), np.flatnonzero(selection.on_variance)
        notes = [order_note(data.table, data.response, found.tolist(), data.names_of(found))]
        if self._numeric and self.refit and not own_variance:
            notes.append(variance_note(data.names_of(widening)))
        for note in filter(None, notes):
            warnings.warn(note, DataWarning, stacklevel=5)
        gain = data.of_columns(np.maximum(selection.gain.mean(0), 0.0))
        self.feature_importances_ = gain / gain.sum() if gain.sum() > 0 else gain
        if self.verbose:
            print(_sentence(self.support_, self.prior_))

    def _take_inputs(self, columns: Any, data: TrainingData) -> None:
        """Keep columns of X that were given, as if they had been found."""
        count = len(data.members)
        given = sorted({column_number("inputs", column, data.names, count) for column in columns})
        self.inputs_ = np.array(sorted(place for column in given for place in data.members[column]), dtype=np.int64)
        self.support_ = np.isin(np.arange(count), given)
        self.inclusion_probability_ = self.support_.astype(np.float64)
        self.chain_probability_ = self.inclusion_probability_[None].copy()
        self.p_value_ = self.q_value_ = 1.0 - self.inclusion_probability_
        self.clusters_ = []
        self.variance_p_value_, self.variance_support_ = np.ones(count), np.zeros(count, dtype=bool)
        self.evidence_ = np.zeros(count)
        self.feature_importances_ = self.inclusion_probability_ / max(1, len(given))
        self.prior_, self.history_, self.n_iter_ = {}, {}, 0

    def _take_posterior(self, posterior: PosteriorNetworks) -> None:
        """Keep the predictive network."""
        self.posterior_ = posterior
        if self._numeric:
            self.noise_variance_ = posterior.noise_variance * self.standardiser_.y_scale**2

    _numeric = True

    def _encode(self, y: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _outputs(self) -> int:
        """Return the number of outputs of the networks."""
        raise NotImplementedError

    # ---- what is selected -------------------------------------------------------------------------------------------

    def _get_support_mask(self) -> np.ndarray:
        check_is_fitted(self)
        return self.support_

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the selected columns, of a data frame its own, as text."""
        check_is_fitted(self)
        if input_features is None and self.column_names_:
            return np.array(self.column_names_, dtype=object)[self.support_]
        return super().get_feature_names_out(input_features)

    def inverse_transform(self, X: Any) -> Any:
        """Return selected columns among zeros; those of a data frame may lack values."""
        check_is_fitted(self)
        if self.encoder_ is None:
            return super().inverse_transform(X)
        X = check_array(X, dtype=None, ensure_all_finite=False)
        if X.shape[1] != self.support_.sum():
            raise ValueError(f"X has {X.shape[1]} columns: expected the {self.support_.sum()} that are selected")
        out = np.zeros((len(X), len(self.support_)), dtype=X.dtype)
        out[:, self.support_] = X
        return out

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.non_deterministic = False
        return tags

    def transform(self, X: Any) -> Any:
        """Return the selected columns."""
        check_is_fitted(self)
        if self.encoder_ is None or not is_frame(X):
            return super().transform(X)
        names = [name for name, chosen in zip(self.column_names_, self.support_) if chosen]
        return self._frame(X, names)[names]

    # ---- prediction -------------------------------------------------------------------------------------------------

    def _member_outputs(self, X: Any) -> torch.Tensor:
        """Return (M, n, k) outputs of the samples, of a standardised response or as logits."""
        check_is_fitted(self)
        if not self.refit:
            raise ValueError("refit=False selects inputs only; fit with refit=True to predict")
        if self.encoder_ is None:
            X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
            return self.posterior_.outputs(self.standardiser_.inputs(X, self.inputs_))
        encoded = self.encoder_.only(self.needed_names()).encode(self._frame(X))
        mean, scale = self.standardiser_.mean[self.inputs_], self.standardiser_.scale[self.inputs_]
        return self.posterior_.outputs(Standardiser(mean, scale).inputs(encoded))

    def needed_names(self) -> list[str]:
        """Return the names of the frame's columns that the prediction reads."""
        read, members = set(self.inputs_.tolist()), self.encoder_.members if self.encoder_ else {}
        return [name for name, places in members.items() if read.intersection(places)]

    def further_names(self) -> list[str]:
        """Return the names of the frame's columns that the prediction reads beside the selected and the findings' others."""
        members = [member for cluster in self.clusters_ for member in cluster.members]
        known = {self.column_names_[c] for c in [*members, *np.flatnonzero(self.support_ | self.variance_support_)]}
        return [name for name in self.needed_names() if name not in known]

    def _frame(self, X: Any, also: Sequence[str] = ()) -> Any:
        """Return X as a data frame that has the columns that are needed; others are checked as scikit-learn does, or may lack."""
        import pandas

        if not is_frame(X):
            X = validate_data(self, X, dtype=None, ensure_all_finite=False, reset=False)
            return pandas.DataFrame(X, columns=self.column_names_)
        named, needed = with_text_names(X), {*self.needed_names(), *also}
        here = set(named.columns)
        if here == set(self.column_names_) or not needed or not needed <= here:
            try:
                validate_data(self, X, reset=False, skip_check_array=True)
            except ValueError as error:
                absent = sorted(needed - here)
                raise ValueError(
                    f"{error}Of the columns, the prediction needs {absent}." if absent else error
                ) from None
        return named

    # ---- in a folder ------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to a folder as safetensors and JSON; see `bayesprune.tabular.load`."""
        check_is_fitted(self)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"history.{key}": value for key, value in self.history_.items()}
        arrays |= {"standardiser.mean": self.standardiser_.mean, "standardiser.scale": self.standardiser_.scale}
        about: dict[str, Any] = {
            "estimator": type(self).__name__,
            "parameters": self._plain_parameters(),
            "n_features_in": int(self.n_features_in_),
            "n_iter": int(self.n_iter_),
            "target_name": self.target_name_,
            "prior": self.prior_,
            "clusters": [dataclasses.asdict(cluster) for cluster in self.clusters_],
            "standardiser": {"y_mean": self.standardiser_.y_mean, "y_scale": self.standardiser_.y_scale},
        }
        if hasattr(self, "feature_names_in_"):
            about["feature_names_in"] = [str(name) for name in self.feature_names_in_]
        if self.encoder_ is not None:
            about["encoder"] = self.encoder_.to_dict() | {"column_names": self.column_names_}
        if hasattr(self, "classes_"):
            about["classes"] = {"dtype": self.classes_.dtype.str, "values": self.classes_.tolist()}
        if hasattr(self, "posterior_"):
            net = self.posterior_.net
            about["network"] = {
                "chains": net.chains,
                "sizes": [int(size) for size in net.sizes],
                "activation": net.activation,
                "noise_variance": self.posterior_.noise_variance,
                "dof": self.posterior_.dof,
            }
            arrays |= {f"network.{key}": value.numpy() for key, value in net.state_dict().items()}
            arrays["network_weight"] = self.posterior_.weight.numpy()
            if self.posterior_.variance_factor is not None:
                about["network"]["variance_factor"] = self.posterior_.variance_factor
            if self.posterior_.features is not None:
                arrays |= {f"features.{key}": value for key, value in vars(self.posterior_.features).items()}
        write_estimator(folder, about, arrays)

    @classmethod
    def restored(cls, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> SparseBNN:
        """Return the estimator that `save` has described."""
        parameters = dict(about["parameters"])
        if isinstance(parameters.get("hidden_layer_sizes"), list):
            parameters["hidden_layer_sizes"] = tuple(parameters["hidden_layer_sizes"])
        model = cls(**parameters)
        count = len(arrays["support_"])  # older files say nothing of the variance
        arrays = {"variance_p_value_": np.ones(count), "variance_support_": np.zeros(count, dtype=bool)} | arrays
        for name in _ARRAYS:
            setattr(model, name, arrays[name])
        model.history_ = {key.partition(".")[2]: v for key, v in arrays.items() if key.startswith("history.")}
        model.clusters_ = [
            Cluster(tuple(c["members"]), tuple(c["shares"]), c["p_value"], c["q_value"]) for c in about["clusters"]
        ]
        model.prior_, model.n_features_in_, model.n_iter_ = about["prior"], about["n_features_in"], about["n_iter"]
        model.standardiser_ = Standardiser(
            arrays["standardiser.mean"], arrays["standardiser.scale"], **about["standardiser"]
        )
        model.target_name_, model.encoder_, model.column_names_ = about["target_name"], None, []
        if "encoder" in about:
            model.column_names_ = list(about["encoder"]["column_names"])
            model.encoder_ = FrameEncoder.from_dict(about["encoder"])
        if "feature_names_in" in about:
            model.feature_names_in_ = np.array(about["feature_names_in"], dtype=object)
        if "classes" in about:
            model.classes_ = np.array(about["classes"]["values"], dtype=np.dtype(about["classes"]["dtype"]))
        if "network" in about:
            shape = about["network"]
            net = ChainMLP(shape["chains"], shape["sizes"], activation=shape["activation"], generator=None)
            weights = {k.partition(".")[2]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("network.")}
            net.load_state_dict(weights)
            weight = torch.from_numpy(arrays["network_weight"])
            features = (
                RankFeatures(arrays["features.values"], arrays["features.ranks"])
                if "features.values" in arrays
                else None
            )
            more = {"variance_factor": shape.get("variance_factor"), "dof": shape.get("dof"), "features": features}
            model._take_posterior(PosteriorNetworks(net, weight, shape["noise_variance"], **more))
        return model


def fit_many(estimator: Any, datasets: Sequence[tuple[Any, Any]], inputs: Sequence[Any] | None = None) -> list[Any]:
    """Fit one estimator to many data sets of one shape as a single batched computation.

    Replicates, seeds and folds share every matrix product, which costs far less than as many fits. With `inputs` nothing
    is searched: what a fit samples on the columns it has selected is sampled on those instead, so that the columns of
    an earlier fit give another network for the same selection.

    Args:
        estimator: a `SparseBNNRegressor` or `SparseBNNClassifier`; it is not changed.
        datasets: pairs (X, y), or triples with sample weights, all X of one shape.
        inputs: the columns to use of each data set, by number or name; their count may differ. `support_` is then what
            was given, inclusion probabilities are 1 and 0, and the parameters of search and selection do nothing.

    Returns:
        Fitted clones in order.

    Raises:
        ValueError: no data set, shapes or numbers of classes that differ, other than one entry of `inputs` a data set, or
            a column that is not there.

    Example:
        >>> from bayesprune.tabular import SparseBNNRegressor, fit_many
        >>> rng = np.random.default_rng(0)
        >>> data = [(X, X[:, 0]) for X in rng.standard_normal((2, 60, 5))]
        >>> quick = SparseBNNRegressor(search_steps=50, evidence_steps=30, fit_steps=50, random_state=0)
        >>> len(fit_many(quick, data))
        2
        >>> [model.get_support(indices=True).tolist() for model in fit_many(quick, data, inputs=[[3], [0, 3]])]
        [[3], [0, 3]]
    """
    if not len(datasets):
        raise ValueError("datasets is empty: give at least one pair (X, y)")
    if inputs is not None and len(inputs) != len(datasets):
        raise ValueError(f"datasets: {len(datasets)} against inputs: {len(inputs)}; give one set of columns for each")
    models = [clone(estimator) for _ in datasets]
    estimator._fit_batch(models, datasets, inputs)
    return models


def _sentence(support: np.ndarray, prior: dict[str, float]) -> str:
    return (
        f"{int(support.sum())} of {len(support)} columns selected; the prior expects "
        f"{prior['expected_inputs']:.3g} inputs (inclusion probability {prior['inclusion_probability']:.2g}), spike decay "
        f"{prior['spike_decay']:.2g}, slab decay {prior['slab_decay']:.2g}, soft threshold {prior['soft_threshold']:.2g}, "
        f"hard threshold {prior['hard_threshold']:.2g}"
    )
