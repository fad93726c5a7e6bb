"""Table 4's jobs, rows and text, on designs small enough for seconds."""

import json

import numpy as np
import pytest

from bayesprune.tabular import SparseBNNRegressor
from paper.commands import parser
from paper.designs import example2
from paper.jobs import Job, run_jobs
from paper.selectors import comparators
from paper.selectors.rule import row_losses, smallest_within_one_error
from paper.table4 import _missing, ledger_of, row_key, run_table4
from paper.table4_blocks import DESIGNS, METHODS, VARIANTS, draw
from paper.table4_job import run_table4_job
from paper.table4_page import table4_markdown
from paper.tests.child_jobs import die, raise_it, sleep_long, succeed

SMALL = {"n": 300, "p": 30, "n_test": 100}
QUICK = {"search_steps": 60, "evidence_steps": 20, "fit_steps": 40, "n_starts": 4, "n_chains": 2}


def job(method, design="example2", repetitions=(0,), **settings):
    return {
        "design": design, "method": method, "repetitions": list(repetitions), "seed": 0, "sizes": SMALL, "settings": settings,
    }  # fmt: skip


def row(method, network, repetition, selected, score=1.0, status="done", reason="", design="example2"):
    return {
        "design": design, "method": method, "network": network, "repetition": repetition, "seed": 0, "metric": "mse",
        "status": status, "reason": reason, "score": score, "selected": selected, "true_inputs": [0, 1, 2, 3, 4],
        "seconds": 3.0, "n": 300, "floor": 0.99 + 0.02 * repetition,
    }  # fmt: skip


# ---- designs


def test_property_columns_are_permuted_and_mapped_back():
    block = DESIGNS["example2"]
    drawn, plain = draw(block, 0, 1, SMALL), example2(repetition=1, **SMALL)
    assert drawn.original(drawn.places()) == [0, 1, 2, 3, 4]
    assert np.array_equal(drawn.data.X_test[:, np.argsort(drawn.order)], plain.X_test)
    assert np.array_equal(drawn.data.y_train, plain.y_train)
    assert not np.array_equal(draw(block, 0, 2, SMALL).order, drawn.order)
    assert np.array_equal(draw(block, 0, 1, SMALL).order, drawn.order)


def test_property_blocks_are_those_of_the_table():
    sizes = {key: block.settings["p"] for key, block in DESIGNS.items()}
    assert sizes == {
        "example1-paper": 1000, "example1-authors-code": 1000, "example2": 2000, "example3-p1000": 1000, "example3-p2000": 2000,
    }  # fmt: skip
    assert [key for key, block in DESIGNS.items() if block.ours_only] == ["example3-p2000"]
    jobs = _missing(list(DESIGNS.values()), METHODS, 10, 5, 0, {})
    assert {j["method"] for j in jobs if j["design"] == "example3-p2000"} == {"dfp", "dpf", "true-inputs"}
    assert [j["method"] for j in jobs][:10] == ["dfp"] * 10  # five designs in two chunks, first of all
    assert [j["repetitions"] for j in jobs][:2] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


# ---- one job a method


@pytest.mark.parametrize("method", ["dfp", "true-inputs"])
def test_property_our_jobs_give_both_networks_of_one_selection(method):
    rows = run_table4_job(job(method, repetitions=(0, 1), **QUICK))
    assert [(r["repetition"], r["network"]) for r in rows] == [
        (0, "paper's"),
        (0, "default"),
        (1, "paper's"),
        (1, "default"),
    ]
    for paper, default in (rows[:2], rows[2:]):
        assert paper["selected"] == default["selected"] and paper["score"] != default["score"]
        assert (
            paper["settings"]["hidden_layer_sizes"] == (6, 4, 3) and default["settings"]["hidden_layer_sizes"] == "auto"
        )
        assert paper["chunk"] == 2 and paper["seconds"] == pytest.approx(paper["chunk_seconds"] / 2)
    assert (rows[0]["selected"] is None) == (method == "true-inputs")


@pytest.mark.parametrize(
    "method, settings",
    [
        ("lasso", {}),
        ("boosting", {"max_iter": 20}),
        ("forest", {"n_estimators": 5}),
        ("svbnn", {"steps": 50}),
        ("splbnn", {"steps": 60, "refine_steps": 20, "n_starts": 2, "batch_size": 50}),
    ],
)
@pytest.mark.parametrize("design", ["example1-paper", "example3-p1000"])
def test_property_every_method_gives_its_variants(method, settings, design):
    rows = run_table4_job(job(method, design, **settings))
    assert [r["network"] for r in rows] == list(VARIANTS[method])
    for r in rows:
        assert r["status"] == "done" and np.isfinite(r["score"]) and r["n"] == 300 and r["p"] == 30
        assert 0 <= r["score"] <= (1 if r["metric"] == "accuracy" else 10)
        assert r["selected"] is None or set(r["selected"]) <= set(range(30))
    json.dumps(rows)
    if method in ("boosting", "forest"):
        assert rows[0]["selected"] is None and rows[1]["selected"]


def test_property_lassonet_keeps_the_strong_input():
    pytest.importorskip("lassonet")
    data = draw(DESIGNS["example2"], 0, 0, SMALL).data
    found = run_table4_job(
        job("lassonet", n_iters=(60, 4), path_multiplier=1.5, hidden_dims=(8,), batch_size=50, steps=(1e-2, 1e-3))
    )
    assert [r["network"] for r in found] == ["path", "dense refit"]
    assert 1 in found[0]["selected"]  # 5x₂/(1 + x₁²) carries most of the variance
    assert found[0]["score"] < 0.9 * np.var(data.y_test)


def test_error_lassonet_names_its_package(monkeypatch):
    import builtins

    plain = builtins.__import__
    monkeypatch.setattr(
        builtins,
        "__import__",
        lambda name, *rest: (_ for _ in ()).throw(ImportError(name)) if name == "lassonet" else plain(name, *rest),
    )
    with pytest.raises(ImportError, match="pip install lassonet"):
        run_table4_job(job("lassonet"))


def test_property_boosting_ranks_by_what_permutation_costs():
    class ReadsThree:
        def predict(self, X):
            return X[:, 3].astype(np.float64)

    data = draw(DESIGNS["example2"], 0, 0, SMALL | {"n": 400}).data
    object.__setattr__(data, "y_validation", data.X_validation[:, 3])
    assert comparators._by_permutation(ReadsThree(), data, 0)[0] == 3


# ---- the rule


def test_equation_rule_takes_the_smallest_within_one_standard_error():
    base = np.array([0.0, 1.0, 2.0, 3.0])
    near = base + np.array([0.3, -0.2, 0.1, -0.1])  # mean 0.025, standard error 0.11
    far = base + np.array([0.3, 0.2, 0.3, 0.2])  # mean 0.25, standard error 0.03
    assert smallest_within_one_error([5, 3, 1], [base, near, far]) == 1
    assert smallest_within_one_error([5, 3, 1], [base, near, base * np.nan]) == 1
    assert row_losses("classification", np.array([0.25, 0.25]), np.array([1, 0])) == pytest.approx(
        -np.log([0.25, 0.75])
    )


# ---- processes


def test_property_jobs_end_with_a_value_or_a_reason():
    jobs = [Job(succeed, 1), Job(raise_it, 2), Job(sleep_long, 3, cap=4.0), Job(die, 4)]
    ended = {}
    assert run_jobs(jobs, 2, lambda j, outcome: ended.update({j.argument: outcome})) == 0
    assert (ended[1].status, ended[1].value) == ("done", [1])
    assert ended[2].status == "failed" and "RuntimeError: no luck with 2 (child_jobs.py:" in ended[2].reason
    assert ended[3].status == "timed out" and "killed after" in ended[3].reason and 4 <= ended[3].seconds < 600
    assert ended[4].status == "failed" and "exit code 3" in ended[4].reason


def test_property_nothing_starts_behind_the_budget():
    assert run_jobs([Job(succeed, 1), Job(succeed, 2)], 1, print, start_until=0.0) == 2


# ---- the whole command


def test_roundtrip_rows_are_resumed_merged_and_never_repeated(tmp_path, capsys):
    out = tmp_path / "table4.jsonl"
    settings = {"lasso": {"cv": 3}, "svbnn": {"steps": 0}, "boosting": {"max_iter": 100_000, "early_stopping": False}}
    arguments = {"examples": [2], "sizes": SMALL, "settings": settings, "jobs": 2}
    first = run_table4(out, methods=["lasso", "svbnn"], repetitions=1, **arguments)
    assert [(r["method"], r["status"]) for r in first["rows"]] == [("lasso", "done"), ("svbnn", "failed")]
    assert "steps=0" in first["rows"][1]["reason"]
    before = out.read_text()
    out.write_text(before + '{"design": "exa')

    second = run_table4(out, methods=["lasso", "svbnn"], repetitions=2, **arguments)
    assert out.read_text().startswith(before) and all(json.loads(line) for line in out.read_text().splitlines())
    assert {row_key(r): r["status"] for r in second["rows"]} == {
        "example2.seed0.r00.lasso.linear": "done",
        "example2.seed0.r01.lasso.linear": "done",
        "example2.seed0.r00.svbnn.papers": "failed",
        "example2.seed0.r01.svbnn.papers": "failed",
    }
    assert len(second["commands"]) == 2 and second["commands"][1]["jobs"] == 2
    assert second["rows"][0]["versions"]["torch"]

    capped = run_table4(out, methods=["boosting"], repetitions=2, cap_minutes=3 / 60, **arguments)
    late = [r for r in capped["rows"] if r["status"] == "timed out"]
    assert len(capped["rows"]) == 8 and len(late) == 4 and {r["method"] for r in late} == {"boosting"}

    third = run_table4(out, methods=["lasso"], repetitions=2, **arguments)
    assert len(third["commands"]) == 3 and third["rows"] == capped["rows"]  # nothing was missing
    stopped = run_table4(out, methods=["svbnn"], repetitions=2, retry=True, budget_minutes=0, quiet=True, **arguments)
    assert stopped["commands"][-1]["not_started"] == 2 and len(ledger_of(out).rows()) == 8
    text = table4_markdown(capped)
    assert (
        "*boosting on all columns* (2 timed out)" in text and "killed after 0.05 minutes" in text and "steps=0" in text
    )
    assert "example2 lasso repetition 0" in capsys.readouterr().out


def test_equation_table_pools_rates_and_gives_standard_errors():
    rows = [
        row("dfp", "paper's", 0, [0, 1, 2, 3, 4], 2.4),
        row("dfp", "paper's", 1, [0, 1, 2, 3, 4, 9, 10, 11], 2.6),
        row("lasso", "linear", 0, [1], 9.0),
        row("lasso", "linear", 1, None, None, "failed", "no | memory"),
        row("boosting", "all columns", 0, None, 2.1),
    ]
    text = table4_markdown({"rows": rows, "commands": []})
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    ours = [cell.strip() for cell in lines["**DFP**, paper's network"].strip("|").split("|")]
    assert ours == [
        "**DFP**, paper's network",
        "2.500 ± 0.100",
        "2.46",
        "23.1 %",
        "0.0 %",
        "1/2",
        "6.5",
        "0, 5",
        "3",
        "2",
    ]
    other = [cell.strip() for cell in lines["lasso (1 failed)"].strip("|").split("|")]
    assert other[1:7] == ["9.000", "", "0.0 %", "80.0 %", "0/1", "1.0"]
    reference = [cell.strip() for cell in lines["*boosting on all columns*"].strip("|").split("|")]
    assert reference[1:7] == ["2.100", "", "", "", "", ""]
    assert "**Example 2, p = 2000** (the true function on these test rows: 1.000 ± 0.010)" in text
    assert "example2, lasso: 1 failed (no | memory)" in text


def test_error_unknown_methods_and_sizes(tmp_path):
    with pytest.raises(ValueError, match="methods=\\['dfq'\\]"):
        run_table4(tmp_path / "a.jsonl", methods=["dfq"])
    with pytest.raises(ValueError, match="chunk=0"):
        run_table4(tmp_path / "a.jsonl", chunk=0)


def test_property_command_line_has_every_option():
    told = parser().parse_args(["table4", "--methods", "dfp", "--budget-minutes", "2"])
    assert told.methods == ["dfp"] and told.budget_minutes == 2.0 and told.chunk == 5 and callable(told.handler)


@pytest.mark.slow
def test_target_example2_with_a_tenth_of_the_papers_rows():
    """All five true inputs of Example 2 among 500 from 1,000 rows, and no other."""
    data = example2(n=1000, p=500, seed=100)
    model = SparseBNNRegressor(random_state=0).fit(data.X_train, data.y_train)
    assert model.get_support(indices=True).tolist() == [0, 1, 2, 3, 4]
