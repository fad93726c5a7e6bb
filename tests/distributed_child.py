"""One of two gloo processes: trains under DDP, FSDP2 and ZeRO and writes what the test compares.

Called as `python distributed_child.py RANK FOLDER`.
"""

from __future__ import annotations

import functools
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from benchmarks.ranks import trained as pruned
from torch import Tensor, nn

from optimizer_table import build, network
from scenarios import SAMPLERS

TEMPERATURES = (0.0, 1.0)
STEPS = 5


def batch() -> tuple[Tensor, Tensor]:
    """Return the whole batch; each of two processes takes every other row."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(8, 6, generator=generator), torch.randn(8, 3, generator=generator)


def decay() -> Tensor:
    """Return a weight decay for each row of the first layer."""
    return torch.linspace(0.1, 0.5, 5).view(5, 1)


def train(model: nn.Module, optimizer: Any, steps: int, part: slice = slice(None)) -> None:
    """Make steps on a part of the batch."""
    images, targets = batch()
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(images[part]), targets[part]).backward()
        optimizer.step()


def whole(model: nn.Module) -> list[Tensor]:
    """Return all parameters, gathered."""
    return [(p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone() for p in model.parameters()]


def sharded(seed: int = 0) -> nn.Module:
    """Return the network under FSDP2: 5 rows as 3 + 2, 3 rows as 2 + 1."""
    from torch.distributed.fsdp import fully_shard

    model = network(seed)
    for layer in (model[0], model[2], model):
        fully_shard(layer)
    return model


def parallel(way: str, rank: int) -> dict[str, Any]:
    """Return the weights, the last noise and the measured temperature of every sampler under DDP or FSDP2."""
    found = {}
    for name in SAMPLERS:
        for temperature in TEMPERATURES:
            model = sharded() if way == "fsdp" else nn.parallel.DistributedDataParallel(network())
            optimizer = build(name, model.parameters(), temperature=temperature)
            layer = model[0] if way == "fsdp" else model.module[0]
            optimizer.set_weight_decay(layer.weight, decay())
            train(model, optimizer, STEPS, slice(rank, None, 2))
            with optimizer.midpoint():
                middle = whole(model)
            noise = [optimizer.last_noise(p) for p in model.parameters()]
            found[f"{name} {temperature}"] = {"weights": whole(model), "midpoint": middle, "noise": noise}
            optimizer.noise_to_gradient(), optimizer.injected_temperature()
            found[f"{name} {temperature}"]["kinetic"] = optimizer.kinetic_temperature()[0]["mean"]
    return found


def checkpoint(rank: int, folder: Path) -> dict[str, Any]:
    """Return the weights of a run that was saved, loaded into fresh shards and went on, beside those of one in a piece."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    found, part = {}, slice(rank, None, 2)
    for name in SAMPLERS:
        straight = sharded()
        optimizer = build(name, straight.parameters())
        optimizer.set_weight_decay(straight[0].weight, decay())
        train(straight, optimizer, 3, part)
        where = str(folder / f"dcp-{name}".replace(" ", "-"))
        weights, state = get_state_dict(straight, optimizer)
        dcp.save({"model": weights, "optim": state}, checkpoint_id=where)
        train(straight, optimizer, 3, part)
        fresh = sharded(seed=1)
        second = build(name, fresh.parameters(), seed=99)
        second.set_weight_decay(fresh[0].weight, decay())
        weights, state = get_state_dict(fresh, second)
        both = {"model": weights, "optim": state}
        dcp.load(both, checkpoint_id=where)
        set_state_dict(fresh, second, model_state_dict=both["model"], optim_state_dict=both["optim"])
        train(fresh, second, 3, part)
        found[name] = {"straight": whole(straight), "resumed": whole(fresh)}
    return found


def zero(rank: int) -> dict[str, Any]:
    """Return weights and noise under ZeroRedundancyOptimizer, and the message without a seed."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    found: dict[str, Any] = {}
    for name in SAMPLERS:
        for temperature in TEMPERATURES:
            model = nn.parallel.DistributedDataParallel(network())
            kind = functools.partial(build, name)
            optimizer = ZeroRedundancyOptimizer(model.parameters(), kind, seed=rank, temperature=temperature)
            train(model, optimizer, STEPS, slice(rank, None, 2))
            held = [p for group in optimizer.optim.param_groups for p in group["params"]]
            noise = [optimizer.optim.last_noise(p).flatten() for p in held]
            found[f"{name} {temperature}"] = {"weights": whole(model), "noise": noise}
    try:
        build("SGHMC", network().parameters(), seed=None)
    except ValueError as error:
        found["message"] = str(error)
    return found


def main(rank: int, folder: Path) -> None:
    """Run every scenario and write its findings."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    try:
        found = {way: parallel(way, rank) for way in ("ddp", "fsdp")}
        found["pruned"] = {f"{way} {t:g}": pruned(way, t, 25, rank, 2) for way in ("ddp", "fsdp") for t in TEMPERATURES}
        found |= {"checkpoint": checkpoint(rank, folder), "zero": zero(rank)}
        torch.save(found, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
