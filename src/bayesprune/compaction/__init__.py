"""Exact physical removal of what a pruned model does not use."""

from bayesprune.compaction.compact import Compaction, compact
from bayesprune.compaction.report import CompactionReport, LayerRecord
from bayesprune.graph.errors import REASONS, CompactionError
from bayesprune.graph.kinds import forget_layer, register_layer
from bayesprune.graph.slim_attention import SlimAttention

__all__ = [
    "compact",
    "Compaction",
    "CompactionReport",
    "LayerRecord",
    "CompactionError",
    "REASONS",
    "register_layer",
    "forget_layer",
    "SlimAttention",
]
