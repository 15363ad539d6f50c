"""Two tokenisations of the same examples, the teacher's beside the student's, and which of their rows correspond.

An item is an example in both tokenisations with its `Alignment`, made once, before training. A batch is two batches of
one collator each, and the `Pairing` of their predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.alignment import Alignment, Coverage, Side
from stillhouse.data.dataset import EncodedDataset
from stillhouse.head.pairing import Merge, Pairing, joined
from stillhouse.progress import track

Align = Callable[[Side, Side], Alignment]
Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]


class PairedDataset(EncodedDataset):
    """The student's encodings, each with the teacher's of the same example and their alignment.

    Args:
        student: encodings of the examples.
        teacher: the teacher's encodings of the same list of examples; either side may lack some.
        align: None where the alignment is found in training.

    Attributes:
        teacher: the teacher's encodings, item by item those of the student's.
        coverage: how much is aligned.
        unpaired: where the examples come from that one side alone has, which are left out.
    """

    def __init__(self, student: EncodedDataset, teacher: EncodedDataset, align: Align | None) -> None:
        shared = np.intersect1d(student.samples, teacher.samples)
        known = {int(sample) for sample in shared}
        both = zip((*student.samples, *teacher.samples), (*student.origins, *teacher.origins), strict=True)
        self.unpaired = sorted({origin for sample, origin in both if int(sample) not in known})
        ours, self.teacher = (side.taken(np.isin(side.samples, shared)) for side in (student, teacher))
        super().__init__(ours.input_ids, ours.scored, ours.offsets, ours.samples, ours.origins, ours.ends)
        self.coverage = Coverage()
        found: list[Alignment] = []
        for index in track(range(len(self) if align is not None else 0), "aligning"):
            sides = Side.of(super().__getitem__(index)), Side.of(self.teacher[index])
            assert align is not None
            found.append(align(*sides))
            self.coverage.add(found[-1], *sides)
        self._alignments = _Flat.of(found) if align is not None else None

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Item `index` as the student has it, and "teacher", its item, and "alignment", theirs, where there is one."""
        item = {**super().__getitem__(index), "teacher": self.teacher[index]}
        return item if self._alignments is None else {**item, "alignment": self._alignments[index % len(self)]}


@dataclass(frozen=True)
class _Flat:
    """Many alignments in flat arrays: a million of Python objects would cost more than their numbers."""

    parts: tuple[NDArray[np.int32], ...]  # the four arrays of an Alignment, example by example
    offsets: tuple[NDArray[np.int64], ...]  # [examples + 1] of each

    @classmethod
    def of(cls, alignments: Sequence[Alignment]) -> _Flat:
        names = ("student_index", "student_bounds", "teacher_index", "teacher_bounds")
        columns = [[getattr(one, name) for one in alignments] for name in names]
        return cls(
            tuple(np.concatenate(column) for column in columns),
            tuple(np.concatenate([[0], np.cumsum([len(part) for part in column])]) for column in columns),
        )

    def __getitem__(self, index: int) -> Alignment:
        return Alignment(*(part[at[index] : at[index + 1]] for part, at in zip(self.parts, self.offsets, strict=True)))


class PairedCollator:
    """A batch in both tokenisations.

    Args:
        student: makes the batch of the student's items.
        teacher: makes that of the teacher's.
        merge: what the aligner's groups are reduced by.
    """

    def __init__(self, student: Collate, teacher: Collate, merge: Merge) -> None:
        self.student, self.teacher, self.merge = student, teacher, merge

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The student's batch, with "teacher", the teacher's, and "pairing", a `Pairing` as a dictionary."""
        theirs = [item["teacher"] for item in items]
        counts = [[int(item["scored"].sum()) for item in side] for side in (items, theirs)]
        alignments: list[Alignment] = [item["alignment"] for item in items if "alignment" in item]
        if alignments:
            groups = (
                joined([(one.student_index, one.student_bounds) for one in alignments], counts[0]),
                joined([(one.teacher_index, one.teacher_bounds) for one in alignments], counts[1]),
            )
        else:
            none = np.zeros(0, np.int64), np.zeros(1, np.int64)
            groups = none, none
        pairing = Pairing.of(groups[0], groups[1], counts[0], counts[1], self.merge)
        return {**self.student(items), "teacher": self.teacher(theirs), "pairing": pairing.as_dict()}
