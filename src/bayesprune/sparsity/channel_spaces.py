"""Sets of channels that exist or vanish together, and everything that touches them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """Where the channels of a set lie in one tensor: ``each`` neighbouring entries a group, from ``start`` on.

    Attributes:
        module: The module.
        tensor: The tensor's name in the module; in the model for one outside a layer.
        axis: The axis of the tensor along which the channels lie.
        start: The first entry that is theirs; None if all entries are.
        each: Number of entries of one group.
        role: ``"row"``, ``"column"``, ``"grouped"`` (a grouped convolution's rows, which read too), ``"tied"`` (zeroed
            with the group).
    """

    module: str
    tensor: str
    axis: int
    start: int | None
    each: int
    role: str

    @property
    def name(self) -> str:
        """The tensor's name in the model."""
        return f"{self.module}.{self.tensor}" if self.module else self.tensor


@dataclass(eq=False)
class ChannelSpace:
    """A set of channels that exist or vanish together, and everything that touches them.

    Attributes:
        channels: Their number C.
        writers: Convolution and linear modules whose row c writes channel c.
        readers: Modules whose columns of channel c read it, with the number of columns a channel (more than one after a
            flatten).
        depthwise: Grouped convolutions: their rows of a group read and write its channels.
        norms: BatchNorm and GroupNorm modules on the channels.
        starts: Of readers and norms on a concatenation, the first column (entry) that belongs to this set.
        block: Number of neighbouring channels that can only vanish together: whole groups of a GroupNorm or of a grouped
            convolution, whole heads.
        pinned: Why the channels cannot be removed (``None`` if they can).
        joined: Whether several layers write them, or one twice.
        loud: Readers that see something else than zero where the channel's own weights are zero (behind a sigmoid):
            without their columns zeroed too the channel cannot go.
        parts: All tensors of the set.
    """

    channels: int
    writers: list[str] = field(default_factory=list)
    readers: list[tuple[str, int]] = field(default_factory=list)
    depthwise: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)
    block: int = 1
    pinned: str | None = None
    joined: bool = False
    loud: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    def pin(self, reason: str) -> None:
        """Keep the channels, for the first reason given."""
        self.pinned = self.pinned or reason
