"""How a run ends before its end."""

from __future__ import annotations


class NonFiniteLoss(RuntimeError):
    """The loss became inf or nan; the message names the step, the step size and the last good checkpoint."""


class Interrupted(RuntimeError):
    """The run was stopped by Ctrl-C, SIGTERM or `stop` after writing a checkpoint."""
