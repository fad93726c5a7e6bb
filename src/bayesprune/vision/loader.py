"""Batches from a data set that lies in memory, in an order that can be stopped and taken up at any batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayesprune.vision.augment import Augmentation, crop_and_flip, cut_out_, draw, pad_images
from bayesprune.vision.position import PositionedLoader, part_of


class BatchLoader(PositionedLoader):
    r"""Iterate over normalised, augmented batches of images held on one device.

    A batch holds \( (x / \text{scale} - \text{mean}) / \text{std} \), with x the pixels. The permutation and all draws
    of an epoch are made at its start from the loader's own generator, on the CPU, so that they do not depend on the
    device. The state is the epoch, the batch and that generator's state at the start of the epoch; the batches after
    `load_state_dict` are bit for bit those that would have come.

    A shuffling loader goes on where it stands: a loop that is broken off is continued by the next loop, which ends with
    the epoch. A loader that does not shuffle begins each loop at the first image, unless a state has just been loaded.

    Args:
        images: Images of shape (n, channels, height, width), uint8 or floating point.
        labels: n labels, of any dtype.
        batch_size: Images in a batch, over all processes that share it.
        mean: Mean of each channel after scaling; None for 0.
        std: Standard deviation of each channel after scaling; None for 1.
        scale: The pixel value that counts as 1; None for 255 (uint8) or 1 (other dtypes).
        shuffle: Draw a new order every epoch.
        augmentation: Crop and mirror; None for neither.
        seed: Seed of the generator.
        device: Where images and batches live; None leaves them where `images` is.
        channels_last: Lay the batches out in channels-last order.
        drop_last: Leave out the last batch of an epoch when it is not full.
        dtype: Type of the batches.
        share: (rank, processes): which part of every batch this process takes.

    Raises:
        ValueError: Shapes that do not fit, no images, a batch size below one or above the number of images with
            `drop_last`.

    Example:
        >>> images = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)
        >>> loader = BatchLoader(images, torch.arange(10), batch_size=4, shuffle=True, augmentation=Augmentation(2))
        >>> [len(labels) for _, labels in loader], loader.epoch
        ([4, 4, 2], 1)
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scale: float | None = None,
        shuffle: bool = False,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        channels_last: bool = False,
        drop_last: bool = False,
        dtype: torch.dtype = torch.float32,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if images.ndim != 4 or len(images) != len(labels) or len(images) == 0:
            raise ValueError(
                f"images of shape {tuple(images.shape)} and labels of shape {tuple(labels.shape)}: "
                "give (n, channels, height, width) and n labels, n at least 1"
            )
        super().__init__(len(images), batch_size, shuffle=shuffle, drop_last=drop_last, share=share)
        self.augmentation = augmentation
        self.dtype = dtype
        self.image_size = (images.shape[2], images.shape[3])
        self.device = torch.device(device) if device is not None else images.device
        held = images.to(self.device)
        if augmentation is not None:
            held = pad_images(held, augmentation)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self._images = held.contiguous(memory_format=layout)
        self._labels = labels.to(self.device)

        if scale is None:
            scale = 255.0 if images.dtype == torch.uint8 else 1.0
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        self._factor, self._shift = pixel_constants(
            mean, std, scale, images.shape[1], self.image_size, self.device, layout=layout, dtype=kind
        )

        self._generator = torch.Generator().manual_seed(seed)
        self._sides: Tensor | None = None
        if augmentation is not None and augmentation.alternate:  # which images are mirrored in the even epochs
            self._sides = torch.randint(2, (len(images),), generator=torch.Generator().manual_seed(seed))
        self._epoch_state = self._generator.get_state()
        self._order: Tensor | None = None
        self._draws: Tensor | None = None

    def first(self, count: int) -> Tensor:
        """Return the first images, not augmented where the loader does not augment; it stays where it stands."""
        return self._images_at(torch.arange(min(count, self.num_images), device=self.device), None)

    def _next(self) -> tuple[Tensor, Tensor]:
        if self._order is None:
            self._plan()
        assert self._order is not None
        start = self.batch * self.batch_size
        part = part_of(min(self.batch_size, self.num_images - start), *self.share)
        chosen = slice(start + part.start, start + part.stop)
        index = self._order[chosen]
        draws = None if self._draws is None else self._draws[:, chosen]
        if self._advance_():
            self._order = self._draws = None
            self._epoch_state = self._generator.get_state()
        return self._images_at(index, draws), self._labels[index]

    def _plan(self) -> None:
        n = self.num_images
        self._generator.set_state(self._epoch_state)
        order = torch.randperm(n, generator=self._generator) if self.shuffle else torch.arange(n)
        self._order = order.to(self.device)
        if self.augmentation is not None:
            draws = draw(self.augmentation, n, self._generator, self.image_size)
            if self._sides is not None:
                draws[2] = (self._sides[order] + self.epoch) % 2
            self._draws = draws.to(self.device)

    def _images_at(self, index: Tensor, draws: Tensor | None) -> Tensor:
        if draws is None:
            # Channels-last images are gathered as (n, height, width, channels): the result is then laid out alike.
            last = not self._images.is_contiguous()
            pixels = self._images.permute(0, 2, 3, 1)[index].permute(0, 3, 1, 2) if last else self._images[index]
        else:
            pixels = crop_and_flip(self._images, index, draws, self.image_size)
        images = torch.mul(pixels, self._factor).sub_(self._shift).to(self.dtype)
        if draws is None or len(draws) == 3 or self.augmentation is None:
            return images
        return cut_out_(images, draws[3:], self.augmentation.cutout)

    def state_dict(self) -> dict[str, Any]:
        """Return the position: epoch, batch, and the generator's state (uint8) at the start of the epoch."""
        return {**super().state_dict(), "generator": self._epoch_state.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; see `PositionedLoader.load_state_dict`."""
        super().load_state_dict(state)
        self._epoch_state = state["generator"].clone().cpu()
        self._order = self._draws = None


def pixel_constants(
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    scale: float,
    channels: int,
    size: tuple[int, int],
    device: torch.device,
    *,
    layout: torch.memory_format,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Return (a, b) with (x / scale - mean) / std = a·x - b, each spread out to an image."""
    average = _per_channel("mean", mean, 0.0, channels)
    spread = _per_channel("std", std, 1.0, channels)
    if not (spread > 0).all() or scale <= 0:
        raise ValueError(f"std={std}, scale={scale}: both must be above 0")
    constants = torch.cat([1 / (scale * spread), average / spread]).to(device, dtype)
    # Spread out, because three channels as the innermost dimension of a broadcast would be slow.
    factor, shift = constants.expand(2, channels, *size).contiguous(memory_format=layout).split(1)
    return factor, shift


def _per_channel(name: str, values: Sequence[float] | None, default: float, channels: int) -> Tensor:
    values = [default] if values is None else list(values)
    if len(values) not in (1, channels):
        raise ValueError(f"{name} has {len(values)} values for {channels} channels: give one, or one a channel")
    return torch.tensor(values, dtype=torch.float64).expand(channels).view(1, -1, 1, 1)
