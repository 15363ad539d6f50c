"""Cross-model attention: hidden states of either model as mixtures of the other's. (Zhang et al., arXiv:2406.17328)

Letters: N_s, N_t scored tokens of a batch on either side; d, D the sizes of hidden states. For each example apart,

    queries  Q = query([E_s(read); E_s(next)])                   [n_s, 2D]
    keys     K = [E_t(read); E_t(next)] / std                    [n_t, 2D]
    A = Q K^T / sqrt(2D);   t2s = softmax(A) t2s(H_t / std + E_t(next) / std);   s2t = softmax(A^T) s2t(H_s)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from stillhouse.head import Predictions
from stillhouse.head.products import statistics_dtype
from stillhouse.methods.projectors import projected

StdScope = Literal["response", "padded"]
_SMALLEST = 1e-6  # of a standard deviation that is divided by


def cross_model_attention(
    student: Predictions, teacher: Predictions, projectors: nn.ModuleDict, std_scope: StdScope = "response"
) -> tuple[Tensor, Tensor]:
    """The teacher's hidden states in the student's space, [N_s, d], and the student's in the teacher's, [N_t, D].

    Scored tokens alone attend and are attended to, within their example. Embeddings and the teacher's hidden states
    get no gradient.

    Args:
        student: with its embeddings.
        teacher: with its embeddings, and a pairing that says how many rows each example has.
        projectors: "query" (2d to 2D), "t2s" (D to d) and "s2t" (d to D).
        std_scope: what the teacher's standard deviations are taken over: the rows of each example ("response"), so
            that a batch may be split anyhow; or the whole batch as it is padded ("padded"), as the released code does.
    """
    pairing, ours, theirs = teacher.pairing, student.embedded, teacher.embedded
    assert pairing is not None and ours is not None and theirs is not None, "the models' embeddings were asked for"
    counts = (list(pairing.student_counts), list(pairing.teacher_counts))
    dtype = statistics_dtype(student.hidden)
    with torch.autocast(student.hidden.device.type, enabled=False):
        queries = projected(projectors, "query", torch.cat([ours.inputs, ours.labels], -1)).to(dtype)  # [N_s, 2D]
        keys, labels, hidden = _normalised(teacher, std_scope, counts[1], dtype)  # [N_t, 2D], [N_t, D] twice
        of_teacher = projected(projectors, "t2s", hidden + labels).to(dtype)  # [N_t, d]
        of_student = projected(projectors, "s2t", student.hidden).to(dtype)  # [N_s, D]
        to_student, to_teacher = [], []
        sides = [(queries, of_student), (keys, of_teacher)]
        by_example = zip(*(part.split(n) for n, side in zip(counts, sides, strict=True) for part in side), strict=True)
        for query, s_value, key, t_value in by_example:
            scores = query @ key.T / math.sqrt(key.shape[-1])  # [n_s, n_t]
            to_student.append(scores.softmax(-1) @ t_value)  # [n_s, d]
            to_teacher.append(scores.T.softmax(-1) @ s_value)  # [n_t, D]
    return torch.cat(to_student), torch.cat(to_teacher)


def _normalised(
    teacher: Predictions, scope: StdScope, counts: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys [N_t, 2D], label embeddings [N_t, D] and hidden states [N_t, D], each over its standard deviation."""
    embedded = teacher.embedded
    assert embedded is not None
    labels = embedded.labels.to(dtype)
    keys = torch.cat([embedded.inputs.to(dtype), labels], -1)
    hidden = teacher.hidden.detach().to(dtype)
    if scope == "response":
        return _by_example(keys, counts), _by_example(labels, counts), _by_example(hidden, counts)
    assert embedded.hidden_deviation is not None, "the teacher was asked for whole batches"
    filler = embedded.filler.to(dtype)
    return (
        keys / _filled_deviation(keys, filler.repeat(2), teacher.positions),
        labels / _filled_deviation(labels, filler, teacher.positions),
        hidden / embedded.hidden_deviation.to(dtype),
    )


def _by_example(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """[N, D] over one number for each example."""
    return torch.cat([part / part.std().clamp_min(_SMALLEST) if len(part) else part for part in rows.split(counts)])


def _filled_deviation(rows: Tensor, filler: Tensor, positions: int) -> Tensor:
    """The standard deviation of [positions, D] whose rows are `rows` [N, D] and, everywhere else, `filler` [D]."""
    others, size = positions - len(rows), positions * rows.shape[-1]
    mean = (rows.sum() + others * filler.sum()) / size
    squares = (rows - mean).square().sum() + others * (filler - mean).square().sum()
    return (squares / (size - 1)).sqrt().clamp_min(_SMALLEST)
