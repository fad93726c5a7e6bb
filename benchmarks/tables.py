"""Write the tables of README and docs from the JSONs and the ledgers under benchmarks/results/.

    python -m benchmarks.tables [--check]

A table stands between `<!-- table:NAME -->` and `<!-- /table -->`. With --check nothing is written and a stale table is an error.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paper.image_tables import mean_and_spread

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "images.md",
    ROOT / "docs" / "results.md",
    ROOT / "docs" / "variable_selection.md",
    ROOT / "docs" / "compaction.md",
    ROOT / "docs" / "temperature.md",
    ROOT / "docs" / "reliability.md",
)
NAMES = {"sgd": "SGD (Nesterov)", "cvadam": "CV-Adam", "emmcmc": "CV-Adam + EM-MCMC"}


def load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def ledger(name: str) -> dict[str, Any]:
    from paper.cells import standing

    return standing(RESULTS / f"{name}.jsonl")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def where(environment: dict[str, Any]) -> str:
    return (
        f"{environment['cpu']}, {environment['cores']} cores, {environment['threads']} threads used, torch {environment['torch']}, "
        f"commit {environment['commit']}"
    )


def classification_rows(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return a row a method from its runs, one a seed."""
    columns: dict[str, Callable[[dict[str, Any]], float]] = {
        "single %": lambda r: 100 * r["accuracy_single"],
        "averaged %": lambda r: 100 * r["accuracy_mean"],
        "NLL": lambda r: r["nll"],
        "ECE": lambda r: r["ece"],
        "zero: prunable %": lambda r: 100 * r["sparsity_prunable"],
        "zero: all %": lambda r: 100 * r["sparsity_all"],
        "M multiply-adds": lambda r: r["madds"] / 1e6,
        "samples": lambda r: r["num_samples"],
        "seconds": lambda r: r["seconds"],
    }
    digits = (2, 2, 3, 3, 1, 1, 2, 0, 0)
    rows = [
        [
            NAMES[method],
            str(len(runs)),
            *(mean_and_spread([of(r) for r in runs], d) for of, d in zip(columns.values(), digits)),
        ]
        for method, runs in results.items()
    ]
    return table(["", "n", *columns], rows)


def demo() -> str:
    from bayesprune.demo.summary import markdown

    return markdown(load("demo"))


def cifar10_resnet20() -> str:
    runs = load("cifar10_resnet20")
    methods = {method: [run for run in runs if run["method"] == method] for method in NAMES}
    data, runtime = runs[0]["config"]["data"], runs[0]["config"]["runtime"]
    note = (
        f"Mean ± standard deviation over n seeds; {runs[0]['epochs']} epochs each, batch {data['batch_size']}, "
        f"{runtime['precision']}, last epoch, 10,000 test images."
    )
    return f"{classification_rows(methods)}\n\n{note} {where(runs[0]['environment'])}."


def optimizer_step() -> str:
    result = load("optimizer_step")
    medians, best = result["median_ms"], result["best_ms"]
    foreach, fused = medians["AdamW(foreach=True)"], medians["AdamW(fused=True)"]
    rows = [
        [f"`{name}`", f"{value:.1f}", f"{best[name]:.1f}", f"{value / foreach:.2f}", f"{value / fused:.2f}"]
        for name, value in medians.items()
    ]
    head = ["step on ResNet-18", "median ms", "best ms", "/ AdamW(foreach)", "/ AdamW(fused)"]
    note = f"{result['weights']:,} weights, {result['rounds']} interleaved rounds. {where(result['environment'])}."
    return f"{table(head, rows)}\n\n{note}"


def stationary_law() -> str:
    result = load("stationary_law")
    rows = [
        [str(r["delta_t"]), str(r["tau"]), str(r["beta1"]), f"{r['exact']:.3f} ± {r['exact_error']:.3f}", f"{r['exact_law']:.3f}",
         f"{r['paper']:.3f} ± {r['paper_error']:.3f}", f"{r['t_eff']:.3f}"]
        for r in result["rows"]
    ]  # fmt: skip
    head = [
        "Δt",
        "τ",
        "β₁",
        "exact: variance / posterior",
        "discrete-time law",
        "paper: T / T_eff",
        "T_eff of the paper's rule",
    ]
    moved = [
        [str(r["share"]), str(r["beta1"]), f"{r['iterate']:.2f}", f"{r['iterate_law']:.2f}",
         f"{r['midpoint']:.3f} ± {r['midpoint_error']:.3f}"]
        for r in result["midpoint"]
    ]  # fmt: skip
    second = table(
        ["share of the largest stable step", "β₁", "iterate: variance / posterior", "law", "midpoint"], moved
    )
    note = f"{result['chains']:,} chains a row. {where(result['environment'])}."
    return f"{table(head, rows)}\n\nAt large steps, the iterate and the midpoint of a move:\n\n{second}\n\n{note}"


def table4() -> str:
    from paper.table4 import read_table4
    from paper.table4_page import table4_markdown

    return table4_markdown(read_table4(RESULTS / "table4.jsonl"))


def paper_table(name: str) -> str:
    from paper.image_tables import paper_table_markdown

    return paper_table_markdown(name, ledger(name))


def selection_fdr() -> str:
    from benchmarks import selection_fdr as benchmark

    return benchmark.table(benchmark.read(benchmark.RESULTS))


def interval_coverage() -> str:
    from benchmarks import interval_coverage as benchmark

    return benchmark.table(load("interval_coverage"))


def selection_real() -> str:
    from benchmarks import selection_real as benchmark

    return benchmark.table(load("selection_real")["rows"])


def compact_resnet18() -> str:
    from benchmarks import compact_resnet18 as benchmark

    result = load("compact_resnet18")
    return f"{benchmark.table(result)}\n\n{result['verdict']} {where(result['environment'])}."


def sparse_ensemble() -> str:
    from benchmarks import sparse_ensemble as benchmark

    result = load("sparse_ensemble")
    return f"{benchmark.table(result)}\n\n{result['verdict']} {where(result['environment'])}."


def compare_torch_pruning() -> str:
    from benchmarks import compare_torch_pruning as benchmark

    result = load("compare_torch_pruning")
    settings = result["settings"]
    note = f"Each group dropped with probability {settings['share']}, seed {settings['seed']}, Torch-Pruning {settings['torch_pruning']}."
    return f"{benchmark.table(result)}\n\n{note} {where(result['environment'])}."


def uncertainty() -> str:
    from benchmarks.uncertainty import table as rows_as_table

    result = load("uncertainty")
    parts = []
    for network in dict.fromkeys(row["network"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["network"] == network]
        parts += [f"{network.upper()}:\n\n{rows_as_table(rows)}"]
    return "\n\n".join([*parts, where(result["environment"]) + "."])


def zoo() -> str:
    result = load("zoo")
    return f"{importlib.import_module('benchmarks.zoo').table(result['rows'])}\n\n{where(result['environment'])}."


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def own(name: str, *what: Any) -> str:
    """Return the table that a benchmark's own `table` writes."""
    return importlib.import_module(f"benchmarks.{name}").table(*what)


def written(name: str) -> str:
    """Return the table that a benchmark's own `table` writes of its results."""
    result = load(name)
    environment = result.get("environment") or [*result["environments"].values()][-1]  # of parts measured one by one
    return f"{importlib.import_module(f'benchmarks.{name}').table(result)}\n\n{where(environment)}."


TABLES: dict[str, Callable[[], str]] = {
    "uncertainty": uncertainty,
    "hmc_cifar10": lambda: written("hmc_cifar10"),
    "minibatch_temperature": lambda: written("minibatch_temperature"),
    "posterior_accuracy": lambda: written("posterior_accuracy"),
    "demo": demo,
    "cifar10_resnet20": cifar10_resnet20,
    "optimizer_step": optimizer_step,
    "stationary_law": stationary_law,
    "table1": lambda: paper_table("table1"),
    "table2": lambda: paper_table("table2"),
    "table3": lambda: paper_table("table3"),
    "table4": table4,
    "selection_fdr": selection_fdr,
    "selection_real": selection_real,
    "interval_coverage": interval_coverage,
    "tabular_prediction": lambda: own("tabular_prediction", load("tabular_prediction")),
    "selection_cost": lambda: own("selection_cost", load("selection_cost")),
    "hiv": lambda: own("hiv", lines("hiv")),
    "cifar10_94": lambda: own("cifar_methods", "cifar10-94"),
    "cifar10_94_short": lambda: importlib.import_module("benchmarks.cifar_methods").short_table(),
    "cifar100_72": lambda: own("cifar_methods", "cifar100-72"),
    "cifar_settings": lambda: own("cifar_settings", ledger("cifar_settings")["rows"]),
    "compact_resnet18": compact_resnet18,
    "sparse_ensemble": sparse_ensemble,
    "compare_torch_pruning": compare_torch_pruning,
    "zoo": zoo,
    **{
        name: functools.partial(written, name)
        for name in (
            "tracers",
            "loop_overhead",
            "feedback_restart",
            "freezing",
            "fuzz_readers",
            "kills",
            "ranks",
            "soak",
            "save_load",
            "guard_cost",
            "startup",
            "bare_install",
        )
    },
    "latency": lambda: own("latency", load("latency")),
}


def filled(name: str) -> str:
    measured = any((RESULTS / f"{name.removesuffix('_short')}{ending}").exists() for ending in (".json", ".jsonl"))
    return TABLES[name]() if measured else "Not measured yet."


def refreshed(text: str) -> str:
    def fill(match: re.Match[str]) -> str:
        return f"<!-- table:{match[1]} -->\n{filled(match[1])}\n<!-- /table -->"

    return re.sub(r"<!-- table:(\w+) -->\n.*?<!-- /table -->", fill, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = refreshed(text)
        if new != text:
            stale.append(page.name)
            if not check:
                page.write_text(new, encoding="utf-8")
    print(("stale: " if check else "rewritten: ") + (", ".join(stale) or "nothing"))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
