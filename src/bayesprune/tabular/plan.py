"""Sizes and settings of a selection that follow from the data's shape."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from bayesprune.tabular.comparison import ComparisonSettings
from bayesprune.tabular.search import SearchSettings
from bayesprune.tabular.weighing import WeighingSettings


@dataclass(frozen=True)
class Plan:
    """Sizes that follow from the data's shape where they are not given.

    Args:
        folds: F.
        chains: chains of a data set.
        batch_size: rows a step.
        search: settings of the search.
        comparison: how networks are compared that differ in their number of inputs.
        weighing: how the candidates are weighed.
        union: candidates of all chains together, at most.
        for_prediction: whether to choose the inputs that predict best too; None does beside what is found.
    """

    folds: int
    chains: int
    batch_size: int
    search: SearchSettings
    comparison: ComparisonSettings
    weighing: WeighingSettings = field(default_factory=WeighingSettings)
    union: int = 64
    for_prediction: bool | None = False

    @property
    def steps(self) -> int:
        """Training steps of search and weighing, nearly."""
        own = self.weighing
        weighing = own.settle_steps + max(0, own.rounds - 1) * own.round_steps + own.final_steps
        return self.search.steps + weighing

    @classmethod
    def of(
        cls,
        n: int,
        p: int,
        *,
        feedback: str = "none",
        chains: int | None = None,
        steps: int | None = None,
        evidence_steps: int | None = None,
        candidates: int | None = None,
        batch_size: int | None = None,
        expected: float | None = None,
        for_prediction: bool | None = False,
    ) -> Plan:
        """Choose for n rows of p columns.

        A table of no more columns than the common candidates needs no ramp, and 300 steps of search.
        """
        union = max(16, min(64, n // 16))
        candidates = candidates or max(32, min(128, math.ceil(3 * (expected or 0))))
        candidates = max(candidates, p if p <= union else 0)
        steps = steps or (300 if p <= candidates else 700)
        batch_size = batch_size or (512 if n >= 5000 else max(16, min(256, n // 3)))
        chains = min(chains or (4 if n >= 5000 else 5 if n >= 50 else 3), max(3, n // 6))
        return cls(
            folds=max(3, chains),
            chains=chains,
            batch_size=batch_size,
            search=SearchSettings(steps=steps, candidates=candidates, feedback=feedback),
            comparison=replace(ComparisonSettings(), refit_steps=evidence_steps or ComparisonSettings.refit_steps),
            weighing=WeighingSettings.of(evidence_steps or WeighingSettings.final_steps),
            union=max(union, candidates) if candidates > 64 else union,
            for_prediction=for_prediction,
        )
