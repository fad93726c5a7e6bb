from __future__ import annotations

import csv
import io
import json
import math
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from bayesprune.cli import main
from bayesprune.compact_run import compact_run
from bayesprune.posterior import SampleStore
from bayesprune.predict_images import predict_images
from bayesprune.train import evaluate, load_tree, recipe, train
from bayesprune.train.idle import refuse_idle
from bayesprune.train.loop import Interrupted, Trainer
from bayesprune.train.parallel import Ranks
from bayesprune.train.settings import as_dict
from bayesprune.vision import load_image_folder
from parallel_run import STOPPED, run
from pictures import write_pictures

TINY = [
    "network=resnet20", "width=4", "image_size=28", "batch_size=8", "epochs=4", "cycles=1", "warmup_epochs=1",
    "samples_per_cycle=2", "sample_every=0.5", "precision=32-true", "compile=no", "workers=0", "threads=1", "device=cpu",
    "checkpoint_minutes=0", "trace_every=3",
]  # fmt: skip
IMAGES = ["dataset=images", "flip=yes"]
DFP = [*IMAGES, *TINY, "groups=kernel", "feedback=none", "prune_from=0.25", "prune_until=0.6"]
VIT = [*IMAGES, *TINY, "network=vit", "width=12", "channels_last=no"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), train=20, val=5)


def content(out):
    """Return what a run leaves behind, but times."""
    result, history = (json.loads((out / name).read_text()) for name in ("result.json", "history.json"))
    kept = {k: v for k, v in result.items() if k not in ("seconds", "environment", "config", "classes")}
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in history]
    weights = [load_file(str(out / "model.safetensors")), *SampleStore(out / "samples")]
    return kept, rows, [{key: tensor.tolist() for key, tensor in state.items()} for state in weights]


@pytest.mark.parametrize(
    ("name", "settings"), [("digits-emmcmc", DFP), ("digits-sgd", [*IMAGES, *TINY, "precision=bf16-mixed"])]
)
def test_roundtrip_resumed_in_an_epoch_with_workers(name, settings, root, tmp_path, monkeypatch):
    """Stopped in the middle of an epoch and resumed with other workers: bit for bit the whole run."""
    config = recipe(name, settings)
    train(config, tmp_path / "whole", data_dir=root, quiet=True)
    step = Trainer._train_step

    def stopping(self, images, labels):
        if self.step == 12:  # two batches into the third epoch
            raise KeyboardInterrupt
        step(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "half", data_dir=root, quiet=True)
    other = recipe(name, [*settings, "workers=2"])
    train(other, tmp_path / "half", data_dir=root, quiet=True, resume=True)
    assert content(tmp_path / "half") == content(tmp_path / "whole")
    assert len(content(tmp_path / "whole")[2]) == 3
    scores = evaluate(tmp_path / "whole", data_dir=root)
    assert (
        scores["average"]["accuracy"] == json.loads((tmp_path / "whole" / "result.json").read_text())["accuracy_mean"]
    )


def test_property_settings_reach_the_loaders(root, tmp_path):
    def trainer(*settings):
        config = recipe("digits-sgd", [*IMAGES, *TINY, *settings])
        return Trainer(config, tmp_path / "x", data_dir=root, quiet=True)

    plain = trainer("augment=no", "image_size=24", "train_size=20", "validation_size=8", "workers=1")
    assert plain.loader.augmentation is None and plain.loader.workers == 1
    assert plain.loader.num_images == 20 and plain.watch_loader.batches.num_images == 8 and plain.split == "validation"
    assert plain.example.shape == (1, 3, 24, 24)
    crop = trainer("crop_scale=0.5", "flip=no").loader.augmentation
    assert crop.scale == (0.5, 1.0) and not crop.flip
    assert trainer().loader.augmentation.scale == (0.08, 1.0)


def test_error_settings_of_another_data_set():
    images, digits = recipe("digits-sgd", IMAGES), recipe("digits-sgd")
    for config, key in ((images, "padding"), (digits, "workers"), (digits, "crop_scale"), (digits, "image_size")):
        with pytest.raises(ValueError, match=f"{key} changes nothing with dataset="):
            refuse_idle(config, key)
    for config, key in ((digits, "padding"), (images, "workers"), (images, "image_size"), (images, "crop_scale")):
        refuse_idle(config, key)


# ---- data parallel ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes():
    # the fork server imports torch once for all runs; it is a process of its own and finds parallel_run by PYTHONPATH
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["parallel_run"])
    return context


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def together(processes, count, config, out, data_dir, stop_at=None):
    """Run `count` processes to their end and return their exit codes and states."""
    port = free_port()
    arguments = (count, port, as_dict(config), str(out), str(data_dir), stop_at)
    children = [processes.Process(target=run, args=(rank, *arguments)) for rank in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(240)
    codes = [child.exitcode for child in children]
    return codes, [load_tree(f"{out}-{rank}") for rank in range(count) if Path(f"{out}-{rank}").exists()]


def leaves(tree, path=""):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(tree, torch.Tensor):
        yield path, tree


def assert_same(first, second, skip=()):
    one, other = dict(leaves(first)), dict(leaves(second))
    assert one.keys() == other.keys()
    assert not [key for key in one if not key.startswith(skip) and not torch.equal(one[key], other[key])]


def test_property_two_processes_hold_the_same_weights_and_are_one_process(root, processes, tmp_path):
    """Without BatchNorm, two processes of half the batch are one process of the whole batch, noise included."""
    config = recipe("digits-cvadam", [*VIT, "lr=0.1", "temperature=1e-3"])
    codes, states = together(processes, 2, config, tmp_path / "two", root)
    assert codes == [0, 0]
    assert_same(*states, skip=("/rng",))
    codes, alone = together(processes, 1, config, tmp_path / "one", root)
    assert codes == [0]
    # Sums in another order: float32's rounding, grown over 20 steps
    for key, tensor in leaves(alone[0]["model"]):
        assert (tensor - states[0]["model"][key[1:]]).abs().max() < 1e-5, key
    moved = max(float((tensor - start).abs().max()) for tensor, start in started(config, root, states[0]["model"]))
    assert moved > 0.02  # against which 1e-5 is small
    rows = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("one", "two")]
    for one, two in zip(*rows):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
        assert two["nll"] == pytest.approx(one["nll"], rel=1e-3) and two["accuracy"] == pytest.approx(one["accuracy"])


def started(config, root, model):
    from bayesprune.train.build import build_data, build_network

    for name, start in build_network(config, build_data(config, root)).state_dict().items():
        yield model[name], start


def test_roundtrip_two_processes_pruned_stopped_and_resumed(root, processes, tmp_path):
    """With BatchNorm and pruning; one process is told to stop, both do, and go on bit for bit."""
    config = recipe("digits-emmcmc", DFP)
    codes, whole = together(processes, 2, config, tmp_path / "whole", root)
    assert codes == [0, 0]
    assert_same(*whole, skip=("/rng",))
    assert not torch.equal(whole[0]["rng"], whole[1]["rng"])  # dropout would differ between the processes
    codes, _ = together(processes, 2, config, tmp_path / "half", root, stop_at=7)
    assert codes == [STOPPED, STOPPED]
    shutil.copytree(tmp_path / "half", tmp_path / "other")
    assert together(processes, 1, config, tmp_path / "other", root)[0] == [0]  # goes on alone, too
    codes, half = together(processes, 2, config, tmp_path / "half", root)
    assert codes == [0, 0]
    for one, other in zip(whole, half):
        assert_same(one, other)
    assert content(tmp_path / "whole") == content(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "result.json").read_text())["environment"]["processes"] == 2


def test_error_batch_that_processes_cannot_share(monkeypatch):
    for key, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match="batch_size=64 must be a multiple of the 3 processes"):
        Ranks(torch.device("cpu"), 64)


@pytest.mark.slow
def test_property_torchrun_trains_and_prints_once(root, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "bayesprune"]
    command += ["train", "digits-cvadam", "--data-dir", str(root), "--out", str(tmp_path / "run"), "--set"]
    done = subprocess.run([*command, *IMAGES, *TINY, "epochs=2"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch    2") == 1 and done.stdout.count("NLL") == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["environment"]["processes"] == 2


FOLDER = [*TINY, "dataset=folder", "image_size=12", "epochs=2", "warmup_epochs=0"]


def test_property_a_finished_run_reads_its_images_as_it_did(root, tmp_path):
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(root, data)
    train(recipe("digits-cvadam", FOLDER), out, data_dir=data, quiet=True)
    wanted = evaluate(out, data_dir=data)
    added = sorted((data / "train").iterdir())[0] / "added.png"
    Image.new("RGB", (12, 12), "white").save(added)  # moves the mean of the training images
    assert evaluate(out, data_dir=data) == wanted
    compact_run(out, tmp_path / "small")  # needs no images
    known = json.loads((tmp_path / "small" / "architecture.json").read_text())["metadata"]["normalisation"]
    added.unlink()
    assert known["mean"] == list(load_image_folder(data, 12).mean)


@pytest.mark.parametrize("dataset", ["folder", "images"])
def test_parity_images_are_predicted_as_the_run_evaluated_them(dataset, root, tmp_path, capsys):
    settings = [*FOLDER, f"dataset={dataset}"]
    result = train(recipe("digits-cvadam", settings), tmp_path / "run", data_dir=root, quiet=True)
    compact_run(tmp_path / "run", tmp_path / "small")
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "small"), str(root / "val")]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    names = [row["image"] for row in rows]
    assert names == sorted(path.relative_to(root / "val").as_posix() for path in (root / "val").glob("*/*"))
    truth = [name.split("/")[0] for name in names]
    right = [float(row[f"probability {name}"]) for row, name in zip(rows, truth)]
    assert -sum(map(math.log, right)) / len(right) == pytest.approx(result["nll"], rel=1e-5)
    assert sum(row["prediction"] == name for row, name in zip(rows, truth)) / len(rows) == result["accuracy_mean"]
    assert sum(float(row["total"]) for row in rows) / len(rows) == pytest.approx(result["total_entropy"], rel=1e-5)
    one = predict_images(tmp_path / "small", root / "val" / names[0])
    assert float(one.probabilities.max()) == pytest.approx(max(float(rows[0][key]) for key in rows[0] if "prob" in key))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="expected images"):
        predict_images(tmp_path / "small", tmp_path / "empty")


def test_error_classes_named_anew_are_neither_evaluated_nor_resumed(root, tmp_path):
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(root, data)
    first = sorted(path.name for path in (data / "train").iterdir())[0]
    config, steps = recipe("digits-cvadam", FOLDER), iter(range(1000))
    with pytest.raises(Interrupted):
        train(config, out, data_dir=data, quiet=True, stop=lambda: next(steps) > 2)

    def rename(old, new):
        for split in ("train", "val"):
            (data / split / old).rename(data / split / new)

    rename(first, "zebra")
    with pytest.raises(
        ValueError, match=rf"the classes are .*zebra; .*run was trained on {first}.*name them as they were"
    ):
        train(config, out, data_dir=data, resume=True, quiet=True)
    rename("zebra", first)
    train(config, out, data_dir=data, resume=True, quiet=True)
    rename(first, "zebra")
    with pytest.raises(ValueError, match=rf"trained on {first}"):
        evaluate(out, data_dir=data)
