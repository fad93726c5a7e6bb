"""Runs that kill themselves with SIGKILL at a chosen place; imported by fresh processes."""

from __future__ import annotations

import os
import signal
import sys

import lightning_fabric  # noqa: F401 - imported before the fork, so that each process need not
import sklearn.datasets  # noqa: F401
import torch

from bayesprune.posterior import SampleStore
from bayesprune.train import loop, train
from bayesprune.train.settings import from_dict

PLACES = ("before the step", "after the step", "inside the checkpoint", "inside the sample", "before the result")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(config: dict, out: str, step: int | None, place: str) -> None:
    """Train (or resume) in this process; at `step` die at `place`. None: run to the end."""
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
    if step is not None:
        _plant(step, place)
    train(from_dict(config), out, resume=True, quiet=True)


def _plant(step: int, place: str) -> None:
    train_step, save_tree, replace = loop.Trainer._train_step, loop.save_tree, os.replace
    write_index = SampleStore._write_index
    armed = []

    def stepping(self, images, labels):
        if self.step >= step:
            if place == "before the step":
                _die()
            armed.append(True)
        train_step(self, images, labels)
        if armed and place == "after the step":
            _die()

    def saving(path, tree):
        if armed:  # the checkpoint is written under its temporary name, not yet renamed
            os.replace = lambda *names: _die()
        save_tree(path, tree)
        os.replace = replace

    def indexing(self, *arguments):
        if armed:  # the sample has its name, the index does not list it
            _die()
        write_index(self, *arguments)

    loop.Trainer._train_step = stepping
    if place == "inside the checkpoint":
        loop.save_tree = saving
    elif place == "inside the sample":
        SampleStore._write_index = indexing
    elif place == "before the result":
        loop.run_result = lambda *arguments: _die()
