from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayesprune.common.files import finite
from bayesprune.posterior.diagnostics import bulk_ess, loss_spikes, rank_rhat
from bayesprune.posterior.fit import Fit
from bayesprune.posterior.mixture import Prediction, RegressionPrediction
from bayesprune.posterior.samples import Samples
from bayesprune.samplers.admission import innermost


@dataclass(frozen=True)
class HealthReport:
    """What shows whether a run sampled from a posterior; None or empty where the report was not given what it needs.

    Example:
        >>> HealthReport(members=4, warnings=["the members do not differ"]).warnings
        ['the members do not differ']
    """

    temperature: list[dict[str, float]] | None = None
    """For each parameter group: mean, min and max of the injected temperature; kinetic, the measured one; lr, and
    suggested_lr, at which minibatch noise adds a tenth."""
    noise_to_gradient: float | None = None
    members: int | None = None
    sample_temperature: float | None = None  # mean of what was measured as each sample was taken
    weight_spread: float | None = None
    weight_spread_by_tensor: dict[str, float] = field(default_factory=dict)
    disagreement: float | None = None  # mean over inputs of the share of pairs of members that choose differently
    epistemic: float | None = None  # mean over inputs; nats (classification) or variance (regression)
    fit: dict[str, float | None] | None = None  # training losses of members, of a T = 0 reference, of a constant
    rhat: dict[str, float] = field(default_factory=dict)  # the worst entry of each trace
    ess: dict[str, float] = field(default_factory=dict)
    spikes: list[int] = field(default_factory=list)  # steps, or places in the losses
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.warnings

    def as_dict(self) -> dict[str, Any]:
        """The report as plain dicts, lists and numbers, for JSON, which knows no NaN: what is not finite is None."""
        result: dict[str, Any] = finite(asdict(self))
        return result

    def __str__(self) -> str:
        lines = ["posterior health"]
        for number, group in enumerate(self.temperature or []):
            lines.append(f"  temperature, group {number}: injected    {group['mean']:.3g}")
            if "kinetic" in group:
                lines.append(f"  temperature, group {number}: measured    {group['kinetic']:.3g}")
        rows = [
            ("noise-to-gradient ratio", self.noise_to_gradient),
            ("members", self.members),
            ("temperature measured at the samples", self.sample_temperature),
            ("relative spread of the weights", self.weight_spread),
            ("disagreement between members", self.disagreement),
            ("epistemic uncertainty", self.epistemic),
            *((f"training loss, {name}", value) for name, value in (self.fit or {}).items()),
            *((f"R-hat of {name}", value) for name, value in self.rhat.items()),
            *((f"bulk ESS of {name}", value) for name, value in self.ess.items()),
        ]
        lines += [f"  {name:<32} {value:.4g}" for name, value in rows if value is not None]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def temperature_of(optimizer: Any) -> list[dict[str, float]] | None:
    """Ask a sampler how hot it runs: 1 is the posterior, 0 an optimizer that injects no noise.

    Args:
        optimizer: A `bayesprune.samplers.Sampler`, or any object with ``injected_temperature()`` (one dict of "mean",
            "min", "max" for each parameter group) and, where it measures, ``kinetic_temperature()`` and ``suggest_lr()``.

    Returns:
        One dict a group as in `HealthReport.temperature`, or None if the optimizer has no such method.

    Example:
        >>> class Cold:
        ...     def injected_temperature(self):
        ...         return [{"mean": 1e-6, "min": 1e-7, "max": 1e-5}]
        >>> temperature_of(Cold())
        [{'mean': 1e-06, 'min': 1e-07, 'max': 1e-05}]
    """
    optimizer = innermost(optimizer)
    if not hasattr(optimizer, "injected_temperature"):
        return None
    groups = [{key: float(group[key]) for key in ("mean", "min", "max")} for group in optimizer.injected_temperature()]
    if hasattr(optimizer, "kinetic_temperature"):
        measured, suggested = optimizer.kinetic_temperature(), optimizer.suggest_lr()
        for group, found, lr, own in zip(groups, measured, suggested, optimizer.param_groups):
            if not math.isnan(found["mean"]):
                group.update(kinetic=found["mean"], lr=float(own["lr"]), suggested_lr=lr)
    return groups


def noise_to_gradient_of(optimizer: Any) -> float | None:
    """Ask an optimizer for the rms of its injected noise over the rms of its gradient step; None where there is none.

    Args:
        optimizer: after a backward pass; asked through its method ``noise_to_gradient()``. Far below 1 is no sampler.

    Returns:
        The ratio, or None if the optimizer has no such method or no gradient to compare with.

    Example:
        >>> noise_to_gradient_of(torch.optim.SGD([torch.ones(2)], lr=0.1)) is None
        True
    """
    method = getattr(innermost(optimizer), "noise_to_gradient", None)
    value = method() if method is not None else None
    return None if value is None or math.isnan(value) else float(value)


@torch.no_grad()
def weight_spread(samples: Samples) -> tuple[float, dict[str, float]]:
    """Relative spread of the weights between samples: rms of the standard deviations over rms of the means.

    Both root mean squares run over the entries of a tensor (or of all of them), so entries at zero, such as pruned
    ones, do no harm. Buffers are left out. One sample at a time is in memory, beside the running mean and sum of
    squares.

    Args:
        samples: at least two.

    Returns:
        The figure over all parameters, and that of each parameter tensor. Infinite where the mean is zero but not the
        spread, 0 where both are.

    Raises:
        ValueError: if there are fewer than two samples.

    Example:
        >>> from bayesprune.posterior import MemorySamples
        >>> model, samples = torch.nn.Linear(1, 1, bias=False), MemorySamples()
        >>> for value in (1.0, 3.0):
        ...     _ = torch.nn.init.constant_(model.weight, value)
        ...     _ = samples.collect(model)
        >>> round(weight_spread(samples)[0], 4)  # standard deviation √2 around the mean 2
        0.7071
    """
    count = len(samples)
    if count < 2:
        raise ValueError(f"samples: {count} present; the spread needs at least two")
    layout = samples.layout or {}
    names = [n for n, s in layout.items() if s.kind == "parameter" and s.tied_to is None and "float" in s.dtype]
    mean: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    for seen, sample in enumerate(samples, start=1):
        for name in names:
            value = sample[name].float()
            if seen == 1:
                mean[name], squares[name] = value.clone(), torch.zeros_like(value)
            else:
                difference = value - mean[name]
                mean[name] += difference / seen
                squares[name] += difference * (value - mean[name])
    variance = {name: squares[name].double().sum().item() / (count - 1) for name in names}
    size = {name: mean[name].double().square().sum().item() for name in names}
    by_tensor = {name: _root_ratio(variance[name], size[name]) for name in names}
    return _root_ratio(sum(variance.values()), sum(size.values())), by_tensor


def _root_ratio(numerator: float, denominator: float) -> float:
    if denominator == 0:
        return math.inf if numerator > 0 else 0.0
    return math.sqrt(numerator / denominator)


def health_report(
    *,
    optimizer: Any = None,
    samples: Samples | None = None,
    prediction: Prediction | RegressionPrediction | None = None,
    fit: Fit | None = None,
    traces: Mapping[str, Any] | None = None,
    losses: Sequence[float] | Mapping[int, float] | None = None,
    min_temperature: float = 1e-2,
    max_excess: float = 0.5,
    min_noise_to_gradient: float = 1e-2,
    min_disagreement: float = 1e-3,
    max_rhat: float = 1.01,
    min_ess_per_chain: float = 100.0,
) -> HealthReport:
    """Judge a run by what is at hand; warn when it is an optimizer that saved snapshots, hotter than it says, or unfit.

    Args:
        optimizer: for the injected and the measured temperature and, if gradients are present, the noise-to-gradient
            ratio.
        samples: for the spread of the weights.
        prediction: for the disagreement between members and their epistemic uncertainty.
        fit: from `fit_check`; warns where the members do not fit the training data.
        traces: named traces (chains, draws, ...) of scalars or function values, for R-hat and ESS.
        losses: training losses in order, or by their steps, for what `loss_spikes` finds.
        min_temperature: warn when the mean injected temperature of a group is below.
        max_excess: warn when the measured temperature exceeds the injected one by more than this share.
        min_noise_to_gradient: warn when the ratio is below.
        min_disagreement: warn when the members' choices differ less often (classification only).
        max_rhat: warn above it.
        min_ess_per_chain: warn below it.

    Returns:
        A `HealthReport`; ``print`` it, or save ``report.as_dict()``.

    Raises:
        ValueError: if a trace has the wrong shape or a value that is not finite.

    Example:
        >>> class Cold:
        ...     def injected_temperature(self):
        ...         return [{"mean": 1e-6, "min": 1e-7, "max": 1e-5}]
        >>> health_report(optimizer=Cold()).ok
        False

    Reference:
        Wenzel et al. (2020), "How good is the Bayes posterior in deep neural networks really?", on temperature; Vehtari
        et al. (2021) on the thresholds of R-hat and ESS.
    """
    warnings: list[str] = []
    snapshots = "in effect an optimizer with snapshots"

    temperature = temperature_of(optimizer) if optimizer is not None else None
    ratio = noise_to_gradient_of(optimizer) if optimizer is not None else None
    if optimizer is not None and temperature is None:
        warnings.append(
            f"{type(innermost(optimizer)).__name__} does not say at which temperature it samples: {snapshots}"
        )
    for number, group in enumerate(temperature or []):
        warnings += _temperature_warnings(group, number, min_temperature, max_excess)
    if ratio is not None and ratio < min_noise_to_gradient:
        warnings.append(f"the injected noise is {ratio:.3g} of the gradient step: {snapshots}")

    heated = any("measured temperature" in text for text in warnings)
    at_samples, set_there = _sample_temperatures(samples) if samples is not None else (None, None)
    if at_samples is not None and set_there and at_samples > (1 + max_excess) * set_there and not heated:
        warnings.append(
            f"measured temperature {at_samples:.3g} while samples were taken, set {set_there:.3g}: minibatch noise (or a step near "
            "its stability limit) heats the chain. Take samples at a smaller lr, or use a larger batch"
        )

    count = len(samples) if samples is not None else None
    spread: float | None = None
    by_tensor: dict[str, float] = {}
    if samples is not None and len(samples) >= 2:
        spread, by_tensor = weight_spread(samples)
        if spread == 0:
            warnings.append("all samples have the same weights")
    elif samples is not None:
        warnings.append(f"{len(samples)} sample(s): there is no posterior average to speak of")

    disagreement = epistemic = None
    if prediction is not None:
        epistemic = prediction.epistemic.mean().item()
        if isinstance(prediction, Prediction):
            disagreement = prediction.disagreement.mean().item()
            if disagreement < min_disagreement and len(prediction.member_classes) > 1:
                warnings.append(f"members choose different classes in {disagreement:.2g} of the cases: {snapshots}")

    if fit is not None and fit.warning:
        warnings.append(fit.warning)

    rhat: dict[str, float] = {}
    ess: dict[str, float] = {}
    for name, trace in (traces or {}).items():
        chains = len(trace)
        rhat[name] = rank_rhat(trace).max().item()  # NaN, a constant trace's, counts as worst
        ess[name] = bulk_ess(trace).min().item()
        if len(torch.as_tensor(trace).flatten(1).unique(dim=0)) < chains:
            warnings.append(
                f"chains of {name} are the same, draw for draw: they have one seed. A loaded optimizer state brings its own: set "
                "group['seed'] of each chain after it"
            )
        if not rhat[name] <= max_rhat:
            warnings.append(f"R-hat of {name} is {rhat[name]:.3f} (above {max_rhat:g}): the chains have not mixed")
        if not ess[name] >= min_ess_per_chain * chains:
            wanted = f"{min_ess_per_chain * chains:g} wanted for {chains} chain(s)"
            warnings.append(f"bulk ESS of {name} is {ess[name]:.0f} ({wanted}): the estimates are noisy")
    named = losses if isinstance(losses, Mapping) else dict(enumerate(() if losses is None else losses))
    spikes = [list(named)[place] for place in loss_spikes(list(named.values()))]
    if spikes:
        where = ", ".join(map(str, spikes[:5])) + (f" and {len(spikes) - 5} more" if len(spikes) > 5 else "")
        warnings.append(f"the training loss leapt at {where}: lower lr, or clip the gradients")
    fitted = fit.as_dict() if fit is not None else None
    return HealthReport(
        temperature,
        ratio,
        count,
        at_samples,
        spread,
        by_tensor,
        disagreement,
        epistemic,
        fitted,
        rhat,
        ess,
        spikes,
        warnings,
    )


def _sample_temperatures(samples: Samples) -> tuple[float | None, float | None]:
    """Means of the measured and of the set temperature that the samples remember; None where they remember none."""
    infos = [info for info in samples.infos if info.get("kinetic_temperature") is not None]
    if not infos:
        return None, None
    return tuple(sum(info[key] for info in infos) / len(infos) for key in ("kinetic_temperature", "temperature"))  # type: ignore[return-value]


def _temperature_warnings(group: Mapping[str, float], number: int, least: float, excess: float) -> list[str]:
    """What is wrong with one group's temperatures; NaN, at a learning rate of 0, says nothing."""
    warnings, wanted = [], group["mean"]
    if wanted < least * (1 - 1e-6):
        warnings.append(
            f"injected temperature {wanted:.3g} in group {number} (posterior: 1): in effect an optimizer with snapshots"
        )
    measured = group.get("kinetic")
    if measured is not None and wanted > 0 and measured > wanted * (1 + excess):
        lr, suggested = group["lr"], group["suggested_lr"]
        warnings.append(
            f"measured temperature {measured:.3g} in group {number}, set {wanted:.3g}: minibatch noise (or a step near its stability "
            f"limit) heats the chain. At lr={suggested:.2g} instead of {lr:.2g} it would add a tenth; a larger batch or a "
            "learning rate that decays before the samples helps too"
        )
    return warnings
