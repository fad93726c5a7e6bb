"""What a run is made of: frozen dataclasses, one a concern. None means "not set"; 0 is a number."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from bayesprune.train.registry import method
from bayesprune.train.values import Span, convert, in_epochs, in_shares, nearest


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are cut and presented."""

    dataset: str = "digits"
    """digits, cifar10, cifar100, folder (images in folders, held in memory), images (folders or tar shards, decoded by
    worker processes), or own: given from Python (`train(data=…)`)."""
    image_size: int = 224
    """Side to which the images of folder and images are cut; other data sets have their own."""
    fold: int | None = None
    """Of digits: the fifth that is tested, 0 to 4, the rest trained on; None: the usual 500 are tested."""
    train_size: int | None = None
    """Training images used, a stratified choice; None: all."""
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
    alternate: bool = False
    """Mirror each image in every second epoch, in place of by chance."""
    padding_mode: str = "zero"
    """What the padding holds: zero or reflect (the image's own pixels)."""
    cutout: int = 0
    """Side of a square at a random place that is set to the mean; 0 is none."""
    crop_scale: float = 0.08
    """Smallest share of an image's area that a random window of images holds."""
    test_views: str = "none"
    """Views of a test image whose outputs are averaged for a second set of scores, beside the plain ones: none, mirror (the
    image and its mirror image) or crops (both, and both shifted by a pixel up left and down right)."""


@dataclass(frozen=True)
class NetworkConfig:
    """Which network."""

    network: str = "digits_resnet"
    """A name of `bayesprune.vision.names()`, or own: given from Python (`train(model=…)`)."""
    width: int | None = None
    """Channels of the first stage; None: the network's own."""
    stem_stride: int | None = None
    """Stride of resnet20's first convolution; None: the network's own."""
    label_smoothing: float = 0.0
    """Share of each label spread over all classes, in training only."""


@dataclass(frozen=True)
class SamplerConfig:
    """How weights move: the method's optimizer and its settings (`bayesprune.train.methods`)."""

    method: str = "cvadam"
    """A registered method: sgd, cvadam, emmcmc (CV-Adam with spike-and-slab pruning); csgld or csghmc (friction 1 − beta1);
    rank1, swag or ensemble on SGD; or a sparse-training baseline on SGD: sparse_momentum, dsr, set, rigl, gmp, dpf,
    channel_gmp; or one of your own."""
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
    first_cycle: Span | None = None
    """Epochs of the first cycle, the later ones share what is left of the run; None: all are equal."""
    restart: float = 1.0
    """Share of the peak at which the later cycles begin."""
    warmup_epochs: Span = 0.0
    """Linear ramp before the first cycle."""
    samples_per_cycle: int | None = None
    """Posterior samples at the end of each cycle; None: 4 of a sampler, fewer where they do not fit into half of a cycle, one
    of an ensemble, else none."""
    sample_every: Span = 1.0
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
    round_to: int | None = 1
    """Of emmcmc by channels with scope layer: every coupled set keeps a multiple of this many; None: of 8, 4 or 2, where it has
    8 times as many."""
    keep_ends: bool | None = None
    """Of emmcmc: the first convolution stays dense, and so do the network's outputs; None: they do in a network of your own."""
    hard_threshold: float | None = None
    """Of emmcmc: prune groups whose statistic is below it; None: prune to the target sparsity."""
    every: int | None = None
    """Steps between two pruning steps; None: the method's own: 1 for emmcmc, 16 for dense_copy and dpf, 100 for dsr, rigl and
    gmp, an epoch for sparse_momentum and set."""
    prune_from: Span = 0.1
    """Share of the run at which the ramp begins."""
    prune_until: Span = 0.6
    """Share of the run at which the target is reached, and samples are taken from there on; for dsr, set and rigl, which are
    sparse from the start, at which the masks stay."""
    exclude: tuple[str, ...] = ()
    """Modules, by name pattern, that are never pruned."""
    dense_layers: str = "none"
    """published: what the baseline's authors left dense stays dense too, besides `exclude`; none."""
    distribution: str = "own"
    """Layer-wise sparsity of a baseline: uniform, erk, for gmp also global; own is the method's: erk for set and rigl, else uniform."""
    drop_fraction: float | None = None
    """Share of the kept weights that sparse_momentum, set or rigl moves at first; None: the method's own: 0.5, 0.3 and 0.3."""


@dataclass(frozen=True)
class BaselineConfig:
    """The sampling and ensembling baselines."""

    noise_epochs: Span = 5.0
    """Epochs at the end of each cycle in which csgld and csghmc inject noise."""
    members: int = 4
    """Mixture components of rank1. (An ensemble's members are its schedule's cycles.)"""
    prior: str = "gaussian"
    """Prior and posterior family of rank1's factors: gaussian or cauchy."""
    prior_std: float = 0.1
    """Prior standard deviation (scale) of rank1's factors around 1."""
    random_sign: float = 0.5
    """Probability that a mean of rank1's factors starts at +1 and not at −1; 1 suits small data."""
    annealing: Span = 0.8
    """Share of the run over which rank1's KL grows to its full weight."""
    draws: int = 1
    """Samples drawn at the end: of swag in all, of rank1 a member."""
    rank: int = 20
    """Columns of swag's low-rank part; 0 is its diagonal form."""
    collect_from: Span = 0.75
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
    threads: int | None = None
    """CPU threads; None: torch's choice."""
    workers: int = 4
    """Processes that decode images, for each process that trains; 0 is none beside it. The images are the same."""
    collective_timeout: float = 12.0
    """Seconds that the processes of a run wait for each other between two steps; then the job ends, to be resumed."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints; 0 is every step."""
    evaluate_every: int | None = 1
    """Epochs between evaluations on the validation images (the test images where none are held out); None: never."""
    trace_every: int | None = None
    """Steps between two points of the sample paths; None: about 200 over the run."""
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
    options: Any = None
    """The method's own keys, where it registers some (see `Method.options`)."""

    @property
    def samples_per_cycle(self) -> int:
        """Posterior samples at the end of each cycle: those that are set, or the method's own."""
        schedule = self.schedule
        if schedule.samples_per_cycle is not None:
            return schedule.samples_per_cycle
        warmup, every = (in_epochs(span, schedule.epochs) for span in (schedule.warmup_epochs, schedule.sample_every))
        fit = 1 + int((schedule.epochs - warmup) / (2 * schedule.cycles * every))
        return min(method(self.sampler.method).samples, fit)

    def __post_init__(self) -> None:
        """Refuse values out of range, by name; a method's own keys are at their defaults where they are not given."""
        row = method(self.sampler.method)
        if not (row.options is not None and isinstance(self.options, row.options)):  # none, or those of another method
            object.__setattr__(self, "options", None if row.options is None else row.options())
        sections = [getattr(self, section) for section in SECTIONS]
        held = {"seed": self.seed} | {name: value for part in sections for name, value in vars(part).items()}
        for key, choices in _CHOICES.items():
            if held[key] not in choices:
                raise ValueError(f"{key}={held[key]!r}: {nearest(str(held[key]), choices)}")
        for key, (low, high) in _RANGES.items():
            if isinstance(held[key], str):
                if in_shares(convert(key, held[key], Span), self.schedule.epochs) > 1:
                    raise ValueError(f"{key}={held[key]!r} is longer than the run of epochs={self.schedule.epochs}.")
                continue
            if held[key] is None and key in OPTIONAL:
                continue
            if held[key] is None or not low <= held[key] <= high:
                unset = f", or be none: not set ({key}=none)" if key in OPTIONAL else ""
                raise ValueError(f"{key}={held[key]!r} is out of range; it must lie in [{low:g}, {high:g}]{unset}.")
        begin, end = (
            in_shares(span, self.schedule.epochs) for span in (self.pruning.prune_from, self.pruning.prune_until)
        )
        if begin >= end:
            raise ValueError(
                f"prune_from={self.pruning.prune_from} must be below prune_until={self.pruning.prune_until}: "
                "both are shares of the run, or epochs (6ep)."
            )
        if self.baseline.rank == 1:
            raise ValueError("rank=1: swag's low-rank part divides by rank − 1; set rank=0 (diagonal) or at least 2.")
        if self.sampler.global_scale != "paper":
            convert("global_scale", self.sampler.global_scale, float)
        if row.check is not None:
            row.check(self)


_INF = float("inf")
_CHOICES: dict[str, tuple[str, ...]] = {
    "dataset": ("digits", "cifar10", "cifar100", "folder", "images", "own"),
    "padding_mode": ("zero", "reflect"),
    "test_views": ("none", "mirror", "crops"),
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
    "image_size": (8, 4096), "fold": (0, 4), "train_size": (1, _INF), "validation_size": (0, _INF), "batch_size": (1, _INF),
    "padding": (0, 64), "cutout": (0, 4096),
    "width": (1, 4096), "stem_stride": (1, 8), "label_smoothing": (0, 0.999), "lr": (1e-12, 1e6), "beta1": (0, 0.99999),
    "beta2": (1e-12, 1e6), "scale_decay": (0, 0.999999), "dual_lr": (0, 1e6), "weight_decay": (0, 1e3), "temperature": (0, 1e6),
    "epochs": (1, 1e6), "cycles": (1, 1e5), "warmup_epochs": (0, 1e6), "samples_per_cycle": (0, 1e5),
    "first_cycle": (1e-6, 1e6), "restart": (1e-6, 1),
    "sample_every": (1e-6, 1e6), "lr_floor": (0, 0.999), "target_sparsity": (0, 0.9999), "spike_decay": (0, 1e6),
    "min_groups": (0, 1e6), "soft_threshold": (0, 1e6), "hard_threshold": (0, 1e9), "drop_fraction": (1e-6, 0.999),
    "round_to": (1, 4096), "every": (1, 1e9), "prune_from": (0, 1), "prune_until": (0, 1),
    "threads": (1, 1024), "workers": (0, 1024), "crop_scale": (1e-3, 1),
    "noise_epochs": (0, 1e6), "members": (1, 1024), "prior_std": (1e-9, 1e6), "annealing": (0, 1), "draws": (1, 1e5),
    "rank": (0, 1e4), "collect_from": (0, 1), "random_sign": (0, 1),
    "checkpoint_minutes": (0, 1e6), "collective_timeout": (1, 1e6),
    "evaluate_every": (1, 1e6), "trace_every": (1, 1e9), "trace_channels": (0, 64),
    "seed": (0, 2**31 - 1),
}  # fmt: skip

SECTIONS = ("data", "network", "sampler", "schedule", "pruning", "baseline", "runtime")

OPTIONAL = frozenset(
    item.name
    for kind in (DataConfig, NetworkConfig, SamplerConfig, ScheduleConfig, PruningConfig, BaselineConfig, RuntimeConfig)
    for item in fields(kind)
    if "None" in str(item.type)
)
"""Keys that may be None, that is not set."""
