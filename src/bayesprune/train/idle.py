"""Which keys a method does not use; setting one of them is refused."""

from __future__ import annotations

from dataclasses import fields

from bayesprune.train.config import ON_SGD, PruningConfig, RunConfig
from bayesprune.train.settings import get, locate

_CV_ADAM = ("beta2", "preconditioner", "scale_decay", "dual_lr", "noise", "global_scale")
_IDLE_IN_SGD = ("temperature", *_CV_ADAM)
_NEEDS = {
    "scale_decay": ("preconditioner", "rms"),
    "dual_lr": ("preconditioner", "paper"),
    "global_scale": ("preconditioner", "paper"),
    "round_to": ("scope", "layer"),
    "target_sparsity": ("hard_threshold", None),
    "crop_scale": ("augment", True),
    "padding": ("augment", True),
    "flip": ("augment", True),
    "alternate": ("augment", True),
    "padding_mode": ("augment", True),
    "cutout": ("augment", True),
}
_IDLE: dict[str, tuple[str, ...]] = {
    "csgld": ("beta1", *_CV_ADAM),
    "csghmc": _CV_ADAM,
    "rank1": ("cycles", "samples_per_cycle", "sample_every", "lr_floor"),
    "swag": ("cycles", "samples_per_cycle", "sample_every", "warmup_epochs"),
    "ensemble": ("sample_every",),
}
_BASELINE_KEYS: dict[str, set[str]] = {
    "csgld": {"noise_epochs"},
    "csghmc": {"noise_epochs"},
    "rank1": {"members", "prior", "prior_std", "random_sign", "annealing", "draws"},
    "swag": {"rank", "collect_from", "draws"},
}
_DATA_KEYS: dict[str, set[str]] = {
    "fold": {"digits"},
    "image_size": {"folder", "images"},
    "crop_scale": {"images"},
    "workers": {"images"},
    **{key: {"digits", "cifar10", "cifar100", "folder"} for key in ("padding", "padding_mode", "alternate", "cutout")},
}
_COMMON = {"target_sparsity", "every", "exclude", "dense_layers", "distribution"}
_PRUNING_KEYS: dict[str, set[str]] = {
    "sgd": set(),
    "cvadam": set(),
    "emmcmc": {item.name for item in fields(PruningConfig)} - {"dense_layers", "distribution", "drop_fraction"},
    "sparse_momentum": {*_COMMON, "drop_fraction"},
    "dsr": {*_COMMON, "prune_until"},
    "set": {*_COMMON, "prune_until", "drop_fraction"},
    "rigl": {*_COMMON, "prune_until", "drop_fraction"},
    "gmp": {*_COMMON, "prune_from", "prune_until"},
    "dpf": {*_COMMON, "prune_from", "prune_until"} - {"distribution"},
    "channel_gmp": {"target_sparsity", "scope", "min_groups", "every", "exclude", "prune_from", "prune_until"},
}


def refuse_idle(config: RunConfig, key: str) -> None:
    """Raise ValueError if setting `key` changes nothing under the configuration's method or data set.

    Example:
        >>> refuse_idle(RunConfig(), "lr")
    """
    section, name = locate(key)
    dataset = config.data.dataset
    if dataset not in _DATA_KEYS.get(name, {dataset}):
        raise ValueError(
            f"{key} changes nothing with dataset={dataset}; take a recipe that uses it, or set dataset too."
        )
    method = config.sampler.method
    idle = section == "pruning" and name not in _PRUNING_KEYS.get(method, set())
    idle = idle or (section == "baseline" and name not in _BASELINE_KEYS.get(method, set()))
    if idle or name in _IDLE.get(method, ()) or (name in _IDLE_IN_SGD and method in ON_SGD):
        raise ValueError(f"{key} changes nothing with method={method}; take a recipe that uses it, or set method too.")
    other, wanted = _NEEDS.get(name, ("", None))
    if other and (found := get(config, other)) != wanted:
        raise ValueError(f"{key} changes nothing with {other}={found}; set {other}={str(wanted).lower()}.")
