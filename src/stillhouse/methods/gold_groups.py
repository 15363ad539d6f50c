"""The groups that GOLD's released code makes of an alignment, and what each counts there."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.head import Pairing

Ids = NDArray[np.int64]


class _Group(NamedTuple):
    student: Ids  # rows of the batch
    teacher: Ids


def one_by_one(sequence: Tensor) -> Pairing:
    """Every row a group of its own; `sequence` [N] is the example of each."""
    rows, device = np.arange(len(sequence)), sequence.device
    counts = torch.unique_consecutive(sequence, return_counts=True)[1].tolist() if len(rows) else []
    groups = (rows, np.arange(len(rows) + 1))
    return Pairing.of(groups, groups, counts, counts).to(device)


def released(pairing: Pairing, device: torch.device) -> tuple[Pairing, Tensor]:
    """TRL's groups, and what each counts [M], so that the sum is N_s times the mean over examples of their means.

    The last row of every example is left out on both sides, as the token that ends it. What follows the last group that
    this leaves whole is one more group, unless nothing does on one of the sides. An example without any counts as 0.
    """
    student, teacher = (getattr(pairing, f"{who}_index").cpu().numpy() for who in ("student", "teacher"))
    bounds = [getattr(pairing, f"{who}_bounds").cpu().numpy() for who in ("student", "teacher")]
    groups = [
        _Group(student[a:b], teacher[c:d])
        for (a, b), (c, d) in zip(pairwise(bounds[0]), pairwise(bounds[1]), strict=True)
    ]
    groups.sort(key=lambda group: group.student[0])
    ends = [np.cumsum(counts) for counts in (pairing.student_counts, pairing.teacher_counts)]
    of_example: list[list[_Group]] = [[] for _ in pairing.student_counts]
    for group in groups:
        of_example[int(np.searchsorted(ends[0], group.student[0], side="right"))].append(group)
    kept: list[_Group] = []
    weights: list[float] = []
    total, examples = sum(pairing.student_counts), len(pairing.student_counts)
    starts = [np.concatenate([[0], ends_of_side]) for ends_of_side in ends]
    for here, start, their_start, end, their_end in zip(of_example, starts[0], starts[1], *ends, strict=False):
        whole = [group for group in here if group.student[-1] < end - 1 and group.teacher[-1] < their_end - 1]
        last = whole[-1] if whole else _Group(np.array([start - 1]), np.array([their_start - 1]))
        left = _Group(np.arange(last.student[-1] + 1, end - 1), np.arange(last.teacher[-1] + 1, their_end - 1))
        whole += [left] if len(left.student) and len(left.teacher) else []
        kept += whole
        weights += [total / (examples * max(1, len(whole)))] * len(whole)
    sides = [_flat([group[side] for group in kept]) for side in (0, 1)]
    found = Pairing.of(sides[0], sides[1], pairing.student_counts, pairing.teacher_counts)
    # `Pairing.of` puts groups with one student row first.
    alone = np.array([len(group.student) == 1 for group in kept], dtype=bool)
    order = np.concatenate([np.flatnonzero(alone), np.flatnonzero(~alone)]).astype(np.int64)
    return found.to(device), torch.from_numpy(np.array(weights, dtype=np.float32)[order]).to(device)


def _flat(rows: list[Ids]) -> tuple[Ids, Ids]:
    index = np.concatenate([np.zeros(0, dtype=np.int64), *rows])
    return index, np.cumsum([0, *map(len, rows)])
