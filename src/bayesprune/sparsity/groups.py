"""The groups of one weight tensor, or of one set of coupled channels, as one boolean mask.

A *group* is a set of weights that share one spike-and-slab indicator and are pruned together. :class:`Groups` holds all of
one kind in one place as one mask of the shape ``shape``: nothing of the size of the weights is stored per group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayesprune.graph.errors import CompactionError
from bayesprune.samplers.layout import whole

COMPILED = "_orig_mod."
Cut = Sequence[tuple[int, Tensor]]  # what is kept of a tensor: dimensions, and the places along each


def plain_name(name: str) -> str:
    """A parameter's or module's name in the model that ``torch.compile`` wrapped."""
    return (name + ".").removeprefix(COMPILED).removesuffix(".")


def taken(tensor: Tensor, cut: Cut) -> Tensor:
    """A copy of the places of a tensor that a cut keeps."""
    for dim, index in cut:
        tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor if cut else tensor.clone()


def _places(cut: Cut, axis: int) -> Tensor | None:
    return next((index for dim, index in cut if dim == axis), None)


@dataclass(frozen=True, eq=False)
class Slice:
    """One tensor seen through a group mask.

    Attributes:
        name: Name of the parameter in the model.
        param: The parameter.
        view: A shape of the parameter (axes split, never permuted) in which the groups lie along axes.
        mask_view: The mask's shape in that view, broadcastable to ``view``.
        split: The axis of the parameter that the view splits in two, if any.
        axis: Of channel groups, the axis of the parameter along which the channels lie.
        window: Of channel groups, (start, length) on that axis where only a part of it is theirs; ``view`` is of that part.

    Example:
        >>> Slice.along("rows", torch.arange(6.0).reshape(2, 3), 0, 2).mask_view
        (2, 1)
    """

    name: str
    param: Tensor
    view: tuple[int, ...]
    mask_view: tuple[int, ...]
    split: int | None = None
    axis: int = 0
    window: tuple[int, int] | None = None

    @classmethod
    def along(
        cls, name: str, param: Tensor, axis: int, count: int, each: int | None = None, start: int | None = None
    ) -> Slice:
        """``count`` groups of ``each`` neighbouring entries along one axis of a tensor.

        Args:
            name: Name of the parameter in the model.
            param: The parameter.
            axis: The axis.
            count: Number of groups.
            each: Entries of the axis in a group; None: the axis shared evenly.
            start: The first entry, where only a part of the axis is theirs.

        Example:
            >>> pairs = Slice.along("fc.weight", torch.ones(4, 3), 0, count=2)
            >>> pairs.broadcast(torch.tensor([True, False])).flatten().tolist()
            [True, True, False, False]
        """
        shape, each = tuple(param.shape), param.shape[axis] // count if each is None else each
        pair, mask = ((count,), (count,)) if each == 1 else ((count, each), (count, 1))
        view = (*shape[:axis], *pair, *shape[axis + 1 :])
        mask_view = (*[1] * axis, *mask, *[1] * (len(shape) - axis - 1))
        window = None if start is None else (start, count * each)
        return cls(name, param, view, mask_view, None if each == 1 else axis, axis, window)

    @property
    def length(self) -> int:
        """Number of the parameter's entries along ``axis`` that the groups own together."""
        return int(self.param.shape[self.axis]) if self.window is None else self.window[1]

    @property
    def per_group(self) -> int:
        """Number of this tensor's weights in one group."""
        return math.prod(v for v, m in zip(self.view, self.mask_view) if m == 1)

    @property
    def reduced(self) -> tuple[int, ...]:
        """The axes of ``view`` over which a group extends."""
        return tuple(axis for axis, m in enumerate(self.mask_view) if m == 1)

    def viewed(self, tensor: Tensor) -> Tensor:
        """``tensor`` (of the parameter's shape), or the window's part of it, in the shape ``view``."""
        if self.window is not None:
            tensor = tensor.narrow(self.axis, *self.window)
        return tensor if tensor.shape == self.view else tensor.reshape(self.view)

    def sums(self, tensor: Tensor, square: bool = False) -> Tensor:
        """Sum of ``tensor`` (of the parameter's shape), or of its squares, over each group, in the shape ``mask_view``."""
        values = self.viewed(tensor)
        values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
        values = values.square() if square else values
        return values.sum(self.reduced, keepdim=True) if self.reduced else values

    def broadcast(self, mask: Tensor) -> Tensor:
        """A group mask as a small tensor that broadcasts to the parameter: entries are repeated only where a group occupies
        a part of an axis (grouped convolutions, flattened maps), and True outside the window.
        """
        mask = mask.reshape(self.mask_view)
        if self.split is not None:
            at = self.split
            before, pair, after = self.mask_view[:at], self.view[at : at + 2], self.mask_view[at + 2 :]
            mask = mask.expand(*before, *pair, *after).reshape(*before, math.prod(pair), *after)
        if self.window is None:
            return mask
        shape = list(mask.shape)
        shape[self.axis] = int(self.param.shape[self.axis])
        whole = mask.new_ones(shape)
        whole.narrow(self.axis, *self.window).copy_(mask)
        return whole

    def left(self, cut: Cut, count: int) -> Tensor:
        """Which of ``count`` groups along ``axis`` a cut of the tensor leaves."""
        index = _places(cut, self.axis)
        if index is None:
            return torch.arange(count)
        start, length = self.window or (0, self.length)
        own = index[(index >= start) & (index < start + length)] - start
        return torch.unique(own // (length // count))

    def shrunk(self, param: Tensor, cut: Cut, old: int, new: int) -> Slice:
        """The slice of what a cut leaves of the tensor, of ``new`` groups instead of ``old``."""
        start, left = None if self.window is None else self.window[0], _places(cut, self.axis)
        if start is not None and left is not None:
            start = int((left < start).sum())
        return Slice.along(plain_name(self.name), param, self.axis, new, self.length // old, start)


class Groups:
    """All groups of one kind in one place: one mask, and the tensors that it covers.

    Attributes:
        name: Name of the (first) weight; the key of these groups' masks everywhere.
        kind: One of ``KINDS``, or the name of a kind of your own.
        shape: Shape of the mask, one entry per group.
        slices: The weights that the groups consist of and that their statistics are computed from.
        tied: Tensors zeroed with a group without counting in its statistic (biases, normalisation scale and shift).
        norms: Running means, as slices, with the normalisation modules whose statistics are reset to (0, 1) with a group.
        size: Number n of weights in one group.
        trained_size: The n of its statistic: in a compact model, what was removed counts as the zeros it was.
        count: Number of groups.

    Example:
        >>> weight = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        >>> rows = Groups("weight", "output", (2,), [Slice.along("weight", weight, 0, 2)])
        >>> rows.count, rows.size, rows.sums(torch.square).tolist()
        (2, 2, [25.0, 1.0])
    """

    def __init__(
        self,
        name: str,
        kind: str,
        shape: Sequence[int],
        slices: Sequence[Slice],
        tied: Sequence[Slice] = (),
        norms: Sequence[tuple[Slice, nn.Module]] = (),
    ) -> None:
        self.name = name
        self.kind = kind
        self.shape = torch.Size(shape)
        self.slices = tuple(slices)
        self.tied = tuple(tied)
        self.norms = tuple(norms)
        self.count = self.shape.numel()
        doubled = sum(diagonal.shape[0] for diagonal in self._diagonals())
        self.size = self.trained_size = sum(part.per_group for part in self.slices) - doubled

    @property
    def device(self) -> torch.device:
        """Where the weights, and so the masks, live."""
        return self.slices[0].param.device

    def sum_squares(self) -> Tensor:
        """Σ w² over each group of the present weights, in the mask's shape; each weight counts once."""
        parts = [part.sums(whole(part.param.detach()), square=True).reshape(self.shape) for part in self.slices]
        total = sum(parts[1:], parts[0])
        for diagonal in self._diagonals():
            total = total - diagonal.square().sum(0).reshape(self.shape)
        return total

    def _diagonals(self) -> Iterable[Tensor]:
        """Per weight that several slices cover, what they have in common, as ``(entries, groups)``."""
        return ()

    def mean_square(self) -> Tensor:
        """Σ w²/n over each group of the present weights, in the mask's shape."""
        return self.sum_squares() / self.trained_size

    @torch.no_grad()
    def sums(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """Sum over each group of what a function makes of every weight, in the mask's shape: a criterion's building block.

        Args:
            value: From a parameter to a tensor of its shape.

        Returns:
            One value a group; a weight that two tensors' views of a channel share counts in both.

        Example:
            >>> groups = TensorGroups("fc.weight", torch.tensor([[1.0, -2.0], [3.0, 4.0]]), "output")
            >>> groups.sums(torch.abs)
            tensor([[3.],
                    [7.]])
        """
        parts = [part.sums(whole(value(part.param))).reshape(self.shape) for part in self.slices]
        return torch.stack(parts).sum(0)

    def all_kept(self) -> Tensor:
        """A fresh mask that keeps every group."""
        return torch.ones(self.shape, dtype=torch.bool, device=self.device)

    def cut(self, model: nn.Module, cuts: Mapping[str, Cut]) -> tuple[Groups, Cut] | None:
        """What a compact model leaves of these groups.

        Args:
            model: The compact model.
            cuts: What is kept of each of its tensors, by name.

        Returns:
            The groups on its tensors and what is kept of their mask; None if nothing is left.

        Raises:
            CompactionError: ``pruner-groups``: the tensors of one group were cut differently.
        """
        every = (model.named_parameters, model.named_buffers)
        tensors = {name: tensor for named in every for name, tensor in named(remove_duplicate=False)}
        index: Tensor | None = torch.arange(1) if self.count == 1 else None
        for part in [*self.slices, *self.tied]:
            name = plain_name(part.name)
            if name not in tensors or self.count == 1:
                continue
            found = part.left(cuts.get(name, []), self.count)
            if len(self.shape) != 1 or (index is not None and not torch.equal(found, index)):
                raise CompactionError(
                    "pruner-groups",
                    f"the channels of group {self.name!r} were cut differently in {part.name!r}; use coupling='intersection' "
                    "with groups='channel', or compact without the pruner",
                )
            index = found
        if index is None:
            return None

        def shrunk(parts: Sequence[Slice]) -> list[Slice]:
            return [
                part.shrunk(tensors[name], cuts.get(name, []), self.count, len(index))
                for part in parts
                if (name := plain_name(part.name)) in tensors
            ]

        slices = shrunk(self.slices)
        if not slices:
            return None
        norms = [
            (part, model.get_submodule(part.name.rpartition(".")[0])) for part in shrunk([p for p, _ in self.norms])
        ]
        made = type(self)(plain_name(self.name), self.kind, (len(index),), slices, shrunk(self.tied), norms)
        made.trained_size = self.trained_size
        return made, [(0, index)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.kind!r}, count={self.count}, size={self.size})"


class TensorGroups(Groups):
    """The groups of one prunable weight tensor.

    For a weight of shape ``(O, I, *k)`` the mask has the shape ``(O, I, *k)`` for ``kind="weight"``, ``(O, I, 1, …)``
    for ``"kernel"``, ``(1, I, 1, …)`` for ``"input"`` and ``(O, 1, 1, …)`` for ``"output"``: it broadcasts to the
    weight. In a convolution with G > 1 channel groups the weight is ``(O, I/G, *k)`` and an input channel is read by
    the O/G outputs of its own channel group only, so that the ``"input"`` mask is ``(G, 1, I/G, 1, …)``, over the
    weight seen as ``(G, O/G, I/G, *k)``; :meth:`broadcast` brings it to ``(O, I/G, 1, …)``.

    Args:
        name: Name of the weight in the model.
        param: The weight.
        kind: ``"weight"``, ``"kernel"``, ``"input"`` or ``"output"``.
        conv_groups: Number G of channel groups of the convolution.

    Raises:
        ValueError: If the kind is not one of these four.

    Example:
        >>> weight = torch.ones(4, 3, 2, 2)
        >>> groups = TensorGroups("conv.weight", weight, "kernel")
        >>> tuple(groups.shape), groups.size, groups.count
        ((4, 3, 1, 1), 4, 12)
        >>> grouped = TensorGroups("conv.weight", weight, "input", conv_groups=2)
        >>> tuple(grouped.shape), grouped.size
        ((2, 1, 3, 1, 1), 8)
        >>> tuple(grouped.broadcast(grouped.all_kept()).shape)
        (4, 3, 1, 1)
    """

    def __init__(self, name: str, param: Tensor, kind: str, conv_groups: int = 1) -> None:
        out, per_out, *kernel = param.shape
        ones = [1] * len(kernel)
        view: tuple[int, ...] = tuple(param.shape)
        masks = {
            "weight": view, "kernel": (out, per_out, *ones), "output": (out, 1, *ones), "input": (1, per_out, *ones)
        }  # fmt: skip
        if kind not in masks:
            raise ValueError(f"kind={kind!r} is not a kind of one tensor; use 'weight', 'kernel', 'input' or 'output'")
        mask = masks[kind]
        if kind == "input" and conv_groups > 1:
            view, mask = (conv_groups, out // conv_groups, per_out, *kernel), (conv_groups, 1, per_out, *ones)
        split = None if len(view) == param.dim() else 0
        super().__init__(name, kind, mask, [Slice(name, param, view, mask, split)])
        self.param = param
        self.conv_groups = conv_groups

    def broadcast(self, mask: Tensor) -> Tensor:
        """The mask as a tensor that broadcasts to the weight (only for ``"input"`` of grouped convolutions another)."""
        return self.slices[0].broadcast(mask)

    def regroup(self, kind: str) -> TensorGroups:
        """The same weight cut another way."""
        return TensorGroups(self.name, self.param, kind, self.conv_groups)

    def cut(self, model: nn.Module, cuts: Mapping[str, Cut]) -> tuple[Groups, Cut] | None:
        """What a compact model leaves of these groups; see :meth:`Groups.cut`."""
        name = plain_name(self.name)
        param = dict(model.named_parameters(remove_duplicate=False)).get(name)
        if param is None:
            return None
        cut, conv = cuts.get(name, []), self.conv_groups
        rows, mask_cut = _places(cut, 0), [(dim, index) for dim, index in cut if self.shape[dim] != 1]
        if conv > 1 and rows is not None:
            left = torch.unique(rows // (self.param.shape[0] // conv))
            conv = len(left)
        if len(self.shape) != self.param.dim():  # (G, 1, I/G, …) of a grouped convolution: whole channel groups went
            mask_cut = [] if rows is None else [(0, left)]
        made = TensorGroups(name, param, self.kind, conv)
        made.trained_size = self.trained_size
        return made, mask_cut


class ChannelGroups(Groups):
    """The groups of one set of coupled channels: channel c of every tensor that it touches is one group.

    ``slices`` are the rows that write the channel and (with ``coupling="group"``) the columns that read it; ``tied``
    the biases and BatchNorm pairs. A statistic is over the slices only: a BatchNorm scale near 1 would drown weights
    near 0.01.

    Example:
        >>> from bayesprune.sparsity import partition
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> partition(model, "channel", example_input=torch.zeros(2, 3))[0].tied[0].name
        '0.bias'
    """

    def _diagonals(self) -> Iterator[Tensor]:
        """Per weight that appears twice (as row and as column), its entries ``w[c, c]`` as ``(entries, C)``."""
        seen: dict[int, list[Slice]] = {}
        for part in self.slices:
            others = seen.setdefault(id(part.param), [])
            for other in others:
                if other.axis != part.axis:
                    yield self._diagonal(other, part)
            others.append(part)

    def _diagonal(self, other: Slice, part: Slice) -> Tensor:
        square = whole(part.param.detach())
        for each in (other, part):
            square = square if each.window is None else square.narrow(each.axis, *each.window)
        blocks = square.reshape(self.count, -1, self.count, square.shape[1] // self.count, *square.shape[2:])
        diagonal = torch.diagonal(blocks, dim1=0, dim2=2)
        half = diagonal.dtype in (torch.float16, torch.bfloat16)
        return (diagonal.float() if half else diagonal).reshape(-1, self.count)
