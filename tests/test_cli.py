from __future__ import annotations

import argparse
import ast
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bayesprune
from bayesprune.cli import main
from bayesprune.cli.main import build_parser
from bayesprune.common.lazy import EXTRAS, missing

ROOT = Path(__file__).parent.parent

TINY = ["train_size=96", "epochs=2", "batch_size=16", "width=4", "cycles=1", "samples_per_cycle=2", "sample_every=0.25"]


def test_property_train_evaluate_report(tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(["train", "digits-cvadam", "--out", run, "--quiet", "--set", *TINY]) == 0
    assert main(["train", "digits-cvadam", "--out", run, "--quiet", "--resume", "--set", *TINY]) == 0
    capsys.readouterr()
    assert main(["evaluate", run]) == 0
    assert json.loads(capsys.readouterr().out)["num_samples"] == 2
    assert main(["compact", run, "--out", str(tmp_path / "small")]) == 0
    assert main(["profile", str(tmp_path / "small"), "--seconds", "0.01", "--batch", "1", "--run", run]) == 0
    assert main(["evaluate", run, "--keep"]) == 0
    assert main(["report", run, "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for promised in ("What was found", "ms, batch 1", "The most doubtful images", "192 others", "averaged"):
        assert promised in page, promised


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digits-sdg", "--out", "OUT"], "did you mean 'digits-sgd'"),
        (["train", "digits-sgd", "--out", "OUT", "--set", "lrr=1"], "did you mean 'lr'"),
        (["train", "digits-sgd", "--out", "OUT", "--device", "tpu"], "device='tpu'"),
        (["train", "cifar10-resnet20", "--out", "OUT"], "needs --data-dir"),
        (["train", "cifar10-resnet20", "--out", "OUT", "--data-dir", "OUT"], "cifar-10-batches-py"),
        (
            ["train", "digits-cvadam", "--out", "OUT", "--set", "target_sparsity=0.8"],
            "changes nothing with method=cvadam",
        ),
        (["train", "digits-sgd", "--out", "OUT", "--set", "temperature=1"], "changes nothing with method=sgd"),
        (["train", "digits-sgd", "--out", "OUT", "--set", "network=resnet18", "width=8"], "does not take what was set"),
        (["evaluate", "OUT"], "is missing"),
        (["report", "OUT"], "config.json"),
    ],
)
def test_error_goes_to_stderr_without_a_traceback(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.delenv("BAYESPRUNE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main([a.replace("OUT", str(tmp_path / "nothing")) for a in arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_property_recipes_are_listed(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    for name in ("digits-emmcmc", "cifar10-resnet20", "cifar10-94-sgd"):
        assert name in listed


def run_python(*words, **environment):
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["recipes"], ["select", "--help"], ["compact", "--help"]])
def test_property_what_computes_nothing_imports_neither_torch_nor_numpy(words):
    code = (
        "import sys; from bayesprune.cli import main\n"
        f"try: main({words})\nexcept SystemExit: pass\n"
        "loaded = {'torch', 'numpy', 'sklearn', 'matplotlib'} & set(sys.modules); assert not loaded, loaded"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


def test_property_lazy_names_agree_with_those_that_are_listed():
    """One list says where a name is, one is for type checkers, one is `__all__`: the same names."""
    for package in ("", ".train", ".baselines"):
        module = importlib.import_module(f"bayesprune{package}")
        where = {name for names in module._PLACES.values() for name in names.split()}
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        guarded = next(node for node in tree.body if isinstance(node, ast.If))
        imported = {alias.name for node in guarded.body for alias in node.names}
        assert where == imported == set(module.__all__) - {"__version__"}


def test_property_rooms_need_no_import_of_their_own():
    code = (
        "import bayesprune as bp; print(bp.tabular.fit_many.__name__, bp.vision.mlp.__name__, bp.ood_metrics.__name__)"
    )
    assert run_python("-c", code).stdout.split() == ["fit_many", "mlp", "ood_metrics"]
    assert {"tabular", "ood_metrics", "CVAdam"} <= set(dir(bayesprune))
    with pytest.raises(AttributeError, match="no attribute 'CVadam'"):
        _ = bayesprune.CVadam


@pytest.mark.parametrize("package", sorted(EXTRAS))
def test_error_every_extra_names_itself(package):
    told = missing(ModuleNotFoundError(f"No module named {package!r}", name=package), "this")
    extra = str(told).partition("bayesprune[")[2].partition("]")[0]
    declared = importlib.metadata.metadata("bayesprune").get_all("Provides-Extra")
    assert extra in declared or extra in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert str(told).startswith("this needs ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["select", "TABLE", "--target", "y", "--out", "OUT"], 'needs scikit-learn: pip install "bayesprune[tabular]"'),
        (["train", "digits-sgd", "--out", "OUT"], 'load_digits needs scikit-learn: pip install "bayesprune[train]"'),
    ],
)
def test_error_a_missing_extra_is_named_by_the_command(tmp_path, words, message):
    rows = "\n".join(f"{i % 7},{i % 5},{i % 3}" for i in range(80))
    (tmp_path / "table.csv").write_text(f"a,b,y\n{rows}\n")
    words = [w.replace("TABLE", str(tmp_path / "table.csv")).replace("OUT", str(tmp_path / "out")) for w in words]
    code = f"import sys; sys.modules['sklearn'] = None\nfrom bayesprune.cli import main\nsys.exit(main({words}))"
    done = run_python("-c", code)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_property_completion_knows_commands_and_options(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "select" in script and "--held-out" in script


def test_property_every_command_shows_examples_that_it_would_take():
    parser = build_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction)).choices
    for name, command in commands.items():
        if name == "reproduce":  # its tables have parsers of their own
            continue
        examples = [line.strip() for line in (command.epilog or "").splitlines()[1:]]
        assert examples, name
        for line in examples:
            assert parser.parse_args(line.partition(" > ")[0].partition(" && ")[0].split()[1:]).command == name


def test_error_mends_that_are_told_exist(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"load_cifar\(…, download=True\)"):
        bayesprune.vision.load_cifar("cifar10", tmp_path)
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "mps" not in capsys.readouterr().out  # refused by the configuration, so not offered


def test_property_a_process_of_torchruns_that_fails_ends_at_once(monkeypatch, capsys):
    """torchrun ends the others when it has ended; the interpreter's own end would take seconds."""
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(sys, "argv", ["bayesprune", "doctor", "nowhere"])
    assert main() == 1 and not left
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    assert main(["doctor", "nowhere"]) == 1 and not left  # called by somebody's own process
    assert main() == 1 and left == [1]
    assert capsys.readouterr().err.count("nowhere is no folder") == 3


def test_property_a_reader_that_has_read_enough_is_no_error():
    shown = subprocess.Popen(
        [sys.executable, "-m", "bayesprune", "recipes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    shown.stdout.close()
    assert shown.stderr.read() == b"" and shown.wait() == 1
    shown.stderr.close()
