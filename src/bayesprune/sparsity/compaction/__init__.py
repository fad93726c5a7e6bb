"""Exact physical removal of what a pruned model does not use."""

from bayesprune.sparsity.compaction.attention import SlimAttention
from bayesprune.sparsity.compaction.compact import Compaction, compact
from bayesprune.sparsity.compaction.errors import REASONS, CompactionError
from bayesprune.sparsity.compaction.report import CompactionReport, LayerRecord

__all__ = ["compact", "Compaction", "CompactionReport", "LayerRecord", "CompactionError", "REASONS", "SlimAttention"]
