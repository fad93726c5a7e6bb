"""The one training loop: used by the command line, the recipes and the benchmarks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesprune.posterior import SampleStore, classification_metrics, predict, preserved
from bayesprune.samplers import set_adapt
from bayesprune.sparsity import FeedbackPruning
from bayesprune.train import folder as names
from bayesprune.train.build import (
    build_augmentation,
    build_clock,
    build_data,
    build_network,
    build_optimizer,
    build_procedure,
    build_pruner,
    channels_last_is_safe,
)
from bayesprune.train.claim import check_folder
from bayesprune.train.config import RunConfig
from bayesprune.train.devices import Watched, fabric, interruptible
from bayesprune.train.logs import Progress, TensorBoard
from bayesprune.train.memory import keep_freed_memory
from bayesprune.train.methods import ramp_steps
from bayesprune.train.parallel import Ranks
from bayesprune.train.registry import method
from bayesprune.train.result import Trained, run_result
from bayesprune.train.settings import as_dict
from bayesprune.train.traces import ChannelTraces
from bayesprune.train.tree import load_tree, save_tensors, save_tree


class NonFiniteLoss(RuntimeError):
    """The loss became inf or nan; the message names the step, the step size and the last good checkpoint."""


class Interrupted(RuntimeError):
    """The run was stopped by Ctrl-C, SIGTERM or `stop` after writing a checkpoint."""


def train(
    config: RunConfig,
    out: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    quiet: bool = False,
    stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Train one run into a folder and return its result; under torchrun, on all of its processes.

    Args:
        config: What to run.
        out: Run folder; must be empty or missing unless `resume`.
        data_dir: Folder of the data set, where it needs one.
        resume: Go on from the folder's checkpoint (from the start where it has none). On one CPU the resumed run equals
            the uninterrupted one bit for bit.
        quiet: Print nothing.
        stop: Asked between two steps, and between two batches of an evaluation; when true, the run ends as by Ctrl-C.

    Returns:
        The content of result.json.

    Raises:
        FileExistsError: `out` holds a run and `resume` is False.
        ValueError: The folder's configuration differs from `config`.
        NonFiniteLoss: The loss became inf or nan.
        Interrupted: Ctrl-C or `stop`; a checkpoint was written.

    Example:
        >>> import tempfile
        >>> from bayesprune.train.recipes import recipe
        >>> config = recipe("digits-cvadam", ["epochs=1", "cycles=1", "samples_per_cycle=1", "train_size=128"])
        >>> result = train(config, tempfile.mkdtemp(), quiet=True)
        >>> result["num_samples"]
        1
    """
    out = Path(out)
    check_folder(out, config, resume)
    if resume and (out / names.RESULT).exists():
        return names.read_json(out / names.RESULT)
    threads = torch.get_num_threads()
    try:
        trainer = Trainer(config, out, data_dir=data_dir, quiet=quiet, stop=stop)
        if trainer.ranks.main:
            names.write_json(out / names.CONFIG, as_dict(config))  # the folder is claimed once all else was in order
        with torch.random.fork_rng(devices=[trainer.fabric.device] if trainer.fabric.device.type == "cuda" else []):
            return trainer.run()
    finally:
        torch.set_num_threads(threads)


class Trainer:
    """One run: its parts, its state, its loop. `train` is the way in.

    Args:
        config: What to run.
        out: Run folder.
        data_dir: Folder of the data set.
        quiet: Print nothing.
        stop: Asked between two steps and between two batches of an evaluation.
    """

    def __init__(
        self, config: RunConfig, out: Path, *, data_dir: str | os.PathLike[str] | None = None, quiet: bool = False,
        stop: Callable[[], bool] | None = None,
    ) -> None:  # fmt: skip
        runtime = config.runtime
        if runtime.threads is not None:
            torch.set_num_threads(runtime.threads)
        self.config, self.out = config, out
        self.stop = self._asked = stop or (lambda: False)
        self.fabric = fabric(runtime.device, runtime.precision)
        device = self.fabric.device
        if device.type == "cpu":
            keep_freed_memory()
        data = build_data(config, data_dir)
        self.classes = list(data.classes)
        model = build_network(config, data)
        channels_last = runtime.channels_last and channels_last_is_safe(model, device)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ranks = ranks = Ranks(device, config.data.batch_size)
        self.quiet = quiet = quiet or not ranks.main
        common: dict[str, Any] = {"device": device, "channels_last": channels_last}
        self.loader = data.loader(
            "train", batch_size=config.data.batch_size, drop_last=True, seed=config.seed,
            augmentation=build_augmentation(config), share=ranks.share, **common,
        )  # fmt: skip
        test = data.loader("test", batch_size=256, **common)
        self.test_loader = Watched(test, self._continue)
        self.split = "validation" if data.count("validation") else "test"
        self.watch_loader = self.test_loader
        if self.split != "test" or ranks.processes > 1:
            watched = data.loader(self.split, batch_size=256, share=ranks.share, **common)
            self.watch_loader = Watched(watched, self._continue)
        self.clock = build_clock(config, len(self.loader))

        number = data.count("train")
        self.procedure = build_procedure(
            config, model.to(device), self.clock, number, lambda seed: build_network(replace(config, seed=seed), data)
        )
        self.model = self.procedure.model.to(device)
        ranks.watch(self.model)
        self.optimizer = build_optimizer(config, self.procedure.parameters(), num_data=number)
        self.forward = self.fabric.setup_module(torch.compile(self.model) if runtime.compile else self.model)
        self.stepper = self.fabric.setup_optimizers(self.optimizer)
        self._check_collection()
        self.example = test.first(1)
        self.pruner = build_pruner(config, self.model, self.optimizer, self.clock.total_steps, self.example)
        self.samples = SampleStore(out / names.SAMPLES)
        every = max(1, self.clock.total_steps // 200) if runtime.trace_every is None else runtime.trace_every
        self.traces = ChannelTraces(self.model, runtime.trace_channels, every)

        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, correct, seen in this epoch
        self.seconds = 0.0
        self.last_good: int | None = None
        self.progress = Progress(self.clock.total_steps, quiet)
        self.board = TensorBoard(out if runtime.tensorboard and ranks.main else None)

    # ---- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end from where the folder stands, evaluate, and write result.json."""
        self._restore()
        record = {**names.environment(str(self.fabric.device)), "processes": self.ranks.processes}
        if self.ranks.main and not (self.out / names.ENVIRONMENT).exists():
            names.write_json(self.out / names.ENVIRONMENT, record)
        since_save = tick = time.monotonic()
        self.model.train()
        with interruptible() as interrupted:
            self._asked = lambda: interrupted() or self.stop()
            if self.step and self.step % len(self.loader) == 0 and len(self.history) < self.step // len(self.loader):
                self._end_epoch()  # the run was stopped in its evaluation
            while self.step < self.clock.total_steps:
                for images, labels in self.loader:
                    self._train_step(images, labels)
                    end_of_epoch = self.step % len(self.loader) == 0
                    if end_of_epoch:
                        self._end_epoch()
                    now = time.monotonic()
                    self.seconds, tick = self.seconds + now - tick, now
                    self.progress.update(self.step, self.history)
                    due = now - since_save >= 60 * self.config.runtime.checkpoint_minutes
                    asked, due = self.ranks.any(self.step, self._asked(), due)
                    left = self.clock.total_steps - self.step
                    if left == 1 or (
                        left and (asked or due)
                    ):  # not at the end: the last gradients belong to the result
                        self.save_checkpoint()
                        since_save = time.monotonic()
                    if asked:
                        self._end_early()
            if self.pruner is not None:
                self.pruner.finish_()
            self._check_finite(weights=True)
            self.progress.close()
            self.loader.close()
            return self._finish(record)

    def _end_early(self) -> None:
        self.progress.close()
        raise Interrupted(f"stopped at step {self.step} of {self.clock.total_steps}; go on with --resume.")

    def _continue(self) -> None:
        if self.ranks.processes == 1 and self._asked():  # several agree between two steps only
            self._end_early()

    def _train_step(self, images: Tensor, labels: Tensor) -> None:
        lr = self.procedure.lr(self.step)
        self.procedure.begin_(self.step, self.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        set_adapt(self.optimizer, self.clock.adapting(self.step))
        self.stepper.zero_grad()
        logits, labels = self.forward(images), self.procedure.labels(labels)
        loss = self.procedure.loss(logits, labels, self.step)
        self.fabric.backward(loss)
        with torch.no_grad():
            correct = (logits.argmax(1) == labels).sum()
            self.sums += torch.stack(
                [loss.double() * len(labels), correct.double(), correct.new_tensor(len(labels)).double()]
            )
        if self.fabric.device.type == "cpu" or self.step % 50 == 0:  # elsewhere reading the loss would stall the device
            self._check_finite()
        self.ranks.average_statistics_()
        self.stepper.step()
        self.procedure.end_(self.step)
        if self.ranks.main and self.procedure.collects and self.clock.collect(self.step) and self._at_target(self.step):
            info = {"step": self.step, "cycle": self.clock.cycle(self.step), "lr": lr, **self.procedure.info(self.step)}
            with self._sparse():  # a midpoint moves no weight that is exactly 0
                self.samples.collect(self.model, self.optimizer, **info)
        self.traces.record(self.step, lr)
        self.step += 1

    def _at_target(self, step: int) -> bool:
        """Return whether the sparsity is final; samples before that would belong to a larger network."""
        until = ramp_steps(self.config.pruning, self.clock.total_steps)[1]
        return not method(self.config.sampler.method).ramped or step >= until

    def _check_collection(self) -> None:
        """Say how many of the samples asked for can be taken; refuse to take none."""
        planned = self.clock.num_samples if self.procedure.collects else 0
        taken = sum(self.clock.collect(step) and self._at_target(step) for step in range(self.clock.total_steps))
        if planned and not taken:
            raise ValueError(
                f"prune_until={self.config.pruning.prune_until} leaves none of the {planned} samples: the target sparsity "
                "is reached after the last of them. Lower prune_until."
            )
        if taken < planned and not self.quiet:
            print(f"{taken} of {planned} samples: the others come before the target sparsity is reached", flush=True)

    @contextmanager
    def _sparse(self) -> Iterator[None]:
        """Hold the sparse weights where a feedback pruner lets them move between two masks."""
        if not (isinstance(self.pruner, FeedbackPruning) and self.pruner.form == "masked" and self.pruner.every > 1):
            yield
            return
        with preserved(self.model):
            self.pruner.apply_()
            yield

    def _check_finite(self, weights: bool = False) -> None:
        """Stop on a loss that is not finite; with `weights`, on such weights too."""
        fine = bool(self.ranks.sum(self.sums)[0].isfinite())
        if weights:
            fine = fine and all(bool(p.isfinite().all()) for p in self.model.parameters())
        if fine:
            return
        lr, path = self.optimizer.param_groups[0]["lr"], self.out / names.CHECKPOINT
        good = f"the last good checkpoint is of step {self.last_good} ({path})"
        raise NonFiniteLoss(
            f"the loss or a weight is not finite at step {self.step} (lr={lr:.4g}); "
            f"{good if self.last_good else 'no checkpoint was written'}. Lower lr or temperature, or lengthen warmup_epochs, "
            "and begin again in a new folder."
        )

    def _end_epoch(self) -> None:
        self._check_finite()
        self.ranks.check_same()
        loss, correct, seen = self.ranks.sum(self.sums).tolist()
        epoch, every = self.step // len(self.loader), self.config.runtime.evaluate_every
        row: dict[str, Any] = {
            "step": self.step, "epoch": epoch, "cycle": self.clock.cycle(self.step - 1),
            "lr": self.optimizer.param_groups[0]["lr"], "train_loss": loss / seen, "train_accuracy": correct / seen,
            "split": None, "accuracy": None, "nll": None, "soft_sparsity": None, "hard_sparsity": None,
            "target_sparsity": None, "seconds": round(self.seconds, 2),
        }  # fmt: skip
        if every is not None and (epoch % every == 0 or self.step == self.clock.total_steps):
            try:
                with self._sparse(), self.fabric.autocast():
                    prediction = predict(self.model, None, self.watch_loader)
            except Interrupted:
                if self.step < self.clock.total_steps:
                    self.save_checkpoint()  # with this epoch's sums: its row is written on resuming
                raise
            assert prediction.labels is not None
            scores = classification_metrics(prediction.probabilities, prediction.labels)
            accuracy, nll = self.ranks.mean([scores["accuracy"], scores["nll"]], len(prediction.labels))
            row.update(split=self.split, accuracy=accuracy, nll=nll)
        if self.pruner is not None:
            row.update(
                soft_sparsity=self.pruner.soft_sparsity, hard_sparsity=self.pruner.hard_sparsity,
                target_sparsity=self.pruner.target_now,
            )  # fmt: skip
        self.history.append(row)
        self.sums.zero_()
        if self.ranks.main:
            names.write_history(self.out, self.history)
        self.board.write(row)
        self.progress.epoch(row)

    def _finish(self, record: dict[str, Any]) -> dict[str, Any]:
        if not self.ranks.main:
            return self.ranks.from_main(None)
        names.write_history(self.out, self.history)
        self.traces.save(self.out)
        self.samples.truncate(
            len(self.samples) if self.procedure.collects else 0
        )  # a finish that was cut off begins again
        self.model = self.procedure.finish(self.samples, self.loader)
        save_tensors(
            self.out / names.MODEL, {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
        )
        trained = Trained(
            self.config, self.model, self.samples, self.optimizer, self.test_loader, self.example, self.classes,
            self.history, self.seconds,
        )  # fmt: skip
        with self.fabric.autocast():  # at the precision it was trained in
            result = run_result(trained, record)
        names.write_json(self.out / names.RESULT, result)
        self.board.close()
        (self.out / names.CHECKPOINT).unlink(missing_ok=True)
        return self.ranks.from_main(names.read_json(self.out / names.RESULT))

    # ---- stopping and going on ------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Write everything that the rest of the run depends on, atomically."""
        self._check_finite(weights=True)
        state = {
            "step": self.step, "seconds": self.seconds, "sums": self.ranks.sum(self.sums), "history": self.history,
            "samples": len(self.samples), "model": dict(self.model.state_dict()), "optimizer": self.optimizer.state_dict(),
            "pruner": self.pruner.state_dict() if self.pruner is not None else None,
            "precision": self.fabric.strategy.precision.state_dict(),
            "method": self.procedure.state_dict(),
            "loader": self.loader.state_dict(), "traces": self.traces.state_dict(), **self.ranks.random_state(),
        }  # fmt: skip
        if self.ranks.main:
            save_tree(self.out / names.CHECKPOINT, state)
        self.last_good = self.step

    def _restore(self) -> None:
        """Go to the folder's checkpoint, or to the start."""
        path = self.out / names.CHECKPOINT
        if not path.exists():
            if self.ranks.main:
                self.samples.truncate(0)
            self.ranks.set_random_state(self.config.seed)
            return
        state = load_tree(path)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.pruner is not None:
            self.pruner.load_state_dict(state["pruner"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.loader.load_state_dict(state["loader"])
        self.procedure.load_state_dict(state.get("method", {}))
        self.traces.load_state_dict(state["traces"])
        if self.ranks.main:
            self.samples.truncate(state["samples"])
            self.sums.copy_(state["sums"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.last_good = self.step
        self.ranks.set_random_state(self.config.seed, state)
