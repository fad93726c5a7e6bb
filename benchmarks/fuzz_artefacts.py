"""Small artefacts of every kind that the library reads, for `benchmarks.fuzz_readers`: how each is made, and how it is read."""

from __future__ import annotations

import dataclasses
import gzip
import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from bayesprune import Ensemble, SampleStore, load, save
from bayesprune.common.tensors import PLAIN, write_tensors
from bayesprune.posterior.samples import Samples
from bayesprune.report import load_run
from bayesprune.train import folder as names
from bayesprune.train import load_tree, save_tree
from bayesprune.train.config import RunConfig
from bayesprune.train.settings import as_dict, read_config
from bayesprune.vision import load_cifar
from paper.ledger import Ledger


@dataclass(frozen=True)
class Reader:
    """One kind of artefact.

    Args:
        name: for the table.
        make: writes one into a folder.
        read: reads it from there.
        sealed: it carries checksums, so that a change which passes in silence is a fault; a CSV file has none.
    """

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    sealed: bool = True


def canonical(value: Any) -> Any:
    """Something that is equal where two reads gave the same, bit for bit."""
    if isinstance(value, Tensor):
        flat = value.detach().contiguous().reshape(-1)
        return "tensor", str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return "array", str(value.dtype), value.shape, value.tolist() if value.dtype == object else value.tobytes()
    if isinstance(value, float):
        return "float", value.hex()
    if isinstance(value, dict):
        return "dict", [(key, canonical(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [canonical(item) for item in value]
    if isinstance(value, Samples):
        return "samples", canonical(value.infos), [canonical(each) for each in value]
    if isinstance(value, Ensemble):
        return "ensemble", canonical(list(value.parts()))
    if isinstance(value, nn.Module):
        nodes = (
            [repr((n.op, n.target, n.args, n.kwargs)) for n in value.graph.nodes]
            if isinstance(value, fx.GraphModule)
            else []
        )
        modes = [module.training for module in value.modules()]
        return "module", repr(value), nodes, modes, canonical(dict(value.state_dict()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = [
            item.name
            for item in dataclasses.fields(value)
            if not item.name.startswith("_") and item.name not in ("root", "path")
        ]
        return type(value).__name__, canonical({name: getattr(value, name) for name in kept})
    if hasattr(value, "get_params"):
        return "estimator", canonical({key: item for key, item in sorted(vars(value).items())})
    return type(value).__name__, repr(value) if not isinstance(value, Path) else ""


def network(seed: int = 0) -> nn.Sequential:
    """A small network with a buffer, a convolution and a norm."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()


def _model(folder: Path) -> None:
    save(network(), folder / "model", example_input=torch.zeros(2, 1, 4, 4), metadata={"classes": ["a", "b", "c"]})


def _ensemble(folder: Path) -> None:
    members = [network(seed).state_dict() for seed in range(2)]
    save(Ensemble(network(), members), folder / "model", example_input=torch.zeros(2, 1, 4, 4))


def _checkpoint(folder: Path) -> None:
    state = {"step": 12, "lr": 0.1, "history": [{"nll": 0.25, "split": None}], 3: ("a", True)}
    save_tree(
        folder / "checkpoint.safetensors", {**state, "model": dict(network().state_dict()), "mask": torch.ones(3) > 0}
    )


def _samples(storage: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        store = SampleStore(folder / "samples", storage=storage)
        for seed in range(3):
            net = network(seed)
            net[0].weight.data[0].zero_()
            net[4].weight.data[:2].zero_()
            store.collect(net, step=seed, lr=0.1)

    return make


def _run(folder: Path) -> None:
    names.write_json(folder / names.CONFIG, as_dict(RunConfig(recipe="fuzz", seed=3)))
    names.write_json(folder / names.ENVIRONMENT, {"torch": "2.0", "commit": None})
    names.write_history(
        folder,
        [
            {"step": 1, "epoch": 1, "lr": 0.1, "nll": 0.5, "split": "test"},
            {"step": 2, "epoch": 2, "lr": 0.05, "nll": 0.25, "split": "test"},
        ],
    )
    write_tensors(
        folder / names.TRACES,
        {"steps": torch.arange(3.0), "lr": torch.ones(3), "input:0.weight:1": torch.randn(3, 4)},
        PLAIN,
    )
    write_tensors(folder / names.MODEL, network().state_dict(), PLAIN)
    names.finish(folder, {"accuracy_single": 0.5, "nll": 1.25, "classes": ["a", "b"]})


def _read_run(folder: Path) -> Any:
    run = load_run(folder)
    return run, run.traces(), read_config(folder), names.load_model_(network(9), folder)


def _rows(folder: Path) -> None:
    row = {"name": "a", "status": "done", "accuracy": 0.5, "seconds": 3}
    Ledger(folder / "table.jsonl").append(row, {**row, "name": "b"}, {"command": {"jobs": 2}})


def _estimator(folder: Path) -> None:
    import pandas

    from bayesprune.tabular import SparseBNNRegressor

    X = np.random.default_rng(0).standard_normal((60, 4))
    frame = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    frame["city"] = pandas.Categorical(["Oslo", "Bergen", "Rome"] * 20)
    model = SparseBNNRegressor(search_steps=50, evidence_steps=30, fit_steps=50, random_state=0)
    model.fit(frame, X[:, 1]).save(folder / "model")


def _table_model(folder: Path) -> Any:
    from bayesprune.tabular import load as load_estimator

    return load_estimator(folder / "model")


def cifar_files() -> dict[str, bytes]:
    """CIFAR-10's official files in small."""
    rng = np.random.default_rng(0)
    files = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        data = rng.integers(0, 256, (2, 3072)).astype(np.uint8)
        files[name] = pickle.dumps({"data": data, "labels": [1, 2], "filenames": ["a.png", "b.png"]}, protocol=2)
    files["batches.meta"] = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}, protocol=2)
    return files


def _cifar(folder: Path) -> None:
    place = folder / "cifar-10-batches-py"
    place.mkdir()
    for name, content in cifar_files().items():
        (place / name).write_bytes(content)


def _cifar_archive(folder: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in cifar_files().items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (folder / "cifar-10-python.tar.gz").write_bytes(buffer.getvalue())


_TABLE = "age,city,y\n" + "".join(f"{20 + i}.5,{'Oslo' if i % 2 else 'Bergen'},{i}\n" for i in range(20))


def _table(name: str) -> tuple[Callable[[Path], None], Callable[[Path], Any]]:
    def make(folder: Path) -> None:
        path = folder / name
        if name.endswith(".npz"):
            np.savez_compressed(path, X=np.arange(40.0).reshape(20, 2), y=np.arange(20), names=np.array(["a", "b"]))
        elif name.endswith(".parquet"):
            import pandas

            pandas.read_csv(io.StringIO(_TABLE)).to_parquet(path)
        else:
            content = _TABLE.encode()
            path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)

    def read(folder: Path) -> Any:
        from bayesprune.tabular.reader import read_frame

        frame = read_frame(folder / name)
        return [(column, str(frame[column].dtype), frame[column].tolist()) for column in frame.columns]

    return make, read


READERS = (
    Reader("model", _model, lambda folder: load(folder / "model")),
    Reader("ensemble", _ensemble, lambda folder: load(folder / "model")),
    Reader("checkpoint", _checkpoint, lambda folder: load_tree(folder / "checkpoint.safetensors")),
    Reader("samples", _samples("dense"), lambda folder: SampleStore(folder / "samples")),
    Reader("sparse samples", _samples("sparse"), lambda folder: SampleStore(folder / "samples")),
    Reader("run", _run, _read_run),
    Reader("tabular model", _estimator, _table_model),
    Reader("ledger", _rows, lambda folder: Ledger(folder / "table.jsonl").rows(), sealed=False),
    Reader("cifar folder", _cifar, lambda folder: load_cifar("cifar10", folder), sealed=False),
    Reader("cifar archive", _cifar_archive, lambda folder: load_cifar("cifar10", folder)),
    Reader("table.csv", *_table("table.csv"), sealed=False),
    Reader("table.csv.gz", *_table("table.csv.gz")),
    Reader("table.npz", *_table("table.npz")),
    Reader("table.parquet", *_table("table.parquet"), sealed=False),
)
