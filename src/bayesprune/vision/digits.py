"""The 8 x 8 handwritten digits that come with scikit-learn: a data set that is always at hand."""

from __future__ import annotations

import numpy as np
import torch

from bayesprune.vision.data import ArrayDataset, channel_statistics, stratified_indices

TEST_SIZE, FOLDS = 500, 5


def load_digits(seed: int = 0, *, fold: int | None = None) -> ArrayDataset:
    """Return the 1,797 digits, split into 1,297 training and 500 test images, or by a fold, with equal class shares.

    Args:
        seed: Seed of the split, which is the same on every machine.
        fold: Which of five folds is tested; each image is in one of them. None: the 500 test images.

    Returns:
        The data set: uint8 images (n, 1, 8, 8) of values 0 to 16, ten classes.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: There is no such fold.

    Example:
        >>> data = load_digits()
        >>> tuple(data.train_images.shape), len(data.test_labels), data.num_classes
        ((1297, 1, 8, 8), 500, 10)
        >>> [len(load_digits(fold=fold).test_labels) for fold in range(FOLDS)]
        [360, 360, 359, 359, 359]

    Reference:
        Alpaydin & Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998.
    """
    if fold is not None and not 0 <= fold < FOLDS:
        raise ValueError(f"fold={fold}: there are {FOLDS}, from 0 to {FOLDS - 1}; None is the usual split")
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError('load_digits needs scikit-learn: pip install "bayesprune[train]"') from error
    bunch = datasets.load_digits()
    images = torch.from_numpy(np.ascontiguousarray(bunch.images.astype(np.uint8))).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    test = stratified_indices(labels, TEST_SIZE, seed) if fold is None else _fold(labels, fold, seed)
    train = torch.ones(len(labels), dtype=torch.bool)
    train[test] = False
    mean, std = channel_statistics(images[train], scale=16.0)
    return ArrayDataset(
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        classes=tuple(str(c) for c in range(10)),
        mean=mean,
        std=std,
        scale=16.0,
    )


def _fold(labels: torch.Tensor, fold: int, seed: int) -> torch.Tensor:
    """The positions in one fold: each class is shuffled, and the images are dealt out class by class."""
    random = np.random.RandomState(seed)  # NumPy promises that its stream never changes
    classes = [np.flatnonzero(labels.numpy() == label) for label in np.unique(labels.numpy())]
    dealt = np.concatenate([random.permutation(members) for members in classes])
    return torch.from_numpy(np.sort(dealt[fold::FOLDS]))
