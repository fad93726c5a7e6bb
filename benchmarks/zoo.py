"""Thirty-odd networks of torchvision, timm, transformers and plain torch, each made smaller by half by the library's defaults.

    python -m benchmarks.zoo [--only NAME ...] [--redo NAME ...] [--minutes 8] [--table]

See README.md beside this file for the environment. Each network runs in a process of its own and one thread, under a time
limit; its row is written when it ends, and a run that was broken off goes on where it stopped. Printed is what is left of
parameters and multiply-adds at a target of 50 %, the largest difference of the masked and the compact model's outputs
relative to the largest output, whether the compact model loads bit for bit in a fresh process and exports to ONNX, what
Torch-Pruning makes of the same network at the same target, and, where more than 55 % is left, why.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bayesprune.train.folder import environment, write_json
from benchmarks.zoo_models import zoo
from benchmarks.zoo_row import TARGET, row

RESULTS = Path(__file__).parent / "results" / "zoo.json"
PROMISE = 0.55
EXACT = 1e-5
MEMORY = 10 << 30  # bytes of address space that one network may take
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "torch-pruning", "onnx", "onnxruntime", "onnxscript")


def merged(result: dict[str, Any], name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """The result with one row put in, in the place of an older one of that name."""
    return {**result, "rows": {**result.get("rows", {}), name: entry}}


def outstanding(names: list[str], rows: dict[str, Any], redo: list[str]) -> list[str]:
    """What is to be run: what has no row yet, and what is asked for again (``all``: everything)."""
    return [name for name in names if name not in rows or name in redo or "all" in redo]


def verdicts(rows: dict[str, Any]) -> dict[str, int]:
    """How many networks keep each promise."""
    done = list(rows.values())
    return {
        "networks": len(done),
        f"at most {PROMISE:.0%} left": sum(each.get("left", 1.0) <= PROMISE for each in done),
        "more left or refused, with a reason": sum(
            each.get("left", 1.0) > PROMISE and bool(why(each)) for each in done
        ),
        "more left or refused, without a reason": sum(
            each.get("left", 1.0) > PROMISE and not why(each) for each in done
        ),
        f"differences within {EXACT:g}": sum(largest(each) <= EXACT for each in done),
        "differences beyond": sum(EXACT < largest(each) < float("inf") for each in done),
        "saved and loaded bit for bit": sum(bool(each.get("saved", {}).get("ok")) for each in done),
        "ONNX": sum(bool(each.get("onnx", {}).get("ok")) for each in done),
        "Torch-Pruning runs": sum(bool(each.get("torch_pruning", {}).get("runs")) for each in done),
        f"Torch-Pruning at most {PROMISE:.0%} left, and runs": sum(
            bool(each["torch_pruning"].get("runs")) and each["torch_pruning"]["left"] <= PROMISE
            for each in done
            if "torch_pruning" in each
        ),
    }


def largest(entry: dict[str, Any]) -> float:
    """The larger of the differences of a row; infinite where there is none."""
    found = [value for value in entry.get("difference", {}).values() if isinstance(value, float)]
    return max(found) if len(found) == 2 else float("inf")


def why(entry: dict[str, Any]) -> str:
    """Why more than was promised is left: the refusal, or what the pruner and compaction say stays, most weights first."""
    parts = list(entry.get("warnings", []))
    if "failed" in entry and "left" not in entry:
        return str(entry["failed"])
    if "refused" in entry:
        return "; ".join([f"{entry['refused']['where']}: {entry['refused']['reason']}", *parts])
    parts += [
        f"{each['weights'] / entry['parameters']:.0%} {each['reason']} ({each['names'][0]})"
        for each in entry.get("dense", [])
        if each["weights"] > 0.03 * entry["parameters"]
    ]
    parts += [f"{count:,} zeros stay: {reason}" for reason, count in list(entry.get("leftovers", {}).items())[:2]]
    return "; ".join(parts)


def table(rows: dict[str, Any]) -> str:
    """The rows as a Markdown table, and the counts."""
    lines = [
        "| network | parameters | left | multiply-adds | difference: evaluation, training | result | saved | ONNX | Torch-Pruning "
        "| seconds | why |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, each in rows.items():
        off = [f"{v:.0e}" if isinstance(v, float) else "fails" for v in each.get("difference", {}).values()]
        theirs = each.get("torch_pruning", {})
        cells = [
            name,
            f"{each['parameters'] / 1e6:.2f} M" if "parameters" in each else "–",
            f"{each['left']:.1%}" if "left" in each else "–",
            f"{each['madds_left']:.1%}" if "madds_left" in each else "–",
            ", ".join(off) or "–",
            each.get("kind", "–"),
            _verdict(each.get("saved")),
            _verdict(each.get("onnx")),
            f"{theirs['left']:.1%}{'' if theirs['runs'] else ', does not run'}" if "left" in theirs else "refused",
            f"{sum(each.get('seconds', {}).values()):.0f}",
            why(each) if each.get("left", 1.0) > PROMISE else "",
        ]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join([*lines, "", *(f"{text}: {count}" for text, count in verdicts(rows).items())])


def _verdict(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    return "yes" if found["ok"] else "no"


def measure(name: str, minutes: float, seed: int) -> dict[str, Any]:
    """One row, made in a process of its own; of one that did not end, what it had found."""
    command = [sys.executable, "-m", "benchmarks.zoo", "--row", name, "--seed", str(seed)]
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * minutes)
        output, errors, ended = done.stdout, done.stderr.strip().splitlines(), done.returncode == 0
        reason = errors[-1][:300] if errors else f"exit {done.returncode}"
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        ended, reason = False, f"took longer than {minutes:g} minutes"
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{") and line.endswith("}")]
    entry: dict[str, Any] = found[-1] if found else {}
    if not ended:
        after = list(entry.get("seconds", {}))
        entry["failed"] = f"{reason}, after {after[-1]}" if after else reason
    return {**entry, "wall": round(time.perf_counter() - begin, 1)}


def versions() -> dict[str, str]:
    """The versions of what the rows depend on."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="run these networks alone")
    parser.add_argument("--redo", nargs="*", default=[], help="run these again; all: every one")
    parser.add_argument("--minutes", type=float, default=8.0, help="limit of one network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the results and end")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        row(zoo()[options.row], options.seed, note=lambda found: print(json.dumps(found), flush=True))
        return
    result = json.loads(options.json.read_text()) if options.json.exists() else {}
    names = list(zoo())
    unknown = [name for name in [*(options.only or []), *options.redo] if name not in [*names, "all"]]
    if unknown:
        parser.error(f"{unknown[0]!r} is not in the zoo; the networks are: {', '.join(names)}")
    for name in [] if options.table else outstanding(options.only or names, result.get("rows", {}), options.redo):
        entry = measure(name, options.minutes, options.seed)
        if options.json.exists():  # another process may have written rows meanwhile
            result = json.loads(options.json.read_text())
        result = merged(result, name, {**entry, "commit": environment("cpu")["commit"]})
        result["rows"] = {key: result["rows"][key] for key in names if key in result["rows"]}
        settings = {"target": TARGET, "seed": options.seed, "threads": 1, "load_average": os.getloadavg()[0]}
        write_json(
            options.json, {**result, "settings": settings, "versions": versions(), "environment": environment("cpu")}
        )
        print(f"{name}: {entry.get('left', float('nan')):.1%} left; {why(entry)[:300]}", flush=True)
    print(table(result.get("rows", {})))


if __name__ == "__main__":
    main()
