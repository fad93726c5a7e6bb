"""An interpreter of the few pickle opcodes that hold byte arrays, lists, integers and texts; nothing in it can be called.

The pickles of image data sets are a dict of lists and NumPy arrays. Python's own unpickler would build them by calling what
the file names; even with an allow-list, NumPy's own `__setstate__` trusts what it is given. Here a file can only say what
is data: an array is a shape, a dtype from a list of two, and as many bytes as they ask for. `pickletools` splits the file
into opcodes and their arguments, and does nothing with them.
"""

from __future__ import annotations

import math
import pickletools
from typing import Any

import numpy as np

LIMIT = 1 << 28
"""Bytes that a pickle may have: 256 MiB; CIFAR-100's training images take 155 MB."""
_MOST = 1 << 22  # values that it may build
_RECONSTRUCT = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
_FROM_BUFFER = {("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer")}
_NDARRAY, _DTYPE, _ENCODE = ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")
_KNOWN = {*_RECONSTRUCT, *_FROM_BUFFER, _NDARRAY, _DTYPE, _ENCODE}
_DTYPES = {"u1": np.uint8, "i8": np.int64}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_MARK = object()
_ONLY = "only arrays of uint8 or int64, integers, texts, bytes and containers of them are read"


class _Name(tuple[str, str]):
    """A function or class that the file names; a word, not the thing."""


class _Array:
    """An array that the file announces: empty, until its state comes."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None


class _Type(str):
    """A dtype by its name."""


def load_arrays(content: bytes) -> Any:
    """Read a pickle of dicts, lists, tuples, texts, bytes, integers, None, and arrays of uint8 or int64."""
    if len(content) > LIMIT:
        raise ValueError(f"the pickle has {len(content)} bytes, more than {LIMIT}")
    machine = _Machine(len(content))
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if number == _MOST:
            raise ValueError(f"the pickle has more than {_MOST} opcodes")
        if opcode.name != "STOP":
            machine.take(opcode.name, argument)
    if len(machine.stack) != 1:
        raise ValueError("the pickle ends with a stack of another size than 1")
    return _finished(machine.stack[0])


class _Machine:
    """The stack and the memo."""

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.left = size  # bytes that may be made of texts

    def take(self, opcode: str, argument: Any) -> None:
        match opcode:
            case "BINPUT" | "LONG_BINPUT":
                self.keep(argument)
            case name if name in _LITERALS:
                self.stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "MARK":
                self.stack.append(_MARK)
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "TUPLE":
                self.stack.append(tuple(self.marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self.pop() for _ in range(int(opcode[-1]))]
                self.stack.append(tuple(reversed(items)))
            case "APPEND":
                item = self.pop()
                self.top(list).append(item)
            case "APPENDS":
                items = self.marked()
                self.top(list).extend(items)
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.set_items([key, value])
            case "SETITEMS":
                self.set_items(self.marked())
            case "MEMOIZE":
                self.keep(len(self.memo))
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise ValueError("the pickle takes what it never kept")
                self.stack.append(self.memo[argument])
            case "GLOBAL":
                self.name(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                name, module = self.pop(), self.pop()
                self.name(module, name)
            case "REDUCE":
                self.reduce()
            case "BUILD":
                self.build()
            case "PROTO" | "FRAME":
                pass
            case _:
                raise ValueError(f"the file uses the opcode {opcode}; {_ONLY}")

    def encoded(self, text: str) -> bytes:
        """The bytes that a text stands for; a text that the file has once is not turned into bytes again and again."""
        self.left -= len(text)
        if self.left < 0:
            raise ValueError("the pickle makes more bytes of its texts than it has")
        return text.encode("latin1")

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("the pickle takes from an empty stack")
        return self.stack.pop()

    def marked(self) -> list[Any]:
        """What lies above the last mark."""
        place = next((i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i] is _MARK), None)
        if place is None:
            raise ValueError("the pickle has no mark where it needs one")
        found = self.stack[place + 1 :]
        del self.stack[place:]
        return found

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise ValueError(f"the pickle adds to what is no {kind.__name__}")
        return self.stack[-1]

    def keep(self, index: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("the pickle keeps what is not there")
        self.memo[index] = self.stack[-1]

    def name(self, module: Any, name: Any) -> None:
        if (module, name) not in _KNOWN:
            raise ValueError(f"the file asks for {module}.{name}; {_ONLY}")
        self.stack.append(_Name((module, name)))

    def set_items(self, pairs: list[Any]) -> None:
        if len(pairs) % 2 or not all(type(key) in (str, bytes, int) for key in pairs[::2]):
            raise ValueError("a key in the pickle is no text, bytes or integer")
        self.top(dict).update(zip(pairs[::2], pairs[1::2]))

    def reduce(self) -> None:
        arguments, called = self.pop(), self.pop()
        if type(called) is not _Name or type(arguments) is not tuple:
            raise ValueError("the pickle calls what is no function")
        if called in _RECONSTRUCT and arguments[:1] == (_NDARRAY,):
            self.stack.append(_Array())
        elif called == _DTYPE and arguments and arguments[0] in _DTYPES:
            self.stack.append(_Type(arguments[0]))
        elif called == _ENCODE and len(arguments) in (1, 2) and type(arguments[0]) is str:
            if arguments[1:] not in ((), ("latin1",)):
                raise ValueError(f"the file encodes bytes as {arguments[1]!r:.40}; only latin1 is read")
            self.stack.append(self.encoded(arguments[0]))
        elif called in _FROM_BUFFER and len(arguments) == 4:
            content, dtype, shape, order = arguments
            self.stack.append(_array(shape, dtype, order != "C", content))
        else:
            raise ValueError(f"the file calls {called[0]}.{called[1]} with other arguments than NumPy writes; {_ONLY}")

    def build(self) -> None:
        state = self.pop()
        if self.stack and type(self.stack[-1]) is _Type:
            if type(state) is not tuple or state[1:2] not in (("|",), ("<",)):
                raise ValueError("the file changes a dtype; only plain little-endian ones are read")
        elif self.stack and type(self.stack[-1]) is _Array and type(state) is tuple and len(state) == 5:
            _, shape, dtype, fortran, content = state
            # Python 2 wrote bytes as a str.
            content = self.encoded(content) if type(content) is str else content
            self.stack[-1].value = _array(shape, dtype, fortran, content)
        else:
            raise ValueError("the pickle gives a state to what takes none")


def _array(shape: Any, dtype: Any, fortran: Any, content: Any) -> np.ndarray:
    """The array of a pickled state."""
    sizes = type(shape) is tuple and all(type(size) is int and size >= 0 for size in shape)
    if not sizes or type(dtype) is not _Type or fortran not in (False, 0) or type(content) not in (bytes, bytearray):
        raise ValueError("the state of an array is not that of a plain one in row-major order")
    kind = np.dtype(_DTYPES[str(dtype)])
    if math.prod(shape) * kind.itemsize != len(content):
        raise ValueError(f"an array of {kind}{list(shape)} comes with {len(content)} bytes")
    return np.frombuffer(content, kind).reshape(shape)


def _finished(value: Any) -> Any:
    """The value with its arrays in place: those of a dict's own entries, where data sets have them."""
    if type(value) is _Array:
        if value.value is None:
            raise ValueError("an array in the pickle never gets its data")
        return value.value
    if type(value) is dict:
        return {key: _finished(item) if type(item) is _Array else item for key, item in value.items()}
    return value
