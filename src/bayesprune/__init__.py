"""A network that knows what it does not know, at a fraction of its size, from one training run."""

from typing import TYPE_CHECKING

from bayesprune._version import __version__
from bayesprune.common.lazy import lazy

if TYPE_CHECKING:
    from bayesprune.common.artefact import ArtefactError
    from bayesprune.compaction import compact
    from bayesprune.deploy import Ensemble, export_onnx, export_program, load, profile, save
    from bayesprune.posterior import (
        MemorySamples,
        Prediction,
        RegressionPrediction,
        SampleStore,
        classification_metrics,
        fit_check,
        health_report,
        ood_metrics,
        predict,
        use_sample,
    )
    from bayesprune.samplers import PSGLD, SGHMC, SGLD, CVAdam, CycleClock, CyclicalLR, VariationalCVAdam
    from bayesprune.sparsity import FeedbackPruning, ForwardPruning, SpikeSlabPrior, partition, sparsity_report

_PLACES = {
    "bayesprune.common.artefact": "ArtefactError",
    "bayesprune.samplers": "CVAdam SGHMC SGLD PSGLD VariationalCVAdam CycleClock CyclicalLR",
    "bayesprune.sparsity": "ForwardPruning FeedbackPruning SpikeSlabPrior partition sparsity_report",
    "bayesprune.compaction": "compact",
    "bayesprune.deploy": "save load profile Ensemble export_onnx export_program",
    "bayesprune.posterior": "SampleStore MemorySamples predict Prediction RegressionPrediction use_sample "
    "health_report fit_check classification_metrics ood_metrics",
}
_ROOMS = (
    "baselines",
    "compaction",
    "deploy",
    "integrations",
    "posterior",
    "report",
    "samplers",
    "sparsity",
    "tabular",
    "train",
    "vision",
)

__all__ = [
    "__version__",
    "CVAdam",
    "SGHMC",
    "SGLD",
    "PSGLD",
    "VariationalCVAdam",
    "CycleClock",
    "CyclicalLR",
    "ForwardPruning",
    "FeedbackPruning",
    "SpikeSlabPrior",
    "partition",
    "sparsity_report",
    "compact",
    "save",
    "load",
    "profile",
    "Ensemble",
    "export_onnx",
    "export_program",
    "SampleStore",
    "MemorySamples",
    "predict",
    "Prediction",
    "RegressionPrediction",
    "use_sample",
    "health_report",
    "fit_check",
    "classification_metrics",
    "ood_metrics",
    "ArtefactError",
]

__getattr__ = lazy(__name__, _PLACES, _ROOMS)


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS})
