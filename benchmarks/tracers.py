"""What can follow the zoo's networks: torch.export, torch.fx as it is, and the library's tracer, which runs torch.fx on an example.

    python -m benchmarks.tracers [--minutes 3] [--print]

See README.md beside this file for the environment (that of the zoo). For each network, in evaluation mode: whether it is
traced, the nodes of the graph and the different operations among them, the seconds, and whether the graph computes the
network's outputs bit for bit. For the library's tracer layers of torch are nodes; torch.export goes down to ATen.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_flatten

from bayesprune.graph.inputs import Inputs
from bayesprune.graph.trace import trace
from bayesprune.train.folder import environment, read_json, write_json
from benchmarks.zoo import versions
from benchmarks.zoo_models import zoo

RESULTS = Path(__file__).parent / "results" / "tracers.json"
Traced = tuple[fx.Graph, Callable[[Inputs], Any]]


def exported(model: nn.Module, inputs: Inputs) -> Traced:
    """By torch.export, with the batch free."""
    program = torch.export.export(model, inputs.args, inputs.kwargs)
    return program.graph, lambda case: case.run(program.module())


def symbolic(model: nn.Module, inputs: Inputs) -> Traced:
    """By torch.fx without an example."""
    module = fx.symbolic_trace(model)
    return module.graph, lambda case: case.run(module)


def ours(model: nn.Module, inputs: Inputs) -> Traced:
    """By the library's tracer."""
    graph = trace(model, inputs)
    return graph, lambda case: fx.GraphModule(model, graph)(*case.values)


TRACERS = {"torch.export": exported, "torch.fx": symbolic, "ours": ours}


def measure(name: str) -> dict[str, Any]:
    """One network under every tracer."""
    network = zoo()[name]
    torch.manual_seed(0)
    model = network.make().eval()
    inputs = Inputs.of(model, network.example(2))
    found: dict[str, Any] = {}
    with torch.no_grad():
        wanted = tree_flatten(inputs.map(torch.clone).run(model))[0]
        for label, tracer in TRACERS.items():
            begin = time.perf_counter()
            try:
                graph, run = tracer(model, inputs)
            except Exception as error:
                found[label] = {"traced": False, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}
                continue
            entry = {"traced": True, "seconds": round(time.perf_counter() - begin, 2), "nodes": len(graph.nodes)}
            entry["operations"] = len(
                {str(node.target) for node in graph.nodes if node.op in ("call_function", "call_method")}
            )
            try:
                got = tree_flatten(run(inputs.map(torch.clone)))[0]
                entry["same"] = len(got) == len(wanted) and all(map(torch.equal, wanted, got))
            except Exception as error:
                entry |= {"same": False, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}
            found[label] = entry
    return found


def table(result: dict[str, Any]) -> str:
    """One line a tracer: how many networks it follows, how many of them bit for bit, nodes and seconds in all."""
    lines = ["| tracer | networks traced | bit for bit | nodes | seconds |", "|---|---:|---:|---:|---:|"]
    rows = result["rows"].values()
    for label in TRACERS:
        held = [row[label] for row in rows if row.get(label, {}).get("traced")]
        same = sum(bool(each.get("same")) for each in held)
        nodes, seconds = (sum(each[key] for each in held) for key in ("nodes", "seconds"))
        lines.append(f"| {label} | {len(held)} of {len(rows)} | {same} | {nodes:,} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--print", action="store_true")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        torch.set_num_threads(1)
        print(json.dumps(measure(options.row)))
        return
    if options.print:
        print(table(read_json(options.json)))
        return
    result: dict[str, Any] = {"environment": environment("cpu"), "versions": versions(), "rows": {}}
    for name in zoo():
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.tracers", "--row", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60 * options.minutes)
            result["rows"][name] = json.loads(done.stdout.strip().splitlines()[-1])
        except (subprocess.TimeoutExpired, IndexError, json.JSONDecodeError) as error:
            result["rows"][name] = {"failed": type(error).__name__}
        write_json(options.json, result)
    print(table(result))


if __name__ == "__main__":
    main()
