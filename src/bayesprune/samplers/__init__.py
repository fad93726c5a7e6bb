"""How weights move: CV-Adam and the other samplers, the equations behind them, and the cycle clock."""

from bayesprune.samplers.base import Sampler
from bayesprune.samplers.cv_adam import CVAdam
from bayesprune.samplers.cycles import CycleClock, CyclicalLR, CyclicalNoise, set_adapt
from bayesprune.samplers.dynamics import (
    exact_noise_std,
    injected_temperature,
    kinetic_temperature,
    paper_global_scale,
    paper_noise_scale,
    paper_noise_std,
    stationary_variance,
)
from bayesprune.samplers.guard import NonFiniteGradientError
from bayesprune.samplers.noise import counter_normal, stream_key
from bayesprune.samplers.reference import VariationalCVAdam
from bayesprune.samplers.sghmc import PUBLISHED_TEMPERATURE, SGHMC
from bayesprune.samplers.sgld import PSGLD, SGLD

__all__ = [
    "Sampler",
    "CVAdam",
    "SGHMC",
    "SGLD",
    "PSGLD",
    "VariationalCVAdam",
    "CycleClock",
    "CyclicalLR",
    "CyclicalNoise",
    "set_adapt",
    "NonFiniteGradientError",
    "PUBLISHED_TEMPERATURE",
    "exact_noise_std",
    "injected_temperature",
    "kinetic_temperature",
    "paper_global_scale",
    "paper_noise_scale",
    "paper_noise_std",
    "stationary_variance",
    "counter_normal",
    "stream_key",
]
