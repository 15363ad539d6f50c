from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.vocabulary.levenshtein import alphabet, nearest, strings


def distance(a: str, b: str) -> int:
    """The textbook's table, row by row."""
    row = [*range(len(b) + 1)]
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(before + (x != y), row[j - 1] + 1, row[j] + 1)
    return row[-1]


def by_kernel(patterns: list[str], candidates: list[str], ids: list[int]) -> list[int]:
    codes = alphabet(patterns, candidates)
    laid_out = strings(patterns, range(len(patterns)), codes)
    found = nearest(laid_out, 0, len(patterns), strings(candidates, ids, codes), len(codes))
    return found[np.argsort(laid_out.ids)].tolist()


def by_search(patterns: list[str], candidates: list[str], ids: list[int]) -> list[int]:
    return [
        min(((distance(pattern, text), at) for text, at in zip(candidates, ids, strict=True)), default=(0, -1))[1]
        for pattern in patterns
    ]


TEXTS = st.lists(st.text("abc\u4f60", max_size=8), max_size=8)


@given(patterns=TEXTS, candidates=TEXTS, seed=st.integers(0, 9))
def test_the_nearest_is_the_first_of_a_search_through_all(patterns: list[str], candidates: list[str], seed: int):
    ids = random.Random(seed).sample(range(100), len(candidates))
    assert by_kernel(patterns, candidates, ids) == by_search(patterns, candidates, ids)


@pytest.mark.parametrize("length", [1, 31, 62, 63, 64, 65, 66, 130])
def test_around_the_width_of_a_word(length: int):
    draw = random.Random(length)
    texts = ["".join(draw.choices("ab", k=length + draw.randint(-1, 2))) for _ in range(24)]
    assert by_kernel(texts[:8], texts[8:], [*range(16)]) == by_search(texts[:8], texts[8:], [*range(16)])


def test_one_character_many_times():
    texts = ["-" * size for size in (1, 3, 5, 64, 65, 128)]
    assert by_kernel(texts, ["-" * 4, "-" * 70, "-" * 2], [5, 3, 9]) == [9, 5, 5, 3, 3, 3]


def test_a_piece_of_the_patterns_is_done_alone():
    texts = ["a", "bb", "ccc", "dddd"]
    codes = alphabet(texts)
    laid_out = strings(texts, range(4), codes)
    assert nearest(laid_out, 1, 3, laid_out, len(codes)).tolist() == [1, 2]
