"""The paper's ImageNet setting (Table 3): ResNet-50, 200 epochs, batch 64, 50 epochs of warm-up and then 3 cycles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bayesprune.train.config import (
    DataConfig,
    NetworkConfig,
    PruningConfig,
    RunConfig,
    RuntimeConfig,
    SamplerConfig,
    ScheduleConfig,
)

NUM_IMAGES = 1_281_167
"""Training images of ImageNet (ILSVRC 2012)."""
_EPOCHS = 200


def imagenet_resnet50() -> RunConfig:
    """resnet50 on ImageNet at the paper's setting, CV-Adam."""
    return RunConfig(
        data=DataConfig("images", image_size=224, batch_size=64),
        network=NetworkConfig("resnet50"),
        sampler=SamplerConfig(
            "cvadam", lr=1.0, beta1=0.1, temperature=1 / NUM_IMAGES, preconditioner="paper", noise="paper"
        ),
        schedule=ScheduleConfig(_EPOCHS, cycles=3, warmup_epochs=50, samples_per_cycle=3),
        runtime=RuntimeConfig(precision="bf16-mixed", compile=True, workers=12),
    )


def imagenet_resnet50_sgd() -> RunConfig:
    """resnet50 on ImageNet at the paper's setting, Nesterov SGD."""
    sgd = SamplerConfig("sgd", lr=0.1, beta1=0.9)
    return replace(imagenet_resnet50(), sampler=sgd, schedule=ScheduleConfig(_EPOCHS))


def _pruned(feedback: str, target: float) -> Callable[[], RunConfig]:
    def make() -> RunConfig:
        base = imagenet_resnet50()
        # From the end of the warm-up to the middle of the second cycle: the last two cycles give samples at the target.
        pruning = PruningConfig(target, feedback=feedback, groups="kernel", prune_from=0.25, prune_until=0.6)
        return replace(base, sampler=replace(base.sampler, method="emmcmc"), pruning=pruning)

    name = "DFP" if feedback == "none" else "DPF"
    make.__doc__ = (
        f"resnet50 on ImageNet at the paper's setting, EM-MCMC {name} to {target:.0%} of the prunable weights."
    )
    return make


RECIPES: dict[str, Callable[[], RunConfig]] = {
    "imagenet-resnet50": imagenet_resnet50,
    "imagenet-resnet50-cvadam": imagenet_resnet50,
    "imagenet-resnet50-sgd": imagenet_resnet50_sgd,
    "imagenet-resnet50-dfp": _pruned("none", 0.8),
    "imagenet-resnet50-dfp-90": _pruned("none", 0.9),
    "imagenet-resnet50-dpf": _pruned("dense_copy", 0.8),
    "imagenet-resnet50-dpf-90": _pruned("dense_copy", 0.9),
}
