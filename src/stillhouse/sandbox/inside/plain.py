"""Values between a candidate and its tests: rebuilt from text as built-in types, so that no object reaches the other.

JSON, in which every container and everything that JSON lacks is an array that starts with a letter. A value of a
class of its own becomes `Opaque`, which equals nothing but itself: an object that equals everything does not exist on
the other side.
"""

from __future__ import annotations

import builtins
import json
import os
import struct
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

LARGEST = 8 << 20  # bytes of one message
LONGEST = 100_000  # items taken from an iterator
_SAFE = 1 << 62
# What a class of the candidate's own makes of iteration has no say: these are asked by their own methods.
_CONTAINERS: tuple[tuple[Any, str], ...] = (
    (list, "l"), (tuple, "t"), (set, "s"), (frozenset, "z"), (type({}.keys()), "k"),
)  # fmt: skip
_FILLED: dict[str, Callable[[list[Any]], Any]] = {
    "l": list, "t": tuple, "s": set, "z": frozenset, "n": iter, "d": lambda pairs: dict(pairs),
    "k": lambda keys: dict.fromkeys(keys).keys(),
}  # fmt: skip
_MADE: dict[str, Callable[..., Any]] = {
    "i": lambda text: int(text, 16),
    "c": complex,
    "b": bytes.fromhex,
    "a": bytearray.fromhex,
    "r": range,
}


class Unplain(Exception):
    """A value, or a message, that is no plain data."""


class Gone(Exception):
    """The other side closed the line."""


class Opaque:
    """What stands for a value of a class of its own: it equals nothing and is neither true nor false."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __bool__(self) -> bool:
        raise TypeError(f"a value of type {self.kind} is neither true nor false here")

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __eq__(self, other: object) -> bool:
        return self is other


def encode(value: Any, opaque: bool) -> Any:
    """`value` as JSON can hold it; what is not plain becomes opaque, or is refused (Unplain) where not `opaque`."""
    if value is None or isinstance(value, bool | str | float):
        return value  # of a subclass, JSON writes what it is underneath
    if isinstance(value, int):
        return int(value) if -_SAFE < value < _SAFE else ["i", hex(value)]
    for kind, letter in _CONTAINERS:
        if isinstance(value, kind):
            return [letter, *(encode(item, opaque) for item in kind.__iter__(value))]
    if isinstance(value, dict):
        return ["d", *(["t", encode(key, opaque), encode(item, opaque)] for key, item in dict.items(value))]
    if isinstance(value, complex):
        return ["c", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return ["b" if isinstance(value, bytes) else "a", value.hex()]
    if isinstance(value, range):
        return ["r", *(encode(part, opaque) for part in (value.start, value.stop, value.step))]
    if isinstance(value, Iterator):
        items = list(islice(value, LONGEST + 1))
        if len(items) > LONGEST:
            raise Unplain(f"an iterator of more than {LONGEST} items")
        return ["n", *(encode(item, opaque) for item in items)]
    if not opaque:
        raise Unplain(f"a value of type {type(value).__name__}")
    return ["o", str(type(value).__name__)[:100]]


def decode(found: Any) -> Any:
    """The inverse of `encode`; an Unplain for what it cannot have written."""
    if type(found) is not list:
        return found
    letter, *rest = found or [None]
    try:
        if letter == "o" and len(rest) == 1 and type(rest[0]) is str:
            return Opaque(rest[0])
        if letter in _FILLED:
            return _FILLED[letter]([decode(item) for item in rest])
        return _MADE[letter](*(decode(item) for item in rest))
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
        raise Unplain(f"no value: {type(error).__name__}") from None


def send(line: int, content: Any) -> None:
    """Write one message."""
    data = json.dumps(content).encode()
    if len(data) > LARGEST:
        raise Unplain(f"{len(data)} bytes, more than {LARGEST}")
    data = struct.pack(">I", len(data)) + data
    while data:
        data = data[os.write(line, data) :]


def receive(line: int) -> Any:
    """Read one message.

    Raises:
        Gone: there will be none.
        Unplain: it is too long, or no JSON.
    """
    (length,) = struct.unpack(">I", _read(line, 4))
    if length > LARGEST:
        raise Unplain(f"a message of {length} bytes, more than {LARGEST}")
    data = _read(line, length)
    try:
        return json.loads(data, parse_constant=_constant, object_hook=_refuse)
    except (ValueError, RecursionError) as error:
        raise Unplain(f"a message that is no JSON: {type(error).__name__}") from None


def exception(name: str, text: str) -> Exception:
    """The built-in exception of that name, or one that only says what it was."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # UnicodeDecodeError and its kin want more
            pass
    return Exception(f"{name}: {text}")


def silence() -> None:
    """Point standard input, output and errors at nothing."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for line in range(3):
        os.dup2(nothing, line)
    os.close(nothing)


def _read(line: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(line, min(count, 1 << 20))
        if not part:
            raise Gone
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _constant(name: str) -> float:
    return float(name.replace("Infinity", "inf"))


def _refuse(found: dict[str, Any]) -> Any:
    raise ValueError("an object")
