"""What an aligner is given, and what it gives: rows of student positions and teacher positions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Side:
    """One tokenizer's view of an example's n scored positions.

    Attributes:
        inputs: [n] int32, the token read at each position; the first one is the last of the prompt.
        ends: [n] int32, where the predicted token's byte span ends (`data.encode.Encoding.ends`), -1 where unknown;
            None where no spans were asked for.
        start: Where the first predicted token's span begins.
    """

    inputs: Ids
    ends: Ids | None = None
    start: int = 0

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> Side:
        """The side that an item of an `EncodedDataset` is."""
        at = np.flatnonzero(item["scored"])
        inputs = np.asarray(item["input_ids"])[at].astype(np.int32)
        ends = item.get("ends")
        if ends is None:
            return cls(inputs)
        before = ends[: at[0] + 1] if len(at) else ends
        return cls(inputs, ends[at + 1], max(int(before.max(initial=0)), 0))

    def __len__(self) -> int:
        """The scored positions, n."""
        return len(self.inputs)

    def spans(self) -> Ids:
        """The ends.

        Raises:
            ValueError: there are none.
        """
        if self.ends is None:
            raise ValueError('these encodings have no spans; encode them with spans="bytes" or "solid"')
        return self.ends


class Sizes(NamedTuple):
    """How many positions of either side each row holds, [M] and [M]."""

    student: NDArray[np.int64]
    teacher: NDArray[np.int64]


@dataclass(frozen=True)
class Alignment:
    """M rows, each with a few student positions and a few teacher positions, both at least one, ascending.

    Row m holds student positions `student_index[student_bounds[m] : student_bounds[m + 1]]`, and so for the teacher.
    Positions count the scored ones of the example, 0 to n - 1; no position is in two rows. What stands in no row is not
    aligned.

    Attributes:
        student_index: [K_s] int32.
        student_bounds: [M + 1] int32.
        teacher_index: [K_t] int32.
        teacher_bounds: [M + 1] int32.
    """

    student_index: Ids
    student_bounds: Ids
    teacher_index: Ids
    teacher_bounds: Ids

    @classmethod
    def one_to_one(cls, student: NDArray[Any], teacher: NDArray[Any]) -> Alignment:
        """Rows of one student position [M] and one teacher position [M]."""
        bounds = np.arange(len(student) + 1, dtype=np.int32)
        return cls(student.astype(np.int32), bounds, teacher.astype(np.int32), bounds)

    @classmethod
    def of_groups(cls, groups: Iterable[tuple[Iterable[int], Iterable[int]]]) -> Alignment:
        """Rows as lists: (student positions, teacher positions)."""
        rows = [(list(student), list(teacher)) for student, teacher in groups]
        return cls(*_flat([student for student, _ in rows]), *_flat([teacher for _, teacher in rows]))

    def __len__(self) -> int:
        """The rows, M."""
        return len(self.student_bounds) - 1

    def groups(self) -> list[tuple[list[int], list[int]]]:
        """Rows as lists: (student positions, teacher positions)."""
        student = np.split(self.student_index, self.student_bounds[1:-1]) if len(self) else []
        teacher = np.split(self.teacher_index, self.teacher_bounds[1:-1]) if len(self) else []
        return [(s.tolist(), t.tolist()) for s, t in zip(student, teacher, strict=True)]

    def sizes(self) -> Sizes:
        """How many positions of either side each row holds."""
        return Sizes(np.diff(self.student_bounds).astype(np.int64), np.diff(self.teacher_bounds).astype(np.int64))


def _flat(rows: list[list[int]]) -> tuple[Ids, Ids]:
    bounds = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return np.array([position for row in rows for position in row], dtype=np.int32), bounds
