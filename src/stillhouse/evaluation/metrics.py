"""How near a prediction is to its references: ROUGE-L and exact match.

ROUGE-L (Lin, 2004) as the `rouge-score` library has it with its stemmer, to the last digit; its words are used, its
quadratic table is not.
"""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from nltk.stem.porter import PorterStemmer
from rouge_score.tokenize import tokenize

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Scores:
    """Means over samples, in per cent."""

    rouge_l: float
    exact_match: float


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """The ROUGE-L F-measure of stemmed words, in [0, 1], with the nearest of `references`.

    Raises:
        ValueError: there is no reference.
    """
    return max(_f_measure(_words(prediction), _words(reference)) for reference in references)


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Whether `prediction` is one of `references`, but for case, ASCII punctuation and white space.

    Articles count: the evaluation script of the DSKD line, unlike SQuAD's, leaves them in.
    """
    return normalized(prediction) in map(normalized, references)


def normalized(text: str) -> str:
    """`text` in lower case without ASCII punctuation, its words one space apart."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """The mean scores, in per cent, of `predictions` with the references of each.

    Raises:
        ValueError: no predictions, or not as many as there are lists of references.
    """
    pairs = list(zip(predictions, references, strict=True))
    if not pairs:
        raise ValueError("no predictions to score")
    return Scores(
        rouge_l=100 * sum(rouge_l(*pair) for pair in pairs) / len(pairs),
        exact_match=100 * sum(exact_match(*pair) for pair in pairs) / len(pairs),
    )


def _f_measure(prediction: tuple[str, ...], reference: tuple[str, ...]) -> float:
    common = longest_common_subsequence(prediction, reference)
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """The length of the longest common subsequence: a row of the usual table at a time, as the bits of one integer.

    Bit i of `row` is 0 where the table grows by one from column i to i + 1 (Hyyrö, Bit-parallel LCS-length computation
    revisited, 2004).
    """
    places: defaultdict[str, int] = defaultdict(int)
    for place, word in enumerate(left):
        places[word] |= 1 << place
    ones = (1 << len(left)) - 1
    row = ones
    for word in right:
        matched = row & places.get(word, 0)
        row = (row + matched) | (row - matched)
    return len(left) - (row & ones).bit_count()


class _CachedStemmer:
    """Porter's stemmer; a text repeats its words, and references repeat over seeds."""

    def __init__(self) -> None:
        self.stem = lru_cache(maxsize=1 << 16)(PorterStemmer().stem)


_STEMMER = _CachedStemmer()


@lru_cache(maxsize=1 << 14)
def _words(text: str) -> tuple[str, ...]:
    return tuple(tokenize(text, _STEMMER))
