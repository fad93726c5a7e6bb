"""One process of a data-parallel run, as torchrun would start it; imported by fresh processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lightning_fabric  # noqa: F401 - imported before the fork, so that each process need not
import sklearn.datasets  # noqa: F401
import torch
from PIL import Image  # noqa: F401

from bayesprune.train import Interrupted, loop, train
from bayesprune.train.settings import from_dict
from bayesprune.train.tree import save_tree

STOPPED = 3


def environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return what torchrun sets."""
    return {
        "TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0",
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip


def run(rank: int, processes: int, port: int, config: dict, out: str, data_dir: str, stop_at: int | None) -> None:
    """Train (or resume) and leave this process's state in out-RANK; the last process asks to stop at `stop_at`."""
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
    os.environ.update(environment(rank, processes, port))
    finish, seen = loop.Trainer._finish, {}

    def finishing(self, record):
        state = {"model": dict(self.model.state_dict()), "optimizer": self.optimizer.state_dict()}
        save_tree(Path(f"{out}-{rank}"), {**state, "history": self.history, "rng": torch.get_rng_state()})
        return finish(self, record)

    def stepping(self, images, labels):
        train_step(self, images, labels)
        seen["step"] = self.step

    train_step, loop.Trainer._train_step = loop.Trainer._train_step, stepping
    loop.Trainer._finish = finishing

    def stop() -> bool:
        return stop_at is not None and rank == processes - 1 and seen.get("step", 0) >= stop_at

    try:
        result = train(from_dict(config), out, data_dir=data_dir, resume=True, quiet=True, stop=stop)
    except Interrupted:
        os._exit(STOPPED)
    assert result["num_samples"] > 0  # every process has the result
