"""The bounds of every setting."""

from __future__ import annotations

from typing import Any

import pytest

from stillhouse.mistakes import Mistake
from stillhouse.rollout import Sampling


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: must be at least 1, got 0"),
        ({"temperature": -0.5}, "temperature: must be 0 (greedy) or above, got -0.5"),
        ({"temperature": float("nan")}, "temperature: must be 0 (greedy) or above, got nan"),
        ({"temperature": float("inf")}, "temperature: must be 0 (greedy) or above, got inf"),
        ({"top_p": 0.0}, "top_p: must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p: must be above 0 and at most 1, got 1.5"),
        ({"top_k": -1}, "top_k: must be 0 (all tokens) or above, got -1"),
        ({"no_repeat_ngram_size": 1}, "no_repeat_ngram_size: must be 0 (off) or at least 2, got 1"),
    ],
)
def test_out_of_bounds(setting: dict[str, Any], line: str) -> None:
    with pytest.raises(Mistake) as caught:
        Sampling(**setting)
    assert str(caught.value) == line


def test_bounds_themselves_are_allowed() -> None:
    assert Sampling(max_new_tokens=1, temperature=0, top_p=1, top_k=0, no_repeat_ngram_size=2).greedy
    assert not Sampling(temperature=0.1).greedy
