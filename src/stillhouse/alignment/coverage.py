"""How much of the data an aligner reaches, as a log or a rehearsal says it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from stillhouse.alignment.alignment import Alignment, Side
from stillhouse.alignment.spans import covered


@dataclass
class Coverage:
    """Counts over all examples that were added.

    Attributes:
        examples: How many, and `unaligned` of them without a single row.
        one_to_one, one_to_many, many_to_one, many_to_many: Rows by how many student and teacher positions they hold.
        student_scored, teacher_scored: Scored positions, of which `student_aligned`, `teacher_aligned` are in a row.
        bytes, bytes_aligned: Of the responses as the student encodes them; 0 without spans.
    """

    examples: int = 0
    unaligned: int = 0
    one_to_one: int = 0
    one_to_many: int = 0
    many_to_one: int = 0
    many_to_many: int = 0
    student_scored: int = 0
    student_aligned: int = 0
    teacher_scored: int = 0
    teacher_aligned: int = 0
    bytes: int = 0
    bytes_aligned: int = 0

    def add(self, alignment: Alignment, student: Side, teacher: Side) -> None:
        """Count one example."""
        several_s, several_t = (counts > 1 for counts in alignment.sizes())
        self.examples += 1
        self.unaligned += len(alignment) == 0
        self.one_to_one += int((~several_s & ~several_t).sum())
        self.one_to_many += int((~several_s & several_t).sum())
        self.many_to_one += int((several_s & ~several_t).sum())
        self.many_to_many += int((several_s & several_t).sum())
        self.student_scored += len(student)
        self.teacher_scored += len(teacher)
        self.student_aligned += len(alignment.student_index)
        self.teacher_aligned += len(alignment.teacher_index)
        if student.ends is not None:
            widths = covered(student.ends, student.start)
            self.bytes += int(widths.sum())
            self.bytes_aligned += int(widths[alignment.student_index].sum())

    @property
    def rows(self) -> int:
        """Rows of any kind."""
        return self.one_to_one + self.one_to_many + self.many_to_one + self.many_to_many

    def as_dict(self) -> dict[str, Any]:
        """The counts, as they are written to a run's files."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Plain sentences for a log: what is aligned, of what kinds, then only what is amiss."""
        kinds = {
            "1-1": self.one_to_one,
            "1-n": self.one_to_many,
            "n-1": self.many_to_one,
            "n-m": self.many_to_many,
        }
        said = [
            f"{_share(self.student_aligned, self.student_scored)} of the student's scored tokens and "
            f"{_share(self.teacher_aligned, self.teacher_scored)} of the teacher's are aligned, in {self.rows} rows: "
            + ", ".join(f"{_share(count, self.rows)} {kind}" for kind, count in kinds.items() if count)
        ]
        if self.bytes:
            said.append(f"{_share(self.bytes_aligned, self.bytes)} of the responses' bytes are in a row")
        if self.unaligned:
            said.append(f"{self.unaligned} of {self.examples} examples have no aligned token")
        return said


def _share(count: int, of: int) -> str:
    return f"{100 * count / of:.1f}%" if of else "none"
