"""One network of the zoo, pruned, compacted, saved and exported; every failure is a sentence in the row, not an end."""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bayesprune as bp
from bayesprune.deploy.export import export_onnx
from bayesprune.deploy.profile import multiply_adds
from bayesprune.samplers import CycleClock
from benchmarks.zoo_models import Network, call, randomise_

TARGET = 0.5
BATCH = 4
_AGAIN = """
import sys, torch, bayesprune as bp
torch.set_num_threads(1)
model = bp.load(sys.argv[1] + "/model").eval()
kept = torch.load(sys.argv[1] + "/outputs.pt", weights_only=True)
from benchmarks.zoo_models import call
with torch.no_grad():
    found = call(model, kept["example"])
same = len(found) == len(kept["outputs"]) and all(map(torch.equal, found, kept["outputs"]))
print("same" if same else "differs")
"""


def row(
    network: Network, seed: int = 0, note: Callable[[dict[str, Any]], object] = lambda found: None
) -> dict[str, Any]:
    """Measure one network.

    Args:
        network: The network.
        seed: Of weights and inputs.
        note: Is given the row after each part, in case that the next one never ends.

    Returns:
        Shares of parameters and multiply-adds left, differences, yes or no of saving and exporting, each with its reason.
    """
    torch.manual_seed(seed)
    model = network.make()
    example = network.example(BATCH)
    randomise_(model, network.example(2 * BATCH), seed)
    untouched = copy.deepcopy(model)
    found: dict[str, Any] = {"parameters": _count(model), "seconds": {}}
    small = _shrink(model, example, found)
    if small is not None:
        found["difference"] = {
            mode: difference(model, small, example, train=mode == "train") for mode in ("evaluation", "train")
        }
        if (total := _madds(model, example)) and (left := _madds(small, example)):
            found["madds_left"] = left / total
        note(found)
        with tempfile.TemporaryDirectory() as folder:
            found["saved"] = _attempt(lambda: _saved(small, model, example, Path(folder)), found, "save")
            note(found)
            found["onnx"] = _attempt(lambda: _exported(small, example, Path(folder)), found, "onnx")
    note(found)
    found["torch_pruning"] = _attempt(
        lambda: torch_pruning(untouched, example, network.outputs), found, "torch_pruning"
    )
    note(found)
    return found


def _shrink(model: nn.Module, example: Any, found: dict[str, Any]) -> nn.Module | None:
    """Prune as the documentation's first line does, in a run of one step, and compact; the row is filled."""
    begin = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
            clock = CycleClock(total_steps=1)
            pruner = bp.ForwardPruning(model, optimizer, sparsity=TARGET, clock=clock, example_input=example)
            model.train()
            sum(part.square().mean() for part in call(model, example)).backward()
            optimizer.step()
            model.eval()
            found |= {"groups": pruner.groups.kind, "prunable": pruner.groups.total, "zeros": pruner.hard_sparsity}
            found["dense"] = kept_dense(model, pruner.groups.excluded)
        except Exception as error:
            found["refused"] = {"where": "pruner", "reason": sentence(error)}
            return None
        finally:
            found["seconds"]["prune"] = round(time.perf_counter() - begin, 1)
            found["warnings"] = said(caught)
        begin = time.perf_counter()
        try:
            compaction = bp.compact(model, pruner, example_input=example)
        except Exception as error:
            found["refused"] = {"where": "compact", "reason": sentence(error)}
            return None
        finally:
            found["seconds"]["compact"] = round(time.perf_counter() - begin, 1)
            found["warnings"] = said(caught)
    report = compaction.report
    found["left"] = report.parameters[1] / report.parameters[0]
    found |= {
        "kind": report.kind,
        "graph_reasons": report.graph_reasons[:5],
        "exact": report.exact,
        "notes": report.notes,
    }
    found["leftovers"] = dict(list(report.leftovers.reasons().items())[:5])
    pruner.detach()
    return compaction.model.eval()


def kept_dense(model: nn.Module, excluded: Any) -> list[dict[str, Any]]:
    """What the pruner leaves dense: reason -> weights, layers and the first three names, most weights first.

    A set of channels that stays is counted with the weights of the layers that write it.
    """
    named = dict(model.named_modules(remove_duplicate=False))
    total: dict[str, dict[str, Any]] = {}
    for each in excluded:
        names = [name.strip() for name in each.name.removeprefix("channels of ").split(",")]
        weights = each.weights or sum(
            int(named[name].weight.numel())
            for name in names
            if name in named and isinstance(getattr(named[name], "weight", None), Tensor)
        )
        entry = total.setdefault(each.reason, {"reason": each.reason, "weights": 0, "layers": 0, "names": []})
        entry["weights"] += weights
        entry["layers"] += 1
        entry["names"] = [*entry["names"], each.name[:80]][:3]
    return sorted(total.values(), key=lambda entry: -entry["weights"])


def difference(one: nn.Module, two: nn.Module, example: Any, *, train: bool) -> float | str:
    """The largest difference of two models' outputs relative to the largest output, dropout off; in training in float64."""
    pair = []
    with torch.no_grad():
        for model in (one, two):
            model = copy.deepcopy(model).train(train)
            if train:
                model.double()
            for module in model.modules():
                for which in ("p", "drop_prob", "dropout"):
                    if isinstance(getattr(module, which, None), float):
                        setattr(module, which, 0.0)
            torch.manual_seed(0)
            try:
                pair.append(call(model, _double(example) if train else example))
            except Exception as error:
                return sentence(error)
    if not pair[0] or [a.shape for a in pair[0]] != [b.shape for b in pair[1]]:
        return "outputs of other shapes"
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in zip(*pair))


def torch_pruning(model: nn.Module, example: Any, outputs: int) -> dict[str, Any]:
    """Torch-Pruning on a copy, as its examples do: magnitude, the classifier left out, steps until the target is reached."""
    import torch_pruning as tp

    before = _count(model)
    ignored = [m for m in model.modules() if outputs in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))]
    shapes = [part.shape for part in call(model.eval(), example)]
    pruner = tp.pruner.BasePruner(
        model, example, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=1 - TARGET**2,
        iterative_steps=24, ignored_layers=ignored,
    )  # fmt: skip
    for _ in range(24):
        if _count(model) <= TARGET * before:
            break
        pruner.step()
    found: dict[str, Any] = {"left": _count(model) / before, "runs": False}
    try:
        with torch.no_grad():
            found["runs"] = [part.shape for part in call(model, example)] == shapes
        if not found["runs"]:
            found["reason"] = "outputs of other shapes"
    except Exception as error:
        found["reason"] = sentence(error)
    return found


def _saved(small: nn.Module, dense: nn.Module, example: Any, folder: Path) -> dict[str, Any]:
    """Save, load in a fresh process, and compare bit for bit."""
    bp.save(small, folder / "model", example_input=_positional(example), dense=dense)
    with torch.no_grad():
        torch.save({"example": _positional(example), "outputs": call(small, example)}, folder / "outputs.pt")
    done = subprocess.run([sys.executable, "-c", _AGAIN, str(folder)], capture_output=True, text=True)
    verdict = (done.stdout.strip().splitlines() or [""])[-1]
    if verdict != "same":
        lines = done.stderr.strip().splitlines()
        return {"ok": False, "reason": verdict or (lines[-1] if lines else f"exit {done.returncode}")}
    return {"ok": True}


def _exported(small: nn.Module, example: Any, folder: Path) -> dict[str, Any]:
    return {"ok": True, "difference": export_onnx(small, folder / "model.onnx", example_input=_positional(example))}


def _attempt(deed: Any, found: dict[str, Any], name: str) -> dict[str, Any]:
    """What a deed returns, or the reason why it did not; its seconds go to the row."""
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return deed()
    except Exception as error:
        return {"runs" if name == "torch_pruning" else "ok": False, "reason": sentence(error)}
    finally:
        found["seconds"][name] = round(time.perf_counter() - begin, 1)


def sentence(error: BaseException, length: int = 300) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:length]}"


def said(caught: list[warnings.WarningMessage]) -> list[str]:
    """The library's own warnings, each once."""
    texts = [" ".join(str(each.message).split())[:600] for each in caught if each.category is UserWarning]
    own = [text for text in texts if text.startswith(("no whole channels", "compact removed"))]
    return list(dict.fromkeys(own))


def _madds(model: nn.Module, example: Any) -> int:
    """Multiply-adds in evaluation mode; 0 where the counter does not take the model, or does not see recurrent layers."""
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return 0
    try:
        inputs = _positional(example)
        return multiply_adds(model, inputs if isinstance(inputs, tuple) else (inputs,))
    except Exception:
        return 0


def _count(model: nn.Module) -> int:
    return sum(param.numel() for param in model.parameters())


def _positional(example: Any) -> Any:
    """Files know arguments by their places alone."""
    return tuple(example.values()) if isinstance(example, dict) else example


def _double(example: Any) -> Any:
    if isinstance(example, Tensor):
        return example.double() if example.is_floating_point() else example
    if isinstance(example, dict):
        return {name: _double(value) for name, value in example.items()}
    return tuple(_double(value) for value in example)
