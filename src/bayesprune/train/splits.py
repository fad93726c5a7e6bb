"""Data of the user's own: what is trained on, what is tested on, and how batches are made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from bayesprune.vision.dataset_loader import DatasetLoader, PassLoader, StreamLoader, length_of


@dataclass(frozen=True, eq=False)
class Splits:
    """The user's own data, each split a torch Dataset, a DataLoader, or any iterable of batches that can be read again.

    A map-style data set is read in the run's own order: such a run goes on after a stop bit for bit, whatever its workers
    and its random augmentation. So is a DataLoader over one that reads all of it, in order or shuffled, or the examples of a
    SubsetRandomSampler: its data set, batch size, collate function and workers are taken. Any other loader (one with
    another sampler, or a `worker_init_fn`) is read as it is; on resuming it begins a new pass, which is said, unless it has
    `state_dict` and `load_state_dict`.

    Args:
        train: Training data.
        test: What is tested on; None: the validation examples are.
        validation: What is watched while training; None: those that `validation_size` holds out, else the test data.
        classes: Name of each class; () numbers them.
        num_data: Number of training examples, where `train` has no length in examples.
        steps_per_epoch: Batches in an epoch, where `train` has no length.
        workers: Processes that make batches of a data set; None: those of the DataLoader that was given, else 0.
        collate: Examples → batch; None: that of the DataLoader that was given, else torch's default.

    Raises:
        ValueError: Neither test nor validation data, or no number of examples; in `loader`, a split that is not there, or
            test data that come in another order each time.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.zeros(8, 3), torch.zeros(8, dtype=torch.long))
        >>> Splits(data, data).count("train"), len(Splits(data, data).loader("train", batch_size=4))
        (8, 2)
    """

    train: Any
    test: Any = None
    validation: Any = None
    classes: tuple[str, ...] = ()
    num_data: int | None = None
    steps_per_epoch: int | None = None
    workers: int | None = None
    collate: Callable[[list[Any]], Any] | None = None

    @classmethod
    def of(cls, data: Any) -> Splits:
        """Return splits from what `train(data=…)` takes: splits, a mapping of them, (train, test), or training data alone.

        Example:
            >>> Splits.of({"train": [1], "test": [2]}).test
            [2]
        """
        if isinstance(data, Splits):
            return data
        if isinstance(data, Mapping):
            unknown = sorted(set(data) - set(cls.__dataclass_fields__))
            if unknown or "train" not in data:
                raise ValueError(f"data={sorted(data)}: give 'train', and any of {', '.join(cls.__dataclass_fields__)}")
            return cls(**data)
        if isinstance(data, (tuple, list)) and len(data) == 2:
            return cls(*data)
        return cls(data)

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None where they are not named."""
        return len(self.classes) or None

    def count(self, split: str) -> int:
        """Return the number of examples of a split, 0 where there is none.

        Raises:
            ValueError: Training data that do not tell.
        """
        data = getattr(self, split)
        if data is None:
            return 0
        if split == "train" and self.num_data is not None:
            return self.num_data
        whole = _whole(data)
        number = _number_of(data) if whole is None else len(whole)
        if number is None and split == "train":
            raise ValueError(
                "num_data=None: the training data do not tell how many examples they hold, which the posterior needs; give "
                "Splits(train, test, num_data=N)."
            )
        return 1 if number is None else number  # there are some

    @property
    def batch_size(self) -> int | None:
        """Examples in a batch, where the training data are a DataLoader that says so."""
        return self.train.batch_size if isinstance(self.train, DataLoader) else None

    def hold_out(self, n: int, seed: int = 0) -> Splits:
        """Return the data with n training examples held out as the validation split, drawn without regard to the class.

        Raises:
            ValueError: A validation split that is there, data that are no map-style data set, or n out of range.
        """
        data: Any = _whole(self.train)
        if self.validation is not None:
            raise ValueError(f"validation_size={n}: there is a validation split; set validation_size=0.")
        if data is None:
            raise ValueError(f"validation_size={n}: the training data are no map-style set; set validation_size=0.")
        if not 1 <= n < len(data):
            raise ValueError(f"validation_size={n}: hold out 1 to {len(data) - 1} of the {len(data)} training examples")
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
        train, validation = (Subset(data, sorted(part)) for part in (order[n:], order[:n]))
        return replace(self, train=train, validation=validation, **self._made())

    def _made(self) -> dict[str, Any]:
        """Return how the training data's DataLoader makes batches, nothing where there is none."""
        if not isinstance(self.train, DataLoader):
            return {}
        return {"workers": self.train.num_workers, "collate": self.train.collate_fn}

    def subset(self, n: int, seed: int = 0) -> Splits:
        """Return the data with n training examples only, drawn without regard to the class.

        Raises:
            ValueError: Training data that are no map-style data set, or n out of range.
        """
        data: Any = _whole(self.train)
        if data is None or not 1 <= n <= len(data):
            raise ValueError(
                f"train_size={n}: give a map-style data set of at least so many examples, or train_size=none."
            )
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
        return replace(self, train=Subset(data, sorted(order[:n])), **self._made())

    def loader(
        self, split: str, *, batch_size: int, shuffle: bool | None = None, drop_last: bool = False, seed: int = 0,
        device: Any = None, channels_last: bool = False, share: tuple[int, int] = (0, 1), augmentation: Any = None,
    ) -> DatasetLoader | StreamLoader | PassLoader:  # fmt: skip
        """Return the loader of a split; a data set's own transforms are its augmentation.

        Args:
            split: "train", "validation" or "test".
            batch_size: Examples in a batch.
            shuffle: Draw a new order every epoch; None for the training split only.
            drop_last: Leave out the last batch of an epoch when it is not full.
            seed: Seed of orders and of what the data set draws.
            device: Where batches go.
            channels_last: Lay pictures out in channels-last order.
            share: (rank, processes): which part of every batch this process takes.
            augmentation: Must be None.

        Raises:
            ValueError: A split that is not there, or a loader that several processes cannot share.
        """
        data = getattr(self, split)
        if data is None:
            raise ValueError(f"split={split!r}: the data have none; give it in Splits({split}=…).")
        place = {"device": device, "channels_last": channels_last}
        if isinstance(data, IterableDataset):
            data = DataLoader(
                data, batch_size=batch_size, num_workers=self.workers or 0, collate_fn=self.collate, drop_last=drop_last
            )
        whole = _whole(data, seeded=split == "train")
        if whole is None:
            if share[1] > 1:
                raise ValueError(
                    f"{split} is a {type(data).__name__}, which the {share[1]} processes cannot share; give a map-style data set."
                )
            if split == "train":
                return StreamLoader(data, steps=self.steps_per_epoch, **place)
            if isinstance(data, DataLoader) and _reorders(data):
                raise ValueError(
                    f"{split}: its {type(_sampler(data)).__name__} reads another order each time, so members cannot be averaged over "
                    "it; give the data set, or a DataLoader with shuffle=False."
                )
            return PassLoader(data, **place)
        workers, collate = self.workers, self.collate
        if isinstance(data, DataLoader):
            workers = data.num_workers if workers is None else workers
            collate, batch_size = collate or data.collate_fn, data.batch_size or batch_size
        return DatasetLoader(
            whole, batch_size=batch_size, shuffle=split == "train" if shuffle is None else shuffle, drop_last=drop_last,
            seed=seed, workers=workers or 0, collate=collate, share=share, **place,
        )  # fmt: skip


def is_map(data: Any) -> bool:
    """Return whether it is a map-style data set."""
    iterable = isinstance(data, (IterableDataset, DataLoader, list, tuple))
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not iterable


def _sampler(data: DataLoader) -> Any:  # type: ignore[type-arg]
    """Return what a DataLoader draws examples by, a batch sampler's own sampler where it has one."""
    return getattr(data.batch_sampler, "sampler", data.sampler)


def _reorders(data: DataLoader) -> bool:  # type: ignore[type-arg]
    """Return whether a DataLoader reads its examples in another order each time."""
    if isinstance(_sampler(data), (RandomSampler, WeightedRandomSampler)):
        return True
    if isinstance(data.dataset, IterableDataset):
        return False
    drawn = data.sampler if data.batch_sampler is None else data.batch_sampler
    with torch.random.fork_rng(devices=[]):
        return list(map(str, drawn)) != list(map(str, drawn))


def _whole(data: Any, seeded: bool = True) -> Any:
    """Return the map-style data whose examples are read each pass, all once; None where batches come in an order of their own.

    Without `seeded` a `worker_init_fn`, which seeds what examples draw, makes no difference.
    """
    if not isinstance(data, DataLoader):
        return data if is_map(data) else None
    held: Any = data.dataset
    indexed = is_map(held) or isinstance(held, (list, tuple))
    plain = type(data.batch_sampler).__name__ == "BatchSampler" and data.batch_size is not None
    plain = plain and (data.worker_init_fn is None or not seeded)
    if type(data) is not DataLoader or not indexed or not plain:
        return None
    sampler: Any = data.sampler
    if type(sampler) is SubsetRandomSampler:
        return Subset(held, list(sampler.indices))
    every = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(held)
    )
    return held if every and sampler.data_source is held else None


def _number_of(data: Any) -> int | None:
    """Return the number of examples of data whose batches come in an order of their own, None where they do not tell."""
    if not isinstance(data, DataLoader):
        return length_of(data) if isinstance(data, IterableDataset) else None
    sampler, number = _sampler(data), length_of(data.dataset)
    if data.batch_sampler is None:
        return None  # its items are batches
    if isinstance(data.dataset, IterableDataset):
        return number
    if isinstance(sampler, WeightedRandomSampler):
        return len(sampler.weights)
    if isinstance(sampler, (RandomSampler, SequentialSampler)):
        return length_of(sampler.data_source)
    if isinstance(sampler, (list, tuple, range, torch.Tensor, SubsetRandomSampler)):
        return len(sampler)
    if isinstance(sampler, DistributedSampler):
        return length_of(sampler.dataset)
    part = number is not None and (length_of(sampler) or 0) < number  # always the same, or another each time?
    return None if part else number
