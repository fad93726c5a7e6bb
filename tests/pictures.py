"""A small folder of real photographs: windows of scikit-learn's two, one class each."""

from __future__ import annotations

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def write_pictures(root, train=20, val=6, suffix=".jpg"):
    """Write root/train and root/val with `train` and `val` images a class, of several sizes; return root."""
    random = np.random.RandomState(0)
    for name, pixels in zip(("china", "flower"), load_sample_images().images):
        for split, count in (("train", train), ("val", val)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = random.randint(40, 90, 2)
                top, left = random.randint(pixels.shape[0] - height), random.randint(pixels.shape[1] - width)
                window = pixels[top : top + height, left : left + width]
                Image.fromarray(window).save(folder / f"{i:03d}{suffix}", quality=90)
    return root
