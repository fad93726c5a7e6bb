from __future__ import annotations

import json
import re

import pytest

from bayesprune.report import load_run, results_table


@pytest.fixture
def runs(make_run):
    folders = [
        make_run("dfp-seed0", traced=False),
        make_run("dfp-seed1", traced=False, seed=1, level=0.95),
        make_run("sgd", traced=False, recipe="digits-sgd", method="sgd", pruned=False, extra={"brier": None}),
        make_run("dpf", traced=False, recipe="digits-dpf", finished=False, done=7),
    ]
    return [load_run(folder) for folder in folders]


def test_property_text_is_aligned_and_in_percent(runs):
    lines = results_table(runs).splitlines()
    assert len(lines) == 3 + len(runs)
    numbers = "95.90 97.00 0.1012 0.0456 0.0123 90.00 87.00 74.32 12 18 61"
    assert lines[3].split() == ["dfp-seed0", "digits-dfp", "emmcmc", *numbers.split()]
    ends = [match.end() for match in re.finditer("-+", lines[2])]
    for line in lines[3:]:  # every number ends where its column ends, or its line does
        assert all(end >= len(line) or line[end] == " " for end in ends)
    assert len({len(line) for line in lines[2:]}) == 1
    assert lines[0].split("  ")[-1].strip() == "Sparsity (%)"


def test_limit_missing_values_are_dashes(runs):
    lines = results_table(runs).splitlines()
    assert lines[5].split()[6] == "–"
    assert lines[6].split() == ["dpf", "digits-dpf", "emmcmc", *"–" * 9, "7", "of", "18", "–"]


def test_equation_seeds_are_averaged_with_the_sample_deviation(runs):
    lines = results_table(runs, average_seeds=True).splitlines()
    assert len(lines) == 3 + 3
    assert lines[3].startswith("dfp (2 runs)")
    # averaged accuracies 0.97 and 0.95: mean 0.96, standard deviation √(2·0.01²/1) = 0.01414
    assert "96.00 ± 1.41" in lines[3]
    assert lines[4].startswith("sgd ") and "±" not in lines[4]
    assert "±" not in lines[5]


def test_property_only_seeds_are_averaged(make_run):
    folders = [make_run(f"run{i}", seed=i, traced=False, epochs=6 + 3 * i) for i in range(2)]
    assert "±" not in results_table([load_run(folder) for folder in folders], average_seeds=True)


def test_property_markdown_has_one_cell_a_column(runs):
    lines = results_table(runs, "markdown").splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert len(lines) == 2 + len(runs) and {len(row) for row in cells} == {14}
    assert cells[0][4].strip() == "Accuracy, averaged (%)" and cells[0][3].strip() == "Accuracy, single (%)"
    assert cells[1][0].strip() == ":---" and cells[1][4].strip() == "---:"
    assert cells[2][4].strip() == "97.00"


def test_property_names_are_escaped(make_run):
    run = load_run(make_run("a|b*<i>", recipe="<script>|", traced=False))
    markdown, html = results_table([run], "markdown"), results_table([run], "html")
    assert r"a\|b\*\<i\>" in markdown and r"\<script\>\|" in markdown
    assert "<script>" not in html and "&lt;script&gt;|" in html and "a|b*&lt;i&gt;" in html


def test_property_html_has_headers_with_a_scope(runs):
    html = results_table(runs, "html")
    assert html.count('scope="row"') == len(runs)
    assert html.count('scope="colgroup"') == 3
    assert html.count('scope="col"') == 14 and "sortable" in html
    assert len(re.findall(r"<th\b", html)) == html.count('scope="')
    columns = re.findall(r"<tr>.*?</tr>", html, re.DOTALL)
    assert {len(re.findall(r"<t[hd]\b", row)) for row in columns[1:]} == {14}
    spans = [int(span) for span in re.findall(r'colspan="(\d+)"', columns[0])]
    assert sum(spans) + columns[0].count("<td") == 14


def test_property_data_and_network_appear_when_they_differ(make_run):
    first = load_run(make_run("a", traced=False))
    other = load_run(make_run("b", traced=False, extra={"dataset": "cifar10"}))
    assert "Data" not in results_table([first])
    head, *_ = [line for line in results_table([first, other]).splitlines() if line.startswith("Run")]
    assert "Data" in head and "Network" not in head
    assert "cifar10" in results_table([first, other])


def test_limit_what_diverged_says_so(make_run):
    folder = make_run(traced=False)
    values = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**values, "nll": float("nan")}))
    assert " nan " in results_table([load_run(folder)])


def test_error_format_and_no_runs(runs):
    with pytest.raises(ValueError, match="fmt='csv': expected one of 'text', 'markdown', 'html'"):
        results_table(runs, "csv")
    with pytest.raises(ValueError, match="runs is empty"):
        results_table([])
