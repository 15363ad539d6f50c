"""What an entry of the catalogue says, and how a name and its settings are looked up and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stillhouse import schedule
from stillhouse.mistakes import Mistake, unknown_name


@dataclass(frozen=True)
class Parameter:
    """One setting of a divergence or a method.

    Attributes:
        default: Its value where nothing is said; None where that depends, as `meaning` says.
        meaning: One line for people.
        low: The lowest value allowed; not itself where `open_low`.
        high: The highest value allowed.
        aliases: The names that papers and their code give it.
        fixed: It is read once, at the start, so no schedule may move it.
        choices: The words that it may be, of a setting that is a word; a word without choices is a file's name.
        whole: It is a whole number.
    """

    default: float | bool | str | None
    meaning: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    aliases: tuple[str, ...] = ()
    fixed: bool = False
    choices: tuple[str, ...] | None = None
    whole: bool = False

    @property
    def is_number(self) -> bool:
        """Whether it is a number, which a schedule may move."""
        return self.choices is None and not isinstance(self.default, bool | str)


@dataclass(frozen=True)
class Entry:
    """A divergence or a method as users know it: its paper, what it needs, its parameters.

    Attributes:
        formula: The value of a row, in the letters of docs/methods.md.
        official: What the released code does otherwise, and how to get its numbers.
        alignment: Of a method for two tokenizers: the aligner that it has unless the recipe names one.
        vocabulary: Of a method for two tokenizers: the vocabulary map that it has unless the recipe names one.
        two_sided: Whether a method always looks at two tokenisations, be they equal; the others do where tokenizers
            differ, by means of an aligner and a map.
        aligners: Which aligners a method can have; none named: any.
        one_tokenizer: Whether a method compares token by token, so that the teacher must have the student's tokenizer.
        by_map: What a method does with a map of tokens: moves the teacher's rows by it; does so where the recipe names
            one ("asked"); looks up single tokens ("ids"); or nothing ("never").
        vocabularies: Which vocabulary maps a method can have; none named: any.
        without_map: Settings of the part that a map replaces, of a method that moves rows where it is asked.
        whole_groups: Whether a method wants the aligner's groups as they are, and merges them itself.
        rollout: Of a method that says who writes the responses: the settings of the recipe's `rollout` that it has
            unless the recipe gives others.
        sources: Which of the rollout's sources a method can learn from; none named: any.
        alone: Settings with which a method that has a rollout of its own learns from the data set's responses alone.
        whole_draws: Whether a method weighs by the probability that a token was drawn with, so that it must be drawn
            from all of the distribution, at the temperature that is learnt at.
    """

    name: str
    paper: str
    summary: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    needs_teacher: bool = True
    formula: str = ""
    official: str = ""
    alignment: Mapping[str, Any] | None = None
    vocabulary: Mapping[str, Any] | None = None
    two_sided: bool = False
    aligners: tuple[str, ...] = ()
    by_map: Literal["moves", "asked", "ids", "never"] = "moves"
    vocabularies: tuple[str, ...] = ()
    one_tokenizer: bool = False
    without_map: tuple[str, ...] = ()
    whole_groups: bool = False
    rollout: Mapping[str, Any] | None = None
    sources: tuple[str, ...] = ()
    alone: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    whole_draws: bool = False

    @property
    def has_projectors(self) -> bool:
        """Whether it has modules of its own between the models' hidden spaces, which can be trained alone."""
        return "projectors" in self.parameters


def find(kind: str, table: Mapping[str, Entry], name: str, where: str = "") -> Entry:
    """The entry called `name` or one of its aliases, upper and lower case and `-` and `_` alike; else a Mistake."""
    folded = str(name).lower().replace("-", "_")
    for entry in table.values():
        if folded == entry.name or folded in entry.aliases:
            return entry
    raise unknown_name(where, kind, str(name), table, (alias for entry in table.values() for alias in entry.aliases))


def settle(
    entry: Entry,
    settings: Mapping[str, Any],
    where: str = "",
    *,
    schedules: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Every parameter of `entry`: `settings` by their own names or aliases, checked, and defaults for the rest.

    Raises Mistake for an unknown name, a value out of bounds, and a schedule where it may not be one (`schedules`).
    `defaults` by the parameters' own names take the place of the entry's.
    """
    by_alias = {alias: name for name, parameter in entry.parameters.items() for alias in (name, *parameter.aliases)}
    settled: dict[str, Any] = {}
    for key, value in settings.items():
        key_where = f"{where}.{key}" if where else key
        if key not in by_alias:
            raise unknown_name(key_where, f"setting of {entry.name}", key, entry.parameters, by_alias)
        name = by_alias[key]
        if name in settled:
            raise Mistake(key_where, f"'{name}' is set twice, once by an alias", "keep one of them")
        settled[name] = _settled(value, entry.parameters[name], key_where, schedules)
    usual = {name: parameter.default for name, parameter in entry.parameters.items()} | dict(defaults or {})
    return {name: settled.get(name, usual[name]) for name in entry.parameters}


def _settled(value: Any, parameter: Parameter, where: str, schedules: bool) -> Any:
    if not schedule.is_schedule(value):
        return _checked(value, parameter, where)
    if parameter.fixed or not parameter.is_number:
        raise Mistake(where, "does not change over training", "write one value")
    if not schedules:
        raise Mistake(where, "is a schedule, and only a method knows how far training is", "write one number")
    settled = schedule.settle(value, where)
    for key, extreme in schedule.extremes(settled):
        _checked(extreme, parameter, f"{where}.{key}")
    return settled


def _checked(value: Any, parameter: Parameter, where: str) -> Any:
    if isinstance(parameter.default, bool):
        if not isinstance(value, bool):
            raise Mistake(where, f"must be true or false, got {value!r}")
        return value
    if parameter.choices is not None:
        return _word(value, parameter.choices, where)
    if isinstance(parameter.default, str):
        if not isinstance(value, str) or not value:
            raise Mistake(where, f"must be the name of a file, got {value!r}")
        return value
    if value is None and parameter.default is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Mistake(where, f"must be a number, got {value!r}")
    if parameter.whole and value != int(value):
        raise Mistake(where, f"must be a whole number, got {value!r}")
    too_low = value <= parameter.low if parameter.open_low else value < parameter.low
    if too_low or value > parameter.high:
        low = f"{'above' if parameter.open_low else 'at least'} {parameter.low:g}"
        high = f" and at most {parameter.high:g}" if math.isfinite(parameter.high) else ""
        raise Mistake(where, f"must be {low}{high}, got {value!r}")
    return int(value) if parameter.whole else float(value)


def _word(value: Any, choices: tuple[str, ...], where: str) -> str:
    """The one of `choices` that `value` is; upper and lower case and `-` and `_` are alike."""
    folded = str(value).lower().replace("-", "_")
    if folded not in choices:
        raise unknown_name(where, "choice", str(value), choices, choices)
    return folded
