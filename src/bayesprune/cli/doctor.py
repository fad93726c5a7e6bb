"""`bayesprune doctor`: whether a folder is whole, and what this machine offers."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bayesprune._version import __version__
from bayesprune.cli.parsing import add
from bayesprune.common.artefact import ArtefactError
from bayesprune.common.files import leftovers
from bayesprune.common.lock import NAME, claim, holder, release
from bayesprune.common.manifest import MANIFEST, check_manifest

PACKAGES = (
    "torch", "numpy", "safetensors", "lightning-fabric", "scikit-learn", "pandas", "matplotlib", "onnxruntime", "triton",
)  # fmt: skip


def examine(folder: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Look at a folder and at those below it: hashes, samples, checkpoints, models, leftovers, locks."""
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder; name a run, a sample store or a model.")
    good: list[str] = []
    bad: list[str] = []
    for here in sorted([root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())]):
        shown = str(here.relative_to(root))
        for what, check in (
            (MANIFEST, _files), ("store.json", _samples), ("checkpoint.safetensors", _checkpoint), ("architecture.json", _model),
        ):  # fmt: skip
            if not (here / what).exists():
                continue
            try:
                good.append(f"{shown}: {check(here)}")
            except (ArtefactError, ValueError, OSError) as error:
                if (here / what).exists():  # else its run, which lives, removed it meanwhile
                    bad.append(f"{shown}: {error}")
        for entry in leftovers(here):
            if not _in_use(entry):
                bad.append(
                    f"{shown}: {entry.name} was left by a writer that was killed; the next command there removes it."
                )
        if (here / NAME).exists():
            held = holder(here)
            who = f"process {held['pid']} on {held['host']} since {held['since']}" if held else "nobody who tells"
            good.append(f"{shown}: {'in use' if _in_use(here / NAME) else 'no longer in use'} by {who}")
    return good, bad


def _in_use(entry: Path) -> bool:
    """Whether the process that made a lock or a temporary name lives, as far as this system tells: one that was killed leaves it."""
    try:
        handle = None if os.name == "nt" else claim(entry, directory=entry.is_dir(), create=False)
    except OSError:  # not ours to open
        return True
    if handle is not None:
        release(handle)
    return handle is None


def _files(folder: Path) -> str:
    check_manifest(folder)
    return f"all files that {MANIFEST} lists are what it says"


def _samples(folder: Path) -> str:
    from bayesprune.posterior import SampleStore

    store = SampleStore(folder)
    for _ in store:
        pass
    return f"{len(store)} samples, all whole"


def _checkpoint(folder: Path) -> str:
    from bayesprune.train import load_tree

    return f"a checkpoint of step {load_tree(folder / 'checkpoint.safetensors')['step']}"


def _model(folder: Path) -> str:
    from bayesprune.deploy import load

    model = load(folder)
    held: list[Any] = list(model.parameters()) or list(model.buffers())  # an ensemble's members are buffers
    return f"a model of {sum(tensor.numel() for tensor in held):,} parameters, which loads"


def environment() -> tuple[dict[str, str], list[str]]:
    """Return what this machine offers, and what is missing for full speed."""
    import torch

    from bayesprune.samplers import native, triton
    from bayesprune.samplers.native_cache import cache_folder, compiler

    found = {"bayesprune": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    info = torch.__config__.show()
    blas = next(
        (part.partition("=")[2] for part in info.replace("\n", ",").split(",") if "BLAS_INFO=" in part), "unknown"
    )
    found |= {
        "cores": str(os.cpu_count()), "threads": str(torch.get_num_threads()), "BLAS": blas,
        "compiler": compiler() or "none", "compiled step": f"in use, from {cache_folder()}" if native.available() else native.reason,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "gloo": str(torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        "nccl": str(torch.distributed.is_available() and torch.distributed.is_nccl_available()),
    }  # fmt: skip
    wanting = []
    if not native.available():
        wanting.append(f"the compiled CPU step is not used: {native.reason}")
    if torch.cuda.is_available() and not triton.available():
        wanting.append(f"the fused GPU step is not used: {triton.reason()}")
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.get_num_threads() > affinity:
        wanting.append(f"{torch.get_num_threads()} threads on {affinity} cores: set OMP_NUM_THREADS={affinity}")
    return found, wanting


def add_command(commands: Any) -> None:
    """Add `bayesprune doctor`."""
    doctor = add(
        commands, "doctor", "check a folder (hashes, leftovers, locks), or this machine", _doctor,
        "bayesprune doctor", "bayesprune doctor runs/a",
    )  # fmt: skip
    doctor.add_argument("folder", nargs="?", metavar="RUN", help="a run, samples or a model; without one: the machine")


def _doctor(arguments: argparse.Namespace) -> int:
    """Print what is in order and what is not; the status is 1 if something of a folder is not."""
    if arguments.folder is not None:
        good, bad = examine(arguments.folder)
        for line in good:
            print(f"ok    {line}")
        for line in bad:
            print(f"WRONG {line}")
        if not good and not bad:
            print(f"{arguments.folder} holds nothing that bayesprune wrote")
        return 1 if bad else 0
    found, wanting = environment()
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value}")
    for line in wanting:
        print(f"note: {line}")
    return 0
