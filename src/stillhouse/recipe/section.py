"""A section of a recipe: a frozen dataclass that checks its own values when it is made.

Checks run in `__post_init__`, so a recipe written in Python is held to the same rules as one read from YAML. A Mistake
names the dotted key (`data.max_length`); where the key came from a file, `recipe.parse` puts file and line before it.
Types are checked by jsonargparse, one value at a time: its answer about a whole recipe spans many lines.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from stillhouse.mistakes import Mistake, shorten, unknown_name

NAMES_OF_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
NAMES_OF_ITEMS = {int: "whole numbers", float: "numbers", str: "texts", dict: "sections of keys"}


class Text(str):
    """A value as it was typed on the command line, still to be read as the type of its key."""


class Typed(str):
    """A text below a key of no fixed type that somebody typed: it may allow what no file may."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a number may be: from `low` to `high`, both allowed; more than `above`; less than `below`."""

    low: float = -math.inf
    above: float = -math.inf
    high: float = math.inf
    below: float = math.inf

    def check(self, value: Any, where: str) -> None:
        """Raise the Mistake of a number out of bounds; a list is checked item by item, other values pass."""
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if not math.isfinite(number):
                raise Mistake(where, f"must be a finite number, got {number}")
            if not (self.low <= number <= self.high and self.above < number < self.below):
                raise Mistake(where, f"must be {self}, got {number}")

    def __str__(self) -> str:
        words = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        return " and ".join(f"{word} {bound}" for word, bound in words.items() if math.isfinite(bound))


def setting(
    meaning: str, default: Any = dataclasses.MISSING, bounds: Bounds | None = None, *, verbatim: bool = False
) -> Any:
    """A dataclass field with its meaning, as `--help` shows it, and its bounds; `verbatim`: any characters."""
    metadata = {"meaning": meaning, "bounds": bounds or Bounds(), "verbatim": verbatim}
    if isinstance(default, list | dict | Section):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Section:
    """The base of every part of a recipe: types, bounds, then whatever `validate` adds."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        types = types_of(type(self))
        for field in dataclasses.fields(self):
            value, where = getattr(self, field.name), self.key(field.name)
            if value is not field.default:
                as_it_is = field.metadata["verbatim"] and isinstance(value, str)
                value = str(value) if as_it_is else typed(types[field.name], value, where)
                object.__setattr__(self, field.name, value)
            field.metadata["bounds"].check(value, where)
        self.validate()

    def validate(self) -> None:
        """Raise the Mistake of values that do not go together; a section overrides it."""

    @classmethod
    def key(cls, name: str) -> str:
        """The dotted key of a field, as a recipe spells it."""
        return f"{cls.section}.{name}" if cls.section else name

    def as_dict(self) -> dict[str, Any]:
        """Every key with its settled value, of plain types: what `recipe.yaml` and `--print_config` show."""
        return dataclasses.asdict(self)


@functools.cache
def types_of(section: type[Section]) -> dict[str, Any]:
    """The resolved annotation of every field."""
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


def section_in(annotation: Any) -> type[Section] | None:
    """The Section that an annotation `S` or `S | None` names, or None for a plain value."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def typed(annotation: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type, or the Mistake of its being another."""
    section = section_in(annotation)
    if section is not None and not isinstance(value, section | None):
        raise Mistake(where, f"is a section of keys, got {shown(value)}")
    if get_origin(annotation) is list and not _is_list(value):
        value = [value]  # one seed or one file: the list of it
    if section is not None:
        return value
    if isinstance(value, list) and get_origin(annotation) is list:
        return [typed(get_args(annotation)[0], item, where) for item in value]
    return _read(annotation, value, where)


def _is_list(value: Any) -> bool:
    return value is None or isinstance(value, list) or (isinstance(value, Text) and value.lstrip().startswith("["))


@functools.cache
def _parser(annotation: Any) -> Any:
    from jsonargparse import ArgumentParser  # 0.2 s, spared where only help is asked for

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=annotation)
    return parser


def _read(annotation: Any, value: Any, where: str) -> Any:
    from jsonargparse import ArgumentError

    parser = _parser(annotation)
    try:
        typed_text = isinstance(value, Text)
        read = (parser.parse_args([f"--value={value}"]) if typed_text else parser.parse_object({"value": value})).value
    except ArgumentError:
        raise _wrong_type(annotation, value, where) from None
    if isinstance(read, str) and not read.isprintable():
        raise Mistake(where, f"holds a control character: {shown(read)}", "remove it")
    if read is None and type(None) not in get_args(annotation):  # which jsonargparse lets pass for every type
        raise _wrong_type(annotation, value, where)
    return read


def _wrong_type(annotation: Any, value: Any, where: str) -> Mistake:
    if get_origin(annotation) is Literal and isinstance(value, str):
        return unknown_name(where, where.rpartition(".")[2], value, get_args(annotation))
    wants_text = str in (annotation, *get_args(annotation))
    mend = f"put it in quotes: '{value}'" if wants_text and isinstance(value, int | float) else ""
    return Mistake(where, f"must be {describe(annotation)}, got {shown(value)}", mend)


def describe(annotation: Any) -> str:
    """An annotation in a user's words: "a whole number or null"."""
    if annotation in NAMES_OF_TYPES:
        return NAMES_OF_TYPES[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is list:
        return f"a list of {NAMES_OF_ITEMS[arguments[0]]}"
    if annotation is dict or origin is dict:
        return "a section of keys"
    if origin is Literal:
        return " or ".join(f"'{name}'" for name in arguments)
    return " or ".join(describe(argument) for argument in arguments)


def shown(value: Any) -> str:
    """A value as a recipe would spell it, short enough for one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shorten(repr(str(value)) if isinstance(value, str) else str(value), 60)
