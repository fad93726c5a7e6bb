"""The main job in small: real handwritten digits, one network dense, one pruned and made small, every digit tested."""

from bayesprune.demo.demonstration import METHODS, run_demo

__all__ = ["run_demo", "METHODS"]
