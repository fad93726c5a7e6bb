"""Which weights stay: groups, the spike-and-slab prior, criteria, pruners, and the report."""

import importlib
import warnings
from typing import Any

from bayesprune.sparsity.channels import ChannelSpace, trace_channels
from bayesprune.sparsity.criteria import (
    SparsityCut,
    concentration,
    cubic_ramp,
    l2,
    mean_square,
    threshold_for_sparsity,
)
from bayesprune.sparsity.feedback import FeedbackPruning
from bayesprune.sparsity.groups import ChannelGroups, Groups, Slice, TensorGroups
from bayesprune.sparsity.masks import MaskHolder
from bayesprune.sparsity.packing import common_mask, pack_mask, pack_masks, pack_state, unpack_mask, unpack_state
from bayesprune.sparsity.partition import Exclusion, Partition, describe, partition, prunable_modules
from bayesprune.sparsity.pruner import ForwardPruning, Pruner
from bayesprune.sparsity.report import LayerSparsity, SparsityReport, sparsity_report
from bayesprune.sparsity.spike_slab import (
    SpikeSlabPrior,
    e_step,
    inclusion_probability,
    m_step,
    probability_from_soft_threshold,
    soft_threshold_from_probability,
)

__all__ = [
    "ForwardPruning",
    "Pruner",
    "MaskHolder",
    "FeedbackPruning",
    "partition",
    "describe",
    "prunable_modules",
    "Groups",
    "TensorGroups",
    "ChannelGroups",
    "Slice",
    "Partition",
    "Exclusion",
    "trace_channels",
    "ChannelSpace",
    "SpikeSlabPrior",
    "soft_threshold_from_probability",
    "probability_from_soft_threshold",
    "inclusion_probability",
    "e_step",
    "m_step",
    "concentration",
    "l2",
    "mean_square",
    "threshold_for_sparsity",
    "SparsityCut",
    "cubic_ramp",
    "sparsity_report",
    "SparsityReport",
    "LayerSparsity",
    "pack_mask",
    "unpack_mask",
    "common_mask",
    "pack_masks",
    "pack_state",
    "unpack_state",
]


def __getattr__(name: str) -> Any:
    if name in (
        "compact",
        "Compaction",
        "CompactionReport",
        "CompactionError",
        "LayerRecord",
        "REASONS",
        "SlimAttention",
    ):
        warnings.warn(
            f"bayesprune.sparsity.{name} is bayesprune.compaction.{name} now; this name goes with the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module("bayesprune.compaction"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
