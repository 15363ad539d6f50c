"""Small predictions of a student and of a teacher with other tokens, and a pairing of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stillhouse.head import Head, Pairing, Predictions
from stillhouse.paired.dataset import Edits

Leaves = tuple[Tensor, Tensor]


def side(seed: int, counts: Sequence[int], vocabulary: int, size: int) -> Predictions:
    """fp64 rows of examples with as many rows as `counts` says, everything learnable."""
    generator = torch.Generator().manual_seed(seed)
    rows = sum(counts)
    hidden = torch.randn(rows, size, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(vocabulary, size, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    return Predictions(hidden, Head(weight), labels, torch.repeat_interleave(torch.tensor(counts)), 4 * rows)


def by_position(student: Sequence[int], teacher: Sequence[int]) -> Pairing:
    """The first rows of every example with each other."""
    starts = [np.concatenate([[0], np.cumsum(counts)]) for counts in (student, teacher)]
    shorter = [np.arange(min(pair)) for pair in zip(student, teacher, strict=True)]
    index = [np.concatenate([rows + start for rows, start in zip(shorter, s, strict=False)]) for s in starts]
    bounds = np.arange(len(index[0]) + 1)
    return Pairing.of((index[0], bounds), (index[1], bounds), student, teacher, "first")


def both(
    student: Sequence[int], teacher: Sequence[int], vocabularies: tuple[int, int] = (13, 17), seed: int = 0
) -> tuple[Predictions, Predictions]:
    """A student, and a teacher that is paired with it by position."""
    ours, theirs = side(seed, student, vocabularies[0], 5), side(seed + 1, teacher, vocabularies[1], 7)
    return ours, replace(theirs, pairing=by_position(student, teacher))


def with_edits(student: Predictions, teacher: Predictions, edits: Edits) -> Predictions:
    """The teacher, with what a collator finds between the tokens of every example."""
    pairing = teacher.pairing
    assert pairing is not None and student.inputs is not None and teacher.inputs is not None
    ours = student.inputs.split(list(pairing.student_counts))
    theirs = teacher.inputs.split(list(pairing.teacher_counts))
    found = tuple(edits(s.numpy(), t.numpy()) for s, t in zip(ours, theirs, strict=True))
    return replace(teacher, pairing=replace(pairing, edits=found))


def example(side: Predictions, counts: Sequence[int], index: int) -> Predictions:
    """The rows of one example, which share the leaves of all."""
    start = sum(counts[:index])
    rows = side.part(slice(start, start + counts[index]))
    return replace(rows, sequence=torch.zeros_like(rows.sequence))


def logits(side: Predictions) -> Tensor:
    """[N, V]"""
    return side.hidden @ side.head.weight.T


def cross_entropy(side: Predictions) -> Tensor:
    """The sum over rows."""
    return -logits(side).log_softmax(-1).gather(-1, side.labels[:, None]).sum()


def leaves(side: Predictions) -> Leaves:
    """What the student learns."""
    return side.hidden, side.head.weight


def same(ours: Tensor, wanted: Tensor, student: Predictions, tight: float = 1e-9) -> None:
    """Equal values and equal gradients by the student's leaves."""
    torch.testing.assert_close(ours.detach(), wanted.detach(), rtol=tight, atol=tight)
    gradients = [torch.autograd.grad(loss, leaves(student)) for loss in (ours, wanted)]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=10 * tight, atol=10 * tight)
