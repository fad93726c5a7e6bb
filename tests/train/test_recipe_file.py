"""Recipes of one's own: decorated functions, TOML files, Python files; lists, key help and the fast development run."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayesprune.cli import main
from bayesprune.posterior import SampleStore
from bayesprune.train import RunConfig, Splits, override, recipe, train
from bayesprune.train.recipe_file import choose
from bayesprune.train.recipes import forget_recipe, names
from bayesprune.train.registry import forget_method, methods
from bayesprune.train.settings import keys

OWN = '''
import torch
from torch import nn
from torch.utils.data import TensorDataset

from bayesprune.train import Method, Regression, RunConfig, Splits, override, recipe, register_method
from bayesprune.train.methods import SCHEDULE_KEYS

register_method(Method("plain-{stem}", "plain SGD", lambda config, weights, number: torch.optim.SGD(weights, config.sampler.lr),
                       keys=SCHEDULE_KEYS | {{"lr"}}))
x = torch.linspace(0, 1, 64)[:, None]
data = Splits(TensorDataset(x, 3 * x), TensorDataset(x, 3 * x))
task = Regression(0.1)


def model():
    return nn.Linear(1, 1)


@recipe
def {stem}_short() -> RunConfig:
    """A line."""
    return override(RunConfig(), {{"method": "plain-{stem}", "lr": 0.02, "epochs": 30, "batch_size": 16, "device": "cpu"}})
'''


@pytest.fixture
def own_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN.format(stem="mine"))
    yield path
    forget_recipe("mine-short")
    forget_method("plain-mine")


def test_roundtrip_a_python_file_brings_network_data_task_method_and_recipe(own_file, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", str(own_file), "--out", str(run), "--quiet", "--set", "lr=0.05"]) == 0
    result = json.loads((run / "result.json").read_text())
    assert (result["recipe"], result["method"], result["task"]) == ("mine-short", "plain-mine", "regression")
    assert result["rmse"] < 0.3 and load_file(str(run / "model.safetensors"))["weight"].item() == pytest.approx(
        3, abs=1
    )
    assert choose(f"{own_file}:mine-short").config.network.network == "own"
    assert main(["train", str(own_file), "--out", str(tmp_path / "no"), "--set", "temperature=1"]) == 1
    assert "temperature changes nothing with method=plain-mine" in capsys.readouterr().err
    assert main(["train", str(own_file), "--out", str(tmp_path / "no"), "--set", "padding=1"]) == 1
    assert "padding changes nothing with dataset=own" in capsys.readouterr().err


def test_roundtrip_a_toml_file_says_what_set_says(tmp_path):
    file = tmp_path / "mine.toml"
    text = 'recipe = "digits-emmcmc"\nseed = 3\nlr = 0.5\n[pruning]\nexclude = ["stem*"]\nprune_until = "50%"\n[schedule]\nepochs = 7\n'
    file.write_text(text)
    expected = recipe("digits-emmcmc", ["seed=3", "lr=0.5", "exclude=stem*", "prune_until=50%", "epochs=7"])
    assert choose(str(file)).config == expected
    assert choose(str(file), ["epochs=8"]).config.schedule.epochs == 8
    (tmp_path / "more.toml").write_text("epochs = 9")
    assert choose("digits-sgd", [], tmp_path / "more.toml").config == recipe("digits-sgd", ["epochs=9"])
    (tmp_path / "alone.toml").write_text("[sampler]\nmethod = 'sgd'\n")
    assert choose(str(tmp_path / "alone.toml")).config.recipe == "alone"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = = 1", "is no TOML"), ("lrr = 1", "did you mean 'lr'"), ("[schedule]\nlr = 1", "unknown key 'schedule.lr'"),
        ("recipe = 'digits-sdg'", "did you mean 'digits-sgd'"), ("recipe = 'digits-sgd'\ntemperature = 1", "changes nothing"),
    ],
)  # fmt: skip
def test_error_toml_names_key_value_and_mend(text, message, tmp_path):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        choose(str(tmp_path / "bad.toml"))


def test_error_python_files_without_one_recipe(own_file, tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    for what, message in (
        (tmp_path / "empty.py", "registers no recipe"), (tmp_path / "none.py", "is missing"), (tmp_path / "no.toml", "is missing"),
        (f"{own_file}:other", "the file registers mine-short"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            choose(str(what))
    own_file.write_text(OWN.format(stem="mine") + "\n@recipe\ndef mine_second():\n    return mine_short()\n")
    with pytest.raises(ValueError, match=r"registers mine-second, mine-short; choose one: .*mine.py:mine-second"):
        choose(str(own_file))
    forget_recipe("mine-second")


def test_property_lists_are_sorted_filtered_and_in_columns(capsys):
    assert list(names()) == sorted(names())
    assert main(["recipes", "digits-*"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["recipe", "data", "network", "method", "epochs"]
    assert len(rows) == len(names("digits-*")) and all(row.startswith("digits-") for row in rows)
    places = {row.index(" digits ") for row in rows}
    assert len(places) == 1
    assert main(["recipes", "nothing-like-it"]) == 1


def test_property_help_lists_every_key_with_its_meaning(capsys):
    assert main(["keys"]) == 0
    listed = capsys.readouterr().out
    for key in set(keys()) - {"seed"}:
        assert f"\n  {key}=" in listed, key
    assert all(len(line.split("  ")[-1]) > 8 for line in listed.splitlines() if line.startswith("  "))
    assert main(["keys", "--recipe", "digits-sgd"]) == 0
    counted = capsys.readouterr().out
    assert "\n  lr=0.1  " in counted and "temperature" not in counted and "\npruning" not in counted
    assert main(["keys", "nothing-like-it"]) == 1


TINY = ["width=8", "threads=1", "device=cpu", "validation_size=100"]


@pytest.mark.parametrize("method", sorted(methods()))
def test_property_a_trial_makes_a_few_steps_of_every_method(method, tmp_path):
    own = ["samples_per_cycle=1", "cycles=4"] if method == "ensemble" else []
    result = train(recipe("digits-sgd", [*TINY, f"method={method}", *own]), tmp_path / "run", trial=True, quiet=True)
    rows = json.loads((tmp_path / "run" / "history.json").read_text())
    assert [row["step"] for row in rows] == [4, 8] and rows[-1]["accuracy"] is not None
    assert (result["config"]["schedule"]["epochs"], result["config"]["schedule"]["cycles"]) == (2, 2 if own else 1)
    assert rows[-1]["hard_sparsity"] is None or rows[-1]["hard_sparsity"] > 0.5
    assert (result["num_samples"] > 0) == (methods()[method].samples > 0 or method in ("swag", "rank1"))


def test_property_fast_dev_run_writes_everything(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "digits-emmcmc", "--out", str(out), "--quiet", "--fast-dev-run", "--set", *TINY]) == 0
    assert (out / "report.html").stat().st_size > 10_000 and (out / "model.safetensors").exists()
    assert json.loads((out / "result.json").read_text())["num_samples"] == 2
    assert "the numbers mean nothing" in capsys.readouterr().err


def test_property_a_trial_is_in_nobodys_way(tmp_path):
    out, config = tmp_path / "run", recipe("digits-cvadam", TINY)
    train(config, out, trial=True, quiet=True)
    for about in ("report.html", "predictions.safetensors"):
        (out / about).write_text("of the trial")
    trial = json.loads((out / "result.json").read_text())["config"]
    train(config, out, trial=True, quiet=True)
    result = train(config, out, resume=True, quiet=True)
    assert result["config"] != trial and result["config"]["data"]["train_size"] == config.data.train_size
    assert not (out / "report.html").exists() and len(SampleStore(out / "samples")) == result["num_samples"]
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(config, out, trial=True, quiet=True)
    train(config, tmp_path / "kept", trial=True, quiet=True)
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        train(config, tmp_path / "kept", quiet=True)
    assert (tmp_path / "kept" / "notes.txt").exists()


def test_property_a_trial_of_own_data_takes_the_first_examples(tmp_path):
    x = torch.rand(4000, 3)
    pairs = TensorDataset(x, (3 * x[:, 0]).long())
    stream = Splits([(x[:32], pairs.tensors[1][:32])] * 50, DataLoader(pairs, batch_size=32), num_data=1600)
    config = override(RunConfig(), {"epochs": 40, "batch_size": 512, "device": "cpu"})
    for number, data in enumerate(((pairs, pairs), stream)):
        result = train(config, tmp_path / str(number), model=lambda: nn.Linear(3, 3), data=data, trial=True, quiet=True)
        assert len((tmp_path / str(number) / "metrics.csv").read_text().splitlines()) == 3
        assert result["epochs"] == 2


def test_property_what_stands_last_wins_however_a_key_is_spelled(tmp_path):
    (tmp_path / "mine.toml").write_text("lr = 0.5\n")
    (tmp_path / "over.toml").write_text("[sampler]\nlr = 0.3\n")
    mine, over = str(tmp_path / "mine.toml"), tmp_path / "over.toml"
    assert choose(mine, ["lr=0.1"], over).config.sampler.lr == 0.1
    assert choose(mine, ["sampler.lr=0.1"], over).config.sampler.lr == 0.1
    assert choose(mine, [], over).config.sampler.lr == 0.3
    assert override(RunConfig(), ["sampler.lr=0.2", "lr=0.7"]).sampler.lr == 0.7


def test_property_a_files_data_may_be_a_function_and_an_imported_module_is_none(tmp_path):
    text = OWN.format(stem="made").replace("data = Splits(", "def data():\n    return Splits(")
    path = tmp_path / "made.py"
    path.write_text(text + "\nfrom torch.utils import model_zoo as task\n")
    own = choose(str(path)).own
    assert isinstance(own["data"], Splits) and set(own) == {"model", "data"}
    forget_recipe("made-short")
    forget_method("plain-made")


PRUNED = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

from bayesprune.train import RunConfig, override, recipe

x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
data = (TensorDataset(x, (x[:, 0] > 0).long()),) * 2


def model():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


@recipe
def pruned_own() -> RunConfig:
    return override(RunConfig(), {"method": "emmcmc", "groups": "channel", "target_sparsity": 0.5, "epochs": 4, "batch_size": 8,
                                  "samples_per_cycle": 2, "sample_every": 0.5, "device": "cpu", "lr": 0.01})
"""


def test_roundtrip_a_run_of_a_file_is_evaluated_and_made_small_by_the_command_line(tmp_path, capsys):
    path, out = tmp_path / "pruned.py", tmp_path / "run"
    path.write_text(PRUNED)
    assert main(["train", str(path), "--out", str(out), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(out)]) == 1
    assert "give them again with data= (--recipe FILE.py)" in capsys.readouterr().err
    assert main(["evaluate", str(out), "--recipe", str(path), "--keep"]) == 0
    found = json.loads(capsys.readouterr().out)
    result = json.loads((out / "result.json").read_text())
    assert found["average"]["nll"] == pytest.approx(result["nll"]) and (out / "predictions.safetensors").exists()
    assert main(["compact", str(out), "--out", str(tmp_path / "small"), "--recipe", str(path), "--json"]) == 0
    compacted = json.loads(capsys.readouterr().out)
    before, after = compacted["parameters"]
    assert compacted["members"] == 2 and after < 0.8 * before
    forget_recipe("pruned-own")
