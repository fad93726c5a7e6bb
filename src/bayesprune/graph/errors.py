"""Why a compaction was refused, by name."""

from __future__ import annotations

REASONS = {
    "not-copyable": "the model cannot be deep-copied",
    "not-traceable": "torch.fx cannot follow the model's forward",
    "example-input": "the example input does not run through the model",
    "compiled-part": "a part of the model was wrapped by torch.compile",
    "uninitialised": "a lazy layer has no shape yet",
    "no-outputs": "the model returns no tensor that could be compared",
    "not-finite": "the masked model's own outputs are not finite",
    "masks-disagree": "coupling='group' was asked for, and a sum's terms are zero at different channels",
    "training-dependent-graph": "the graph must change, and it is not the same in training and in evaluation",
    "gradient-mode": "the graph must change, and forward switches gradients or autocast, which a graph does not hold",
    "optimizer-mismatch": "the optimizer is not the model's",
    "optimizer-state": "the optimizer keeps a tensor whose relation to its parameter is not known",
    "pruner-mismatch": "the pruner is not the model's, or not the optimizer's",
    "pruner-groups": "the pruner's groups are cut differently in different tensors",
    "outputs-differ": "the compact model's outputs are not the masked model's",
    "training-differs": "the compact model does not train as the masked one does",
    "sample-differs": "a state dict is not zero, dead or constant where the compact model has nothing",
}


class CompactionError(ValueError):
    """A compaction that was refused; nothing was changed.

    Args:
        reason: One of the names in ``REASONS``; the attribute ``reason`` of the error.
        message: What was found, and the mend.

    Example:
        >>> try:
        ...     raise CompactionError("not-finite", "model(example_input) holds NaN")
        ... except CompactionError as error:
        ...     error.reason
        'not-finite'
    """

    def __init__(self, reason: str, message: str) -> None:
        assert reason in REASONS, reason
        self.reason = reason
        super().__init__(f"{reason}: {message}")
