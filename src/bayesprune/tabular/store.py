"""Fitted estimators as one file: safetensors, with all that is no array as JSON in its header; no pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bayesprune.common.artefact import ArtefactError, MissingArtefactError, reading
from bayesprune.common.bounded import parse_json, read_json
from bayesprune.common.tensors import LIMIT, load_into, read_tensors, write_tensors
from bayesprune.tabular.chains import ChainMLP
from bayesprune.tabular.rows import Standardiser
from bayesprune.tabular.sampling import PosteriorNetworks

FILE = "estimator.safetensors"
_FORMAT, _TENSORS = "bayesprune tabular estimator", "bayesprune-estimator-2"
_OLDER = "estimator.json"  # of version 1, beside the tensors
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
        "version": 2,
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
    text = json.dumps(about, allow_nan=True)
    write_tensors(Path(folder) / FILE, tensors, _TENSORS, {"estimator": text})
    (Path(folder) / _OLDER).unlink(missing_ok=True)


def seal_of(folder: str | os.PathLike[str]) -> str | None:
    """What tells a saved estimator from every other; None of version 1."""
    return read_tensors(Path(folder) / FILE, [_TENSORS], older=[None]).seal


def load(folder: str | os.PathLike[str], *, limit: int = LIMIT) -> Any:
    """Read a fitted estimator that `save` wrote.

    Args:
        folder: the folder.
        limit: the most bytes that its file may have.

    Returns:
        The estimator, as it was.

    Raises:
        ArtefactError: the file is damaged or of another format; where there is none, a FileNotFoundError too.

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

    place = Path(folder) / FILE
    if not place.is_file():
        raise MissingArtefactError(folder, f"holds no {FILE}", mend="give the folder that save() wrote")
    tensors, metadata, seal = read_tensors(place, [_TENSORS], older=[None], limit=limit)
    with reading(place, f"a {_FORMAT}", "restore it from a copy, or fit again"):
        about = read_json(Path(folder) / _OLDER) if seal is None else parse_json(metadata["estimator"])
        version = 1 if seal is None else 2
        if about.get("format") != _FORMAT or about.get("version") != version:
            raise ArtefactError(folder, f"is not a {_FORMAT} of version {version}")
        if about.get("estimator") not in ("SparseBNNRegressor", "SparseBNNClassifier"):
            raise ValueError(f"unknown estimator {about.get('estimator')!r}")
        return _built(getattr(estimators, about["estimator"]), about, tensors, place)


def _built(kind: Any, about: dict[str, Any], tensors: dict[str, torch.Tensor], place: Path) -> Any:
    """The estimator of what a file says of it."""
    parameters = dict(about["parameters"])
    if isinstance(parameters.get("hidden_layer_sizes"), list):
        parameters["hidden_layer_sizes"] = tuple(parameters["hidden_layer_sizes"])
    model = kind(**parameters)
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
        dtype, labels = np.dtype(about["classes"]["dtype"]), about["classes"]["values"]
        if dtype.kind not in "biufUO" or dtype.itemsize > 1 << 16:
            raise ValueError(f"classes of dtype {dtype}")
        model.classes_ = np.array(labels, dtype=dtype)
    if "network" in about:
        shape = about["network"]
        if not _fits(shape, tensors, model):
            raise ValueError(f"a network of {shape.get('chains')!r} chains and sizes {shape.get('sizes')!r:.80}")
        net = ChainMLP(shape["chains"], shape["sizes"], activation=shape["activation"], generator=None)
        weights = {k[len("network.") :]: v for k, v in tensors.items() if k.startswith("network.")}
        load_into(net, weights, place)
        model.posterior_ = PosteriorNetworks(net, tensors["network_weight"], shape["noise_variance"])
        if "classes" not in about:
            model.noise_variance_ = shape["noise_variance"] * model.standardiser_.y_scale**2
    return model


def _fits(shape: dict[str, Any], tensors: dict[str, torch.Tensor], model: Any) -> bool:
    """Whether a network is as large as its tensors, which are there, and not larger."""
    numbers = [shape["chains"], *shape["sizes"]]
    if not all(type(number) is int and number > 0 for number in numbers) or len(numbers) < 3:
        return False
    held = sum(value.numel() for name, value in tensors.items() if name.startswith("network."))
    wanted = sum(shape["chains"] * (one + 1) * other for one, other in zip(numbers[1:], numbers[2:]))
    return wanted == held and len(tensors["network_weight"]) == shape["chains"]


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
