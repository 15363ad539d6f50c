"""Responses that a student wrote and that stood in the data: predictions of both sides, and what was noted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stillhouse.head import Head, Predictions, Sampled
from tests.methods.rows import dense

VOCABULARY = 11
LENGTHS = (4, 1, 3, 6, 2, 5)  # of responses; every other one is the student's


@dataclass
class Written:
    """fp64, the student learnable."""

    student: Predictions
    teacher: Predictions

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.student.hidden, self.student.head.weight

    @property
    def sampled(self) -> Sampled:
        assert self.student.sampled is not None
        return self.student.sampled

    def of(self, responses: Sequence[int]) -> Written:
        """Those alone, over the same leaves."""
        rows = torch.isin(self.student.sequence, torch.tensor(responses)).nonzero()[:, 0]
        return Written(self.student.at(rows), self.teacher.at(rows))

    def each(self) -> list[tuple[bool, Tensor, Tensor, Tensor]]:
        """Of each response: whether it is the student's, both sides' logits and the labels."""
        z_s, z_t = dense(self.student), dense(self.teacher).detach()
        rows = [(self.student.sequence == index).nonzero()[:, 0] for index in self.student.sequence.unique()]
        return [(bool(self.sampled.by_student[r[0]]), z_s[r], z_t[r], self.student.labels[r]) for r in rows]

    def holed(self) -> Written:
        """A token that neither side has, two that one side alone has; none of them is a label."""
        sides = []
        for side, holes in ((self.student, (0, 1)), (self.teacher, (0, 2))):
            bias = torch.zeros(VOCABULARY, dtype=torch.float64)
            bias[list(holes)] = -torch.inf
            labels = side.labels.clamp_min(3)
            sides.append(replace(side, head=replace(side.head, bias=bias), labels=labels))
        return Written(*sides)


def written(lengths: Sequence[int] = LENGTHS, seed: int = 0, *, alone: bool = False) -> Written:
    """Data and student in turns, or the student alone."""
    generator = torch.Generator().manual_seed(seed)
    rows, sides = sum(lengths), []
    labels = torch.randint(VOCABULARY, (rows,), generator=generator)
    sequence = torch.repeat_interleave(torch.tensor(lengths))
    for who, size in enumerate((5, 7)):
        hidden = torch.randn(rows, size, generator=generator, dtype=torch.float64).requires_grad_(who == 0)
        weight = torch.randn(VOCABULARY, size, generator=generator, dtype=torch.float64).requires_grad_(who == 0)
        sides.append(Predictions(hidden, Head(weight), labels, sequence, 4 * rows))
    noise = torch.randn(2, rows, generator=generator, dtype=torch.float64)
    log_q = dense(sides[0]).detach().log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    sampled = Sampled(
        by_student=torch.full((rows,), True) if alone else sequence % 2 == 1,
        log_probability=log_q + 0.3 * noise[0],
        importance=torch.rand(rows, generator=generator, dtype=torch.float64) + 0.5,
        advantage=noise[1],
    )
    return Written(replace(sides[0], sampled=sampled), sides[1])
