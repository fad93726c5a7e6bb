"""The recipes of the paper's tables and of their twins for CPUs; importing them adds them to `bayesprune.train`'s."""

from paper.recipes import images, twins  # noqa: F401 - they register
