"""A network that knows what it does not know, at a fraction of its size, from one training run."""

from bayesprune._version import __version__
from bayesprune.common.artefact import ArtefactError
from bayesprune.compaction import compact
from bayesprune.deploy import Ensemble, load, profile, save
from bayesprune.posterior import MemorySamples, SampleStore, health_report, predict, use_sample
from bayesprune.samplers import CVAdam, CycleClock, CyclicalLR, VariationalCVAdam
from bayesprune.sparsity import FeedbackPruning, ForwardPruning, SpikeSlabPrior, partition, sparsity_report

__all__ = [
    "__version__",
    "CVAdam",
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
    "SampleStore",
    "MemorySamples",
    "predict",
    "use_sample",
    "health_report",
    "ArtefactError",
]
