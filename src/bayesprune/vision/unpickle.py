"""Read pickles that hold arrays, numbers, strings and containers, and nothing that can run code."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np


def _encode(text: str, encoding: str = "latin1") -> bytes:
    # How protocols 0 to 2 write bytes; any other codec is not needed.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the file encodes bytes as {encoding!r}; only latin1 is read")
    return text.encode("latin1")


# The functions themselves are taken from a reduced array or number, because their modules moved between NumPy 1 and 2.
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = np.zeros(1).__reduce__()[0]  # type: ignore[assignment]
    _ALLOWED[f"{_core}.multiarray", "scalar"] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = np.zeros(1).__reduce_ex__(5)[0]  # type: ignore[assignment]


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"the file asks for {module}.{name}; only NumPy arrays, numbers, strings and containers are read"
            ) from None


def load_arrays(file: BinaryIO) -> Any:
    """Read a pickle of NumPy arrays, numbers, strings, lists, tuples and dicts.

    Files of Python 2 and 3 and of all protocols are read; Python 2 strings are decoded as latin1.

    Args:
        file: A file opened for reading bytes.

    Returns:
        The object.

    Raises:
        pickle.UnpicklingError: The file asks for any other class or function, or is no pickle.

    Example:
        >>> import io
        >>> load_arrays(io.BytesIO(pickle.dumps({"labels": [1, 2]})))
        {'labels': [1, 2]}
    """
    return _ArrayUnpickler(file, encoding="latin1").load()
