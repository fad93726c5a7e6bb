"""How a pruner hangs on an optimizer: step hooks, and masks that travel with the optimizer's state."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

CARRIED = "bayesprune_pruners"  # beside "state" and "param_groups", where torch casts nothing: masks stay boolean


class Holder(Protocol):
    """What holds masks on an optimizer."""

    def _pre_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any: ...

    def _post_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it over."""
        ...

    @property
    def keep_masks(self) -> dict[str, Tensor]:
        """The masks by name."""
        ...


def unwrapped(optimizer: Any) -> Optimizer:
    """The torch optimizer inside wrappers that hold it as ``.optimizer`` (accelerate's, Fabric's).

    Args:
        optimizer: An optimizer, wrapped or not.

    Returns:
        The innermost optimizer, whose hooks run whoever calls it.

    Raises:
        TypeError: If there is none.

    Example:
        >>> import torch
        >>> plain = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        >>> unwrapped(plain) is plain
        True
    """
    inner = getattr(optimizer, "optimizer", None)
    while inner is not None and inner is not optimizer and hasattr(inner, "param_groups"):
        optimizer, inner = inner, getattr(inner, "optimizer", None)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer={type(optimizer).__name__} is no torch.optim.Optimizer and holds none as .optimizer; give the torch "
            "optimizer"
        )
    return optimizer


def link(holder: Holder, optimizer: Optimizer) -> list[Any]:
    """Register a mask holder's hooks on an optimizer.

    The optimizer's ``state_dict()`` carries the holder's from now on, under ``CARRIED``, and its ``load_state_dict``
    hands it back; a state without it is named in a warning.

    Args:
        holder: A pruner.
        optimizer: The optimizer.

    Returns:
        The hooks' handles.
    """
    arrived: list[dict[str, Any]] = []

    def give(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        state_dict.setdefault(CARRIED, []).append({"holder": type(holder).__name__, **holder.state_dict()})

    def look(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        arrived[:] = state_dict.get(CARRIED, [])

    def take(optimizer: Optimizer) -> None:
        states = [state for state in arrived if state["holder"] == type(holder).__name__]
        own = [state for state in states if set(state["keep"]) == set(holder.keep_masks)]
        if states:  # of other tensors: the holder's own check names the difference
            holder.load_state_dict({key: value for key, value in (own or states)[0].items() if key != "holder"})
        else:
            other = f" (it carries those of {arrived[0]['holder']})" if arrived else ""
            warnings.warn(
                f"the loaded optimizer state carries no masks of the attached {type(holder).__name__}{other}: its masks and "
                "its step stay as they are. If the run was pruned, load them too: pruner.load_state_dict(...), of what "
                "pruner.state_dict() returned when the run was saved",
                stacklevel=4,
            )
        arrived.clear()

    return [
        optimizer.register_step_pre_hook(holder._pre_step),
        optimizer.register_step_post_hook(holder._post_step),
        optimizer.register_state_dict_post_hook(give),  # type: ignore[arg-type]
        optimizer.register_load_state_dict_pre_hook(look),  # type: ignore[arg-type]
        optimizer.register_load_state_dict_post_hook(take),
    ]
