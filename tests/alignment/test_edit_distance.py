from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.alignment import EditDistances, texts
from stillhouse.data.pieces import Pieces
from tests.alignment.tokenizers import TOKENIZERS
from tests.data.small import metaspace

WORDS = [
    "",
    "a",
    "ab",
    "ba",
    "the",
    "they",
    "\ud800x",
    "\udce4",
    "\udce5",
    "é",
    "</s>",
    "<|endoftext|>",
    "<|im_end|>",
    "x" * 400,
]


def slow_distance(a: str, b: str) -> int:
    @cache
    def of(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, of(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return of(len(a), len(b))


@settings(max_examples=100)
@given(st.lists(st.integers(0, 12), max_size=12), st.lists(st.integers(0, 12), max_size=12))
def test_distances_against_the_slow_twin(student: list[int], teacher: list[int]):
    ours = EditDistances(WORDS, WORDS[::-1])(np.array(student, np.int32), np.array(teacher, np.int32) + 1)
    slow = [[slow_distance(WORDS[::-1][t + 1], WORDS[s]) for s in student] for t in teacher]
    assert ours.reshape(len(teacher), len(student)).tolist() == slow


def test_long_tokens_do_not_overflow():
    assert EditDistances([""], ["x" * 400])(np.array([0]), np.array([0])).tolist() == [[400]]


def test_ends_are_free_by_id_or_by_the_official_strings():
    ids = np.arange(len(WORDS), dtype=np.int32)
    plain, chosen, official = (
        EditDistances(WORDS, WORDS, ends)(ids, ids)
        for ends in (((), ()), ([10, 12], [11]), "official")  # type: ignore[arg-type]
    )
    assert {tuple(at) for at in np.argwhere(plain != chosen).tolist()} == {(11, 10), (11, 12)}
    zero = {(11, 10), (10, 11), (12, 10), (10, 12), (11, 12), (12, 11)}
    assert {tuple(at) for at in np.argwhere(plain != official).tolist()} == zero


def test_what_stands_for_a_token():
    llama, gpt = Pieces.of(metaspace()), Pieces.of(TOKENIZERS["byte level"])
    the = llama.raw.index("▁a")
    assert (texts(llama, "raw")[the], texts(llama, "bare")[the], texts(llama, "decoded")[the]) == ("▁a", "a", "a")
    assert texts(llama, "official")[2] == texts(llama, "decoded")[2] == "</s>"
    first, second = gpt.raw.index("ä"), gpt.raw.index("å")  # bytes E4 and E5, each a beginning of a character
    assert texts(gpt, "decoded")[first] != texts(gpt, "decoded")[second]
    assert texts(gpt, "official")[first] == texts(gpt, "official")[second] == "\ufffd"
    assert texts(gpt, "decoded")[gpt.raw.index("Ċ")] == "\n"
    distances = EditDistances(texts(gpt, "decoded"), texts(gpt, "decoded"))
    assert distances(np.array([first]), np.array([first, second])).tolist() == [[0], [1]]


@pytest.mark.parametrize("rule", ["raw", "bare", "decoded", "official"])
def test_every_token_has_a_text(rule: str):
    for tokenizer in TOKENIZERS.values():
        pieces = Pieces.of(tokenizer)
        assert len(texts(pieces, rule)) == len(pieces)  # type: ignore[arg-type]
