"""ROUGE-L against the library that it must equal, and the rules of exact match."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from rouge_score.rouge_scorer import RougeScorer

from stillhouse.evaluation import exact_match, rouge_l, score
from stillhouse.evaluation.metrics import longest_common_subsequence

LIBRARY = RougeScorer(["rougeL"], use_stemmer=True)
words = some.sampled_from(["run", "Running", "runs", "the", "cats'", "cat", "flies", "1990s", "é", "-", "\n", "naïve"])
texts = some.one_of(some.lists(words, max_size=90).map(" ".join), some.text(max_size=30))


def twin(prediction: str, references: list[str]) -> float:
    return LIBRARY.score_multi(references, prediction)["rougeL"].fmeasure


@given(texts, some.lists(texts, min_size=1, max_size=3))
def test_rouge_equals_the_library(prediction, references):
    assert rouge_l(prediction, references) == twin(prediction, references)


def test_rouge_equals_the_library_on_real_answers(shared: Path):
    lines = (shared / "data" / "dolly" / "test.jsonl").read_text().splitlines()[:60]
    answers = [json.loads(line)["output"] for line in lines]
    for prediction, reference, other in zip(answers, answers[1:], answers[2:], strict=False):
        assert rouge_l(prediction, [reference, other]) == twin(prediction, [reference, other])


def quadratic(left: str, right: str) -> int:
    """The usual table."""
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, a in enumerate(left, 1):
        for j, b in enumerate(right, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if a == b else max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


@given(some.text("abc", max_size=150), some.text("abcd", max_size=150))
def test_longest_common_subsequence(left, right):
    assert longest_common_subsequence(left, right) == quadratic(left, right)


def test_five_seeds_of_long_answers_are_scored_in_a_moment():
    """500 rows x 5 seeds; the library's table takes most of a minute."""
    predictions = [" ".join(str((i * k) % 97) for k in range(180)) for i in range(500)]
    references = [[" ".join(str((i + k * k) % 89) for k in range(100))] for i in range(500)]
    began = time.process_time()
    for _ in range(5):
        score(predictions, references)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("William Shakespeare", "william  shakespeare.", True),
        ("  42\n", "42", True),
        ("U.S.A.", "usa", True),
        ("well-known", "well known", False),
        ("an answer", "the answer", False),
        ("“quoted”", "quoted", False),
        ("", "...", True),
        ("a", "b", False),
    ],
)
def test_exact_match(prediction, reference, same):
    assert exact_match(prediction, [reference]) is same
    assert exact_match(prediction, ["something else", reference]) is same


def test_means_are_in_per_cent():
    scores = score(["a cat", "a dog", "", "x"], [["a cat"], ["a cat"], ["y"], ["z", "X."]])
    assert scores.exact_match == 50
    assert scores.rouge_l == pytest.approx(100 * (1 + 0.5 + 0 + 1) / 4)


@pytest.mark.parametrize(
    ("predictions", "references", "wrong"),
    [([], [], "no predictions to score"), (["a"], [], "shorter"), (["a"], [[]], "empty")],
)
def test_nothing_to_compare_is_an_error(predictions, references, wrong):
    with pytest.raises(ValueError, match=wrong):
        score(predictions, references)
