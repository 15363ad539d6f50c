"""Two tokenizers, as a method sees them, and the correspondences between them that depend on the predictions."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.alignment import EditDistances, EntropyDTW, Side, entropy_weights, texts
from stillhouse.data.pieces import Pieces
from stillhouse.head import Pairing, Predictions
from stillhouse.head.pairing import Merge, joined


@dataclass(frozen=True)
class TokenizerPair:
    """What the tokens of both sides stand for, and which of them correspond.

    Attributes:
        student: the student's tokens.
        teacher: the teacher's tokens.
        student_vocabulary: V_s, how many tokens the student predicts.
        teacher_vocabulary: V_t.
        map: [V_t] the student token of every teacher token, -1 for none; None where the recipe's vocabulary is no map.
        alignment: the aligner's name.
        merge: what its groups are reduced by.
    """

    student: Pieces
    teacher: Pieces
    student_vocabulary: int
    teacher_vocabulary: int
    map: NDArray[np.int32] | None = None
    alignment: str = "span"
    merge: Merge = "first"
    _official: bool = field(default=False, repr=False)

    @property
    def aligns_late(self) -> bool:
        """Whether the alignment depends on the predictions, and so is found in training."""
        return self.alignment == "entropy_dtw"

    def paired(
        self, student: Predictions, teacher: Predictions, student_entropy: Tensor, teacher_entropy: Tensor
    ) -> Pairing:
        """CDM's alignment of a batch, from the entropies [N_s] and [N_t] of both sides' predictions.

        Args:
            student: with the tokens that were read, and the teacher's pairing with the rows of every example.
        """
        rows = teacher.pairing
        assert rows is not None and student.inputs is not None and teacher.inputs is not None
        ours = _by_example(rows.student_counts, student.inputs, student_entropy)
        theirs = _by_example(rows.teacher_counts, teacher.inputs, teacher_entropy)
        found = [
            self._entropy_dtw(Side(s_ids), Side(t_ids), entropy_weights(s_entropy), entropy_weights(t_entropy))
            for (s_ids, s_entropy), (t_ids, t_entropy) in zip(ours, theirs, strict=True)
        ]
        found_late = Pairing.of(
            joined([(one.student_index, one.student_bounds) for one in found], rows.student_counts),
            joined([(one.teacher_index, one.teacher_bounds) for one in found], rows.teacher_counts),
            rows.student_counts,
            rows.teacher_counts,
            self.merge,
        ).to(student.hidden.device)
        return replace(found_late, edits=rows.edits)

    @cached_property
    def _entropy_dtw(self) -> EntropyDTW:
        rule = "official" if self._official else "decoded"
        ours, theirs = texts(self.student, rule), texts(self.teacher, rule)
        return EntropyDTW(EditDistances(ours, theirs, "official" if self._official else self.ends))

    @property
    def ends(self) -> tuple[Collection[int], Collection[int]]:
        """The tokens that end a text or a turn, of the student and of the teacher."""
        return ends_of(self.student), ends_of(self.teacher)


def ends_of(pieces: Pieces) -> list[int]:
    """The tokens that end a text or a turn, by their roles and, of chat templates, by their names."""
    marks = (
        "<|im_end|>",
        "<|eot_id|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "</s>",
        "<eos>",
    )
    return [index for index, role in pieces.special.items() if role == "eos" or pieces.raw[index] in marks]


def _by_example(
    counts: tuple[int, ...], inputs: Tensor, entropy: Tensor
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float64]]]:
    """For each example its ids and entropies; both cross to the host once."""
    ids, values = inputs.cpu().numpy().astype(np.int32), entropy.double().cpu().numpy()
    start = 0
    for count in counts:
        yield ids[start : start + count], values[start : start + count]
        start += count
