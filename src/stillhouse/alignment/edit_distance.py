"""Levenshtein distances between all tokens of two sequences, from their ids.

Most ids of a text come back, so distances are taken between the distinct strings and spread over the sequences. What
string stands for a token is a choice of the method (`texts`): edits count code points, so it matters.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from stillhouse.alignment.alignment import Ids
from stillhouse.data.pieces import Pieces

Rule = Literal["raw", "bare", "decoded", "official"]
RULES: tuple[Rule, ...] = ("raw", "bare", "decoded", "official")

# CDM's public code compares these two sets of strings at no cost, in either order.
OFFICIAL_ENDS = (frozenset({"</s>", "<|endoftext|>"}), frozenset({"<|im_end|>", "<|endoftext|>"}))


def texts(pieces: Pieces, rule: Rule) -> tuple[str, ...]:
    """The string [V] that stands for each token.

    Args:
        rule: "raw", as in the vocabulary (MCW-KD); "bare", raw without the marker of a blank (MinED); "decoded", the
            token's bytes without blanks, a byte that is no whole character as a character of its own, so that unlike
            fragments differ; "official", as CDM's public code: every such byte is U+FFFD.
    """
    if rule == "raw":
        return pieces.raw
    if rule == "bare":
        return tuple(raw.replace(pieces.marker, "") for raw in pieces.raw) if pieces.marker else pieces.raw
    errors = "surrogateescape" if rule == "decoded" else "replace"
    return tuple(
        (raw if index in pieces.special else content.decode(errors=errors)).replace(" ", "")
        for index, (raw, content) in enumerate(zip(pieces.raw, pieces.content, strict=True))
    )


class EditDistances:
    """The distance of every student token from every teacher token of two sequences.

    Args:
        student: [V_s], the string of each token.
        teacher: [V_t]
        ends: Ids that stand for the end of a text or of a turn, of the student and of the teacher: any two are 0 apart.
            "official" is CDM's rule by strings.
    """

    def __init__(
        self,
        student: Sequence[str],
        teacher: Sequence[str],
        ends: tuple[Collection[int], Collection[int]] | Literal["official"] = ((), ()),
    ) -> None:
        self.student, self.teacher = student, teacher
        sides = (student, teacher)
        # Two pairs of [V] masks: a cost is 0 where the student's token is in one and the teacher's in the other.
        if ends == "official":
            self.free = official_ends(student, teacher)
        else:
            masks = [np.isin(np.arange(len(side)), list(ids)) for side, ids in zip(sides, ends, strict=True)]
            self.free = [(masks[0], masks[1])] if all(mask.any() for mask in masks) else []

    def __call__(self, student: Ids, teacher: Ids) -> NDArray[Any]:
        """uint16 [n_t, n_s] of ids [n_s] and [n_t]: teacher rows, student columns."""
        columns, at_column = np.unique(student, return_inverse=True)
        rows, at_row = np.unique(teacher, return_inverse=True)
        if not len(columns) or not len(rows):
            return np.zeros((len(teacher), len(student)), np.uint16)
        distances = cdist(
            [self.teacher[index] for index in rows.tolist()],
            [self.student[index] for index in columns.tolist()],
            scorer=Levenshtein.distance,
            dtype=np.uint16,
        )
        for of_student, of_teacher in self.free:
            distances[np.ix_(of_teacher[rows], of_student[columns])] = 0
        return distances[at_row[:, None], at_column]


def official_ends(first: Sequence[str], second: Sequence[str]) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """CDM's rule by strings: pairs of masks of two vocabularies, between which nothing costs."""
    one, other = ([_among(side, names) for side in (first, second)] for names in OFFICIAL_ENDS)
    return [(one[0], other[1]), (other[0], one[1])]


def _among(strings: Sequence[str], names: Collection[str]) -> NDArray[np.bool_]:
    return np.array([string in names for string in strings], dtype=bool)
