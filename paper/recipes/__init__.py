"""The recipes of the paper's tables; importing them adds them to `bayesprune.train`'s."""

from paper.recipes import images  # noqa: F401 - it registers
