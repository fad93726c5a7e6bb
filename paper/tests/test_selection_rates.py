"""Rates of false and missed selections, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paper.selection_rates import exact_recoveries, false_selection_rate, miss_rate


def test_equation_selection_rates_pool_over_repetitions() -> None:
    selected, truth = [{0, 1, 7, 8}, {0}, set()], [{0, 1}, {0, 1}, {0, 1}]
    assert false_selection_rate(selected, truth) == 2 / 5  # not the mean of 1/2, 0, 0
    assert miss_rate(selected, truth) == 3 / 6
    assert exact_recoveries([[1, 0], [0], (0, 1, 2)], [0, 1]) == 1
    shared = np.array([0, 1])
    assert false_selection_rate(selected, shared) == 2 / 5 and miss_rate(selected, {0, 1}) == 0.5
    assert false_selection_rate([set(), set()], {1}) == 0.0 and miss_rate([{1}], [set()]) == 0.0
    assert false_selection_rate([torch.tensor([3])], [torch.tensor([3])]) == 0.0
    # No true input at all (the null design): everything selected is false.
    assert false_selection_rate([{3}, set()], [set(), set()]) == 1.0
    assert exact_recoveries([{3}, set()], set()) == 1


def test_error_numbers_of_repetitions() -> None:
    with pytest.raises(ValueError, match="1 repetitions against 2"):
        false_selection_rate([{1}], [{1}, {2}])
    with pytest.raises(ValueError, match="0 repetitions"):
        miss_rate([], {1})
