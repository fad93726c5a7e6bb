"""A fitted estimator in a folder with the encoding of its table, so that it predicts from a file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bayesprune.common.artefact import MissingArtefactError, reading
from bayesprune.common.bounded import read_json
from bayesprune.common.files import write_text
from bayesprune.common.manifest import sealed, unsealed
from bayesprune.tabular.effects import draws
from bayesprune.tabular.encode import Encoding
from bayesprune.tabular.files import Table, read_table

ENCODING = "encoding.json"
_VERSION = 2  # 1, which names none, had no seal
COVERAGE = 0.9
_SAME = 1e-5  # of the predictions' spread


@dataclass(frozen=True, eq=False)
class TableModel:
    """An estimator that reads tables.

    Args:
        estimator: fitted on the encoded inputs.
        encoding: of the inputs.
        target: name of the response.
        classes: labels of the codes; empty for a regression.
        needed: names of the inputs that the prediction depends on.

    Example:
        >>> TableModel(None, Encoding(()), "y", (), ()).target
        'y'
    """

    estimator: Any
    encoding: Encoding
    target: str
    classes: tuple[str | int | float, ...]
    needed: tuple[str, ...]

    def read(self, path: str | os.PathLike[str]) -> Table:
        """Read a file as the model's training file was read.

        Args:
            path: of a table.
        """
        text = [one.name for one in self.encoding.inputs if one.kind == "text"]
        text += [self.target] if self.classes and isinstance(self.classes[0], str) else []
        names = {one.name for one in self.encoding.inputs} | {self.target}
        # A name of `text` that the file lacks is no fault: the encoding says what is needed.
        return read_table(path, only=names, text=text, strict=False)

    def predict(self, table: Table) -> tuple[dict[str, np.ndarray], list[str]]:
        """Predict the rows of a table.

        Args:
            table: with the needed inputs.

        Returns:
            Columns by name: "prediction", "std", "lower90" and "upper90" for a regression; "prediction" (a label) and
            a "probability <label>" a class. And sentences on what was unlike the training rows.

        Raises:
            ValueError: a needed input is absent, infinite or of another kind.
        """
        X, notes = self.encoding.encode(table, self.needed)
        if self.classes:
            probability = np.asarray(self.estimator.predict_proba(X))
            labels = np.array(self.classes, dtype=object)
            columns = {"prediction": labels[probability.argmax(axis=1)]}
            columns |= {f"probability {label}": probability[:, code] for code, label in enumerate(self.classes)}
            return columns, notes
        mean, std = self.estimator.predict(X, return_std=True)
        interval = np.asarray(self.estimator.predict_interval(X, coverage=COVERAGE))
        return {"prediction": mean, "std": std, "lower90": interval[:, 0], "upper90": interval[:, 1]}, notes


def save_table_model(model: TableModel, folder: str | os.PathLike[str]) -> Path:
    """Write the estimator (safetensors and JSON) and beside it the encoding (JSON).

    Args:
        model: to save.
        folder: to write into; made by the estimator.

    Returns:
        The folder.
    """
    model.estimator.save(folder)
    from bayesprune.tabular.store import seal_of

    told = {
        **model.encoding.to_dict(),
        "target": model.target,
        "classes": list(model.classes),
        "needed": list(model.needed),
    }
    about = {"version": _VERSION, **told, "estimator": seal_of(folder)}
    write_text(Path(folder) / ENCODING, json.dumps(sealed(about), indent=1, ensure_ascii=False) + "\n")
    return Path(folder)


def load_table_model(folder: str | os.PathLike[str]) -> TableModel:
    """Read a model back.

    Args:
        folder: what `bayesprune select` wrote, or the folder "model" in it.

    Returns:
        The model.

    Raises:
        ArtefactError: there is no model, or it is damaged, or the encoding is another model's.
    """
    path = Path(folder)
    path = path / "model" if (path / "model" / ENCODING).exists() else path
    file = path / ENCODING
    if not file.is_file():
        mend = "name the folder that `bayesprune select` wrote, or its folder model"
        raise MissingArtefactError(folder, f"holds no {ENCODING}", mend=mend)
    from bayesprune.tabular.estimators import load  # takes a while to import
    from bayesprune.tabular.store import seal_of

    told = read_json(file)
    with reading(file, "the encoding of a table", "restore it from a copy, or select again"):
        if told.get("version", 1) not in (1, _VERSION):
            raise ValueError(f"version {told['version']!r}, newer than {_VERSION}")
        told = unsealed(file, told, needed="version" in told)
        encoding = Encoding.from_dict(told)
        if "estimator" in told and told["estimator"] != seal_of(path):
            raise ValueError("it belongs to another estimator than the one beside it")
        names = [told["target"], *told["needed"]]
        if not all(isinstance(name, str) for name in names) or not isinstance(told["classes"], list):
            raise ValueError("target, classes or needed are not names")
        return TableModel(load(path), encoding, told["target"], tuple(told["classes"]), tuple(told["needed"]))


def needed_inputs(estimator: Any, encoding: Encoding, selected: Sequence[str], X: np.ndarray) -> tuple[str, ...]:
    """Find out whether the prediction depends on the selected inputs alone, by taking the others away.

    Args:
        estimator: fitted.
        encoding: of the inputs.
        selected: their names.
        X: (n, p) encoded rows to try it on.

    Returns:
        The selected names if no prediction changes when the other inputs take their fill values; else all names.
    """
    rows = X[:500]
    without = rows.copy()
    for one, group in zip(encoding.inputs, encoding.groups):
        if one.name not in selected:
            without[:, group] = 0.0
            if one.kind == "number":
                without[:, group[0]] = one.fill
    full, reduced = draws(estimator, rows), draws(estimator, without)
    if np.abs(full - reduced).max() <= _SAME * max(float(np.ptp(full)), 1e-12):
        return tuple(one.name for one in encoding.inputs if one.name in selected)
    return tuple(one.name for one in encoding.inputs)
