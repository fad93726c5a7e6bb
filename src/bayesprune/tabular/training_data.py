"""One data set as the chains read it: checked, encoded, standardised."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.utils.validation import _check_sample_weight, check_X_y, validate_data

from bayesprune.tabular.clusters import Cluster
from bayesprune.tabular.columns import is_frame, with_text_names
from bayesprune.tabular.frame import FrameEncoder, check_distinct, learn_encoder
from bayesprune.tabular.rows import Standardiser


@dataclass(frozen=True)
class TrainingData:
    """One data set."""

    table: Any
    response: np.ndarray
    weight: np.ndarray | None
    encoder: FrameEncoder | None
    names: list[str]
    members: list[list[int]]

    @property
    def standardiser(self) -> Standardiser:
        """Means and scales of the table, and of a response of numbers."""
        numeric = np.issubdtype(self.response.dtype, np.floating)
        return Standardiser.of(self.table, self.response if numeric else None, self.weight)

    def of_columns(self, values: np.ndarray, unused: float = 0.0) -> np.ndarray:
        """Return what is known of each column of X from (…, p) values of the table's columns."""
        first = np.array([places[0] if places else -1 for places in self.members])
        return np.where(first >= 0, np.asarray(values)[..., first], unused)

    def column_of(self, places: np.ndarray) -> np.ndarray:
        """Return the column of X that each of some columns of the table stands for."""
        owner = {place: column for column, own in enumerate(self.members) for place in own}
        return np.array([owner[int(place)] for place in places], dtype=np.int64)

    def names_of(self, places: np.ndarray) -> list[str]:
        """Return what to call the columns of X that some columns of the table stand for, one for each."""
        return [repr(self.names[c]) if self.names else f"column {c}" for c in self.column_of(places).tolist()]

    def cluster(self, found: Cluster) -> Cluster:
        """Return a finding about columns of the table as one about columns of X."""
        shares: dict[int, float] = {}
        for column, share in zip(self.column_of(np.array(found.members)).tolist(), found.shares):
            shares[column] = shares.get(column, 0.0) + share
        members = tuple(sorted(shares))
        return replace(found, members=members, shares=tuple(shares[column] for column in members))


def read_training_data(estimator: Any, X: Any, y: Any, sample_weight: Any, numeric: bool) -> TrainingData:
    """Check a data set as scikit-learn does; the columns of a data frame are encoded."""
    encoder, names = None, []
    if not numeric:
        _check_labels(y)
    try:
        if is_frame(X):
            check_distinct(X)
            X = with_text_names(validate_data(estimator, X, skip_check_array=True))
            names, encoder = list(X.columns), learn_encoder(X)
            _warn_dropped(encoder.dropped)
            table, y = check_X_y(encoder.encode(X), y, y_numeric=numeric, ensure_min_samples=2)
            members = [encoder.members.get(name, []) for name in names]
        else:
            table, y = validate_data(
                estimator, X, y, accept_sparse="csr", dtype=[np.float64, np.float32], y_numeric=numeric, ensure_min_samples=2
            )  # fmt: skip
            members = [[column] for column in range(table.shape[1])]
    except ValueError as error:
        raise ValueError(f"{error}{_offending(X)}{_offending_response(y, numeric)}") from None
    weight = None
    if sample_weight is not None:
        weight = _check_sample_weight(sample_weight, table, dtype=np.float64, ensure_non_negative=True)
        table, y, weight = table[weight > 0], y[weight > 0], _as_counts(weight[weight > 0])
    return TrainingData(table, np.asarray(y, dtype=np.float64) if numeric else y, weight, encoder, names, members)


def _as_counts(weight: np.ndarray) -> np.ndarray:
    """Return the rows' weights, raised in proportion where they add up to fewer rows than there are."""
    total, rows = float(weight.sum()), len(weight)
    if not 0 < total < (1 - 1e-9) * rows:
        return weight
    warnings.warn(
        f"sample_weight adds up to {total:.4g} over {rows:,} rows: raised in proportion to a mean of 1, for a row of weight "
        "2 counts as two; give a mean of 1 or more",
        stacklevel=6,
    )
    return weight * (rows / total)


def _check_labels(y: Any) -> None:
    """Refuse labels that are missing, of kinds that have no order, or that no file holds."""
    labels = np.asarray(y)
    if labels.ndim != 1 or labels.dtype.kind not in "mMSO":
        return
    if labels.dtype.kind != "O":
        raise ValueError(f"y holds labels of type {labels.dtype}: turn them into text or whole numbers")
    lacking = [row for row, label in enumerate(labels) if _is_missing(label)]
    if lacking:
        raise ValueError(
            f"Input y contains NaN or None: it is missing in {len(lacking)} rows, first in row {lacking[0]}: leave those rows out"
        )
    plain = (str, bool, int, float, np.bool_, np.integer, np.floating)
    odd = next((label for label in labels if not isinstance(label, plain)), None)
    if odd is not None:
        raise ValueError(f"y holds a label of type {type(odd).__name__} ({odd!r}): turn it into text or a whole number")
    text = next((label for label in labels if isinstance(label, str)), None)
    number = next((label for label in labels if not isinstance(label, str)), None)
    if text is not None and number is not None:
        raise ValueError(f"y holds text ({text!r}) and numbers ({number!r}): give labels of one kind")


def _is_missing(label: Any) -> bool:
    """Return whether a label is None, NaN, NaT or pandas' NA, which does not say whether it differs from itself."""
    try:
        return label is None or bool(label != label)
    except (TypeError, ValueError):
        return True


def _offending(X: Any) -> str:
    """Name the first column of an array that holds text or lacks values, and the mend."""
    if not isinstance(X, (np.ndarray, list)) or np.ndim(X) != 2 or np.iscomplexobj(X):
        return ""
    for number, column in enumerate(np.asarray(X).T):
        try:
            values = column.astype(np.float64)
        except (ValueError, TypeError):
            held = "holds cells that are no numbers"
        else:
            if np.isfinite(values).all():
                continue
            held = f"holds {int((~np.isfinite(values)).sum())} cells that are missing or infinite"
        return f"\nColumn {number} of X {held}: give X as a pandas data frame, which may hold text and missing values."
    return ""


def _offending_response(y: Any, numeric: bool) -> str:
    """Name the first response that is text or lacking, and the mend."""
    values = np.asarray(y)
    if values.ndim != 1 or not len(values) or np.iscomplexobj(values):
        return ""
    try:
        lacking = np.flatnonzero(~np.isfinite(values.astype(np.float64)))
    except (ValueError, TypeError):
        text = next((value for value in values if isinstance(value, str)), None)
        if not numeric or text is None:
            return ""
        return f"\ny holds text ({text!r}): give numbers, or use SparseBNNClassifier."
    if not len(lacking):
        return ""
    return f"\ny is missing or infinite in {len(lacking)} rows, first in row {lacking[0]}: leave those rows out."


def _warn_dropped(dropped: dict[str, str]) -> None:
    """Name the columns that are not used."""
    if dropped:
        said = ", ".join(f"{name!r} ({reason})" for name, reason in list(dropped.items())[:5])
        more = f" and {len(dropped) - 5:,} more (encoder_.dropped)" if len(dropped) > 5 else ""
        warnings.warn(f"{len(dropped):,} of X's columns not used: {said}{more}", stacklevel=5)
