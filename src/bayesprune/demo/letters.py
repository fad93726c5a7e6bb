"""Images of another distribution: letters, drawn and counted as scikit-learn's digits were."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LETTERS = "ACEFHKMNPRTUVWXY"
"""Capitals that nobody takes for a digit: without B, D, G, I, J, L, O, Q, S and Z."""
FONTS = (
    "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf", "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf",
    "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSerif-Italic.ttf", "STIXGeneral.ttf", "STIXGeneralBol.ttf",
    "cmr10.ttf", "cmss10.ttf",
)  # fmt: skip
"""Of those that come with Matplotlib."""
SIDE, BLOCK, DRAWN = 8, 4, 128


@cache
def letter_images(seed: int = 0) -> Tensor:
    """Return each letter in each font, turned and slanted by chance, as the digits are stored."""
    try:
        import matplotlib
        from PIL import ImageFont
    except ImportError as error:
        raise ImportError('the letters need Matplotlib and Pillow: pip install "bayesprune[train]"') from error
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    random = np.random.RandomState(seed)  # NumPy promises that its stream never changes
    images = []
    for name in FONTS:
        font = ImageFont.truetype(str(folder / name), DRAWN)
        for letter in LETTERS:
            angle, slant = random.uniform(-15, 15), random.uniform(-0.2, 0.2)
            images.append(_counted(_bitmap(letter, font, angle, slant)))
    return torch.from_numpy(np.stack(images)).unsqueeze(1)


def _bitmap(letter: str, font: Any, angle: float, slant: float) -> Any:
    """A letter, turned and slanted, cut to its bounds and scaled to fill 32 x 32 in height, or in width if it is wider."""
    from PIL import Image, ImageDraw

    middle = 2 * DRAWN
    canvas = Image.new("L", (2 * middle, 2 * middle))
    ImageDraw.Draw(canvas).text((middle, middle), letter, fill=255, font=font, anchor="mm")
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = (cosine, -sine, sine, cosine)
    a, b, c, d = turn[0], turn[0] * slant + turn[1], turn[2], turn[2] * slant + turn[3]
    shift = (middle - a * middle - b * middle, middle - c * middle - d * middle)
    moved = canvas.transform(
        canvas.size, Image.Transform.AFFINE, (a, b, shift[0], c, d, shift[1]), Image.Resampling.BILINEAR
    )
    cut = moved.crop(moved.getbbox())
    side = SIDE * BLOCK
    scale = side / max(cut.size)
    width, height = (max(1, round(scale * extent)) for extent in cut.size)
    whole = Image.new("L", (side, side))
    whole.paste(cut.resize((width, height), Image.Resampling.BILINEAR), ((side - width) // 2, (side - height) // 2))
    return whole


def _counted(bitmap: Any) -> Any:
    """The number of points that are set in each block."""
    points = np.asarray(bitmap) > 127
    return points.reshape(SIDE, BLOCK, SIDE, BLOCK).sum(axis=(1, 3)).astype(np.uint8)
