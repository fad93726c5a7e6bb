"""What examples and documents promise: scripts run, snippets run, and every test, file and command they name exists."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import bayesprune as bp
from bayesprune.compaction import REASONS
from bayesprune.tabular.parameters import Parameters
from bayesprune.train import recipes
from bayesprune.train.registry import forget_method
from bayesprune.vision import digits_resnet

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}


def run_example(name, monkeypatch, *arguments):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return module.main()


def test_roundtrip_own_model_is_killed_resumed_compacted_and_exported(monkeypatch, tmp_path):
    found = run_example("own_model", monkeypatch, "--out", str(tmp_path))
    result, whole = found["result"], found["whole"]
    assert (
        result["nll"] == whole["nll"] and result["exact"] and result["num_samples"] == len(bp.load(tmp_path / "model"))
    )
    assert result["sparsity_prunable"] > 0.5 and result["accuracy_mean"] > 0.8
    dense, small = (sum(p.numel() for p in net.parameters()) for net in (found["network"], found["small"].model))
    assert small < 0.6 * dense and found["difference"] < 1e-4 and (tmp_path / "model" / "model.onnx").exists()


def blocks(name):
    return re.findall(r"```python\n(.*?)```", TEXTS[name], re.DOTALL)


@pytest.mark.slow
def test_target_select_inputs_finds_measurements_and_no_shuffled_copy(monkeypatch, capsys):
    model = run_example("select_inputs", monkeypatch)
    selected = set(model.get_feature_names_out())
    assert {"bmi", "s5"} <= selected  # the two that every regression on these data leads with
    assert not any(name.endswith("shuffled") for name in selected)
    assert "inside the 90 % interval" in capsys.readouterr().out


@pytest.mark.slow
def test_property_compact_and_deploy_is_smaller_and_predicts_alike(monkeypatch, capsys, tmp_path):
    found = run_example("compact_and_deploy", monkeypatch, "--epochs", "4", "--out", str(tmp_path / "model"))
    before, after = found["parameters"]
    assert after < 0.6 * before  # 60 % of the prunable weights went, whole channels of them
    assert found["difference"] < 1e-4
    assert found["accuracy"] > 0.95
    assert json.loads((tmp_path / "model" / "architecture.json").read_text())["metadata"]["classes"][3] == "3"
    assert len(bp.load(tmp_path / "model")) == 4
    assert "dense / compact" in capsys.readouterr().out


@pytest.mark.parametrize(("page", "place"), [("README.md", 1), ("variable_selection.md", 0)])
def test_property_selection_snippets_run(page, place, tmp_path, monkeypatch):
    """As printed; only the steps that are "auto" are few."""
    monkeypatch.chdir(tmp_path)
    few = {"search_steps": 200, "evidence_steps": 60, "fit_steps": 200}
    monkeypatch.setattr(Parameters.__init__, "__kwdefaults__", {**Parameters.__init__.__kwdefaults__, **few})
    X = np.random.default_rng(0).standard_normal((200, 8))
    scope = {"X": X, "y": 2 * X[:, 3] + 0.3 * np.random.default_rng(1).standard_normal(200), "X_new": X[:5]}
    exec(blocks(page)[place], scope)
    assert scope["model"].get_support(indices=True).tolist() == [3]
    assert scope["mean"].shape == scope["std"].shape


@pytest.mark.parametrize(("page", "place"), [("README.md", 2), ("compaction.md", 0)])
def test_property_compaction_snippets_run(page, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model, x = digits_resnet(num_classes=3, width=8), torch.randn(6, 1, 8, 8)
    optimizer = bp.CVAdam(model.parameters(), lr=0.1, num_data=6, temperature=1e-2)
    pruner = bp.ForwardPruning(model, optimizer, sparsity=0.5, warmup_steps=0, every=1)
    samples = bp.MemorySamples()
    for step in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        if step:
            samples.collect(model, step=step)
    exec(blocks(page)[place], {"bp": bp, "model": model, "pruner": pruner, "samples": samples, "x": x})
    assert "dense / compact" in capsys.readouterr().out
    torch.testing.assert_close(bp.load("model")(x), model(x))


def test_property_training_snippet_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"torch": torch}
    exec(blocks("training.md")[0], scope)
    exec(blocks("training.md")[1], scope)
    forget_method("adamw")
    assert len(scope["samples"]) == 2 and scope["result"]["exact"] and scope["config"].data.dataset == "own"


def test_property_tests_that_are_named_exist():
    files = {}
    for path in [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "paper" / "tests").rglob("test_*.py")]:
        files.setdefault(path.name, "")
        files[path.name] += path.read_text(encoding="utf-8")
    named = re.findall(r"(test_\w+\.py)(?:::(\w+))?", TEXTS["paper_map.md"])
    assert len(named) > 60
    for file, test in named:
        assert file in files, f"{file} is named and does not exist"
        assert not test or f"def {test}(" in files[file], f"{file}::{test} is named and does not exist"


def test_property_links_and_files_exist():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", TEXTS[page.name]):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
        for script in re.findall(r"examples/\w+\.py", TEXTS[page.name]):
            assert (ROOT / script).exists(), f"{page.name}: {script}"
    for row in re.findall(r"^\|[^|]*\|[^|]*\|([^|]*)\|", TEXTS["paper_map.md"].split("## Deviations")[0], re.MULTILINE):
        for file in re.findall(r"`(\w+/[\w./]*)`", row):
            assert any((place / file).exists() for place in (ROOT / "src" / "bayesprune", ROOT)), (
                f"paper_map.md: {file}"
            )


def test_property_every_refusal_and_every_baseline_is_told():
    for reason in REASONS:
        assert f"| `{reason}` |" in TEXTS["compaction.md"], reason
    from bayesprune import baselines

    known = set(recipes.names())
    for suffix in re.findall(r"`-([a-z0-9-]+)`", TEXTS["baselines.md"]):
        assert f"cifar10-resnet20-{suffix}" in known, suffix
    for name in baselines.__all__:
        if isinstance(getattr(baselines, name), type) and name not in ("SparseTraining", "Preset"):
            assert f"`{name}`" in TEXTS["baselines.md"], name


@pytest.mark.parametrize(
    "name", sorted({*re.findall(r"^bayesprune train ([\w-]+)(?![\w.-])", "\n".join(TEXTS.values()), re.MULTILINE)})
)
def test_property_recipes_that_are_named_exist(name):
    assert recipes.recipe(name).schedule.epochs >= 1
