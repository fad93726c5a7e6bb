"""Runs that kill themselves with SIGKILL at a chosen place; imported by fresh processes."""

from __future__ import annotations

import os
import signal
import sys

import torch

from bayesprune.train import loop
from bayesprune.train.config import from_dict

PLACES = ("before the step", "after the step", "inside the checkpoint", "inside the sample")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(config: dict, out: str, step: int | None, place: str) -> None:
    """Train (or resume) in this process; at `step` die at `place`. None: run to the end."""
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
    if step is not None:
        _plant(step, place)
    loop.train(from_dict(config), out, resume=True, quiet=True)


def _plant(step: int, place: str) -> None:
    train_step, fsync = loop.Trainer._train_step, os.fsync
    armed = []

    def stepping(self, images, labels):
        if self.step >= step:
            if place == "before the step":
                _die()
            armed.append(True)
        train_step(self, images, labels)
        if armed and place == "after the step":
            _die()

    def syncing(descriptor):
        if armed:  # the file is written under its temporary name, not yet renamed
            _die()
        fsync(descriptor)

    loop.Trainer._train_step = stepping
    if place.startswith("inside"):
        os.fsync = syncing
