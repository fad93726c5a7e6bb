"""Sparse storage: masks at one bit a weight, and of each tensor only the values that are not zero.

This saves disk and nothing else: a dense kernel multiplies zeros as slowly as other numbers, and torch has no sparse one
for convolutions. `bayesprune.deploy.unstructured_report` measures it. A zero is a value without a bit set: pruners that
multiply by a mask leave −0.0, which is stored like any other value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

BITS, VALUES = "bits", "values"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a boolean mask into bytes, eight entries each, the first in the lowest bit.

    Args:
        mask: a boolean tensor of any shape; True = keep.

    Returns:
        (⌈n/8⌉,) uint8 on the CPU; the last byte is filled up with zeros.

    Raises:
        ValueError: if the mask is not boolean.

    Example:
        >>> pack_mask(torch.tensor([[True, False, True], [True, False, False]]))
        tensor([13], dtype=torch.uint8)
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: dtype {mask.dtype}; give a boolean tensor, such as weight != 0")
    return torch.from_numpy(np.packbits(mask.detach().cpu().contiguous().view(-1).numpy(), bitorder="little"))


def unpack_mask(bits: Tensor, shape: Iterable[int]) -> Tensor:
    """The inverse of `pack_mask`: the boolean mask, on the CPU.

    Args:
        bits: the packed bytes.
        shape: the shape of the mask.

    Returns:
        The boolean mask on the CPU.

    Raises:
        ValueError: if there are more or fewer bytes than the shape needs.

    Example:
        >>> unpack_mask(torch.tensor([13], dtype=torch.uint8), (2, 3))
        tensor([[ True, False,  True],
                [ True, False, False]])
    """
    size = torch.Size(shape)
    if bits.dtype != torch.uint8 or bits.numel() != (size.numel() + 7) // 8:
        raise ValueError(
            f"bits: {bits.dtype}[{bits.numel()}] for shape {list(size)}; expected uint8[{(size.numel() + 7) // 8}]"
        )
    unpacked = np.unpackbits(bits.cpu().contiguous().numpy(), count=size.numel(), bitorder="little")
    return torch.from_numpy(unpacked.view(np.bool_)).view(size)


def nonzero(tensor: Tensor) -> Tensor:
    """Where a tensor has a bit set: −0.0 and NaN count, so that what is left out comes back bit for bit."""
    value = tensor.detach().cpu().contiguous()
    return value if value.dtype == torch.bool else value.view(_INTEGERS[value.element_size()]) != 0


def common_mask(tensors: Iterable[Tensor]) -> Tensor:
    """Where any of several tensors of one shape is not zero: the mask, on the CPU, under which all of them can be stored.

    Args:
        tensors: at least one.

    Returns:
        A boolean mask on the CPU.

    Raises:
        ValueError: if there is none.

    Example:
        >>> common_mask([torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 2.0])])
        tensor([False,  True,  True])
    """
    mask: Tensor | None = None
    for tensor in tensors:
        mask = nonzero(tensor).clone() if mask is None else mask.logical_or_(nonzero(tensor))
    if mask is None:
        raise ValueError("tensors: none given")
    return mask


def pack_masks(state: Mapping[str, Tensor], extra: Iterable[Mapping[str, Tensor]] = ()) -> dict[str, Tensor]:
    """Packed masks, by name, of the tensors of a state dict that are smaller on disk without their zeros.

    With n entries of b bytes, k of them stored, a tensor takes b·k + n/8 bytes instead of b·n. The n/8 are shared by all
    state dicts stored under the mask; one that alone carries them is the worst case, and the one decided by.

    Args:
        state: a state dict.
        extra: further state dicts of the same architecture to be stored under the same masks.

    Returns:
        Packed bits by tensor name, for those worth it.

    Example:
        >>> state = {"weight": torch.eye(16), "bias": torch.ones(16)}
        >>> {name: bits.numel() for name, bits in pack_masks(state).items()}
        {'weight': 32}
    """
    packed, states = {}, [state, *extra]
    for name in state:
        mask = common_mask(each[name] for each in states)
        stored = int(mask.sum()) * state[name].element_size() + (mask.numel() + 7) // 8
        if stored < mask.numel() * state[name].element_size():
            packed[name] = pack_mask(mask)
    return packed


def pack_state(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as it is stored under packed masks: the values where the mask is set, in order.

    Args:
        state: the state dict.
        masks: packed bits by tensor name, as `pack_masks` gives them; tensors without any are stored whole.

    Returns:
        The tensors to store, on the CPU: "name" whole, or "name.values" flat.

    Raises:
        ValueError: if a tensor has a value outside its mask (it is named).

    Example:
        >>> state = {"weight": torch.eye(16)}
        >>> pack_state(state, pack_masks(state))["weight.values"].shape
        torch.Size([16])
    """
    stored = {}
    for name, tensor in state.items():
        value = tensor.detach().cpu().contiguous()
        if name not in masks:
            stored[name] = value
            continue
        mask = unpack_mask(masks[name], value.shape)
        if bool((nonzero(value) & ~mask).any()):
            raise ValueError(f"state: {name!r} is not zero everywhere outside its mask; make masks that include it")
        stored[f"{name}.{VALUES}"] = value[mask]
    return stored


def unpack_state(
    stored: Mapping[str, Tensor], masks: Mapping[str, Tensor], shapes: Mapping[str, Iterable[int]]
) -> dict[str, Tensor]:
    """The state dict that `pack_state` stored, bit for bit.

    Args:
        stored: what `pack_state` gave.
        masks: the packed masks it was given.
        shapes: the shapes of the tensors by name.

    Returns:
        The state dict.

    Raises:
        ValueError: if a tensor is missing, or its values do not fit its mask.

    Example:
        >>> state = {"weight": torch.eye(16)}
        >>> masks = pack_masks(state)
        >>> torch.equal(unpack_state(pack_state(state, masks), masks, {"weight": (16, 16)})["weight"], state["weight"])
        True
    """
    state = {}
    for name, shape in shapes.items():
        key = f"{name}.{VALUES}" if name in masks else name
        if key not in stored:
            raise ValueError(f"stored: tensor {key!r} is missing")
        if name not in masks:
            state[name] = stored[key]
            continue
        mask, values = unpack_mask(masks[name], shape), stored[key]
        if int(mask.sum()) != values.numel():
            raise ValueError(f"stored: {key!r} holds {values.numel()} values, its mask keeps {int(mask.sum())}")
        whole = torch.zeros(mask.shape, dtype=values.dtype)
        whole[mask] = values
        state[name] = whole
    return state
