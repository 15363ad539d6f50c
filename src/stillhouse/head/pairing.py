"""How the rows of a teacher with another tokenizer correspond to the student's.

Letters: N_s, N_t predictions of either side in a batch; M aligned rows, each a group of predictions of both sides. What
is learnt of a row depends on how a group is merged; every student row has a label of its own, aligned or not:

    shared    aligned rows whose student side is one prediction, each prediction at most once: labels and teacher
    apart     the other aligned rows, the teacher's alone
    rest      student rows that are in none of `shared`: labels alone
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Merge = Literal["first", "last", "mean"]
Groups = tuple[NDArray[np.integer], NDArray[np.integer]]


@dataclass(frozen=True)
class Pairing:
    """Groups of student and teacher rows, and how they are merged; M is `len(student_bounds) - 1`.

    Attributes:
        student_index: [K_s] rows of the student's predictions, group by group.
        student_bounds: [M + 1] where each group begins in it.
        teacher_index: [K_t] the teacher's rows.
        teacher_bounds: [M + 1]
        shared: how many groups, the first ones, have one student row each that no other of them has.
        rest: [N_s - shared] the student rows that are in none of those.
        student_counts: for each example of the batch, how many of the student's rows are its; N_s in all.
        teacher_counts: the same of the teacher's.
        merge: what the groups have been reduced by, already.
        edits: for each example [k, 3], what edits cost on its paths; see `transport.edit_costs`. None: nobody asked.
    """

    student_index: Tensor
    student_bounds: Tensor
    teacher_index: Tensor
    teacher_bounds: Tensor
    shared: int
    rest: Tensor
    student_counts: tuple[int, ...]
    teacher_counts: tuple[int, ...]
    merge: Merge = "mean"
    edits: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.student_bounds) - 1

    @classmethod
    def of(
        cls,
        student: Groups,
        teacher: Groups,
        student_counts: Sequence[int],
        teacher_counts: Sequence[int],
        merge: Merge = "mean",
    ) -> Pairing:
        """From M groups of both sides as (index, bounds), and how many rows each example has.

        Groups that share their student row with an earlier one come after those that do not.
        """
        count = sum(student_counts)
        student, teacher = reduced(student, merge), reduced(teacher, merge)
        index, bounds = student
        sizes = np.diff(bounds)
        first = np.full(count, len(sizes))
        single = np.flatnonzero(sizes == 1)
        np.minimum.at(first, index[bounds[single]], single)
        alone = np.zeros(len(sizes), dtype=bool)
        alone[first[first < len(sizes)]] = True
        order = np.concatenate([np.flatnonzero(alone), np.flatnonzero(~alone)])
        if not alone.all():
            student, teacher = ordered(student, order), ordered(teacher, order)
        rest = np.ones(count, dtype=bool)
        rest[student[0][: alone.sum()]] = False
        parts = (*student, *teacher)
        tensors = [torch.from_numpy(np.ascontiguousarray(part, dtype=np.int64)) for part in parts]
        return cls(
            *tensors,
            shared=int(alone.sum()),
            rest=torch.from_numpy(np.flatnonzero(rest)),
            student_counts=tuple(student_counts),
            teacher_counts=tuple(teacher_counts),
            merge=merge,
        )

    def to(self, device: torch.device) -> Pairing:
        """The same with its tensors on `device`."""
        moved = {name: value.to(device) for name, value in self.as_dict().items() if isinstance(value, Tensor)}
        edits = None if self.edits is None else tuple(paths.to(device) for paths in self.edits)
        return replace(self, **moved, edits=edits)

    def as_dict(self) -> dict[str, Any]:
        """As a batch carries it: a plain dictionary, whose tensors are moved to a device with the batch's."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def reduced(groups: Groups, merge: Merge) -> Groups:
    """Groups of the first or last member alone, or as they are."""
    index, bounds = groups
    if merge == "mean":
        return groups
    chosen = bounds[:-1] if merge == "first" else bounds[1:] - 1
    return index[chosen], np.arange(len(chosen) + 1)


def ordered(groups: Groups, order: NDArray[np.integer]) -> Groups:
    """The groups `order` [M'], in that order."""
    index, bounds = groups
    sizes = np.diff(bounds)[order]
    starts = np.repeat(bounds[:-1][order], sizes)
    ends = np.cumsum(sizes)
    within = np.arange(len(starts)) - np.repeat(ends - sizes, sizes)
    return index[starts + within], np.concatenate([[0], ends])


def joined(groups: Sequence[Groups], counts: Sequence[int]) -> Groups:
    """The groups of several examples as those of a batch, whose rows are the examples' one after the other."""
    starts = np.concatenate([[0], np.cumsum(counts)])
    index = np.concatenate([index + start for (index, _), start in zip(groups, starts, strict=False)])
    sizes = np.concatenate([np.diff(bounds) for _, bounds in groups])
    return index, np.concatenate([[0], sizes.cumsum()])
