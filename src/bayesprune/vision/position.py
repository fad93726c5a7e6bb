"""Where a loader stands in its epoch: stopping at any batch, going on, saving and restoring the position."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


class PositionedLoader:
    """Base of the loaders: the epoch and batch that come next, moved on by every batch that is handed out."""

    def __init__(
        self, num_images: int, batch_size: int, *, shuffle: bool, drop_last: bool, share: tuple[int, int]
    ) -> None:
        if batch_size < 1 or (drop_last and batch_size > num_images):
            raise ValueError(f"batch_size={batch_size}: use 1 to {num_images}, the number of images")
        self.num_images, self.batch_size = num_images, batch_size
        self.shuffle, self.drop_last, self.share = shuffle, drop_last, share
        self.epoch = self.batch = 0
        self._resumed = False

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        full, rest = divmod(self.num_images, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches (images, labels) from where the loader stands to the end of the epoch."""
        if not self.shuffle:
            self.close()  # what is in hand belongs to a loop that was broken off
            if not self._resumed:
                self.batch = 0
        self._resumed = False
        epoch = self.epoch
        while self.epoch == epoch:
            yield self._next()

    def close(self) -> None:
        """Give up what is in hand; the next loop starts anew where the loader stands."""

    def _next(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _advance_(self) -> bool:
        """Move on by a batch and return whether the epoch has ended."""
        self.batch += 1
        if self.batch < len(self):
            return False
        self.epoch, self.batch = self.epoch + 1, 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the position: epoch and batch, and what they are counted in."""
        return {name: getattr(self, name) for name in ("epoch", "batch", "batch_size", "num_images")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; the next loop yields the batches that followed it."""
        for name in ("batch_size", "num_images"):
            if int(state[name]) != getattr(self, name):
                raise ValueError(
                    f"the saved loader has {name}={int(state[name])}, this one {getattr(self, name)}: "
                    "resume with the settings of the saved run, on the data that it had"
                )
        if not 0 <= int(state["batch"]) < len(self):
            raise ValueError(
                f"the saved loader stands at batch {int(state['batch'])}, but an epoch has {len(self)}: "
                "resume with the drop_last of the saved run"
            )
        self.close()
        self.epoch, self.batch, self._resumed = int(state["epoch"]), int(state["batch"]), True


def part_of(count: int, rank: int, processes: int) -> slice:
    """Return which of `count` images a process takes; the parts follow each other and differ by one at most."""
    return slice(rank * count // processes, (rank + 1) * count // processes)
