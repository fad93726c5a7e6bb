"""Batches of images decoded by worker processes, in an order that can be stopped and taken up at any batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesprune.vision.crops import RandomResizedCrop, crop_image, middle, read_image, uniforms
from bayesprune.vision.dataset_loader import DatasetLoader, Placement
from bayesprune.vision.folders import ImageFiles
from bayesprune.vision.loader import pixel_constants


class ImageLoader(DatasetLoader):
    r"""Iterate over normalised, augmented batches of images that are read and decoded as they are needed.

    The order of an epoch is a function of (seed, epoch), the crop of an image one of (seed, epoch, index). So the batches
    are the same for any number of workers, and those after `load_state_dict` bit for bit those that would have come. It
    stands, goes on and ends like `BatchLoader`.

    Args:
        files: The images.
        batch_size: Images in a batch, over all processes that share it.
        size: Height and width of the images.
        resize: Shorter side to which an image is scaled before its middle is cut out, where it is not cropped at random.
        mean: Mean of each channel, as a share of 255.
        std: Standard deviation of each channel, likewise.
        shuffle: Draw a new order every epoch.
        augmentation: The random crop; None for the middle of the image.
        seed: Seed of orders and crops.
        device: Where batches go.
        channels_last: Lay the batches out in channels-last order.
        drop_last: Leave out the last batch of an epoch when it is not full.
        workers: Processes that decode; 0 decodes in this one.
        share: (rank, processes): which part of every batch this process takes.

    Raises:
        ValueError: No images, or a batch size below one or above the number of images with `drop_last`; in a loop: an
            image that cannot be decoded, by file.
        ImportError: Pillow is missing.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from bayesprune.vision import open_images
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for where in (Path(folder, split, name) for split in ("train", "val") for name in "ab"):
        ...         where.mkdir(parents=True)
        ...         Image.new("RGB", (12, 12)).save(where / "0.png")
        ...     data = open_images(folder)
        ...     loader = ImageLoader(data.train, batch_size=2, size=8, resize=9, mean=data.mean, std=data.std)
        ...     [tuple(x.shape) for x, y in loader]
        [(2, 3, 8, 8)]
    """

    def __init__(
        self,
        files: ImageFiles,
        *,
        batch_size: int,
        size: int,
        resize: int,
        mean: Sequence[float],
        std: Sequence[float],
        shuffle: bool = False,
        augmentation: RandomResizedCrop | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        channels_last: bool = False,
        drop_last: bool = False,
        workers: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        try:
            import PIL  # noqa: F401
        except ImportError as error:
            raise ImportError('reading images needs Pillow: pip install "bayesprune[train]"') from error
        super().__init__(
            files, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, seed=seed, workers=workers, share=share
        )
        self.size, self.resize, self.augmentation = size, resize, augmentation
        self.place = _Normalised(mean, std, size, device, channels_last)

    def first(self, count: int) -> list[Tensor]:
        """Return the first images and their labels, decoded in this process and not augmented; the loader stays where it
        stands.
        """
        return self.place(self._pixels(None, np.arange(min(count, self.num_images))))

    def __getitem__(self, position: tuple[int, int, np.ndarray]) -> tuple[Tensor, Tensor] | str:
        """Return the pixels and labels of some images at an epoch, or what is wrong with one of them."""
        return self._pixels(position[0], position[2])

    def _next(self) -> Any:
        batch = super()._next()
        if isinstance(batch, str):  # an error of a worker would bring its traceback along in its message
            self.close()
            raise ValueError(batch)
        return batch

    def _pixels(self, epoch: int | None, numbers: np.ndarray) -> tuple[Tensor, Tensor] | str:
        pixels = np.empty((len(numbers), self.size, self.size, 3), np.uint8)
        for row, number in zip(pixels, numbers.tolist()):
            try:
                image = read_image(self.dataset.path(number))
            except ValueError as error:
                return str(error)
            row[:] = self._square(image, epoch, number)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(self.dataset.labels[numbers])

    def _square(self, image: Any, epoch: int | None, number: int) -> np.ndarray:
        if self.augmentation is None or epoch is None:
            return middle(image, self.size, self.resize)
        draws = uniforms(self.augmentation.draws, self.seed, number, epoch)
        return crop_image(image, self.augmentation.box(image.width, image.height, draws.tolist()), self.size)


class _Normalised(Placement):
    """Moves uint8 pixels to where the run computes, and normalises them there."""

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        size: int,
        device: torch.device | str | None,
        channels_last: bool,
    ) -> None:
        super().__init__(device, channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.factor, self.shift = pixel_constants(mean, std, 255.0, 3, (size, size), self.device, layout=layout)

    def __call__(self, batch: Any) -> Any:
        """Return images and labels, placed; a message as it is."""
        if isinstance(batch, str):
            return batch
        pixels, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        images = torch.mul(pixels, self.factor).sub_(self.shift)
        return [images if self.channels_last else images.contiguous(), labels]
