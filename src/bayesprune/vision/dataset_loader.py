"""Batches of a torch data set of the user's own, in an order that can be stopped and taken up; or of a loader as it is."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate

from bayesprune.vision.position import PositionedLoader, part_of


class DatasetLoader(PositionedLoader):
    """Iterate over batches of a map-style data set, bit for bit the same after a stop."""

    exact = True
    """Whether a stopped run goes on bit for bit."""

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        device: torch.device | str | None = None,
        channels_last: bool = False,
        workers: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__(len(dataset), batch_size, shuffle=shuffle, drop_last=drop_last, share=share)
        self.dataset, self.seed, self.workers = dataset, seed, workers
        self.collate = collate or default_collate
        self.place = Placement(device, channels_last)
        self._batches: Iterator[Any] | None = None

    def first(self, count: int) -> Any:
        """Return the first examples as a batch; the loader stays where it stands."""
        return self.place(self[-1, 0, np.arange(min(count, self.num_images))])

    def close(self) -> None:
        """Stop the workers; the next loop starts new ones where the loader stands."""
        self._batches = None

    def __getitem__(self, position: tuple[int, int, np.ndarray]) -> Any:
        """Return the batch of the given examples, at an epoch and a number in it."""
        epoch, number, chosen = position
        if type(self.dataset) is TensorDataset and self.collate is default_collate:
            index = torch.from_numpy(chosen)
            return [tensor[index] for tensor in self.dataset.tensors]
        mixed = np.random.SeedSequence([self.seed, epoch + 1, number]).generate_state(1)
        with seeded(int(mixed[0])):
            if hasattr(self.dataset, "__getitems__"):
                return self.collate(self.dataset.__getitems__(chosen.tolist()))
            return self.collate([self.dataset[index] for index in chosen.tolist()])

    def _next(self) -> Any:
        if self._batches is None:
            self._batches = self._start()
        batch = next(self._batches)
        if self._advance_() and not self.shuffle:
            self.close()
        return self.place(batch)

    def _start(self) -> Iterator[Any]:
        if not self.workers:
            return (self[position] for position in self._positions())
        return iter(
            DataLoader(
                self, batch_size=None, sampler=self._positions(), num_workers=self.workers,  # type: ignore[arg-type]
                worker_init_fn=_leave_signals, pin_memory=self.place.device.type == "cuda", generator=torch.Generator(),
            )
        )  # fmt: skip

    def _positions(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield epoch, number and examples of this batch and the following, on through the epochs where it shuffles."""
        epoch, batch = self.epoch, self.batch
        while True:
            generator = np.random.default_rng([self.seed, epoch])
            order = np.argsort(generator.random(self.num_images), kind="stable")  # NumPy promises no permutation
            order = order if self.shuffle else np.arange(self.num_images)
            for number in range(batch, len(self)):
                chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
                yield epoch if self.shuffle else 0, number, chosen[part_of(len(chosen), *self.share)]
            if not self.shuffle:
                return
            epoch, batch = epoch + 1, 0


def _leave_signals(_: int) -> None:
    """Let the loop's process alone decide when to stop; its handlers came along with the fork.

    A first SIGTERM, which a job's manager sends to all of its processes, is for the loop; a second one ends a worker that hangs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class StreamLoader:
    """Iterate over a loader as it is, in epochs of so many batches; exact on resuming only where it has a state of its own."""

    def __init__(
        self,
        batches: Iterable[Any],
        *,
        steps: int | None = None,
        device: torch.device | str | None = None,
        channels_last: bool = False,
    ) -> None:
        length = length_of(batches)
        steps = length if steps is None else steps
        if steps is None:
            raise ValueError(
                "steps_per_epoch=None: the training data have no length; give the steps of an epoch: "
                "Splits(train, test, num_data=N, steps_per_epoch=S)."
            )
        if steps < 1:
            raise ValueError(
                f"steps_per_epoch={steps}: an epoch holds no batch; give data with at least one full batch"
            )
        self.batches, self.steps = batches, steps
        self._whole = steps == length  # every epoch is one pass
        self.place = Placement(device, channels_last)
        self.epoch = self.batch = 0
        self._reader: Iterator[Any] | None = None

    @property
    def exact(self) -> bool:
        """Whether a run stopped here goes on bit for bit: the loader has a state, or a list is about to be read anew."""
        return self._stateful or (self._whole and self.batch == 0 and isinstance(self.batches, (list, tuple)))

    @property
    def _stateful(self) -> bool:
        return hasattr(self.batches, "state_dict") and hasattr(self.batches, "load_state_dict")

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        """Yield batches from where it stands to the end of the epoch; a pass that ends before is begun again."""
        epoch, fresh = self.epoch, False
        while self.epoch == epoch:
            if self._reader is None:
                self._reader, fresh = iter(self.batches), True
            try:
                batch = next(self._reader)
            except StopIteration:
                if fresh:
                    raise ValueError(
                        "the training data gave no batch on a new pass; a generator can be read once only: give a DataLoader or a list"
                    ) from None
                self._reader = None
                continue
            fresh = False
            self.batch += 1
            if self.batch == self.steps:
                self.epoch, self.batch = self.epoch + 1, 0
                if not self._stateful and self._whole:
                    self._reader = None
            yield self.place(batch)

    def first(self, count: int) -> Any:
        """Return the first examples of a new pass."""
        return self.place(_cut(next(iter(self.batches)), count))

    def close(self) -> None:
        """Give up the pass in hand."""
        self._reader = None

    def state_dict(self) -> dict[str, Any]:
        """Return epoch, batch, and the loader's own state where it has one."""
        own = self.batches.state_dict() if self._stateful else None  # type: ignore[attr-defined]
        return {"epoch": self.epoch, "batch": self.batch, "steps": self.steps, "own": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; without a state of its own the loader begins a new pass there."""
        if (steps := int(state.get("steps", self.steps))) != self.steps:
            raise ValueError(
                f"an epoch of the saved loader has {steps} batches, one of this {self.steps}: resume with the data and the "
                "steps_per_epoch of the saved run"
            )
        self.close()
        self.epoch, self.batch = int(state["epoch"]), int(state["batch"])
        if state.get("own") is not None and self._stateful:
            self.batches.load_state_dict(state["own"])  # type: ignore[attr-defined]


class PassLoader:
    """Iterate over a loader as it is, one whole pass each time: what is tested on."""

    exact = True

    def __init__(
        self, batches: Iterable[Any], *, device: torch.device | str | None = None, channels_last: bool = False
    ) -> None:
        self.batches, self.place = batches, Placement(device, channels_last)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of a pass."""
        return (self.place(batch) for batch in self.batches)

    def first(self, count: int) -> Any:
        """Return the first examples of a pass."""
        if iter(self.batches) is self.batches:
            raise ValueError("the data to test on can be read once only; give a list of batches or a DataLoader")
        for batch in self:
            return _cut(batch, count)
        raise ValueError("the data to test on hold no batch; give data with at least one, which can be read again")


class Placement:
    """Moves a batch's tensors to where the run computes, pictures in its memory format."""

    def __init__(self, device: torch.device | str | None, channels_last: bool) -> None:
        self.device = torch.device(device) if device is not None else torch.device("cpu")
        self.channels_last = channels_last

    def __call__(self, batch: Any) -> Any:
        """Return the batch, placed; structures of tuples, lists and mappings are kept."""
        return _each(batch, self._moved)

    def _moved(self, tensor: Tensor) -> Tensor:
        layout = torch.channels_last if self.channels_last and tensor.dim() == 4 else torch.preserve_format
        return tensor.to(self.device, non_blocking=True, memory_format=layout)


def length_of(data: Any) -> int | None:
    """Return the length of data, None where it has none."""
    try:
        return len(data)
    except TypeError:
        return None


def _cut(batch: Any, count: int) -> Any:
    """Return the first examples of a batch."""
    return _each(batch, lambda tensor: tensor[:count])


def _each(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch with each of its tensors changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: _each(value, change) for name, value in batch.items()}
    return [_each(value, change) for value in batch] if isinstance(batch, (tuple, list)) else batch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch's, NumPy's and Python's generators start from a seed; they stand where they stood afterwards."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
