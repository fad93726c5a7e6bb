"""Random crop, mirror and cutout of whole batches, drawn in advance and applied by indexing into padded images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image: pad, crop at a random offset, mirror half of them, cut a square out.

    Args:
        padding: Pixels added on each side before the crop; 0 leaves the crop out.
        mode: "reflect" or "zero": what the padding holds.
        flip: Mirror left and right with probability 1/2.
        alternate: Mirror each image in every second epoch in place of by chance: half of them, drawn once, in the even
            epochs and the others in the odd ones, so that any two epochs in a row show both sides of all.
        cutout: Side of a square, at a uniform place and cut off at the borders, that is set to the mean; 0 for none.

    Raises:
        ValueError: A negative padding or cutout, an unknown mode, or `alternate` without `flip`.

    Example:
        >>> Augmentation(padding=2)
        Augmentation(padding=2, mode='reflect', flip=True, alternate=False, cutout=0)

    Reference:
        Jordan, arXiv 2404.00498, section 3.6 (alternating mirror); DeVries & Taylor, arXiv 1708.04552 (cutout).
    """

    padding: int = 4
    mode: str = "reflect"
    flip: bool = True
    alternate: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding={self.padding}: give 0 (no crop) or more")
        if self.cutout < 0:
            raise ValueError(f"cutout={self.cutout}: give 0 (none) or more pixels")
        if self.alternate and not self.flip:
            raise ValueError("alternate=True mirrors every second epoch, but flip=False mirrors never: set flip=True")
        if self.mode not in ("reflect", "zero"):
            raise ValueError(f"mode={self.mode!r}: use 'reflect' or 'zero'")


def pad_images(images: Tensor, augmentation: Augmentation, chunk: int = 4096) -> Tensor:
    """Pad images (n, channels, height, width) on all four sides, once, `chunk` at a time, so that every crop is a view."""
    p = augmentation.padding
    n, channels, height, width = images.shape
    if p == 0:
        return images
    if augmentation.mode == "zero":
        return functional.pad(images, (p, p, p, p))
    if p >= min(height, width):
        raise ValueError(
            f"padding={p} cannot reflect images of {height} x {width} pixels: use less padding or mode='zero'"
        )
    # Reflection by indexing: torch's reflection padding does not take uint8.
    places = (torch.arange(-p, size + p, device=images.device).abs() for size in (height, width))
    rows, columns = (size - 1 - (size - 1 - place).abs() for size, place in zip((height, width), places))
    padded = images.new_empty((n, channels, height + 2 * p, width + 2 * p))
    for start in range(0, n, chunk):
        part = images[start : start + chunk]
        padded[start : start + chunk] = part.index_select(2, rows).index_select(3, columns)
    return padded


def draw(augmentation: Augmentation, n: int, generator: torch.Generator, size: tuple[int, int] = (0, 0)) -> Tensor:
    """Draw row and column of n crops, 1 where one is mirrored, and row and column of a cutout's corner: int64 (3, n) or (5, n)."""
    draws = torch.zeros((5 if augmentation.cutout else 3, n), dtype=torch.int64)
    if augmentation.padding:
        draws[:2] = torch.randint(2 * augmentation.padding + 1, (2, n), generator=generator)
    if augmentation.flip and not augmentation.alternate:
        draws[2] = torch.randint(2, (n,), generator=generator)
    if augmentation.cutout:
        for row, side in zip((3, 4), size):
            draws[row] = torch.randint(side, (n,), generator=generator) - augmentation.cutout // 2
    return draws


def cut_out_(images: Tensor, corners: Tensor, side: int) -> Tensor:
    """Set a square of each image, from its corner (2, n) on, to 0, the mean of a normalised image, in place."""
    places = (
        torch.arange(length, device=images.device) - corner.unsqueeze(1)
        for length, corner in zip(images.shape[2:], corners)
    )
    rows, columns = ((place >= 0) & (place < side) for place in places)
    return images.masked_fill_(rows.view(len(images), 1, -1, 1) & columns.view(len(images), 1, 1, -1), 0.0)


def crop_and_flip(padded: Tensor, index: Tensor, draws: Tensor, size: tuple[int, int]) -> Tensor:
    """Take the drawn crops of the chosen images, mirrored where drawn, as new images (batch, channels, *size)."""
    n, channels, height, width = padded.shape
    image, channel, row, column = padded.stride()
    places = (n, height - size[0] + 1, width - size[1] + 1)
    last = not padded.is_contiguous()
    # Every window is a view with two more dimensions (the offsets), so that a batch is one gather: of (height, width,
    # channels) where these come last, so that memory is read and written in its order.
    inner = ((*size, channels), (row, column, channel)) if last else ((channels, *size), (channel, row, column))
    windows = padded.as_strided((*places, *inner[0]), (image, row, column, *inner[1]))
    crops, across = windows[index, draws[0], draws[1]], 2 if last else 3
    if crops.is_cuda:
        # Counting the mirrored images would make the host wait for the device.
        crops = torch.where(draws[2].view(-1, 1, 1, 1) == 1, crops.flip(across), crops)
    else:
        mirrored = draws[2].nonzero().squeeze(1)
        crops[mirrored] = crops[mirrored].flip(across)
    return crops.permute(0, 3, 1, 2) if last else crops
