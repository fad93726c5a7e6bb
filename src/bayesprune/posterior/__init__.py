from bayesprune.common.modes import preserved
from bayesprune.posterior.calibration import adaptive_ece, classwise_ece
from bayesprune.posterior.diagnostics import bulk_ess, ess, loss_spikes, rank_rhat, split_rhat
from bayesprune.posterior.fit import Fit, fit_check
from bayesprune.posterior.health import (
    HealthReport,
    health_report,
    noise_to_gradient_of,
    temperature_of,
    weight_spread,
)
from bayesprune.posterior.inference_data import from_bayesprune
from bayesprune.posterior.metrics import (
    ReliabilityCurve,
    accuracy,
    auroc,
    average_precision,
    brier,
    classification_metrics,
    ece,
    gaussian_nll,
    mse,
    nll,
    ood_metrics,
    reliability_curve,
)
from bayesprune.posterior.mixture import Prediction, RegressionPrediction
from bayesprune.posterior.predict import predict, use_sample
from bayesprune.posterior.sample_store import SampleStore
from bayesprune.posterior.samples import MemorySamples, Samples
from bayesprune.posterior.selective import RiskCoverage, risk_coverage

__all__ = [
    "Samples",
    "SampleStore",
    "MemorySamples",
    "predict",
    "Prediction",
    "RegressionPrediction",
    "use_sample",
    "from_bayesprune",
    "preserved",
    "accuracy",
    "nll",
    "brier",
    "ece",
    "adaptive_ece",
    "classwise_ece",
    "reliability_curve",
    "ReliabilityCurve",
    "classification_metrics",
    "mse",
    "gaussian_nll",
    "auroc",
    "average_precision",
    "ood_metrics",
    "risk_coverage",
    "RiskCoverage",
    "health_report",
    "HealthReport",
    "fit_check",
    "Fit",
    "temperature_of",
    "noise_to_gradient_of",
    "weight_spread",
    "loss_spikes",
    "split_rhat",
    "rank_rhat",
    "ess",
    "bulk_ess",
]
