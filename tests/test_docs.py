"""The site's promises: every page is in the navigation, snippets run as printed, every public name has a running example."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch

import bayesprune as bp
from test_house import public_objects

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {str(page.relative_to(DOCS)): page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)


@pytest.mark.parametrize("thing", list(public_objects()))
def test_property_public_names_have_an_example(thing):
    """It runs: pytest collects every docstring under src."""
    assert ">>>" in (inspect.getdoc(thing) or ""), f"{thing.__module__}.{thing.__qualname__} has no example"


def test_property_every_page_is_in_the_navigation_and_every_script_exists():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = set(re.findall(r"([\w/]+\.md)", navigation))
    assert named == set(PAGES)
    for page, text in PAGES.items():
        for script in re.findall(r"<!-- script: (\S+) -->", text):
            assert (ROOT / script).is_file(), f"{page}: {script}"


def test_property_api_pages_list_every_public_name():
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "assets" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    for text in PAGES.values():
        for room in re.findall(r"<!-- api: (\w+) -->", text):
            package = importlib.import_module(f"bayesprune.{room}")
            found = hooks.public(room)
            assert list(found) == list(package.__all__), room
            for name, module in found.items():
                assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
    rooms = {room for text in PAGES.values() for room in re.findall(r"<!-- api: (\w+) -->", text)}
    assert rooms == set(bp._ROOMS)


def test_property_references_to_the_method_name_a_section_that_exists():
    known = {int(number) for number in re.findall(r"^## (\d+)\. ", PAGES["method.md"], re.MULTILINE)}
    cited = set()
    for path in (ROOT / "src").rglob("*.py"):
        for numbers in re.findall(r"method, sections? ([\d ,to and]+)", path.read_text(encoding="utf-8")):
            cited |= {int(number) for number in re.findall(r"\d+", numbers)}
        assert "docs/" not in path.read_text(encoding="utf-8") or all(
            (ROOT / page).is_file() for page in re.findall(r"docs/\w+\.md", path.read_text(encoding="utf-8"))
        ), path
    assert cited and cited <= known


@pytest.fixture
def trained():
    """What the pages' snippets take as given: a model with samples, batches of both kinds, an optimizer and a clock."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 6), torch.arange(64) % 3
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    optimizer = bp.CVAdam(model.parameters(), lr=1e-3, num_data=64)
    clock = bp.CycleClock(total_steps=20, samples_per_cycle=3, sample_every=3)
    samples = bp.MemorySamples()
    for step in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if clock.collect(step):
            samples.collect(model, optimizer, step=step)
    names = {"bp": bp, "torch": torch, "model": model, "samples": samples, "optimizer": optimizer, "clock": clock}
    return names | {"loader": [(x, y)], "other_inputs": 3 * torch.randn(16, 6)}


@pytest.mark.parametrize("page", ["uncertainty.md", "extending.md"])
def test_property_snippets_run_as_printed(page, trained):
    from bayesprune.compaction import forget_layer
    from bayesprune.graph.kinds import REGISTERED
    from bayesprune.train import recipes, registry, task

    try:
        for block in python_blocks(page):
            exec(block, trained)
        if page == "uncertainty.md":
            assert trained["curve"].area >= trained["curve"].least_area
        else:
            assert recipes.recipe("digits-short").schedule.epochs == 3 and registry.method("adamw").text == "AdamW"
            assert trained["pruner"].groups.kind and trained["Cubed"] in REGISTERED
            assert task.build_task("absolute").shown == ("mse", "nll")
    finally:
        registry.forget_method("adamw")
        forget_layer(trained.get("Cubed"))
        recipes.forget_recipe("digits-short")


SINGLE = [
    ("reliability.md", 0),
    ("temperature.md", 0),
    ("temperature.md", 1),
    *(("pruning.md", i) for i in range(3)),
    ("compaction.md", 1),
    ("compaction.md", 2),
]
ELSEWHERE = {  # the others, and the test that runs them
    "uncertainty.md": "here", "extending.md": "here", "integrations.md": "tests/integrations/",
    "compaction.md": "tests/test_examples.py", "variable_selection.md": "tests/test_examples.py",
    "training.md": "tests/test_examples.py",
}  # fmt: skip


@pytest.mark.parametrize(("page", "place"), SINGLE)
def test_property_single_snippets_run_as_printed(page, place, trained, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    layers = [torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)]
    fresh = torch.nn.Sequential(*layers)
    if page != "temperature.md":  # a pruner of its own
        trained |= {"model": fresh, "optimizer": bp.CVAdam(fresh.parameters(), lr=1e-3, num_data=64)}
    exec(python_blocks(page)[place], trained | {"step": 20, "x": torch.randn(4, 6)})


def test_property_every_snippet_of_every_page_is_run_somewhere():
    for page in (page for page in PAGES if python_blocks(page)):
        alone = sum(name == page for name, _ in SINGLE)
        assert alone == len(python_blocks(page)) or page in ELSEWHERE, page


def run_script(name, monkeypatch, tmp_path, *arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    scope = {"__name__": "__main__"}
    exec(compile((ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8"), name, "exec"), scope)
    return scope


def test_target_the_first_tutorial_prunes_and_still_reads_digits(monkeypatch, tmp_path, capsys):
    scope = run_script("prune_my_model", monkeypatch, tmp_path)
    assert scope["after"] < 0.3 * scope["before"]
    assert scope["averaged"] > 0.96
    assert "went: no reader uses it" in scope["small"].report.why(
        "2.first", scope["small"].report.layers[1].went["no reader uses it"][0]
    )
    capsys.readouterr()


def test_target_the_second_tutorial_doubts_what_is_wrong_and_what_is_strange(monkeypatch, tmp_path, capsys):
    scope = run_script("uncertainty", monkeypatch, tmp_path)
    curve = scope["curve"]
    assert curve.risk_at(0.8) <= curve.risk_at(1.0) and curve.area < 0.2 * max(curve.risk_at(1.0), 0.01)
    assert scope["found"]["auroc"] > 0.8  # letters, by the epistemic part; the total does better
    assert "temperature, group 0: measured" in capsys.readouterr().out


def test_target_the_cold_posterior_is_too_narrow_by_the_root_of_the_temperature(monkeypatch, tmp_path, capsys):
    plot = tmp_path / "cold.png"
    scope = run_script("cold_posterior", monkeypatch, tmp_path, "--plot", str(plot))
    for temperature, samples in scope["found"].items():
        ratio = samples.std(dim=0) / scope["exact"] / temperature**0.5
        assert ((ratio - 1).abs() < 0.1).all()  # 200 chains, 15 draws each that depend on each other
    assert plot.stat().st_size > 5_000
    capsys.readouterr()


def test_property_the_service_answers_like_the_model(tmp_path, trained):
    import json
    import threading
    import urllib.error
    import urllib.request

    spec = importlib.util.spec_from_file_location("serve", ROOT / "examples" / "serve.py")
    serve = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)
    members = bp.Ensemble(trained["model"], list(trained["samples"]))
    bp.save(members, tmp_path / "model", example_input=trained["other_inputs"][:2])
    with serve.server(str(tmp_path / "model"), port=0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{running.server_port}"
        x = trained["other_inputs"][:4]
        body = json.dumps({"inputs": x.tolist()}).encode()
        with urllib.request.urlopen(urllib.request.Request(address, data=body), timeout=30) as answer:
            told = json.loads(answer.read())
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(urllib.request.Request(address, data=b"{}"), timeout=30)
        running.shutdown()
    expected = members.predict(x)
    torch.testing.assert_close(torch.tensor(told["probabilities"], dtype=torch.float64), expected.probabilities)
    torch.testing.assert_close(torch.tensor(told["total"], dtype=torch.float64), expected.total)


def test_property_the_fault_table_names_tests_that_exist():
    rows = PAGES["reliability.md"].partition("| Fault |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(rows) > 25
    for row in rows:
        cell = row.split("|")[3]
        named = re.findall(r"`(tests/[^`]+)`([^`]*)", cell)
        assert named or "python -m benchmarks." in cell, row
        for place, words in named:
            tests = re.findall(r"^def (test_\w+)", (ROOT / place).read_text(encoding="utf-8"), re.MULTILINE)
            for word in filter(None, (word.strip(" ;") for word in words.split(","))):
                assert any(word in test for test in tests), f"{place} has no test of {word}"
