"""Simulated designs for variable selection, with known true inputs and known noise floors."""

from paper.designs.dataset import Drawing, SimulatedData, simulate
from paper.designs.examples import design, designs, example1, example2, example3, small_n
from paper.designs.inputs import block_correlated, equicorrelated, truncated_normal
from paper.designs.responses import example1_response, example2_response, example3_response, repeated_response
from paper.designs.variants import b1, c1, d1, k1, n0

__all__ = [
    "SimulatedData",
    "Drawing",
    "design",
    "designs",
    "example1",
    "example2",
    "example3",
    "small_n",
    "n0",
    "k1",
    "c1",
    "b1",
    "d1",
    "simulate",
    "truncated_normal",
    "equicorrelated",
    "block_correlated",
    "example1_response",
    "example2_response",
    "example3_response",
    "repeated_response",
]
