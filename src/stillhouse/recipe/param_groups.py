"""`training.param_groups`: learning rates and weight decays of parameters by the patterns of their names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from stillhouse.mistakes import Mistake, unknown_name

_KEYS = ("pattern", "lr", "weight_decay")


def check(groups: Sequence[Any], where: str) -> None:
    """Each group has a pattern, and a learning rate or a weight decay, or both.

    Raises:
        Mistake: a key that there is not, a pattern that is no regular expression, a number below 0.
    """
    for index, group in enumerate(groups):
        at = f"{where}.{index}"
        for key in group:
            if key not in _KEYS:
                raise unknown_name(f"{at}.{key}", "key", str(key), _KEYS)
        _check_pattern(group.get("pattern"), f"{at}.pattern")
        numbers = {key: group[key] for key in _KEYS[1:] if key in group}
        if not numbers:
            raise Mistake(at, "changes nothing", "add lr or weight_decay")
        for key, value in numbers.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise Mistake(f"{at}.{key}", f"must be a number, at least 0, got {value!r}")


def _check_pattern(pattern: Any, where: str) -> None:
    if not isinstance(pattern, str) or not pattern:
        raise Mistake(where, f"must be a regular expression, got {pattern!r}", "name part of the parameters' names")
    try:
        re.compile(pattern)
    except re.error as error:
        raise Mistake(where, f"'{pattern}' is no regular expression: {error}") from None
