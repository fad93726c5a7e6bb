"""The 8 x 8 handwritten digits that come with scikit-learn: a data set that is always at hand."""

from __future__ import annotations

import numpy as np
import torch

from bayesprune.vision.data import ArrayDataset, channel_statistics, stratified_indices

TEST_SIZE = 500


def load_digits(seed: int = 0) -> ArrayDataset:
    """Return the 1,797 digits, split into 1,297 training and 500 test images with equal class shares.

    Args:
        seed: Seed of the split, which is the same on every machine.

    Returns:
        The data set: uint8 images (n, 1, 8, 8) of values 0 to 16, ten classes.

    Raises:
        ImportError: scikit-learn is missing.

    Example:
        >>> data = load_digits()
        >>> tuple(data.train_images.shape), len(data.test_labels), data.num_classes
        ((1297, 1, 8, 8), 500, 10)

    Reference:
        Alpaydin & Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError('load_digits needs scikit-learn: pip install "bayesprune[train]"') from error
    bunch = datasets.load_digits()
    images = torch.from_numpy(np.ascontiguousarray(bunch.images.astype(np.uint8))).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    test = stratified_indices(labels, TEST_SIZE, seed)
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
