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


def resampled(ours: np.ndarray, theirs: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """Mean differences between items [n] of two models, over `resamples` draws of n items: [resamples].

    Raises:
        ValueError: they are not of the same items.
    """
    if ours.shape != theirs.shape or not len(ours):
        raise ValueError(f"models are compared on the same items, got {len(ours)} and {len(theirs)}")
    difference, generator = np.asarray(ours - theirs, np.float64), np.random.default_rng(seed)
    step = max(1, CHUNK // len(difference))
    parts = [
        difference[generator.integers(len(difference), size=(min(step, resamples - start), len(difference)))].mean(1)
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts)


def compare(pairs: Sequence[tuple[np.ndarray, np.ndarray]], resamples: int, seed: int = 0) -> Difference:
    """Two models on one data set, or on several: then the mean over data sets, each drawn by itself.

    Args:
        pairs: of each data set, both models' numbers for its items.
        resamples: draws.
        seed: of the draws; the same gives the same.
    """
    drawn = np.mean([resampled(*pair, resamples, seed + place) for place, pair in enumerate(pairs)], axis=0)
    low, high = np.quantile(drawn, [0.025, 0.975])
    # One more on either side, since what was found is a draw, too: p is never 0.
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum()) + 1
    mean = float(np.mean([ours.mean() - theirs.mean() for ours, theirs in pairs]))
    return Difference(mean, float(low), float(high), min(1.0, 2.0 * float(tail) / (resamples + 1)))
