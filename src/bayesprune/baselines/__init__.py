"""What the method is compared with, one method a file."""

from typing import TYPE_CHECKING

from bayesprune.common.lazy import lazy

if TYPE_CHECKING:
    from bayesprune.baselines.allocation import erdos_renyi_kernel, layer_counts
    from bayesprune.baselines.channels import gradual_channel_pruning
    from bayesprune.baselines.dpf import dynamic_pruning_with_feedback
    from bayesprune.baselines.dsr import DynamicSparseReparameterization
    from bayesprune.baselines.ensemble import DeepEnsemble, independent_seeds
    from bayesprune.baselines.magnitude import GradualMagnitudePruning
    from bayesprune.baselines.presets import PRESETS, Preset, layers_of, published
    from bayesprune.baselines.rank1 import Rank1Network, kl_scale, step_decay, to_rank1
    from bayesprune.baselines.rank1_layer import Rank1Layer, cauchy_kl, gaussian_kl
    from bayesprune.baselines.rigl import RigL
    from bayesprune.baselines.set import SET
    from bayesprune.baselines.sparse_momentum import SparseMomentum
    from bayesprune.baselines.swag import SWAG, refresh_batch_norm_, swag_lr
    from bayesprune.baselines.topology import SparseTraining

_PLACES = {
    "bayesprune.baselines.allocation": "erdos_renyi_kernel layer_counts",
    "bayesprune.baselines.channels": "gradual_channel_pruning",
    "bayesprune.baselines.dpf": "dynamic_pruning_with_feedback",
    "bayesprune.baselines.dsr": "DynamicSparseReparameterization",
    "bayesprune.baselines.ensemble": "DeepEnsemble independent_seeds",
    "bayesprune.baselines.magnitude": "GradualMagnitudePruning",
    "bayesprune.baselines.presets": "PRESETS Preset layers_of published",
    "bayesprune.baselines.rank1": "Rank1Network kl_scale step_decay to_rank1",
    "bayesprune.baselines.rank1_layer": "Rank1Layer cauchy_kl gaussian_kl",
    "bayesprune.baselines.rigl": "RigL",
    "bayesprune.baselines.set": "SET",
    "bayesprune.baselines.sparse_momentum": "SparseMomentum",
    "bayesprune.baselines.swag": "SWAG refresh_batch_norm_ swag_lr",
    "bayesprune.baselines.topology": "SparseTraining",
}

__all__ = [
    # Sampling and ensembling
    "to_rank1",
    "Rank1Network",
    "Rank1Layer",
    "kl_scale",
    "step_decay",
    "gaussian_kl",
    "cauchy_kl",
    "SWAG",
    "swag_lr",
    "refresh_batch_norm_",
    "DeepEnsemble",
    "independent_seeds",
    # Sparse training
    "SparseTraining",
    "SparseMomentum",
    "DynamicSparseReparameterization",
    "SET",
    "RigL",
    "GradualMagnitudePruning",
    "dynamic_pruning_with_feedback",
    "gradual_channel_pruning",
    "erdos_renyi_kernel",
    "layer_counts",
    "PRESETS",
    "Preset",
    "published",
    "layers_of",
]

__getattr__ = lazy(__name__, _PLACES)
