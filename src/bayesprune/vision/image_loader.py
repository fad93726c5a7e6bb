"""Batches of images decoded by worker processes, in an order that can be stopped and taken up at any batch."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayesprune.vision.crops import RandomResizedCrop, crop_image, middle, uniforms
from bayesprune.vision.image_index import ImageIndex
from bayesprune.vision.loader import pixel_constants
from bayesprune.vision.position import PositionedLoader, part_of

_ORDER, _CROP = 1, 2  # two streams of random numbers


class ImageLoader(PositionedLoader):
    r"""Iterate over normalised, augmented batches of images that are read and decoded as they are needed.

    The order of an epoch is a function of (seed, epoch), the crop of an image one of (seed, epoch, index). So the batches
    are the same for any number of workers, and those after `load_state_dict` bit for bit those that would have come. It
    stands, goes on and ends like `BatchLoader`.

    Args:
        index: The images.
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
        index: ImageIndex,
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
        if len(index) == 0:
            raise ValueError("index: it holds no image")
        super().__init__(len(index), batch_size, shuffle=shuffle, drop_last=drop_last, share=share)
        self.seed, self.workers = seed, workers
        self.device = torch.device(device) if device is not None else torch.device("cpu")
        self.channels_last = channels_last
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self._factor, self._shift = pixel_constants(mean, std, 255.0, 3, (size, size), self.device, layout=layout)
        self._decoder = _Decoder(index, size, resize, augmentation, seed)
        self._batches: Iterator[Any] | None = None

    def first(self, count: int) -> Tensor:
        """Return the first images, decoded in this process and not augmented; the loader stays where it stands."""
        plain = _Decoder(self._decoder.index, self._decoder.size, self._decoder.resize, None, self.seed)
        return self._finished(plain[0, np.arange(min(count, self.num_images))])[0]

    def close(self) -> None:
        """Stop the workers; the next loop starts new ones where the loader stands."""
        self._batches = None

    def _next(self) -> tuple[Tensor, Tensor]:
        if self._batches is None:
            self._batches = self._start()
        batch = next(self._batches)
        if self._advance_() and not self.shuffle:
            self.close()
        return self._finished(batch)

    def _start(self) -> Iterator[Any]:
        return iter(
            DataLoader(
                self._decoder,  # type: ignore[arg-type]
                batch_size=None,
                sampler=self._positions(),  # type: ignore[arg-type]
                num_workers=self.workers,
                worker_init_fn=_become_worker if self.workers else None,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # its default would draw from torch's global one
            )
        )

    def _positions(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield epoch and image numbers of this batch and the following, on through the epochs where it shuffles."""
        epoch, batch = self._epoch, self._batch
        while True:
            order = self._order(epoch)
            for number in range(batch, len(self)):
                chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
                yield epoch, chosen[part_of(len(chosen), *self.share)]
            if not self.shuffle:
                return
            epoch, batch = epoch + 1, 0

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_images)
        # Sorted random numbers, because NumPy does not promise that its permutations stay the same.
        return np.argsort(uniforms(self.num_images, self.seed, 0, epoch, _ORDER), kind="stable")

    def _finished(self, batch: tuple[Tensor, Tensor] | str) -> tuple[Tensor, Tensor]:
        if isinstance(batch, str):
            self.close()
            raise ValueError(batch)
        pixels, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        images = torch.mul(pixels, self._factor).sub_(self._shift)
        return images if self.channels_last else images.contiguous(), labels


@dataclass(frozen=True)
class _Decoder:
    """What a worker does: image numbers in, uint8 pixels and labels out (or the message of a failure)."""

    index: ImageIndex
    size: int
    resize: int
    augmentation: RandomResizedCrop | None
    seed: int

    def __getitem__(self, position: tuple[int, np.ndarray]) -> tuple[Tensor, Tensor] | str:
        epoch, numbers = position
        pixels = np.empty((len(numbers), self.size, self.size, 3), np.uint8)
        for row, number in zip(pixels, numbers.tolist()):
            try:
                row[:] = self._decode(epoch, number)
            except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and more on damaged files
                return f"{self.index.where(number)} cannot be read as an image ({error}): remove or replace it"
        labels = torch.from_numpy(self.index.labels_at(numbers))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), labels

    def _decode(self, epoch: int, number: int) -> np.ndarray:
        from PIL import Image

        with Image.open(io.BytesIO(self.index.read(number))) as file:
            image = file.convert("RGB")
        if self.augmentation is None:
            return middle(image, self.size, self.resize)
        draws = uniforms(self.augmentation.draws, self.seed, number, epoch, _CROP)
        return crop_image(image, self.augmentation.box(image.width, image.height, draws.tolist()), self.size)


def _become_worker(_: int) -> None:
    # The loop's process decides when to stop; its handlers came along with the fork.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
