"""The paper's image settings (section 5), our own on the same networks, and the baselines at both."""

from __future__ import annotations

from dataclasses import replace

from bayesprune.train.baseline_recipes import add_baselines, add_ensembles
from bayesprune.train.config import DataConfig, NetworkConfig, PruningConfig, RunConfig, SamplerConfig, ScheduleConfig
from bayesprune.train.recipes import register_recipe
from paper.recipes import imagenet
from paper.recipes.best import best

_PAPER_EPOCHS = 200
_SPARSITIES = {"cifar10-resnet18": 0.9, "cifar10-wrn28-10": 0.9, "cifar100-resnet34": 0.7, "cifar100-wrn28-10": 0.8}


def _paper(dataset: str, network: str) -> RunConfig:
    """Return section 5's CV-Adam setting: 200 epochs, batch 64, 4 cycles, peak 1, β = (0.1, 1), k = 1/N, 3 samples a
    cycle.
    """
    return RunConfig(
        data=DataConfig(dataset, batch_size=64),
        network=NetworkConfig(network),
        sampler=SamplerConfig(
            "cvadam", lr=1.0, beta1=0.1, temperature=1 / 50_000, preconditioner="paper", noise="paper"
        ),
        schedule=ScheduleConfig(_PAPER_EPOCHS, cycles=4, samples_per_cycle=3),
    )


def _paper_sgd(dataset: str, network: str) -> RunConfig:
    base = _paper(dataset, network)
    sgd = SamplerConfig("sgd", lr=0.1, beta1=0.9)
    return replace(base, sampler=sgd, schedule=ScheduleConfig(_PAPER_EPOCHS))


def _paper_pruned(dataset: str, network: str, target: float, feedback: str) -> RunConfig:
    base = _paper(dataset, network)
    return replace(
        base,
        sampler=replace(base.sampler, method="emmcmc"),
        pruning=PruningConfig(target_sparsity=target, groups="kernel", feedback=feedback),
    )


def _add_place(place: str, target: float) -> None:
    dataset, _, short = place.partition("-")
    network = short.replace("-", "_")
    described = f"{network} on {dataset} at the paper's setting"

    def sgd() -> RunConfig:
        return _paper_sgd(dataset, network)

    def sampled() -> RunConfig:
        return _paper(dataset, network)

    register_recipe(place, sampled, f"{described}, CV-Adam.")
    register_recipe(f"{place}-sgd", sgd, f"{described}, Nesterov SGD.")
    for name, feedback in (("dfp", "none"), ("dpf", "dense_copy")):

        def pruned(feedback: str = feedback) -> RunConfig:
            return _paper_pruned(dataset, network, target, feedback)

        text = f"{described}, EM-MCMC {name.upper()} to {target:.0%} of the prunable weights."
        register_recipe(f"{place}-{name}", pruned, text)
    add_baselines(place, described, sgd, target)
    add_ensembles(place, described, sgd, 0.05)
    for name, make in best(place, f"{network} on {dataset}", lambda: _paper(dataset, network), target).items():
        register_recipe(name, make)


for _place, _target in _SPARSITIES.items():
    _add_place(_place, _target)
for _name, _make in imagenet.RECIPES.items():
    register_recipe(_name, _make)
_IMAGENET = ("imagenet-resnet50", "resnet50 on ImageNet at the paper's setting", imagenet.imagenet_resnet50_sgd)
add_baselines(*_IMAGENET, 0.8)
add_ensembles(*_IMAGENET, 0.05)
