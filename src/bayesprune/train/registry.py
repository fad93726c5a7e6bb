"""The training methods: one row a method, with everything that the configuration, the loop and the command line need of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bayesprune.train.values import nearest

_METHODS: dict[str, Method] = {}


def _known() -> dict[str, Method]:
    """The rows by name; those of this package register themselves when they are first asked for."""
    importlib.import_module("bayesprune.train.methods")
    return _METHODS


@dataclass(frozen=True)
class Method:
    """A row of the registry: how weights move, what is pruned, what the loop does besides, and which keys count.

    Args:
        name: Value of the key `method`.
        text: The method in words, as lists and recipes print it.
        optimizer: (config, parameters or groups of them, number of training examples) → a torch optimizer.
        keys: Keys of the sections sampler, schedule, pruning and baseline that change something; setting any other from the
            command line is refused. `method` itself is always one.
        pruner: (config, model, optimizer, total_steps, example input) → what prunes, attached to the optimizer; it has
            `state_dict`, `load_state_dict`, `finish_`, `hard_sparsity`, `soft_sparsity` and `target_now`, as every
            `MaskHolder` does, and `detach` where it hangs on the optimizer. None prunes nothing.
        procedure: Subclass of `bayesprune.train.procedures.Procedure`: step size, loss, samples; None is the plain one.
        ramped: Dense at first: samples wait until the target sparsity is reached, at `prune_until`.
        check: Called with a configuration of this method; raises ValueError for one that cannot be.
        options: Frozen dataclass of the method's own keys, with defaults; they are set like any other ("alpha=0.3"), and
            `config.options` holds them.

    Raises:
        ValueError: An option that has the name of a key of its own.

    Example:
        >>> row = method("cvadam")
        >>> row.ramped, "temperature" in row.keys
        (False, True)
    """

    name: str
    text: str
    optimizer: Callable[[Any, Any, int], Any]
    keys: frozenset[str]
    pruner: Callable[[Any, Any, Any, int, Any], Any] | None = None
    procedure: Any = None
    ramped: bool = False
    check: Callable[[Any], None] | None = None
    options: Any = None

    def uses(self, section: str, key: str) -> bool:
        """Return whether a key of a section changes anything under this method.

        Args:
            section: Section of the configuration.
            key: Name of the key, without its section.
        """
        if section not in ("sampler", "schedule", "pruning", "baseline"):
            return True
        return key == "method" or key in self.keys


def register_method(row: Method) -> Method:
    """Add a training method; from then on `method=NAME` is a valid setting of any run of this process.

    Args:
        row: The method. One of the same name is replaced, so that a file can be read twice.

    Returns:
        The row.

    Example:
        >>> import dataclasses
        >>> _ = register_method(dataclasses.replace(method("sgd"), name="doctest-sgd"))
        >>> "doctest-sgd" in methods()
        True
        >>> forget_method("doctest-sgd")
    """
    _METHODS[row.name] = row
    return row


def forget_method(name: str) -> None:
    """Take a method off the registry, as a test does that added one."""
    _METHODS.pop(name, None)


def methods() -> dict[str, Method]:
    """Return every method by name, in the order of registration."""
    return dict(_known())


def method(name: str) -> Method:
    """Return a method's row."""
    if name not in _known():
        raise ValueError(
            f"method={name!r}: {nearest(name, _METHODS)} A method of your own is known once the file that registers it "
            "has been imported."
        )
    return _METHODS[name]


def sparse_baselines() -> tuple[str, ...]:
    """Return the sparse-training baselines: those whose authors' dense layers are known (`dense_layers=published`)."""
    return tuple(name for name, row in _known().items() if "dense_layers" in row.keys)
