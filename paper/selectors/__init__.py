"""What Table 4 compares variable selection with, one method a file."""

from paper.selectors.splbnn import SPLBNNClassifier, SPLBNNRegressor
from paper.selectors.svbnn import SVBNNClassifier, SVBNNRegressor

__all__ = ["SPLBNNRegressor", "SPLBNNClassifier", "SVBNNRegressor", "SVBNNClassifier"]
