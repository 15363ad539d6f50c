"""Numbers that change over training: constant, linear, cosine or by steps, as a recipe writes them.

    temperature: 2.0
    temperature: {schedule: linear, start: 4.0, end: 1.0}              # over the whole run
    kd_weight: {schedule: cosine, start: 0.0, end: 1.0, until: 0.2}    # reached after a fifth of it, then kept
    lam: {schedule: steps, values: [0.3, 0.1], at: [0.5]}              # 0.1 from the middle on

Everything is a function of *progress*: the share of the run's optimizer steps that are done, in [0, 1]. A schedule
stays the plain dictionary of the recipe wherever it is kept; `value_at` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.mistakes import Mistake, unknown_name

KINDS: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "linear": ("start", "end", "until"),
    "cosine": ("start", "end", "until"),
    "steps": ("values", "at"),
}
_DEFAULTS = {"until": 1.0}


def is_schedule(value: Any) -> bool:
    """Whether a setting changes over training."""
    return isinstance(value, Mapping)


def settle(written: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A schedule with every key that its kind has, all numbers as floats.

    Raises:
        Mistake: an unknown kind or key, one that is missing, or what is no number; `where` is the schedule's own key.
    """
    if "schedule" not in written:
        raise Mistake(where, "is a section without 'schedule'", f"write schedule: {' | '.join(KINDS)}")
    kind = str(written["schedule"])
    if kind not in KINDS:
        raise unknown_name(f"{where}.schedule", "schedule", kind, KINDS)
    for key in written:
        if key != "schedule" and key not in KINDS[kind]:
            raise unknown_name(f"{where}.{key}", f"key of a {kind} schedule", str(key), KINDS[kind])
    settled: dict[str, Any] = {"schedule": kind}
    for key in KINDS[kind]:
        value = written.get(key, _DEFAULTS.get(key))
        if value is None:
            raise Mistake(f"{where}.{key}", "is missing", f"a {kind} schedule has {', '.join(KINDS[kind])}")
        many = key in ("values", "at")
        settled[key] = _numbers(value, f"{where}.{key}") if many else _number(value, f"{where}.{key}")
    _check_places(settled, where)
    return settled


def extremes(schedule: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The values that a settled schedule moves between, each with the key that holds it."""
    return [
        (key, value)
        for key in ("value", "start", "end", "values")
        if key in schedule
        for value in (schedule[key] if isinstance(schedule[key], list) else [schedule[key]])
    ]


def value_at(setting: Any, progress: float) -> Any:
    """What `setting`, a plain value or a settled schedule, is when `progress` of the run is done."""
    if not is_schedule(setting):
        return setting
    match setting["schedule"]:
        case "constant":
            return setting["value"]
        case "steps":
            return setting["values"][sum(progress >= place for place in setting["at"])]
        case kind:
            done = min(1.0, progress / setting["until"])
            done = done if kind == "linear" else 0.5 * (1.0 - math.cos(math.pi * done))
            return setting["start"] + (setting["end"] - setting["start"]) * done


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Mistake(where, f"must be a number, got {value!r}")
    return float(value)


def _numbers(values: Any, where: str) -> list[float]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise Mistake(where, f"must be a list of numbers, got {values!r}", f"write {where.rpartition('.')[2]}: [...]")
    return [_number(value, where) for value in values]


def _check_places(settled: dict[str, Any], where: str) -> None:
    if "until" in settled and not 0.0 < settled["until"] <= 1.0:
        wrong = f"is a share of the run, above 0 and at most 1, got {settled['until']}"
        raise Mistake(f"{where}.until", wrong)
    if settled["schedule"] == "steps":
        at, values = settled["at"], settled["values"]
        if not all(0.0 < place < 1.0 for place in at) or at != sorted(set(at)):
            raise Mistake(f"{where}.at", f"must be rising shares of the run between 0 and 1, got {at}")
        if len(values) != len(at) + 1:
            wrong = f"has {len(values)} values for {len(at)} changes"
            raise Mistake(f"{where}.values", wrong, "one more than there are places in 'at'")
