"""The one training loop."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayesprune.common.artefact import reading
from bayesprune.common.tensors import PLAIN, load_into, write_tensors
from bayesprune.posterior import SampleStore
from bayesprune.samplers import NonFiniteGradientError, set_adapt
from bayesprune.train import folder as names
from bayesprune.train.build import (
    Dataset,
    build_augmentation,
    build_clock,
    build_data,
    build_network,
    build_optimizer,
    build_procedure,
    build_pruner,
    channels_last_is_safe,
    check_classes,
    cut,
    example_of,
    own_network,
    reading_of,
)
from bayesprune.train.claim import check_place
from bayesprune.train.collection import Collection, held_sparse
from bayesprune.train.config import RunConfig
from bayesprune.train.devices import Watched, fabric, interruptible
from bayesprune.train.logs import Progress, TensorBoard
from bayesprune.train.parallel import Ranks
from bayesprune.train.result import Trained, run_result
from bayesprune.train.targets import finite_batch
from bayesprune.train.task import Task, build_task
from bayesprune.train.traces import ChannelTraces
from bayesprune.train.tree import load_tree, save_tree
from bayesprune.train.trial import trial_data

_COOLER = "Lower lr or temperature, or lengthen warmup_epochs"


class NonFiniteLoss(RuntimeError):
    """The loss became inf or nan; the message names the step, the step size and the last good checkpoint.

    Example:
        >>> issubclass(NonFiniteLoss, RuntimeError)
        True
    """


class Interrupted(RuntimeError):
    """The run was stopped by Ctrl-C, SIGTERM or `stop` after writing a checkpoint.

    Example:
        >>> issubclass(Interrupted, Exception)
        True
    """


class Trainer:
    """One run: its parts, its state, its loop. `bayesprune.train.train` is the way in.

    Args:
        config: What to run.
        out: Run folder.
        data_dir: Folder of the data set.
        model: The user's own network, or a function that builds it.
        data: The user's own data.
        task: What is learned.
        trial: Use a few examples only.
        quiet: Print nothing.
        stop: Asked between two steps and between two batches of an evaluation.

    Example:
        >>> import tempfile
        >>> from bayesprune.train import recipe
        >>> settings = ["train_size=64", "epochs=1", "width=4"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = Trainer(recipe("digits-sgd", settings), Path(folder) / "run", quiet=True)
        ...     print(trainer.step, type(trainer.optimizer).__name__)
        0 SGD
    """

    def __init__(
        self, config: RunConfig, out: Path, *, data_dir: str | os.PathLike[str] | None = None,
        model: nn.Module | Callable[[], nn.Module] | None = None, data: Dataset | None = None,
        task: str | Task = "classification", trial: bool = False, quiet: bool = False, stop: Callable[[], bool] | None = None,
    ) -> None:  # fmt: skip
        runtime = config.runtime
        if runtime.threads is not None:
            torch.set_num_threads(runtime.threads)
        self.config, self.out = config, out
        self.stop = self._asked = stop or (lambda: False)
        self.fabric = fabric(runtime.device, runtime.precision)
        device = self.fabric.device
        data = build_data(config, data_dir) if data is None else cut(config, data)
        data = trial_data(data, config.data.batch_size) if trial else data
        self.task = build_task(task, config.network.label_smoothing)
        self.reading = reading_of(data)

        def network(seed: int, anew: bool = True) -> nn.Module:
            if model is not None:
                return own_network(model, seed, anew)
            return build_network(replace(config, seed=seed), data)

        net = network(config.seed, anew=False)
        channels_last = runtime.channels_last and channels_last_is_safe(net, device)
        if channels_last:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ranks = ranks = Ranks(device, config.data.batch_size, runtime.collective_timeout)
        self.quiet = quiet = quiet or not ranks.main
        common: dict[str, Any] = {"device": device, "channels_last": channels_last}
        self.loader = data.loader(
            "train", batch_size=config.data.batch_size, drop_last=True, seed=config.seed,
            augmentation=build_augmentation(config, data), share=ranks.share, **common,
        )  # fmt: skip
        self.split = "validation" if data.count("validation") else "test"
        self.test_split = "test" if data.count("test") else self.split
        if not data.count(self.test_split):
            raise ValueError(
                "data: nothing to test on; give test data beside the training data, or set validation_size."
            )
        test = data.loader(self.test_split, batch_size=256, **common)
        self.test_loader = Watched(test, self._continue)
        self.watch_loader = self.test_loader
        if self.split != self.test_split or ranks.processes > 1:
            watched = data.loader(self.split, batch_size=256, share=ranks.share, **common)
            self.watch_loader = Watched(watched, self._continue)
        self.clock = build_clock(config, len(self.loader))

        number = data.count("train")
        self.procedure = build_procedure(config, net.to(device), self.clock, number, network, self.task)
        self.model = self.procedure.model.to(device)
        ranks.watch(self.model)
        self.optimizer = build_optimizer(config, self.procedure.parameters(), num_data=number)
        self.forward = self.fabric.setup_module(torch.compile(self.model) if runtime.compile else self.model)
        self.stepper = self.fabric.setup_optimizers(self.optimizer)
        self.collection = Collection(config, self.clock, self.procedure.collects)
        if str(self.collection) and not quiet:
            print(self.collection, flush=True)
        self.example = example_of(self.task.split(test.first(1))[0], config)
        self.pruner = build_pruner(config, self.model, self.optimizer, self.clock.total_steps, self.example)
        self.samples = SampleStore(out / names.SAMPLES)
        every = max(1, self.clock.total_steps // 200) if runtime.trace_every is None else runtime.trace_every
        self.traces = ChannelTraces(self.model, runtime.trace_channels, every)

        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, score, examples seen in this epoch
        self.exact = True
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
                for batch in self.loader:
                    self._train_step(*self.task.split(batch))
                    end_of_epoch = self.step % len(self.loader) == 0
                    if end_of_epoch:
                        self._end_epoch()
                    now = time.monotonic()
                    self.seconds, tick = self.seconds + now - tick, now
                    self.progress.update(self.step, self.history)
                    due = now - since_save >= 60 * self.config.runtime.checkpoint_minutes
                    asked, due = self.ranks.any(self.step, self._asked(), due)
                    left = self.clock.total_steps - self.step
                    if left == 1 or (left and (asked or due)):  # not at the end: its gradients belong to the result
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

    def _train_step(self, inputs: Any, targets: Any) -> None:
        lr = self.procedure.lr(self.step)
        self.procedure.begin_(self.step, self.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        set_adapt(self.optimizer, self.clock.adapting(self.step))
        self.stepper.zero_grad()
        output, targets = self.task.output(self.forward, inputs), self.procedure.targets(targets)
        loss = self.procedure.loss(output, targets, self.step)
        self.fabric.backward(loss)
        with torch.no_grad():
            score, count = self.task.tally(output, targets)
            self.sums += torch.stack([torch.as_tensor(value).to(self.sums) for value in (loss * count, score, count)])
        if self.fabric.device.type == "cpu" or self.step % 50 == 0:  # elsewhere reading the loss would stall the device
            self._check_finite(batch=(inputs, targets))
        self.ranks.average_statistics_()
        try:
            self.stepper.step()
        except NonFiniteGradientError as error:
            raise self._spoilt(str(error).partition(" (or")[0]) from None
        self.procedure.end_(self.step)
        if self.collection.due(self.step):
            self.ranks.in_main(lambda: self._collect(lr))
        self.traces.record(self.step, lr)
        self.ranks.hurry_()
        self.step += 1

    def _collect(self, lr: float) -> None:
        """Take a sample."""
        info = {"step": self.step, "cycle": self.clock.cycle(self.step), "lr": lr, **self.procedure.info(self.step)}
        with held_sparse(self.model, self.pruner):  # a midpoint moves no weight that is exactly 0
            self.samples.collect(self.model, self.optimizer, **info)

    def _check_finite(self, weights: bool = False, batch: Any = ()) -> None:
        """Stop on a loss that is not finite, and tell where the batch is not either; with `weights`, on such weights too."""
        fine = bool(self.ranks.sum(self.sums)[0].isfinite())
        if weights:
            fine = fine and all(bool(p.isfinite().all()) for p in self.model.parameters())
        if not fine:
            mend = (
                _COOLER if finite_batch(*batch) else "The batch holds NaN or infinity: repair or leave out its examples"
            )
            raise self._spoilt("the loss or a weight is not finite", mend)

    def _spoilt(self, what: str, mend: str = _COOLER) -> NonFiniteLoss:
        """Return what to raise: what is spoilt, where, and how to go on."""
        lr, path = self.optimizer.param_groups[0]["lr"], self.out / names.CHECKPOINT
        good = f"the last good checkpoint is of step {self.last_good} ({path})"
        return NonFiniteLoss(
            f"{what} at step {self.step} (lr={lr:.4g}); {good if self.last_good else 'no checkpoint was written'}. "
            f"{mend}, and begin again in a new folder."
        )

    def _end_epoch(self) -> None:
        self._check_finite()
        self.ranks.check_same()
        loss, score, seen = self.ranks.sum(self.sums).tolist()
        epoch, every = self.step // len(self.loader), self.config.runtime.evaluate_every
        shown = self.task.shown
        row: dict[str, Any] = {
            "step": self.step, "epoch": epoch, "cycle": self.clock.cycle(self.step - 1),
            "lr": self.optimizer.param_groups[0]["lr"], "train_loss": loss / seen, f"train_{shown[0]}": score / seen,
            "split": None, **dict.fromkeys(shown), "soft_sparsity": None, "hard_sparsity": None,
            "target_sparsity": None, "seconds": round(self.seconds, 2),
        }  # fmt: skip
        if every is not None and (epoch % every == 0 or self.step == self.clock.total_steps):
            try:
                with held_sparse(self.model, self.pruner), self.fabric.autocast():
                    found = self.task.evaluate(self.model, None, self.watch_loader)
            except Interrupted:
                if self.step < self.clock.total_steps:
                    self.save_checkpoint()  # with this epoch's sums: its row is written on resuming
                raise
            values = self.ranks.mean([found.scores[name] for name in shown], found.count)
            row.update(split=self.split, **dict(zip(shown, values)))
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
        return self.ranks.from_main(self.ranks.in_main(lambda: self._conclude(record)))

    def _conclude(self, record: dict[str, Any]) -> dict[str, Any]:
        """Evaluate and write the result; a conclusion that was cut off begins again."""
        names.write_history(self.out, self.history)
        self.traces.save(self.out)
        self.samples.truncate(len(self.samples) if self.procedure.collects else 0)
        with self.fabric.autocast():  # at the precision it was trained in
            self.model = self.procedure.finish(self.samples, self.loader)
        write_tensors(self.out / names.MODEL, self.model.state_dict(), PLAIN)
        trained = Trained(
            self.config, self.model, self.samples, self.optimizer, self.task, self.test_loader, self.test_split,
            self.example, self.reading, self.history, self.seconds, self.exact,
        )  # fmt: skip
        with self.fabric.autocast():
            result = run_result(trained, record)
        names.finish(self.out, result)
        self.board.close()
        (self.out / names.CHECKPOINT).unlink(missing_ok=True)
        return names.read_json(self.out / names.RESULT)

    # ---- stopping and going on ------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Write everything that the rest of the run depends on, atomically."""
        self._check_finite(weights=True)
        state = {
            "step": self.step, "seconds": self.seconds, "sums": self.ranks.sum(self.sums), "history": self.history,
            "samples": len(self.samples), "classes": self.reading["classes"], "num_data": self.procedure.num_data,
            "model": dict(self.model.state_dict()), "optimizer": self.optimizer.state_dict(),
            "pruner": self.pruner.state_dict() if self.pruner is not None else None,
            "precision": self.fabric.strategy.precision.state_dict(),
            "method": self.procedure.state_dict(), "task": self.task.name, "exact": self.exact,
            "place": self._place(), "loader": self.loader.state_dict(), "traces": self.traces.state_dict(), **self.ranks.random_state(),
        }  # fmt: skip
        self.ranks.in_main(lambda: save_tree(self.out / names.CHECKPOINT, state))
        self.last_good = self.step

    def _place(self) -> dict[str, Any]:
        """Return what a bit depends on beside the configuration."""
        return {"threads": torch.get_num_threads(), "device": self.fabric.device.type}

    def _restore(self) -> None:
        """Go to the folder's checkpoint, or to the start."""
        path = self.out / names.CHECKPOINT
        if not path.exists():
            if self.ranks.main:
                self.samples.truncate(0)
            self.ranks.set_random_state(self.config.seed)
            return
        state = load_tree(path)
        check_place(self.out, state.get("place", {}), self._place())
        if state.get("task", self.task.name) != self.task.name:
            raise ValueError(
                f"task={self.task.name}: {self.out} was begun with task={state['task']}; resume it with that."
            )
        check_classes(self.reading["classes"], state.get("classes", ()), self.out)
        if (held := state.get("num_data", self.procedure.num_data)) != self.procedure.num_data:
            raise ValueError(
                f"num_data={self.procedure.num_data}: {self.out} was begun with {held}; resume it with that."
            )
        with reading(path, "a checkpoint of this run", "delete it, and the run begins again"):
            self._take(state)

    def _take(self, state: dict[str, Any]) -> None:
        """Go to where a checkpoint's state stood."""
        load_into(self.model, state["model"], self.out / names.CHECKPOINT)
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
        self.exact = state.get("exact", True)
        if not getattr(self.loader, "exact", True):
            self.exact = False
            place = "lies inside" if self.step % len(self.loader) else "ends"
            warnings.warn(
                f"step {self.step} {place} an epoch, and the training data cannot be replayed: a new pass over them begins, so the run "
                "is in general not the uninterrupted one bit for bit (a map-style Dataset, or a loader with state_dict, can be)",
                stacklevel=3,
            )
        self.ranks.set_random_state(self.config.seed, state)

    def close(self) -> None:
        """Let go of everything that the run held, in an order that leaves no circle of references behind."""
        self.loader.close()
        self.board.close()
        self.progress.close()
        if hasattr(self.pruner, "detach"):
            self.pruner.detach()  # its hooks tie it to the optimizer, and both to the network
        self.test_loader.before = self.watch_loader.before = lambda: None
        self._asked = self.stop = lambda: False
