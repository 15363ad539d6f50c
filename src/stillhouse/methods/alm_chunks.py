"""Chunks of text as groups of rows, joined where a boundary between them is not to be looked at.

Letters: M groups of an alignment in the order of the text; a *chunk* is one group or several that follow each other.
No tensor is larger than the rows, and how many chunks there are is asked by nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stillhouse.head import Pairing


@dataclass(frozen=True)
class Chunks:
    """Which rows each group has, what follows it, and which chunk it belongs to.

    Attributes:
        student_rows: [K_s]
        student_groups: [K_s] the group of each.
        teacher_rows: [K_t]
        teacher_groups: [K_t]
        after_student: [M] the student's row after each group's last; any row where there is none.
        after_teacher: [M]
        inner: [M] whether both sides have a row after the group, which the next group begins with.
        followed: [M] whether both sides have a row after the group, of the same example.
        example: [M]
        closes: [M] whether a group is the last of its chunk.
        before: [M] the same before the last `joined`.
        examples: how many the batch has.
    """

    student_rows: Tensor
    student_groups: Tensor
    teacher_rows: Tensor
    teacher_groups: Tensor
    after_student: Tensor
    after_teacher: Tensor
    inner: Tensor
    followed: Tensor
    example: Tensor
    closes: Tensor
    before: Tensor
    examples: int

    def __len__(self) -> int:
        """M."""
        return len(self.closes)

    @classmethod
    def of(cls, pairing: Pairing) -> Chunks:
        """Every group of an alignment as a chunk."""
        firsts = pairing.student_index[pairing.student_bounds[:-1]]  # [M] a pairing's own order is another
        order = firsts.argsort()
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        sides = []
        for index, bounds, counts in (
            (pairing.student_index, pairing.student_bounds, pairing.student_counts),
            (pairing.teacher_index, pairing.teacher_bounds, pairing.teacher_counts),
        ):
            group = rank[torch.repeat_interleave(bounds.diff(), output_size=len(index))]  # [K]
            first, last = index[bounds[:-1][order]], index[bounds[1:][order] - 1]  # [M]
            total = sum(counts)
            example = _examples(counts, index.device)  # [N]
            after = (last + 1).clamp(max=max(total - 1, 0))
            has = (last + 1 < total) & (example[after] == example[last])
            sides.append((index, group, after, has, first, example[last]))
        (our_rows, our_groups, our_after, our_has, our_first, example), theirs = sides
        their_rows, their_groups, their_after, their_has, their_first, _ = theirs
        followed = our_has & their_has
        inner = torch.zeros_like(followed)
        inner[:-1] = (our_first[1:] == our_after[:-1]) & (their_first[1:] == their_after[:-1])
        return cls(
            student_rows=our_rows,
            student_groups=our_groups,
            teacher_rows=their_rows,
            teacher_groups=their_groups,
            after_student=our_after,
            after_teacher=their_after,
            inner=followed & inner,
            followed=followed,
            example=example,
            closes=torch.ones_like(followed),
            before=torch.ones_like(followed),
            examples=len(pairing.student_counts),
        )

    @classmethod
    def one_by_one(cls, sequence: Tensor) -> Chunks:
        """Every row as a chunk, of which nothing is asked that follows it; `sequence` [N] is the example of each."""
        rows = torch.arange(len(sequence), device=sequence.device)
        none, closes = torch.zeros_like(rows, dtype=torch.bool), torch.ones_like(rows, dtype=torch.bool)
        return cls(rows, rows, rows, rows, rows, rows, none, none, sequence, closes, closes, len(sequence))

    def joined(self, kept: Tensor) -> Chunks:
        """Chunks that end only where `kept` [M], or where what comes next is no group of the same example."""
        return replace(self, closes=self.closes & (kept | ~self.inner), before=self.closes)

    @property
    def chunk(self) -> Tensor:
        """[M] the chunk of each group, from 0 in the order of the text."""
        return _numbered(self.closes)

    @property
    def bounded(self) -> Tensor:
        """[M] whether a group is the last of its chunk and something follows it on both sides."""
        return self.closes & self.followed

    @property
    def present(self) -> Tensor:
        """[M] whether there is a chunk of this number."""
        return torch.arange(len(self), device=self.closes.device) < self.closes.sum()

    def counted_twice(self) -> Tensor:
        """How many chunks tokenkit divides by after a merge: those which begin with a small enough chunk of before.

        There the sizes of merged chunks, by their numbers in their example, are summed once more over the chunks before
        the merge that have those numbers; what comes to 0 is not counted.
        """
        first = torch.ones_like(self.closes)
        first[1:] = self.closes[:-1]  # [M] the groups that begin a chunk
        merged, before = self._within(self.closes), self._within(self.before)
        most = self.example.new_zeros(self.examples).scatter_reduce(0, self.example, merged + 1, "amax")
        return (first & (before < most[self.example])).sum()

    def _within(self, closes: Tensor) -> Tensor:
        """[M] the number of each group's chunk in its own example."""
        number = _numbered(closes)
        start = number.new_full((self.examples,), len(number)).scatter_reduce(0, self.example, number, "amin")
        return number - start[self.example]


def _numbered(closes: Tensor) -> Tensor:
    return closes.cumsum(0) - closes.long()


def _examples(counts: tuple[int, ...], device: torch.device) -> Tensor:
    sizes = torch.tensor(counts, dtype=torch.long, device=device)
    return torch.repeat_interleave(sizes, output_size=sum(counts))
