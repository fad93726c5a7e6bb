"""An interpreter of the few pickle opcodes that hold byte arrays, lists, integers and texts; nothing in it can be called.

The pickles of image data sets are a dict of lists and NumPy arrays. Python's own unpickler would build them by calling what
the file names; even with an allow-list, NumPy's own `__setstate__` trusts what it is given. Here a file can only say what
is data: an array is a shape, a dtype from a list of two, and as many bytes as they ask for.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
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
_MARK = object()


class _Name(tuple[str, str]):
    """A function or class that the file names; a word, not the thing."""


class _Array:
    """An array that the file announces: empty, until its state comes."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None


class _Type(str):
    """A dtype by its name."""


def load_arrays(content: bytes, *, limit: int = LIMIT) -> Any:
    """Read a pickle of dicts, lists, tuples, texts, bytes, integers, None, and arrays of uint8 or int64."""
    if len(content) > limit:
        raise ValueError(f"the pickle has {len(content)} bytes, more than limit={limit}")
    return _finished(_Machine(content).run())


class _Machine:
    """The stack, the memo and the place in the file."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.left = len(content)  # bytes that may be made of texts

    def run(self) -> Any:
        for _ in range(_MOST):
            code = self.take(1)[0]
            if code == ord("."):
                if len(self.stack) != 1:
                    raise ValueError("the pickle ends with a stack of another size than 1")
                return self.stack[0]
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise ValueError(f"the file uses the opcode {chr(code)!r}; {_ONLY}")
            operation(self)
        raise ValueError(f"the pickle has more than {_MOST} opcodes")

    def take(self, count: int) -> bytes:
        piece = self.content[self.at : self.at + count]
        if len(piece) != count:
            raise ValueError("the pickle ends in the middle")
        self.at += count
        return piece

    def number(self, form: str) -> int:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def line(self) -> str:
        end = self.content.find(b"\n", self.at, self.at + 200)
        if end < 0:
            raise ValueError("a name in the pickle does not end")
        return self.take(end + 1 - self.at)[:-1].decode("ascii")

    def encoded(self, text: str) -> bytes:
        """The bytes that a text stands for; a text that the file has once is not turned into bytes again and again."""
        self.left -= len(text)
        if self.left < 0:
            raise ValueError("the pickle makes more bytes of its texts than it has")
        return text.encode("latin1")

    def push(self, value: Any) -> None:
        self.stack.append(value)

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
        self.push(_Name((module, name)))

    def set_items(self, pairs: list[Any]) -> None:
        if len(pairs) % 2 or not all(type(key) in (str, bytes, int) for key in pairs[::2]):
            raise ValueError("a key in the pickle is no text, bytes or integer")
        self.top(dict).update(zip(pairs[::2], pairs[1::2]))

    def reduce(self) -> None:
        arguments, called = self.pop(), self.pop()
        if type(called) is not _Name or type(arguments) is not tuple:
            raise ValueError("the pickle calls what is no function")
        if called in _RECONSTRUCT and arguments[:1] == (_NDARRAY,):
            self.push(_Array())
        elif called == _DTYPE and arguments and arguments[0] in _DTYPES:
            self.push(_Type(arguments[0]))
        elif called == _ENCODE and len(arguments) in (1, 2) and type(arguments[0]) is str:
            if arguments[1:] not in ((), ("latin1",)):
                raise ValueError(f"the file encodes bytes as {arguments[1]!r:.40}; only latin1 is read")
            self.push(self.encoded(arguments[0]))
        elif called in _FROM_BUFFER and len(arguments) == 4:
            content, dtype, shape, order = arguments
            self.push(_array(shape, dtype, order != "C", content))
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


_ONLY = "only arrays of uint8 or int64, integers, texts, bytes and containers of them are read"


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


def _long(machine: _Machine) -> None:
    machine.push(int.from_bytes(machine.take(machine.number("B")), "little", signed=True))


def _tuple(count: int) -> Callable[[_Machine], None]:
    def operation(machine: _Machine) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(items)))

    return operation


def _text(form: str, codec: str | None) -> Callable[[_Machine], None]:
    """A text or bytes, after their length."""

    def operation(machine: _Machine) -> None:
        piece = machine.take(machine.number(form))
        machine.push(piece if codec is None else piece.decode(codec))

    return operation


def _name_of_stack(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.name(module, name)


def _get(form: str) -> Callable[[_Machine], None]:
    def operation(machine: _Machine) -> None:
        index = machine.number(form)
        if index not in machine.memo:
            raise ValueError("the pickle takes what it never kept")
        machine.push(machine.memo[index])

    return operation


def _append(machine: _Machine) -> None:
    item = machine.pop()
    machine.top(list).append(item)


def _appends(machine: _Machine) -> None:
    items = machine.marked()
    machine.top(list).extend(items)


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


_OPERATIONS: dict[int, Callable[[_Machine], Any]] = {
    0x80: lambda m: m.take(1),  # PROTO
    0x95: lambda m: m.take(8),  # FRAME
    ord("("): lambda m: m.push(_MARK),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.number("B")),
    ord("M"): lambda m: m.push(m.number("H")),
    ord("J"): lambda m: m.push(m.number("i")),
    0x8A: _long,
    ord("U"): _text("B", "latin1"),
    ord("T"): _text("I", "latin1"),
    ord("X"): _text("I", "utf-8"),
    0x8C: _text("B", "utf-8"),
    0x8D: _text("Q", "utf-8"),
    ord("C"): _text("B", None),
    ord("B"): _text("I", None),
    0x8E: _text("Q", None),
    0x96: _text("Q", None),  # BYTEARRAY8
    ord("]"): lambda m: m.push([]),
    ord("}"): lambda m: m.push({}),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.marked())),
    0x85: _tuple(1),
    0x86: _tuple(2),
    0x87: _tuple(3),
    ord("a"): _append,
    ord("e"): _appends,
    ord("s"): _set_item,
    ord("u"): lambda m: m.set_items(m.marked()),
    ord("q"): lambda m: m.keep(m.number("B")),
    ord("r"): lambda m: m.keep(m.number("I")),
    0x94: lambda m: m.keep(len(m.memo)),  # MEMOIZE
    ord("h"): _get("B"),
    ord("j"): _get("I"),
    ord("c"): lambda m: m.name(m.line(), m.line()),
    0x93: _name_of_stack,
    ord("R"): lambda m: m.reduce(),
    ord("b"): lambda m: m.build(),
}
