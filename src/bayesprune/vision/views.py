"""Views of a test image, whose outputs are averaged (test-time augmentation)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

View = Callable[[Tensor], Tensor]


def identity(images: Tensor) -> Tensor:
    """Return the images as they are."""
    return images


def mirror(images: Tensor) -> Tensor:
    """Return the images mirrored left and right."""
    return images.flip(-1)


def shift(images: Tensor, rows: int, columns: int) -> Tensor:
    """Return floating-point images moved down by `rows` and right by `columns` pixels, the gap filled by reflection."""
    height, width = images.shape[2:]
    far = max(abs(rows), abs(columns))
    padded = functional.pad(images, (far, far, far, far), mode="reflect")
    return padded[:, :, far - rows : far - rows + height, far - columns : far - columns + width]


def views(kind: str) -> list[View]:
    """Return the views of a kind: of "mirror" 2, of "crops" 6, of "none" 1.

    Args:
        kind: "none" (the image), "mirror" (and its mirror image) or "crops" (both, and both moved by a pixel up left and
            down right).

    Raises:
        ValueError: An unknown kind.

    Example:
        >>> len(views("crops"))
        6
    """
    if kind == "none":
        return [identity]
    if kind == "mirror":
        return [identity, mirror]
    if kind != "crops":
        raise ValueError(f"kind={kind!r}: use 'none', 'mirror' or 'crops'")
    moved: list[View] = [lambda images, by=by: shift(images, by, by) for by in (-1, 1)]  # type: ignore[misc]
    return [identity, mirror, *moved, *(lambda images, view=view: mirror(view(images)) for view in moved)]  # type: ignore[misc]
