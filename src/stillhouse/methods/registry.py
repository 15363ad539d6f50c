"""From a method's name and settings to the method."""

from __future__ import annotations

from typing import Any

from stillhouse.catalogue import METHODS, find, settle
from stillhouse.divergence import build as build_divergence
from stillhouse.methods.method import Method
from stillhouse.methods.word_level import SupervisedFineTuning, WordLevel


def build(name: str, **settings: Any) -> Method:
    """The method called `name` (or an alias), with the catalogue's defaults for what `settings` leaves out.

    Raises:
        Mistake: no such method or setting, or a value out of bounds.
    """
    entry = find("method", METHODS, name, "method.name")
    settled = settle(entry, settings, "method")
    if not entry.needs_teacher:
        return SupervisedFineTuning(entry.name)
    kd_weight = settled.pop("kd_weight")
    return WordLevel(entry.name, build_divergence(entry.name, **settled), kd_weight)
