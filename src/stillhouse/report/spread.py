"""Mean and spread of a few values, and whether a difference is larger than the spread."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None for a single value) of `count` values."""

    mean: float
    deviation: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.deviation is None else f"{self.mean:.1f} ± {self.deviation:.1f}"


def spread(values: Iterable[float]) -> Spread | None:
    """Mean and sample standard deviation of the finite `values`; None where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    mean = math.fsum(finite) / len(finite)
    if len(finite) == 1:
        return Spread(mean, None, 1)
    return Spread(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in finite) / (len(finite) - 1)), len(finite))


def exceeds(higher: Spread, lower: Spread) -> bool:
    """Whether `higher` lies above `lower` by more than both standard deviations together.

    A single value has no known spread, so it counts as 0: say `count` beside such a claim.
    """
    return higher.mean - lower.mean > (higher.deviation or 0.0) + (lower.deviation or 0.0)
