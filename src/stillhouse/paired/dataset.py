"""Two tokenisations of the same examples, the teacher's beside the student's, and which of their rows correspond.

An item is an example in both tokenisations with its `Alignment`, made once, before training. A batch is two batches of
one collator each, and the `Pairing` of their predictions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.alignment import Alignment, Coverage, Side
from stillhouse.alignment.alignment import Ids
from stillhouse.data.dataset import EncodedDataset
from stillhouse.head.pairing import Merge, Pairing, joined
from stillhouse.progress import track

Align = Callable[[Side, Side], Alignment]
Edits = Callable[[Ids, Ids], Tensor]  # of both sides' tokens: [k, 3], see `transport.edit_costs`
Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]


class PairedDataset(EncodedDataset):
    """The student's encodings, each with the teacher's of the same example and their alignment.

    Args:
        student: encodings of the examples.
        teacher: the teacher's of the same examples.
        alignments: of those; None where they are found in training.
        said: what there is to say of how they came about, for the log.
    """

    def __init__(
        self, student: EncodedDataset, teacher: EncodedDataset, alignments: Alignments | None, said: Sequence[str] = ()
    ) -> None:
        parts = (student.input_ids, student.scored, student.offsets, student.samples, student.origins, student.ends)
        super().__init__(*parts)
        self.teacher, self.alignments, self.said = teacher, alignments, tuple(said)

    @classmethod
    def of(cls, student: EncodedDataset, teacher: EncodedDataset, align: Align | None, name: str) -> PairedDataset:
        """Pair the encodings of the same list of examples, of which either side may lack some, and align them.

        Args:
            align: called by several threads at once; None where the alignment is found in training.
            name: of the aligner, for the log.
        """
        shared = np.intersect1d(student.samples, teacher.samples)
        lost = sorted({*student.origins, *teacher.origins} - {
            origin for sample, origin in zip(student.samples, student.origins, strict=True) if sample in shared
        })  # fmt: skip
        said = [f"teacher: {len(lost)} examples are cut away on one side and left out: {lost[0]}"] if lost else []
        ours, theirs = (side.taken(np.isin(side.samples, shared)) for side in (student, teacher))
        if align is None:
            return cls(ours, theirs, None, said)
        coverage, found = Coverage(), []

        def aligned(index: int) -> tuple[Side, Side, Alignment]:
            sides = Side.of(ours[index]), Side.of(theirs[index])
            return *sides, align(*sides)

        with ThreadPoolExecutor(os.cpu_count()) as threads:  # the work is in compiled code, without Python's lock
            for side, other, alignment in track(threads.map(aligned, range(len(ours))), "aligning", total=len(ours)):
                found.append(alignment)
                coverage.add(alignment, side, other)
        said += [f"{name}: {line}" for line in coverage.lines()]
        return cls(ours, theirs, Alignments.of(found), said)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Item `index` as the student has it, and "teacher", its item, and "alignment", theirs, where there is one."""
        item = {**super().__getitem__(index), "teacher": self.teacher[index]}
        return item if self.alignments is None else {**item, "alignment": self.alignments[index % len(self)]}


@dataclass(frozen=True)
class Alignments:
    """Many alignments in flat arrays: a million of Python objects would cost more than their numbers."""

    parts: tuple[NDArray[np.int32], ...]  # the four arrays of an Alignment, example by example
    offsets: tuple[NDArray[np.int64], ...]  # [examples + 1] of each

    @classmethod
    def of(cls, alignments: Sequence[Alignment]) -> Alignments:
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
        edits: what edits cost between the tokens that predictions are made after; None where no method asks.
    """

    def __init__(self, student: Collate, teacher: Collate, merge: Merge, edits: Edits | None = None) -> None:
        self.student, self.teacher, self.edits = student, teacher, edits
        self.merge: Merge = merge

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
        if self.edits is not None:
            read = ([item["input_ids"][item["scored"]] for item in side] for side in (items, theirs))
            pairing = replace(pairing, edits=tuple(map(self.edits, *read)))
        return {**self.student(items), "teacher": self.teacher(theirs), "pairing": pairing.as_dict()}
