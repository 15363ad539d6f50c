"""Whether a difference between two models would stand with other questions: the paired bootstrap.

(Efron and Tibshirani, An introduction to the bootstrap, 1993; for models of language: Koehn, EMNLP 2004.) Questions are
drawn anew with replacement, the same for both models; what varies between training seeds is averaged, not drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CHUNK = 2**22  # numbers drawn at a time


@dataclass(frozen=True)
class Difference:
    """The mean of one model's items less that of another's.

    Attributes:
        mean: as it was found.
        low, high: the middle 95 % of what the resamples give.
        p: two-sided, of no difference.
    """

    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Resampled:
    """A model's numbers for the items of a data set, and their means over draws that are the same for every model.

    Attributes:
        items: [n].
        means: [resamples], each over n items that were drawn with replacement.
    """

    items: np.ndarray
    means: np.ndarray

    @classmethod
    def of(cls, items: np.ndarray, resamples: int, seed: int) -> Resampled:
        """`items` under the draws of `seed`.

        Raises:
            ValueError: there are none.
        """
        if not len(items):
            raise ValueError("models are compared on the same items, got 0")
        values, generator = np.asarray(items, np.float64), np.random.default_rng(seed)
        step = max(1, CHUNK // len(values))
        parts = [
            values[generator.integers(len(values), size=(min(step, resamples - start), len(values)))].mean(1)
            for start in range(0, resamples, step)
        ]
        return cls(values, np.concatenate(parts))


def compare(pairs: Sequence[tuple[np.ndarray, np.ndarray]], resamples: int, seed: int = 0) -> Difference:
    """Two models on one data set, or on several: then the mean over data sets, each drawn by itself.

    Args:
        pairs: of each data set, both models' numbers for its items.
        resamples: draws.
        seed: of the draws; the same gives the same.

    Raises:
        ValueError: two are not of the same items.
    """
    drawn = [[Resampled.of(items, resamples, seed + place) for items in pair] for place, pair in enumerate(pairs)]
    return difference([(ours, theirs) for ours, theirs in drawn])


def difference(pairs: Sequence[tuple[Resampled, Resampled]]) -> Difference:
    """As `compare`, of what was drawn already: each of many models once, and not anew for each pair of them.

    Raises:
        ValueError: two are not of the same items.
    """
    for ours, theirs in pairs:
        if ours.items.shape != theirs.items.shape:
            wrong = f"models are compared on the same items, got {len(ours.items)} and {len(theirs.items)}"
            raise ValueError(wrong)
    drawn = np.mean([ours.means - theirs.means for ours, theirs in pairs], axis=0)
    low, high = np.quantile(drawn, [0.025, 0.975])
    # One more on either side, since what was found is a draw, too: p is never 0.
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum()) + 1
    p = 2.0 * float(tail) / (len(drawn) + 1)
    # Draws of a handful of items say little of others: not more than if each had shown one side by a coin's throw.
    least = 2.0 ** (1 - sum(len(ours.items) for ours, _ in pairs))
    mean = float(np.mean([ours.items.mean() - theirs.items.mean() for ours, theirs in pairs]))
    return Difference(mean, float(low), float(high), min(1.0, max(p, least)))
