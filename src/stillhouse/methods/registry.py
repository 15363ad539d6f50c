"""From a method's name and settings to the method."""

from __future__ import annotations

from typing import Any

from stillhouse.catalogue import METHODS, find, settle
from stillhouse.methods.ctkd import CurriculumTemperature
from stillhouse.methods.dkd import Decoupled
from stillhouse.methods.method import Method
from stillhouse.methods.taid import TAID
from stillhouse.methods.word_level import SupervisedFineTuning, WordLevel

_CLASSES: dict[str, type[Method]] = {"taid": TAID, "ctkd": CurriculumTemperature, "dkd": Decoupled}


def build(name: str, **settings: Any) -> Method:
    """The method called `name` (or an alias), with the catalogue's defaults for what `settings` leaves out.

    A setting is a value or, where it is a number, a schedule (see `stillhouse.schedule`).

    Raises:
        Mistake: no such method or setting, or a value out of bounds.
    """
    entry = find("method", METHODS, name, "method.name")
    settled = settle(entry, settings, "method", schedules=True)
    if not entry.needs_teacher:
        return SupervisedFineTuning(entry.name)
    return _CLASSES.get(entry.name, WordLevel)(entry.name, settled)
