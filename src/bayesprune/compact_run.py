"""A run's network and samples, made small, in a folder that loads anywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from bayesprune import deploy, vision
from bayesprune.common.artefact import MissingArtefactError
from bayesprune.common.modes import evaluating
from bayesprune.deploy.folder import EXPORTED, ONNX
from bayesprune.posterior import Samples, SampleStore, preserved
from bayesprune.train import folder as names
from bayesprune.train.build import build_data, build_network
from bayesprune.train.config import RunConfig
from bayesprune.train.evaluation import load_trained
from bayesprune.train.settings import as_dict, read_config
from bayesprune.train.task import Task, build_task
from bayesprune.vision.cifar import IMAGE, LAYOUTS


@dataclass(frozen=True)
class CompactRun:
    """What `compact_run` did."""

    folder: Path
    members: int
    left_out: list[int]
    parameters: tuple[int, int]
    difference: float
    exported: dict[str, float]
    report: Any

    def __str__(self) -> str:
        before, after = self.parameters
        what = f"{self.members} members" if self.members else "the last iterate"
        lines = [
            str(self.report),
            f"{self.folder}: {what}, {after:,} of {before:,} parameters each ({after / before:.1%})",
            f"largest difference from the masked network's outputs: {self.difference:.1e}",
        ]
        lines += [f"largest difference of {name} from torch: {worst:.1e}" for name, worst in self.exported.items()]
        if self.left_out:
            shown = ", ".join(map(str, self.left_out))
            lines.append(f"left out: samples {shown}, which use weights that the final mask removes")
        return "\n".join(lines)


def compact_run(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    members: Literal["all", "final", "none"] = "all",
    coupling: str = "intersection",
    round_to: int = 1,
    onnx: bool = False,
    torch_export: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    data: Any = None,
    task: str | Task = "classification",
) -> CompactRun:
    """Remove physically what a run pruned, and write network or ensemble for `bayesprune.load`.

    Of a run of the user's own network or data, those are given again, as to `bayesprune.train.load_trained`.
    """
    from bayesprune.compaction import CompactionError, compact

    if members not in ("all", "final", "none"):
        raise ValueError(f"members={members!r}: choose 'all', 'final' or 'none'")
    if model is None and data is None:
        network, samples, config, about = _load(Path(run), data_dir)
        example = torch.zeros(2, *about["input_shape"])
    else:
        network, samples, config, about, example = _load_own(Path(run), data_dir, model, data, build_task(task))
    chosen, left_out = _choose(network, samples, members)
    if chosen:
        _unite_(network, samples, chosen)
    settings: dict[str, Any] = {"coupling": coupling, "round_to": round_to}
    result = compact(network, example_input=example, constants="fold", **settings)
    small: nn.Module = result.model
    if chosen:
        try:
            small = deploy.Ensemble(result.model, _Converted(samples, chosen, result))
        except CompactionError as error:
            if error.reason != "sample-differs":
                raise
            # A constant that an activation sets to zero in one member need not be zero in the next.
            result = compact(network, example_input=example, constants="keep", **settings)
            small = deploy.Ensemble(result.model, _Converted(samples, chosen, result))
    difference = _check(network, samples, chosen, small, example)

    exported: dict[str, float] = {}

    def extras(loaded: nn.Module, folder: Path) -> None:
        if onnx:
            exported[ONNX] = deploy.export_onnx(loaded, folder / ONNX, example_input=example)
        if torch_export:
            exported[EXPORTED] = deploy.export_program(loaded, folder / EXPORTED, example_input=example)
        names.write_json(folder / "report.json", result.report.as_dict())

    metadata = {**about, "members": len(chosen), "samples": chosen, "config": as_dict(config)}
    folder = deploy.save(small, out, example_input=example, metadata=metadata, dense=network, extras=extras)
    counts = tuple(sum(p.numel() for p in net.parameters()) for net in (network, result.model))
    return CompactRun(
        folder, len(chosen), left_out, cast("tuple[int, int]", counts), difference, exported, result.report
    )


class _Converted(Sequence[Mapping[str, Tensor]]):
    """The chosen samples on the compact architecture, one at a time."""

    def __init__(self, samples: Samples, chosen: list[int], result: Any) -> None:
        self.samples, self.chosen, self.result = samples, chosen, result

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Any) -> Any:
        return self.result.convert(self.samples[self.chosen[index]])


def _load(
    run: Path, data_dir: str | os.PathLike[str] | None
) -> tuple[nn.Module, SampleStore, RunConfig, dict[str, Any]]:
    """A run's network at its last iterate, its samples, its configuration, and what its inputs and outputs mean."""
    config = read_config(run)
    if not (run / names.MODEL).exists() or not (run / names.RESULT).exists():
        chains = sorted(each.name for each in run.glob("chain-*"))
        raise MissingArtefactError(
            run,
            f"holds no finished run ({names.MODEL} or {names.RESULT} is missing)",
            mend=f"compact a chain of it, {run / chains[0]}" if chains else "finish it first",
        )
    result = names.read_json(run / names.RESULT)
    classes, images = list(result["classes"]), result.get("images")
    dataset = config.data.dataset
    if images:
        shape, scale, mean, std = (images[name] for name in ("shape", "scale", "mean", "std"))
    elif dataset in LAYOUTS:  # known without the folder that holds it
        layout = LAYOUTS[dataset]
        shape, scale, mean, std = IMAGE, 255.0, layout.mean, layout.std
    else:
        data = vision.load_digits(fold=config.data.fold) if dataset == "digits" else build_data(config, data_dir)
        shape, scale, mean, std = data.image_shape, data.scale, data.mean, data.std
    known: Any = SimpleNamespace(num_classes=len(classes), in_channels=shape[0])
    model = build_network(config, known)
    names.load_model_(model, run)
    about = {
        "recipe": config.recipe,
        "network": config.network.network,
        "dataset": dataset,
        "classes": classes,
        "input_shape": list(shape),
        "normalisation": {"scale": scale, "mean": list(mean), "std": list(std)},
    }
    return model, SampleStore(run / names.SAMPLES), config, about


def _load_own(
    run: Path, data_dir: Any, model: Any, data: Any, task: Task
) -> tuple[nn.Module, SampleStore, RunConfig, dict[str, Any], Tensor]:
    """The same of a run whose network or data are the user's own, and inputs of two examples."""
    network, samples, held, config = load_trained(run, data_dir, model=model, data=data)
    split = "test" if held.count("test") else "validation"
    example = task.split(held.loader(split, batch_size=2).first(2))[0]
    if not isinstance(example, Tensor):
        raise ValueError(
            f"run={str(run)!r}: a batch's inputs are a {type(example).__name__}; give a tensor, or use `bayesprune.compact` and `save`"
        )
    about = {
        "recipe": config.recipe, "network": config.network.network, "dataset": config.data.dataset,
        "classes": list(names.read_json(run / names.RESULT)["classes"]), "input_shape": list(example.shape[1:]),
    }  # fmt: skip
    return network, samples, config, about, example.cpu()


def _choose(model: nn.Module, samples: Samples, members: str) -> tuple[list[int], list[int]]:
    """Which samples become members, and which do not."""
    everything = list(range(len(samples)))
    if members == "none" or not everything:
        return [], []
    if members == "all":
        return everything, []
    kept = {name: parameter.detach() != 0 for name, parameter in model.named_parameters()}
    fits = []
    for index in everything:
        sample = samples[index]
        if not any(bool(((sample[name] != 0) & ~keep).any()) for name, keep in kept.items()):
            fits.append(index)
    if not fits:
        raise ValueError("members='final': every sample uses weights that the final network does not; use 'all'")
    return fits, [index for index in everything if index not in fits]


@torch.no_grad()
def _unite_(model: nn.Module, samples: Samples, chosen: Sequence[int]) -> None:
    """Give the model weights that are zero exactly where all members' are, so that what it does not use, none does."""
    for parameter in model.parameters():
        parameter.zero_()
    for index in chosen:
        state = samples[index]
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.where(state[name] != 0, state[name], parameter))
    for name, buffer in model.named_buffers():
        buffer.copy_(state.get(name, buffer))


@torch.no_grad()
def _check(model: nn.Module, samples: Samples, chosen: Sequence[int], small: nn.Module, example: Tensor) -> float:
    """The largest difference between originals and compact members on noise, of tokens on the example; above 1e-4 is refused."""
    x = example
    if example.is_floating_point():
        x = torch.randn((7, *example.shape[1:]), generator=torch.Generator().manual_seed(0)).to(example.dtype)
    worst = 0.0
    with preserved(model), evaluating(small):
        found = small(x) if chosen else small(x)[None]
        for position, output in enumerate(found):
            if chosen:
                samples.load_(chosen[position], model)
            expected = model.eval()(x)
            worst = max(worst, float((expected - output).abs().max() / expected.abs().max().clamp(min=1.0)))
    if not worst <= 1e-4:
        raise ValueError(
            f"the compact network's outputs differ by {worst:.1e} from the masked network's; nothing was written"
        )
    return worst
