"""The rating that a judge's reply ends with."""

from __future__ import annotations

import re

LOWEST, HIGHEST = 1.0, 10.0
_RATING = re.compile(
    r"\[\[\s*(?:rating\s*:?\s*)?(-?\d+(?:[.,]\d+)?)\s*(?:(?:/|out of)\s*10(?:\.0+)?\s*)?\]\]", re.IGNORECASE
)


def rating(reply: str) -> float | None:
    """The last `[[number]]` of `reply`, also as `[[8/10]]`; None without one, or where it is not from 1 to 10."""
    found = _RATING.findall(reply)
    if not found:
        return None
    number = float(found[-1].replace(",", "."))
    return number if LOWEST <= number <= HIGHEST else None
