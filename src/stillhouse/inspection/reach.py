"""How much of the teacher's vocabulary, and of what it is asked to predict in some data, a vocabulary map reaches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.dataset import EncodedDataset
from stillhouse.data.pieces import Pieces
from stillhouse.inspection.tokens import text_of
from stillhouse.vocabulary.matching import NONE

MOST = 10


@dataclass(frozen=True)
class Reach:
    """A map from teacher tokens to student tokens, and what it says of the data.

    Attributes:
        name: the recipe's name of it.
        ids: [V_t] the student token of every teacher token, -1 for none.
        lines: plain sentences.
    """

    name: str
    ids: NDArray[np.int32]
    lines: list[str]


def reach_of(
    name: str, ids: NDArray[np.int32], student: Pieces, teacher: Pieces, predicted: NDArray[np.integer]
) -> Reach:
    """What a map reaches.

    Args:
        ids: [V_t]
        predicted: [n] the teacher tokens that are learnt in the data, one after the other.
    """
    hit = len(np.unique(ids[ids != NONE]))
    lines = [
        f"reaches {_share(int((ids != NONE).sum()), len(ids))} of the teacher's {len(ids)} tokens and "
        f"{_share(hit, len(student))} of the student's {len(student)}"
    ]
    counts = np.bincount(predicted, minlength=len(ids))[: len(ids)]  # [V_t]
    total, reached = int(counts.sum()), int(counts[ids != NONE].sum())
    lines.append(f"reaches {_share(reached, total)} of the {total} teacher tokens that are learnt here")
    seen = np.flatnonzero((counts > 0) & (ids != NONE))
    said = [at for at in seen.tolist() if at not in teacher.special]
    other = sum(int(counts[at]) for at in said if teacher.content[at] != student.content[ids[at]])
    if other:
        lines.append(f"of these, {_share(other, reached)} go to a token of another text")
    missed = np.flatnonzero((counts > 0) & (ids == NONE))
    often = missed[np.argsort(-counts[missed], kind="stable")][:MOST].tolist()
    if often:
        named = ", ".join(f"{text_of(teacher, at)} ({counts[at]})" for at in often)
        lines.append(f"most frequent without a match: {named}")
    if name == "cdm":
        lines.append("that is its static map; which other tokens match depends on the predictions of each position")
    return Reach(name, ids, lines)


def predicted_tokens(encoded: EncodedDataset) -> NDArray[np.int32]:
    """The tokens that the scored positions of all items predict, one after the other."""
    return encoded.input_ids[1:][encoded.scored[:-1]]  # no item's last position is scored


def _share(count: int, of: int) -> str:
    return f"{100 * count / of:.1f}%" if of else "none"
