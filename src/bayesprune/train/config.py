"""What a run is made of: frozen dataclasses, one a concern, and setting them by key."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from bayesprune.train.values import convert, nearest


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are cut and presented."""

    dataset: str = "digits"
    """digits, cifar10, cifar100, folder (images in folders, held in memory) or images (folders or tar shards, decoded by
    worker processes)."""
    image_size: int = 224
    """Side to which the images of folder and images are cut; other data sets have their own."""
    train_size: int = 0
    """Training images used, a stratified choice; 0 is all."""
    validation_size: int = 0
    """Images held out of training; every choice is made on them, never on the test set."""
    batch_size: int = 64
    """Images a step, over all processes of a data-parallel run; the last, short batch of an epoch is left out."""
    augment: bool = True
    """Random crop and mirror; of images, a random window scaled to image_size."""
    padding: int = 4
    """Pixels added on each side before the crop."""
    flip: bool = True
    """Mirror half of the images."""
    crop_scale: float = 0.08
    """Smallest share of an image's area that a random window of images holds."""


@dataclass(frozen=True)
class NetworkConfig:
    """Which network."""

    network: str = "digits_resnet"
    """A name of `bayesprune.vision.names()`."""
    width: int = 0
    """Channels of the first stage; 0 is the network's own."""
    stem_stride: int = 0
    """Stride of resnet20's first convolution; 0 is the network's own."""
    label_smoothing: float = 0.0
    """Share of each label spread over all classes, in training only."""


@dataclass(frozen=True)
class SamplerConfig:
    """How weights move. For `cvadam` and `emmcmc`, CV-Adam; for `csgld` and `csghmc`, those samplers (friction 1 − beta1); for
    all others, SGD with Nesterov momentum at beta1.
    """

    method: str = "cvadam"
    """sgd, cvadam, emmcmc (CV-Adam with spike-and-slab pruning); csgld or csghmc; rank1, swag or ensemble on SGD; or a
    sparse-training baseline on SGD: sparse_momentum, dsr, set, rigl, gmp, dpf, channel_gmp."""
    lr: float = 1e-3
    """Peak step size: in Adam's units with preconditioner rms, else in SGD's."""
    beta1: float = 0.9
    """Momentum retention."""
    beta2: float = 1.0
    """Gradient scale of CV-Adam."""
    preconditioner: str = "rms"
    """CV-Adam's diagonal: rms (gradient second moments), paper (the dual variable) or none."""
    scale_decay: float = 0.99
    """Retention of the second moments of preconditioner rms."""
    dual_lr: float = 0.1
    """Step size of the dual variable of preconditioner paper."""
    weight_decay: float = 5e-4
    """Prior precision over the number of training images."""
    temperature: float = 1.0
    """1 is the Bayes posterior; csgmcmc's scripts have 1/50,000. CV-Adam, cSGLD and cSGHMC only."""
    noise: str = "exact"
    """exact or paper."""
    global_scale: str = "paper"
    """Of preconditioner paper: the paper's coupling, or a number."""


@dataclass(frozen=True)
class ScheduleConfig:
    """How long, in which cycles, and when samples are taken."""

    epochs: int = 10
    """Passes over the training images."""
    cycles: int = 1
    """Cosine cycles."""
    warmup_epochs: float = 0.0
    """Linear ramp before the first cycle."""
    samples_per_cycle: int = 0
    """Posterior samples at the end of each cycle."""
    sample_every: float = 1.0
    """Epochs between the samples of a cycle."""
    lr_floor: float = 0.0
    """Share of the peak at which a cycle ends."""


@dataclass(frozen=True)
class PruningConfig:
    """Which weights stay (emmcmc and the sparse-training baselines)."""

    target_sparsity: float = 0.9
    """Share of the prunable weights at zero in the end."""
    feedback: str = "none"
    """none is DFP; masked and dense_copy are the two forms of DPF."""
    groups: str = "kernel"
    """weight, kernel, input, output or channel."""
    scope: str = "global"
    """Of emmcmc and channel_gmp: the target holds over all groups ranked together (global), or in every layer, for channels in
    every coupled set (layer)."""
    min_groups: int = 1
    """Of emmcmc and channel_gmp: every tensor, for channels every coupled set, keeps at least this many groups."""
    rule: str = "magnitude"
    """magnitude, l2 or concentration."""
    spike_decay: float = 1e-3
    """Weight decay of groups on the spike; the slab has the sampler's weight_decay."""
    soft_threshold: float = 1e-4
    """On a group's mean squared weight: below it, the group is on the spike."""
    expectation: str = "current"
    """E-step over the current sample or a running mean."""
    hard_threshold: float = 0.0
    """Prune groups whose statistic is below it, instead of to a target sparsity; 0 is the target."""
    every: int = 0
    """Steps between two pruning steps; 0 is the method's own: 1 for emmcmc, 16 for dense_copy and dpf, 100 for dsr, rigl and
    gmp, an epoch for sparse_momentum and set."""
    prune_from: float = 0.1
    """Share of the run at which the ramp begins."""
    prune_until: float = 0.6
    """Share of the run at which the target is reached, and samples are taken from there on; for dsr, set and rigl, which are
    sparse from the start, at which the masks stay."""
    exclude: tuple[str, ...] = ()
    """Modules, by name pattern, that are never pruned."""
    dense_layers: str = "none"
    """published: what the baseline's authors left dense stays dense too, besides `exclude`; none."""
    distribution: str = "own"
    """Layer-wise sparsity of a baseline: uniform, erk, for gmp also global; own is the method's: erk for set and rigl, else uniform."""
    drop_fraction: float = 0.0
    """Share of the kept weights that sparse_momentum, set or rigl moves at first; 0 is the method's own: 0.5, 0.3 and 0.3."""


@dataclass(frozen=True)
class BaselineConfig:
    """The sampling and ensembling baselines."""

    noise_epochs: float = 5.0
    """Epochs at the end of each cycle in which csgld and csghmc inject noise."""
    members: int = 4
    """Mixture components of rank1. (An ensemble's members are its schedule's cycles.)"""
    prior: str = "gaussian"
    """Prior and posterior family of rank1's factors: gaussian or cauchy."""
    prior_std: float = 0.1
    """Prior standard deviation (scale) of rank1's factors around 1."""
    random_sign: float = 0.5
    """Probability that a mean of rank1's factors starts at +1 and not at −1; 1 suits small data."""
    annealing: float = 0.8
    """Share of the run over which rank1's KL grows to its full weight."""
    draws: int = 1
    """Samples drawn at the end: of swag in all, of rank1 a member."""
    rank: int = 20
    """Columns of swag's low-rank part; 0 is its diagonal form."""
    collect_from: float = 0.75
    """Share of the run at which swag begins to collect, once an epoch, at lr_floor·lr."""


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how it runs; precision, compile, channels_last and threads change results, the rest does not."""

    device: str = "auto"
    """auto (cuda where there is one), cpu or cuda."""
    precision: str = "32-true"
    """Lightning Fabric's names: 32-true, bf16-mixed, 16-mixed."""
    compile: bool = False
    """torch.compile the network."""
    channels_last: bool = True
    """Memory format of images and convolutions."""
    threads: int = 0
    """CPU threads; 0 is torch's choice."""
    workers: int = 4
    """Processes that decode images, for each process that trains; 0 is none beside it. The images are the same."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints; 0 is every step."""
    evaluate_every: int = 1
    """Epochs between evaluations on the validation images (the test images where none are held out); 0 is never."""
    trace_every: int = 0
    """Steps between two points of the sample paths; 0 takes about 200 over the run."""
    trace_channels: int = 2
    """Channels whose weights are traced, on the input and on the output side of one convolution; 0 is none."""
    tensorboard: bool = False
    """Write TensorBoard logs beside the CSV."""


@dataclass(frozen=True)
class RunConfig:
    """All of a run; `recipe` is the name it came from.

    Example:
        >>> RunConfig(recipe="mine").sampler.lr
        0.001
    """

    recipe: str = "custom"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    pruning: PruningConfig = field(default_factory=PruningConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        """Refuse values out of range, by name."""
        for key, choices in _CHOICES.items():
            value = get(self, key)
            if value not in choices:
                raise ValueError(f"{key}={value!r}: {nearest(str(value), choices)}")
        for key, (low, high) in _RANGES.items():
            value = get(self, key)
            if not low <= value <= high:
                raise ValueError(f"{key}={value!r} is out of range; it must lie in [{low:g}, {high:g}].")
        if self.pruning.prune_from >= self.pruning.prune_until:
            raise ValueError(
                f"prune_from={self.pruning.prune_from} must be below prune_until={self.pruning.prune_until}: "
                "both are shares of the run."
            )
        if self.sampler.method == "ensemble" and (self.schedule.samples_per_cycle != 1 or self.schedule.warmup_epochs):
            raise ValueError(
                f"samples_per_cycle={self.schedule.samples_per_cycle}, warmup_epochs={self.schedule.warmup_epochs}: an "
                "ensemble's cycles are its members; set samples_per_cycle=1 and warmup_epochs=0."
            )
        if self.baseline.rank == 1:
            raise ValueError("rank=1: swag's low-rank part divides by rank − 1; set rank=0 (diagonal) or at least 2.")
        if self.sampler.method == "swag" and round(self.schedule.epochs * (1 - self.baseline.collect_from)) < 2:
            raise ValueError(
                f"collect_from={self.baseline.collect_from} leaves swag less than two of {self.schedule.epochs} epochs to "
                "collect in; lower it."
            )
        if self.sampler.global_scale != "paper":
            convert("global_scale", self.sampler.global_scale, float)


_INF = float("inf")
_CHOICES: dict[str, tuple[str, ...]] = {
    "dataset": ("digits", "cifar10", "cifar100", "folder", "images"),
    "method": (
        "sgd",
        "cvadam",
        "emmcmc",
        "csgld",
        "csghmc",
        "rank1",
        "swag",
        "ensemble",
        "sparse_momentum",
        "dsr",
        "set",
        "rigl",
        "gmp",
        "dpf",
        "channel_gmp",
    ),
    "noise": ("exact", "paper"),
    "preconditioner": ("rms", "paper", "none"),
    "prior": ("gaussian", "cauchy"),
    "feedback": ("none", "masked", "dense_copy"),
    "groups": ("weight", "kernel", "input", "output", "channel"),
    "scope": ("global", "layer"),
    "rule": ("magnitude", "l2", "concentration"),
    "expectation": ("current", "running"),
    "dense_layers": ("none", "published"),
    "distribution": ("own", "uniform", "erk", "global"),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("32-true", "bf16-mixed", "16-mixed"),
}
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (8, 4096), "train_size": (0, _INF), "validation_size": (0, _INF), "batch_size": (1, _INF),
    "padding": (0, 64), "width": (0, 4096), "stem_stride": (0, 8), "label_smoothing": (0, 0.999), "lr": (1e-12, 1e6), "beta1": (0, 0.99999),
    "beta2": (1e-12, 1e6), "scale_decay": (0, 0.999999), "dual_lr": (0, 1e6), "weight_decay": (0, 1e3), "temperature": (0, 1e6),
    "epochs": (1, 1e6), "cycles": (1, 1e5), "warmup_epochs": (0, 1e6), "samples_per_cycle": (0, 1e5),
    "sample_every": (1e-6, 1e6), "lr_floor": (0, 0.999), "target_sparsity": (0, 0.9999), "spike_decay": (0, 1e6),
    "min_groups": (0, 1e6), "soft_threshold": (0, 1e6), "hard_threshold": (0, 1e9), "drop_fraction": (0, 0.999),
    "every": (0, 1e9), "prune_from": (0, 1), "prune_until": (0, 1), "threads": (0, 1024), "workers": (0, 1024), "crop_scale": (1e-3, 1),
    "noise_epochs": (0, 1e6), "members": (1, 1024), "prior_std": (1e-9, 1e6), "annealing": (0, 1), "draws": (1, 1e5),
    "rank": (0, 1e4), "collect_from": (0, 1), "random_sign": (0, 1),
    "checkpoint_minutes": (0, 1e6), "evaluate_every": (0, 1e6), "trace_every": (0, 1e9), "trace_channels": (0, 64),
    "seed": (0, 2**31 - 1),
}  # fmt: skip

_SECTIONS = ("data", "network", "sampler", "schedule", "pruning", "baseline", "runtime")


def keys() -> dict[str, str]:
    """Return every settable key and the section that holds it ("" for `seed`).

    Example:
        >>> keys()["lr"]
        'sampler'
    """
    found = {"seed": ""}
    for section, kind in zip(_SECTIONS, _section_types()):
        for item in fields(kind):
            found[item.name] = section
    return found


def _section_types() -> list[Any]:
    hints = typing.get_type_hints(RunConfig)
    return [hints[section] for section in _SECTIONS]


def get(config: RunConfig, key: str) -> Any:
    """Return the value of a key, `lr` or `sampler.lr`."""
    section, name = locate(key)
    return getattr(getattr(config, section) if section else config, name)


def override(config: RunConfig, settings: Iterable[str] | Mapping[str, Any]) -> RunConfig:
    """Return `config` with keys set.

    Args:
        config: A run's configuration.
        settings: "key=value" strings, or a mapping; a key may carry its section ("sampler.lr").

    Returns:
        A new configuration, checked.

    Raises:
        ValueError: An unknown key or a bad value; the message names the nearest valid one.

    Example:
        >>> override(RunConfig(), ["lr=0.5", "schedule.epochs=3"]).sampler.lr
        0.5
    """
    if not isinstance(settings, Mapping):
        pairs = []
        for setting in settings:
            key, separator, value = setting.partition("=")
            if not separator:
                raise ValueError(f"--set {setting!r} has no '='; write key=value, for example lr=0.5.")
            pairs.append((key.strip(), value.strip()))
        settings = dict(pairs)
    changes: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, name = locate(key)
        holder = dict(zip(_SECTIONS, _section_types()))[section] if section else RunConfig
        changes.setdefault(section, {})[name] = convert(name, value, typing.get_type_hints(holder)[name])
    top = changes.pop("", {})
    sections = {section: replace(getattr(config, section), **values) for section, values in changes.items()}
    return replace(config, **top, **sections)


def as_dict(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as nested dicts, ready for JSON.

    Example:
        >>> from_dict(as_dict(RunConfig(seed=3))) == RunConfig(seed=3)
        True
    """
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    return {"method": config.sampler.method, **plain}


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that `as_dict` wrote.

    Raises:
        ValueError: A key that this version does not know.
    """
    unknown = sorted(set(values) - {"recipe", "method", "seed", *_SECTIONS})
    if unknown:
        raise ValueError(f"unknown section {unknown[0]!r}: {nearest(unknown[0], _SECTIONS)}")
    config = RunConfig(recipe=str(values.get("recipe", "custom")))
    flat: dict[str, Any] = {"seed": values.get("seed", 0)}
    for section in _SECTIONS:
        flat.update({f"{section}.{name}": value for name, value in values.get(section, {}).items()})
    return override(config, flat)


BASELINES = ("sparse_momentum", "dsr", "set", "rigl", "gmp", "dpf")
ON_SGD = ("sgd", "rank1", "swag", "ensemble", "channel_gmp", *BASELINES)
RAMPED = ("emmcmc", "gmp", "dpf", "channel_gmp")  # dense at first: samples wait for the target


def locate(key: str) -> tuple[str, str]:
    """Return (section, name) of a key."""
    known = keys()
    section, _, name = key.rpartition(".")
    if name in known and section in ("", known[name]):
        return known[name], name
    spelled = [f"{known[n]}.{n}" for n in known] if section else list(known)
    raise ValueError(f"unknown key {key!r}: {nearest(key, spelled)}")
