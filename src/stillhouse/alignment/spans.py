"""Alignments by place: by number, or by the bytes that the predicted tokens cover.

Position p of a side predicts a token whose span is [ends[p - 1], ends[p]), the first one's [start, ends[0]). Two cuts
of one text into tokens agree in some of the places where they cut; between two neighbouring common cuts lies a *group*,
the smallest stretch in which both sides say the same bytes:

    student    It| 's|  |ok|</s>       ends  2 4 5 8 9
    teacher    It|'|s|  |ok|<|end|>    ends  2 3 4 6 8 9        groups  It  's  ␣␣ok  </s>

A token without width says nothing, and one whose end is unknown (-1) nothing that is known; no group holds either, and
no group reaches over an unknown one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from stillhouse.alignment.alignment import Alignment, Ids, Side


def identity(student: Side, teacher: Side) -> Alignment:
    """Position i with position i.

    Raises:
        ValueError: the sides have different numbers of positions, so their tokens are not the same.
    """
    if len(student) != len(teacher):
        raise ValueError(f"identity: {len(student)} student positions and {len(teacher)} teacher positions")
    return position(student, teacher)


def position(student: Side, teacher: Side) -> Alignment:
    """Position i with position i for the first min(n_s, n_t), whatever the tokens say: ULD, arXiv 2402.12030."""
    both = np.arange(min(len(student), len(teacher)))
    return Alignment.one_to_one(both, both)


def span(student: Side, teacher: Side) -> Alignment:
    """Groups that close where tokens of both sides end at the same byte, each covering the same bytes on both sides.

    So one group is 1-1, 1-n, n-1 or n-m tokens. Tokens without width, and those past the last common end, are in none.
    The groups of GOLD (Patiño et al. 2025) and of ALM (arXiv 2503.20083, unconstrained).
    """
    return Alignment(*_span(student.spans(), student.start, teacher.spans(), teacher.start))


def exact(student: Side, teacher: Side) -> Alignment:
    """One token with one token where both cover the same bytes, first to last.

    With ends in "solid" bytes this is ETA of DSKD-v2, arXiv 2504.11426, which compares in text without blanks.
    """
    return Alignment.one_to_one(*_exact(student.spans(), student.start, teacher.spans(), teacher.start))


@njit(cache=True, nogil=True)
def _exact(student: Any, student_start: Any, teacher: Any, teacher_start: Any) -> Any:
    most = min(len(student), len(teacher))
    pairs = np.empty((2, most), np.int32)
    m, i, j = 0, 0, 0
    begin_s, begin_t = student_start, teacher_start  # -1 after a token whose end is unknown: no span begins there
    while i < len(student) and j < len(teacher):
        if student[i] <= begin_s or student[i] < 0:
            begin_s = student[i]
            i += 1
        elif teacher[j] <= begin_t or teacher[j] < 0:
            begin_t = teacher[j]
            j += 1
        elif student[i] < teacher[j]:
            begin_s = student[i]
            i += 1
        elif student[i] > teacher[j]:
            begin_t = teacher[j]
            j += 1
        else:
            if begin_s == begin_t and begin_s >= 0:
                pairs[0, m], pairs[1, m] = i, j
                m += 1
            begin_s, begin_t = student[i], teacher[j]
            i += 1
            j += 1
    return pairs[0, :m], pairs[1, :m]


@njit(cache=True, nogil=True)
def _span(student: Any, student_start: Any, teacher: Any, teacher_start: Any) -> Any:
    """The four arrays of an `Alignment`.

    The bounds count what is in closed groups, s and t also what waits for its group to close. `last` is where a side
    was cut last, -1 after a token whose end is unknown. Nothing is open until both were cut at one byte; what lies
    before that is dropped.
    """
    most = min(len(student), len(teacher))
    student_index, teacher_index = np.empty(len(student), np.int32), np.empty(len(teacher), np.int32)
    student_bounds, teacher_bounds = np.zeros(most + 1, np.int32), np.zeros(most + 1, np.int32)
    m, i, j, s, t = 0, 0, 0, 0, 0
    last_s, last_t = student_start, teacher_start
    is_open = student_start == teacher_start
    while i < len(student) and j < len(teacher):
        if student[i] < 0 or teacher[j] < 0:
            if student[i] < 0:
                i, last_s = i + 1, -1
            else:
                j, last_t = j + 1, -1
            is_open = False
        elif student[i] <= last_s:
            i += 1
        elif teacher[j] <= last_t:
            j += 1
        elif student[i] != teacher[j]:
            if student[i] < teacher[j]:
                student_index[s], last_s = i, student[i]
                s, i = s + 1, i + 1
            else:
                teacher_index[t], last_t = j, teacher[j]
                t, j = t + 1, j + 1
            if not is_open and last_s == last_t:
                s, t, is_open = student_bounds[m], teacher_bounds[m], True
        else:
            student_index[s], teacher_index[t] = i, j
            last_s, last_t = student[i], teacher[j]
            s, t, i, j = s + 1, t + 1, i + 1, j + 1
            if is_open:
                m += 1
                student_bounds[m], teacher_bounds[m] = s, t
            s, t, is_open = student_bounds[m], teacher_bounds[m], True
    return (
        student_index[: student_bounds[m]],
        student_bounds[: m + 1],
        teacher_index[: teacher_bounds[m]],
        teacher_bounds[: m + 1],
    )


def covered(ends: Ids, start: int) -> Ids:
    """How many bytes each predicted token covers [n]; 0 where its span is unknown."""
    before = np.concatenate([[start], ends])[: len(ends)]
    return np.where((ends >= 0) & (before >= 0), np.maximum(ends - before, 0), 0).astype(np.int32)
