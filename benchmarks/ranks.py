"""Several gloo processes on this machine: the same run in any layout, faults that end, chains that agree.

    python -m benchmarks.ranks [--only layouts faults chains] [--steps 500] [--out FILE]

`layouts`: a network without BatchNorm, CV-Adam and `ForwardPruning`, in one process, under DDP and under FSDP2
(`fully_shard`, uneven shards), 2 and 4 processes. At T = 0 all end within 1e-6 of one process with the same masks; at T = 1
all ranks hold the same bits; a checkpoint of 2 FSDP2 processes (torch.distributed.checkpoint) goes on in 4.
`faults`: torchrun starts the training loop on two processes; one is killed, one is stopped (SIGSTOP): the job must end
within 60 s and, resumed, end where an undisturbed one does.
`chains`: a Gaussian sampled by four ranks with seeds of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from bayesprune.posterior import bulk_ess, rank_rhat
from bayesprune.samplers import SGHMC, CVAdam
from bayesprune.samplers.layout import whole
from bayesprune.sparsity import ForwardPruning
from bayesprune.train.folder import environment, write_json

RESULT = Path(__file__).parent / "results" / "ranks.json"
LAYOUTS = ("ddp", "fsdp")
PARTS = ("layouts", "faults", "chains")
RUN = [
    "train_size=160", "epochs=6", "batch_size=16", "width=8", "cycles=1", "samples_per_cycle=2", "sample_every=0.5",
    "threads=1", "device=cpu", "checkpoint_minutes=0.0005", "evaluate_every=6",
]  # fmt: skip


# ---- layouts --------------------------------------------------------------------------------------------------------------


def data() -> tuple[Tensor, Tensor]:
    """Return a batch of 16 rows; a process takes its share."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 10, generator=generator)
    return x, (x[:, :3] - x[:, 3:6]).detach()


def network() -> nn.Module:
    """Return a network whose rows divide into no equal shards."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 13), nn.Tanh(), nn.Linear(13, 11), nn.Tanh(), nn.Linear(11, 3))


def trained(
    layout: str, temperature: float, steps: int, rank: int, world: int, folder: Path | None = None
) -> dict[str, Any]:
    """Train and prune in one layout; return weights, momenta and masks, whole. `folder`: go on from a checkpoint there."""
    model = inner = network()
    if layout == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for layer in (*(m for m in model if isinstance(m, nn.Linear)), model):
            fully_shard(layer)
    elif layout == "ddp":
        model = nn.parallel.DistributedDataParallel(inner)
    optimizer = CVAdam(inner.parameters(), lr=2e-3, num_data=50, weight_decay=1e-3, temperature=temperature, seed=3)
    pruner = ForwardPruning(
        inner, optimizer, sparsity=0.4, warmup_steps=steps // 25, ramp_end_step=steps // 2, groups="input"
    )
    x, y = data()
    part = slice(rank, None, world)
    begin = 0
    if folder is not None and (folder / ".metadata").exists():
        begin = _restore(inner, optimizer, pruner, folder)
    end = steps // 2 if folder is not None and not begin else steps
    for _ in range(begin, end):
        optimizer.zero_grad()
        F.mse_loss(model(x[part]), y[part]).backward()
        optimizer.step()
    if folder is not None and not begin:
        _save(inner, optimizer, pruner, folder)
    momenta = [whole(optimizer.state[p]["momentum"]).detach().clone() for p in inner.parameters()]
    return {
        "weights": [whole(p.detach()).clone() for p in inner.parameters()], "momenta": momenta,
        "masks": {name: mask.clone() for name, mask in pruner.keep_masks.items()}, "sparsity": pruner.hard_sparsity,
    }  # fmt: skip


def _save(model: nn.Module, optimizer: Any, pruner: Any, folder: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optim": state, "pruner": pruner.state_dict()}, checkpoint_id=str(folder))


def _restore(model: nn.Module, optimizer: Any, pruner: Any, folder: Path) -> int:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    weights, state = get_state_dict(model, optimizer)
    both = {"model": weights, "optim": state, "pruner": pruner.state_dict()}
    dcp.load(both, checkpoint_id=str(folder))
    set_state_dict(model, optimizer, model_state_dict=both["model"], optim_state_dict=both["optim"])
    pruner.load_state_dict(both["pruner"])
    return pruner.step_count


def child(what: str, rank: int, world: int, folder: Path, steps: int) -> None:
    """Be one process: run all layouts, write what it found."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(folder / f"store-{what}-{world}"), world), rank=rank, world_size=world
    )
    try:
        if what == "chains":
            found: Any = gaussian(rank, steps)
        elif what == "checkpoint":
            found = trained("fsdp", 1.0, steps, rank, world, folder / "dcp")
        else:
            found = {f"{way} {t:g}": trained(way, t, steps, rank, world) for way in LAYOUTS for t in (0.0, 1.0)}
        torch.save(found, folder / f"{what}-{world}-{rank}.pt")
    finally:
        dist.destroy_process_group()


def spread(what: str, world: int, folder: Path, steps: int) -> list[Any]:
    """Run so many processes and return what each found."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.ranks",
        "--child",
        what,
        "--world",
        str(world),
        "--folder",
        str(folder),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    children = [
        subprocess.Popen(
            [*command, "--rank", str(rank), "--steps", str(steps)], env=env, stderr=subprocess.PIPE, text=True
        )
        for rank in range(world)
    ]
    try:
        errors = [each.communicate(timeout=1800)[1] for each in children]
    finally:
        for each in children:
            each.kill()
    if any(each.returncode for each in children):
        raise RuntimeError("\n".join(errors)[-4000:])
    return [torch.load(folder / f"{what}-{world}-{rank}.pt", weights_only=True) for rank in range(world)]


def _gap(one: dict[str, Any], other: dict[str, Any]) -> float:
    pairs = [*zip(one["weights"], other["weights"]), *zip(one["momenta"], other["momenta"])]
    return max(float((a - b).abs().max()) for a, b in pairs)


def _same_masks(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(mask, other["masks"][name]) for name, mask in one["masks"].items())


def layouts(steps: int, worlds: tuple[int, ...]) -> list[dict[str, Any]]:
    """Compare every layout with one process."""
    rows = []
    alone = {t: trained("one", t, steps, 0, 1) for t in (0.0, 1.0)}
    with tempfile.TemporaryDirectory() as place:
        for world in worlds:
            found = spread("layouts", world, Path(place), steps)
            for way in LAYOUTS:
                for t, one in alone.items():
                    mine = [each[f"{way} {t:g}"] for each in found]
                    rows.append(
                        {
                            "layout": way, "processes": world, "temperature": t, "steps": steps,
                            "from_one_process": _gap(mine[0], one), "same_masks": _same_masks(mine[0], one),
                            "between_ranks": max(_gap(mine[0], each) for each in mine),
                            "ranks_same_masks": all(_same_masks(mine[0], each) for each in mine),
                            "sparsity": mine[0]["sparsity"],
                        }
                    )  # fmt: skip
        if len(worlds) > 1:
            spread("checkpoint", worlds[0], Path(place), steps)
            again = spread("checkpoint", worlds[1], Path(place), steps)
            gap = _gap(again[0], alone[1.0])
            rows.append({"layout": f"fsdp {worlds[0]} to {worlds[1]} processes", "temperature": 1.0, "from_one_process": gap,
                         "same_masks": _same_masks(again[0], alone[1.0])})  # fmt: skip
    return rows


# ---- chains ---------------------------------------------------------------------------------------------------------------


def gaussian(rank: int, draws: int) -> Tensor:
    """Sample N(0, Σ) of three correlated dimensions, 64 replicas side by side; return (draws, replicas, 3)."""
    root = covariance().inverse()
    weight = nn.Parameter(torch.zeros(64, 3))
    sampler = SGHMC([weight], lr=0.2, num_data=1, betas=(0.5, 1.0), weight_decay=0.0, temperature=1.0, seed=100 + rank)
    kept = []
    for step in range(200 + 10 * draws):
        weight.grad = weight.detach() @ root
        sampler.step()
        if step >= 200 and step % 10 == 0:
            with sampler.midpoint():
                kept.append(weight.detach().clone())
    return torch.stack(kept)


def covariance() -> Tensor:
    """Return Σ."""
    return torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.5, -0.3], [0.0, -0.3, 0.8]])


def chains(draws: int, world: int = 4) -> dict[str, Any]:
    """Sample a Gaussian by ranks with seeds of their own; return R-hat, ESS and the merged covariance's error."""
    with tempfile.TemporaryDirectory() as place:
        found = torch.stack(spread("chains", world, Path(place), draws))  # (chains, draws, replicas, 3)
    one = found[:, :, 0]
    flat = found.reshape(-1, 3).double()
    error = (flat.T.cov() - covariance()).abs().max() / covariance().diagonal().min()
    return {
        "ranks": world, "draws": draws, "replicas": found.shape[2], "rhat": float(rank_rhat(found.flatten(2)).max()),
        "rhat_first_replica": rank_rhat(one).tolist(), "ess_first_replica": bulk_ess(one).tolist(), "covariance_error": float(error),
    }  # fmt: skip


# ---- faults ---------------------------------------------------------------------------------------------------------------


def torchrun(folder: Path) -> subprocess.Popen[str]:
    """Start the training loop on two processes, as a user does."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", "localhost:0", "-m", "bayesprune", "train", "digits-cvadam", "--out", str(folder), "--quiet", "--resume",
        "--set", *RUN,
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def ranks_of(job: subprocess.Popen[str]) -> list[int]:
    """Return the process ids of a job's ranks."""
    listed = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    return [int(pid) for pid in listed if b"\0RANK=" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()]


def faults(place: Path) -> list[dict[str, Any]]:
    """Kill or stop a rank in the middle; return how long the job took to end, and whether it resumes equal."""
    from safetensors.torch import load_file

    rows: list[dict[str, Any]] = []
    whole_run = torchrun(place / "whole")
    output = whole_run.communicate(timeout=900)[0]
    if whole_run.returncode:
        raise RuntimeError(output[-3000:])
    for name, number, who in (
        ("kill", signal.SIGKILL, 1),
        ("hang", signal.SIGSTOP, 1),
        ("hang of rank 0", signal.SIGSTOP, 0),
    ):
        folder = place / name.replace(" ", "-")
        job = torchrun(folder)
        until = time.monotonic() + 300
        while not (folder / "checkpoint.safetensors").exists() and time.monotonic() < until and job.poll() is None:
            time.sleep(0.02)
        victim = sorted(ranks_of(job))[who]
        os.kill(victim, number)
        begun = time.monotonic()
        try:
            job.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
        seconds = time.monotonic() - begun
        done = (folder / "result.json").exists()
        again = torchrun(folder)
        told = again.communicate(timeout=900)[0]
        pairs = [
            (load_file(str(place / "whole" / file)), load_file(str(folder / file))) for file in _files(place / "whole")
        ]
        equal = again.returncode == 0 and all(torch.equal(a[key], b[key]) for a, b in pairs for key in a)
        rows.append({"fault": name, "ended_after_seconds": round(seconds, 1), "exit": job.returncode, "was_done": done,
                     "resumed_equal": equal, "error": "" if again.returncode == 0 else told[-2000:]})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def table(result: dict[str, Any]) -> str:
    """The result as tables in Markdown."""
    lines = [
        "| layout | processes | T | from one process | between ranks | the same masks |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["layouts"]:
        between = f"{row['between_ranks']:.1e}" if "between_ranks" in row else ""
        lines.append(
            f"| {row['layout']} | {row.get('processes', '')} | {row['temperature']:g} | {row['from_one_process']:.1e} | {between} | "
            f"{'yes' if row['same_masks'] else 'no'} |"
        )
    lines += ["", "| fault | the job ended after, s | resumed equal |", "|---|---|---|"]
    for row in result["faults"]:
        lines.append(f"| {row['fault']} | {row['ended_after_seconds']} | {'yes' if row['resumed_equal'] else 'no'} |")
    found = result["chains"]
    commits = ", ".join(f"{part} {record['commit']}" for part, record in result["environments"].items())
    return "\n".join(lines) + (
        f"\n\nA Gaussian of three dimensions, {found['ranks']} ranks of {found['draws']:,} draws, {found['replicas']} replicas: R-hat at "
        f"most {found['rhat']:.4f}, the merged covariance within {100 * found['covariance_error']:.1f} % of the smallest variance. "
        f"Commits: {commits}."
    )


def _files(folder: Path) -> list[str]:
    return ["model.safetensors", *(f"samples/{path.name}" for path in sorted((folder / "samples").glob("sample-*")))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULT)
    for name, kind in (("child", str), ("rank", int), ("world", int), ("folder", Path)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        child(arguments.child, arguments.rank, arguments.world, arguments.folder, arguments.steps)
        return 0
    result: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    result["environment"] = record = environment("cpu")
    result["environments"] = result.get("environments", {}) | dict.fromkeys(arguments.only, record)
    good = []
    if "layouts" in arguments.only:
        rows = result["layouts"] = layouts(arguments.steps, tuple(arguments.processes))
        good += [row["from_one_process"] <= 1e-6 and row["same_masks"] for row in rows if row["temperature"] == 0]
        good += [row["between_ranks"] == 0 and row["ranks_same_masks"] for row in rows if "between_ranks" in row]
    if "chains" in arguments.only:
        result["chains"] = chains(arguments.draws)
        good += [result["chains"]["rhat"] < 1.01, result["chains"]["covariance_error"] < 0.03]
    if "faults" in arguments.only:
        with tempfile.TemporaryDirectory() as place:
            result["faults"] = faults(Path(place))
        good += [row["ended_after_seconds"] <= 60 and row["resumed_equal"] for row in result["faults"]]
    write_json(arguments.out, result)
    print(json.dumps({name: result[name] for name in arguments.only}, indent=1))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
