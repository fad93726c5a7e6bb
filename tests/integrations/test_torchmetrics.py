"""torchmetrics: its calibration error and accuracy of a prediction are ours."""

from __future__ import annotations

import pytest
import torch

import bayesprune as bp
from bayesprune.posterior import ece

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics: pip install bayesprune[integrations]")


def test_parity_metrics_of_a_prediction_agree():
    torch.manual_seed(0)
    x, y = torch.randn(500, 4), torch.randint(0, 3, (500,))
    prediction = bp.predict(torch.nn.Linear(4, 3), None, [(x, y)])
    theirs = torchmetrics.classification.MulticlassCalibrationError(num_classes=3, n_bins=15, norm="l1")
    assert float(theirs(prediction.probabilities, prediction.labels)) == pytest.approx(
        ece(prediction.probabilities, prediction.labels, bins=15), abs=1e-5
    )
    accuracy = torchmetrics.classification.MulticlassAccuracy(num_classes=3, average="micro")
    told = bp.classification_metrics(prediction.probabilities, prediction.labels)["accuracy"]
    assert float(accuracy(prediction.probabilities, prediction.labels)) == pytest.approx(told)
