"""CIFAR at real accuracy on CPUs that multiply bf16: whitened networks, one thread a run."""

from __future__ import annotations

from bayesprune.train.config import DataConfig, NetworkConfig, RunConfig, RuntimeConfig, SamplerConfig, ScheduleConfig
from bayesprune.train.recipes import register_recipe

_EPOCHS = {"94": 14, "95": 18, "96": 40}


def cifar10_sgd(size: str) -> RunConfig:
    """Return Nesterov SGD on a whitened network, with eight late snapshots."""
    epochs = _EPOCHS[size]
    return RunConfig(
        data=DataConfig(
            "cifar10", batch_size=1024, padding=2, padding_mode="reflect", alternate=True, test_views="mirror"
        ),
        network=NetworkConfig(f"whitened{size}", label_smoothing=0.05),
        sampler=SamplerConfig("sgd", lr=1.5, beta1=0.85, weight_decay=0.00133),
        schedule=ScheduleConfig(
            epochs, warmup_epochs=epochs / 5, samples_per_cycle=8, sample_every=0.25, lr_floor=0.05
        ),
        runtime=RuntimeConfig(precision="bf16-mixed", evaluate_every=None, trace_channels=0),
    )


for _size in _EPOCHS:
    register_recipe(
        f"cifar10-{_size}-sgd",
        lambda size=_size: cifar10_sgd(size),  # type: ignore[misc]
        f"Whitened network for {_size} % of CIFAR-10, Nesterov SGD with 8 late snapshots.",
    )
