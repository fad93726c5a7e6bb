"""Which keys a method does not use; setting one of them is refused."""

from __future__ import annotations

import warnings

from bayesprune.train.config import RunConfig
from bayesprune.train.recipes import recipe
from bayesprune.train.registry import method
from bayesprune.train.settings import get, keys, locate

_NEEDS: dict[str, tuple[str, str | bool | None]] = {
    "scale_decay": ("preconditioner", "rms"),
    "dual_lr": ("preconditioner", "paper"),
    "global_scale": ("preconditioner", "paper"),
    "round_to": ("scope", "layer"),
    "target_sparsity": ("hard_threshold", None),
    **dict.fromkeys(("crop_scale", "padding", "flip", "alternate", "padding_mode", "cutout"), ("augment", True)),
}
_DATA_KEYS: dict[str, set[str]] = {
    "fold": {"digits"},
    "image_size": {"folder", "images"},
    **{key: {"images"} for key in ("crop_scale", "workers")},
    **{key: {"digits", "cifar10", "cifar100", "folder"} for key in ("padding", "padding_mode", "alternate", "cutout")},
    **{key: {"digits", "cifar10", "cifar100", "folder", "images"} for key in ("augment", "flip")},
}


def refuse_idle(config: RunConfig, key: str) -> None:
    """Raise ValueError if setting `key` changes nothing under the configuration's method or data set."""
    section, name = locate(key, config.sampler.method)
    dataset = config.data.dataset
    if dataset not in _DATA_KEYS.get(name, {dataset}):
        raise ValueError(
            f"{key} changes nothing with dataset={dataset}; take a recipe that uses it, or set dataset too."
        )
    name_of_method = config.sampler.method
    if not method(name_of_method).uses(section, name):
        raise ValueError(
            f"{key} changes nothing with method={name_of_method}; take a recipe that uses it, or set method too."
        )
    other, wanted = _NEEDS.get(name, ("", None))
    if other and (found := get(config, other)) != wanted:
        raise ValueError(f"{key} changes nothing with {other}={found}; set {other}={str(wanted).lower()}.")


def warn_of_idle(given: RunConfig, config: RunConfig) -> None:
    """Warn of what `given` sets otherwise than its recipe although it changes nothing under `config`."""
    try:
        base = recipe(given.recipe)
    except ValueError:  # of the user's own
        base = RunConfig()
    for key in keys():
        if get(given, key) not in (get(base, key), 0, None):  # what is off is off
            try:
                refuse_idle(config, key)
            except ValueError as error:
                warnings.warn(str(error), stacklevel=3)
