"""What one step is given for one tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from bayesprune.samplers.layout import DecayLayout
from bayesprune.samplers.noise import Key, counter_bits, round_bfloat16

KINDS = {"none": 0, "paper": 1, "rms": 2}
"""The preconditioners' numbers in the kernels."""


@dataclass
class TensorStep:
    """One tensor of one step: flat weight, gradient and state, its decay, its noise streams and hyper-parameters."""

    weight: Tensor
    gradient: Tensor
    momentum: Tensor
    scale: Tensor | None  # ρ of "paper", ν of "rms", None for "none"
    kinetic: Tensor  # a float32 number on the weight's device
    weight_decay: float | DecayLayout
    key: Key
    previous_key: Key | None  # None: no noise was injected before
    offset: int  # number of the first weight within the noise stream
    lr: float
    beta1: float
    beta2: float
    num_data: float
    preconditioner: Literal["paper", "rms", "none"]
    adapt: bool
    scale_decay: float
    damping: float
    dual_lr: float
    alpha: float
    noise_std: float  # at τ = 1
    exact: bool
    kinetic_factor: float  # N(1+β₁)/(2β₂): `kinetic` follows its product with the mean of τv² where w was not 0
    blend: float
    guard: bool = False  # whether what a gradient that is not finite would move stays, and is told
    stream: int = 0  # number of the parameter

    @property
    def adapts(self) -> bool:
        """Whether this step updates the scale."""
        return self.adapt and (self.preconditioner == "rms" or (self.preconditioner == "paper" and self.dual_lr != 0))

    @property
    def recalls(self) -> bool:
        """Whether this step needs the noise of the one before."""
        return self.preconditioner == "paper" and self.adapts and self.alpha != 0 and self.previous_key is not None

    def keep(self, start: int, momentum: Tensor, scale: Tensor | None) -> None:
        """Write state of lower precision back from weight `start` on, rounded stochastically; other state is there already."""
        pairs = [(self.momentum, momentum)] + ([] if self.scale is None or scale is None else [(self.scale, scale)])
        if any(old.dtype != new.dtype for old, new in pairs):
            bits = counter_bits(len(momentum), self.key, start=self.offset + start, device=momentum.device)
            for (old, new), random in zip(pairs if self.adapts else pairs[:1], bits):
                old[start : start + len(new)] = round_bfloat16(new.float(), random)
