"""How an image file becomes a square of pixels: decoded, then the random crop of training or the middle of evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_BILINEAR = 2  # Pillow's Image.BILINEAR


class Box(NamedTuple):
    """A window of an image, and whether it is mirrored."""

    left: int
    top: int
    width: int
    height: int
    mirrored: bool


@dataclass(frozen=True)
class RandomResizedCrop:
    r"""A window of random area and shape, scaled to a square, mirrored half of the time (the Inception crop).

    The window has area \( A \) and width over height \( r \) with \( A / (\text{width} \cdot \text{height}) \sim
    U(\text{scale}) \) and \( \log r \sim U(\log \text{ratio}) \), at a uniform place. A window that does not fit is
    drawn again; after ten, the largest middle window whose shape lies in `ratio` is taken.

    Args:
        scale: Least and greatest share of the image's area.
        ratio: Least and greatest width over height.
        flip: Mirror left and right with probability 1/2.

    Raises:
        ValueError: Bounds that are not positive or not in order.

    Example:
        >>> RandomResizedCrop(flip=False).box(100, 80, [0.5] * RandomResizedCrop.draws)
        Box(left=17, top=7, width=66, height=66, mirrored=False)

    Reference:
        Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    attempts = 10
    draws = 2 * attempts + 3
    """Uniform numbers that a crop takes: area and shape of each attempt, the place, the mirror."""

    def __post_init__(self) -> None:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name}={(low, high)}: give two positive numbers, the smaller first")

    def box(self, width: int, height: int, uniforms: Sequence[float]) -> Box:
        """Return the window that `draws` numbers of U[0, 1) choose in an image of this size."""
        *shapes, down, right, mirror = uniforms
        w, h = self._fallback(width, height)
        top, left = (height - h) // 2, (width - w) // 2
        for share, shape in zip(shapes[::2], shapes[1::2]):
            area = width * height * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
            ratio = self.ratio[0] * (self.ratio[1] / self.ratio[0]) ** shape
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                w, h = wide, high
                top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
                break
        return Box(left, top, w, h, self.flip and mirror < 0.5)

    def _fallback(self, width: int, height: int) -> tuple[int, int]:
        if width < self.ratio[0] * height:
            return width, max(1, round(width / self.ratio[0]))
        if width > self.ratio[1] * height:
            return max(1, round(height * self.ratio[1])), height
        return width, height


def uniforms(count: int, *keys: int) -> np.ndarray:
    """Return `count` numbers of U[0, 1) that depend on the keys alone, on every machine and in every process."""
    words = [*keys, 0, 0, 0, 0]
    philox = np.random.Philox(key=[words[0], words[3]], counter=[0, words[1], words[2], 0])
    return (philox.random_raw(count) >> np.uint64(11)) * 2.0**-53


def read_image(path: Path, mode: str = "RGB") -> Any:
    """Decode an image file with Pillow, upright as its camera was held; one that cannot be read is named."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
        if image.mode == "F":
            raise ValueError("its floats have no known range; save it with 8 or 16 bits")
        if image.mode.startswith("I"):  # 16 bits, which `convert` would clip at 255
            image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
        return image.convert(mode)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and more on damaged files
        raise ValueError(f"{path} cannot be read as an image ({error}): remove or replace it") from error


def crop_image(image: Any, box: Box, size: int) -> np.ndarray:
    """Cut a window out of a Pillow image and scale it to `size`: uint8 pixels (size, size) or (size, size, channels)."""
    left, top, width, height, mirrored = box
    # Cut before it is scaled: `resize(box=...)` would mix in pixels from outside the window.
    pixels = np.asarray(image.crop((left, top, left + width, top + height)).resize((size, size), _BILINEAR))
    return pixels[:, ::-1] if mirrored else pixels


def shorter_side(size: int) -> int:
    """Return the shorter side to which an image is scaled before its middle is cut out: 256 for 224."""
    return round(size * 256 / 224)


def middle(image: Any, size: int, resize: int) -> np.ndarray:
    """Scale the shorter side of a Pillow image to `resize`, and cut out the middle: uint8 pixels (size, size, 3)."""
    short = min(image.size)
    width, height = (resize if side == short else int(resize * side / short) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), _BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))
