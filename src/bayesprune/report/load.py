"""Reading run folders back."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bayesprune.common.artefact import ArtefactError
from bayesprune.common.bounded import read_json
from bayesprune.common.files import contents
from bayesprune.common.manifest import check_manifest
from bayesprune.common.tensors import PLAIN, read_tensors

Array = np.ndarray[Any, np.dtype[Any]]

# What the reports compute with; a result that holds something else under these names is not one of ours.
NUMBERS = (
    *("accuracy_single", "accuracy_mean", "nll_single", "nll", "brier", "ece", "ece_single", "disagreement"),
    *("sparsity_prunable", "sparsity_all", "sparsity_madds", "madds", "madds_dense", "parameters"),
    *("num_samples", "epochs", "seconds", "total_entropy", "aleatoric", "epistemic"),
)


@dataclass(frozen=True)
class Traces:
    """Paths of all weights of some channels: `channels` maps (kind, parameter name, channel) to an (n, m) array.

    Example:
        >>> paths = Traces(np.arange(2), np.array([0.1, 0.0]), {("input", "conv.weight", 3): np.zeros((2, 9))})
        >>> [array.shape for array in paths.channels.values()]
        [(2, 9)]
    """

    steps: Array
    lr: Array
    channels: dict[tuple[str, str, int], Array]


@dataclass(frozen=True)
class Run:
    """A run folder, read and checked; `result` is None until the run is complete.

    Example:
        >>> run = Run(Path("runs/demo"), {"method": "cvadam", "data": {"name": "digits"}})
        >>> run.name, run.method, run.dataset, run.finished
        ('demo', 'cvadam', 'digits', False)
    """

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None
    profile: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name or str(self.path)

    @property
    def finished(self) -> bool:
        """Whether the run wrote its result."""
        return self.result is not None

    @property
    def recipe(self) -> str:
        """Recipe that the run started from."""
        return str(self.config["recipe"])

    @property
    def method(self) -> str:
        """How the weights were moved."""
        return str(self.config["method"])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.config["seed"])

    @property
    def dataset(self) -> str | None:
        """Name of the data set, if the folder tells it."""
        return self._named("dataset", "data")

    @property
    def network(self) -> str | None:
        """Name of the network, if the folder tells it."""
        return self._named("network", "network")

    @property
    def epochs_planned(self) -> int | None:
        """Epochs that the configuration asks for."""
        schedule = self.config.get("schedule")
        planned = schedule.get("epochs") if isinstance(schedule, dict) else None
        return planned if isinstance(planned, int) else None

    @property
    def epochs_done(self) -> int:
        """Epochs that the history holds."""
        return len({row["epoch"] for row in self.history})

    def _named(self, key: str, section: str) -> str | None:
        value = (self.result or {}).get(key)
        part = self.config.get(section)
        if value is None and isinstance(part, dict):
            value = part.get("name", part.get(key))
        return None if value is None else str(value)

    def column(self, key: str) -> Array:
        """One column of the history as floats; NaN where a row has no value.

        Example:
            >>> run = Run(Path("r"), {}, history=[{"step": 1, "epoch": 0, "nll": 0.5}, {"step": 2, "epoch": 1}])
            >>> run.column("nll").tolist()
            [0.5, nan]
        """
        return np.array([np.nan if row.get(key) is None else float(row[key]) for row in self.history], dtype=float)

    def predictions(self) -> dict[str, Array] | None:
        """Read the predictions on the test inputs that `bayesprune evaluate` kept; None where there are none.

        Raises:
            ArtefactError: the file is damaged or is not one of ours.
        """
        file = self.path / "predictions.safetensors"
        if not file.is_file():
            return None
        found, needed = _arrays(file), ("total", "epistemic", "classes", "labels")
        absent = set(needed) - found.keys()
        if absent or len({found[key].shape for key in needed}) != 1:
            fault = f"its tensors do not belong together; missing {sorted(absent)}"
            raise ArtefactError(file, fault, "one total, epistemic, class and label for each input")
        return found

    def traces(self) -> Traces | None:
        """Read the recorded weight paths; None if the run recorded none.

        Raises:
            ArtefactError: the file is damaged or is not one of ours.
        """
        file = self.path / "traces.safetensors"
        check_manifest(self.path, [file.name])
        if not file.is_file():
            return None
        tensors = _arrays(file)
        if missing := {"steps", "lr"} - tensors.keys():
            raise ArtefactError(file, f"the tensors {sorted(missing)} are missing", "the tensors 'steps' and 'lr'")
        steps, lr = tensors.pop("steps"), tensors.pop("lr")
        channels = {}
        for key in sorted(tensors):
            kind, _, rest = key.partition(":")
            name, _, channel = rest.rpartition(":")
            if kind not in ("input", "output") or not name or not channel.isdigit():
                raise ArtefactError(file, f"tensor {key!r}", "'input:NAME:CHANNEL' or 'output:NAME:CHANNEL'")
            if tensors[key].ndim != 2 or len(tensors[key]) != len(steps):
                raise ArtefactError(file, f"tensor {key!r} is {tensors[key].shape}", f"({len(steps)}, weights)")
            channels[kind, name, int(channel)] = tensors[key]
        return Traces(steps, lr, dict(sorted(channels.items())))


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run folder: config.json and, as far as the run got, environment.json, history.json and result.json.

    Args:
        folder: what the training wrote to. An unfinished run is welcome: its `result` is None.

    Returns:
        The `Run`. Weight paths are read later, by `Run.traces`.

    Raises:
        FileNotFoundError: the folder is no run; the message names the file that was expected and what is there.
        ArtefactError: a file is not what a run writes, or not what its manifest lists; the message names file and entry.

    Example:
        >>> load_run("/nowhere")
        Traceback (most recent call last):
            ...
        FileNotFoundError: folder='/nowhere' is not a run: expected the file /nowhere/config.json; found nothing there
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        where = f"folder={str(path)!r} is not a run: expected the file {path / 'config.json'}"
        raise FileNotFoundError(f"{where}; found {contents(path)}")
    config = _held(path, "config.json")
    for key in ("recipe", "method", "seed"):
        if key not in config:
            raise ArtefactError(path / "config.json", f"holds {sorted(config)}", f"the entry {key!r}")
    if not isinstance(config["seed"], int):
        raise ArtefactError(path / "config.json", f"seed={config['seed']!r} is not a whole number")
    environment = _held(path, "environment.json") or {}
    history = _held(path, "history.json", list) or []
    for number, row in enumerate(history):
        where = f"{path / 'history.json'}: row {number}"
        if not isinstance(row, dict) or row.get("step") is None or row.get("epoch") is None:
            raise ArtefactError(where, f"{row!r:.80}", "an object with 'step' and 'epoch'")
        _check_numbers(row, (key for key in row if key != "split"), where)
    result = _held(path, "result.json")
    if result is not None:
        _check_numbers(result, NUMBERS, str(path / "result.json"))
    return Run(path, config, environment, history, result, _held(path, "profile.json"))


def find_runs(folder: str | os.PathLike[str]) -> list[Run]:
    """Load every run at or below a folder, in the order of their paths.

    Args:
        folder: a run, or a folder of runs; hidden folders are passed over.

    Returns:
        At least one `Run`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: one of them is damaged.

    Example:
        >>> find_runs("/nowhere")
        Traceback (most recent call last):
            ...
        FileNotFoundError: folder='/nowhere': no run below it (a run is a folder with config.json and environment.json)
    """
    root = Path(folder)
    found = []
    for here, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if {"config.json", "environment.json"} <= set(files):
            found.append(Path(here))
            below.clear()  # what lies in a run is its own
    if not found:
        raise FileNotFoundError(
            f"folder={str(root)!r}: no run below it (a run is a folder with config.json and environment.json)"
        )
    return [load_run(path) for path in sorted(found)]


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Short names that tell the runs apart: the last parts of their paths, as many as it takes, without the settings that all share.

    Example:
        >>> run_labels([Run(Path("a/seed0"), {}), Run(Path("b/seed0"), {}), Run(Path("b/seed1"), {})])
        ['a/seed0', 'b/seed0', 'seed1']
        >>> run_labels([Run(Path("dfp.epochs=20.seed0"), {}), Run(Path("dpf.epochs=20.seed0"), {})])
        ['dfp', 'dpf']
    """
    parts = [run.path.resolve().parts for run in runs]
    labels = [run.name for run in runs]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        count = Counter(labels)
        if max(count.values()) == 1:
            break
        labels = [
            "/".join(part[-depth:]) if count[label] > 1 else label for part, label in zip(parts, labels, strict=True)
        ]
    heads = [label.partition(".")[0] for label in labels]
    tails = {label.partition(".")[2] for label in labels}
    return heads if len(labels) > 1 and len(tails) == 1 and len(set(heads)) == len(labels) else labels


def _held(path: Path, name: str, kind: type = dict) -> Any:
    """The content of a run's JSON file, None where there is none; one that its manifest lists must be there."""
    check_manifest(path, [name])
    return read_json(path / name, kind) if (path / name).exists() else None


def _arrays(file: Path) -> dict[str, Array]:
    return {name: value.numpy() for name, value in read_tensors(file, [PLAIN], older=[None]).tensors.items()}


def _check_numbers(values: dict[str, Any], keys: Iterable[str], where: str) -> None:
    for key in keys:
        value = values.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ArtefactError(where, f"{key}={value!r} is not a number")
