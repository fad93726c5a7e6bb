"""Fitted estimators in a folder: safetensors for numbers, JSON for the rest, no pickle."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from bayesprune.tabular.chains import ChainMLP
from bayesprune.tabular.rows import Standardiser
from bayesprune.tabular.sampling import PosteriorNetworks

_FORMAT = "bayesprune tabular estimator"
_ARRAYS = (
    "support_", "inclusion_probability_", "chain_probability_", "q_value_", "evidence_", "feature_importances_", "inputs_",
)  # fmt: skip


def save(model: Any, folder: str | os.PathLike[str]) -> None:
    """Write a fitted estimator; an estimator already in the folder is replaced, other files there stay.

    Args:
        model: a fitted `SparseBNNRegressor` or `SparseBNNClassifier`.
        folder: where to; made if absent.

    Raises:
        ValueError: a parameter that JSON cannot hold (a generator as random_state).
        sklearn.exceptions.NotFittedError: the estimator is not fitted.
    """
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(model)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(model, name))) for name in _ARRAYS}
    tensors |= {f"history.{key}": torch.from_numpy(np.ascontiguousarray(v)) for key, v in model.history_.items()}
    tensors |= {"standardiser.mean": torch.from_numpy(model.standardiser_.mean)}
    tensors |= {"standardiser.scale": torch.from_numpy(model.standardiser_.scale)}
    about: dict[str, Any] = {
        "format": _FORMAT,
        "version": 1,
        "estimator": type(model).__name__,
        "parameters": _plain_parameters(model),
        "n_features_in": int(model.n_features_in_),
        "n_iter": int(model.n_iter_),
        "prior": model.prior_,
        "standardiser": {"y_mean": model.standardiser_.y_mean, "y_scale": model.standardiser_.y_scale},
    }
    if hasattr(model, "feature_names_in_"):
        about["feature_names_in"] = [str(name) for name in model.feature_names_in_]
    if hasattr(model, "classes_"):
        about["classes"] = {"dtype": model.classes_.dtype.str, "values": model.classes_.tolist()}
    if hasattr(model, "posterior_"):
        posterior = model.posterior_
        about["network"] = {
            "chains": posterior.net.chains,
            "sizes": [int(size) for size in posterior.net.sizes],
            "activation": posterior.net.activation,
            "noise_variance": posterior.noise_variance,
        }
        tensors |= {f"network.{key}": value.contiguous() for key, value in posterior.net.state_dict().items()}
        tensors["network_weight"] = posterior.weight
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
    try:
        save_file(tensors, staging / "estimator.safetensors")
        (staging / "estimator.json").write_text(json.dumps(about, indent=1, allow_nan=True))
        for name in ("estimator.safetensors", "estimator.json"):
            os.replace(staging / name, target / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def load(folder: str | os.PathLike[str]) -> Any:
    """Read a fitted estimator that `save` wrote.

    Args:
        folder: the folder.

    Returns:
        The estimator, as it was.

    Raises:
        FileNotFoundError: there is none in the folder.
        ValueError: the files are of another format or do not fit together.

    Example:
        >>> import tempfile
        >>> from bayesprune.tabular import SparseBNNRegressor, load
        >>> X = np.random.default_rng(0).standard_normal((60, 4))
        >>> model = SparseBNNRegressor(search_steps=50, evidence_steps=30, fit_steps=50, random_state=0).fit(X, X[:, 1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(folder)
        ...     bool((load(folder).predict(X) == model.predict(X)).all())
        True
    """
    from bayesprune.tabular import estimators

    place = Path(folder)
    if not (place / "estimator.json").is_file():
        raise FileNotFoundError(f"folder={str(place)!r} holds no estimator.json: give the folder that save() wrote")
    about = json.loads((place / "estimator.json").read_text())
    if not isinstance(about, dict) or about.get("format") != _FORMAT or about.get("version") != 1:
        raise ValueError(f"{place / 'estimator.json'} is not a {_FORMAT} of version 1")
    if about.get("estimator") not in ("SparseBNNRegressor", "SparseBNNClassifier"):
        raise ValueError(f"{place / 'estimator.json'}: unknown estimator {about.get('estimator')!r}")
    tensors = load_file(place / "estimator.safetensors")
    parameters = dict(about["parameters"])
    if isinstance(parameters.get("hidden_layer_sizes"), list):
        parameters["hidden_layer_sizes"] = tuple(parameters["hidden_layer_sizes"])
    model = getattr(estimators, about["estimator"])(**parameters)
    try:
        for name in _ARRAYS:
            setattr(model, name, tensors[name].numpy())
        model.history_ = {k.partition(".")[2]: v.numpy() for k, v in tensors.items() if k.startswith("history.")}
        model.prior_ = about["prior"]
        model.n_features_in_, model.n_iter_ = about["n_features_in"], about["n_iter"]
        model.standardiser_ = Standardiser(
            tensors["standardiser.mean"].numpy(), tensors["standardiser.scale"].numpy(), **about["standardiser"]
        )
        if "feature_names_in" in about:
            model.feature_names_in_ = np.array(about["feature_names_in"], dtype=object)
        if "classes" in about:
            kind = np.dtype(about["classes"]["dtype"])
            model.classes_ = np.array(about["classes"]["values"], dtype=kind)
        if "network" in about:
            shape = about["network"]
            net = ChainMLP(shape["chains"], shape["sizes"], activation=shape["activation"], generator=None)
            net.load_state_dict({k[len("network.") :]: v for k, v in tensors.items() if k.startswith("network.")})
            model.posterior_ = PosteriorNetworks(net, tensors["network_weight"], shape["noise_variance"])
            if "classes" not in about:
                model.noise_variance_ = shape["noise_variance"] * model.standardiser_.y_scale**2
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{place}: estimator.json and estimator.safetensors do not fit together: {error}") from error
    return model


def _plain_parameters(model: Any) -> dict[str, Any]:
    parameters = {}
    for name, value in model.get_params(deep=False).items():
        if isinstance(value, np.generic):
            value = value.item()
        if name == "groups" and value is not None:
            value = [[int(column) for column in members] for members in value]
        if isinstance(value, tuple):
            value = [int(size) for size in value]
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(f"{name}={value!r} cannot be written: set it to a plain number, text or list") from None
        parameters[name] = value
    return parameters
