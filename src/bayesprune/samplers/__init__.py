"""How weights move: CV-Adam, its reference with an explicit mean, the equations behind them, and the cycle clock."""

from bayesprune.samplers.cv_adam import CVAdam
from bayesprune.samplers.cycles import CycleClock, CyclicalLR
from bayesprune.samplers.dynamics import (
    effective_temperature,
    exact_noise_std,
    paper_global_scale,
    paper_noise_scale,
    paper_noise_std,
    stationary_variance,
)
from bayesprune.samplers.noise import counter_normal, stream_key
from bayesprune.samplers.variational import VariationalCVAdam

__all__ = [
    "CVAdam",
    "VariationalCVAdam",
    "CycleClock",
    "CyclicalLR",
    "effective_temperature",
    "exact_noise_std",
    "paper_global_scale",
    "paper_noise_scale",
    "paper_noise_std",
    "stationary_variance",
    "counter_normal",
    "stream_key",
]
