"""What MCW-KD compares positions by: three costs of their likeliest logits, three of their hidden states.

One example at a time: M rows of the teacher, N of the student; what costs are is a stack of matrices, [3, M, N].
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stillhouse.alignment import EditDistances, texts, warp
from stillhouse.alignment.alignment import Ids
from stillhouse.methods.pair import TokenizerPair
from stillhouse.transport import (
    context_windows,
    cosine_distances,
    distances,
    divided_by_maximum,
    kl_divergences,
    salience_gaps,
)

TEMPERATURE = 2.0  # of the softmax over the likeliest logits
REACH = 4  # positions on either side that a context window has
FLOOR = 1e-7  # of probabilities in the semi-dual form
HIGHEST_KL = 100.0  # there


@dataclass(frozen=True)
class Example:
    """What the costs of one example are taken of.

    Attributes:
        logits: [M, k], [N, k], the likeliest in descending order, the teacher's already mixed with the student's.
        saliences: [M], [N]
        edits: [M, N]
        hidden: [M, d], [N, d], the teacher's in the student's space.
    """

    logits: tuple[Tensor, Tensor]
    saliences: tuple[Tensor, Tensor]
    edits: Tensor
    hidden: tuple[Tensor, Tensor]


def logit_costs(example: Example) -> Tensor:
    """L2, KL and salience between softmaxes of the likeliest logits: [3, M, N]."""
    p, q = ((side / TEMPERATURE).softmax(-1) for side in example.logits)
    return torch.stack([distances(p, q), kl_divergences(p, q), salience_gaps(*example.saliences)])


def hidden_costs(example: Example) -> Tensor:
    """Edit distance on the path, L2 and cosine between context windows: [3, M, N]."""
    windows = [context_windows(side, REACH) for side in example.hidden]
    edits = example.edits.to(windows[0].dtype)
    return torch.stack([edits, divided_by_maximum(distances(*windows)), cosine_distances(*windows)])


def dual_logit_costs(example: Example) -> tuple[Tensor, Tensor]:
    """The semi-dual form of `logit_costs`, each over its highest: [3, M, N]; and what the potential reads: [M, k]."""
    p, q = ((side / TEMPERATURE).softmax(-1).clamp(FLOOR, 1.0) for side in example.logits)
    costs = (
        distances(p, q),
        kl_divergences(p, q, 0.0).clamp(0.0, HIGHEST_KL),
        salience_gaps(*example.saliences),
    )
    return torch.stack([divided_by_maximum(cost) for cost in costs]), p


def dual_hidden_costs(example: Example) -> tuple[Tensor, Tensor]:
    """The semi-dual form of `hidden_costs`, of rows of length 1: [3, M, N]; and what the potential reads: [M, d]."""
    x, y = (normalize(side, dim=-1) for side in example.hidden)
    windows = [context_windows(side, REACH) for side in (x, y)]
    costs = (
        divided_by_maximum(example.edits.to(x.dtype)),
        divided_by_maximum(distances(*windows)),
        cosine_distances(*windows).clamp(0.0, 2.0),
    )
    return torch.stack(costs), x


class EditCosts:
    """Edit distances on the time-warped paths between the tokens of two sequences, in both directions.

    Args:
        student, teacher: the string of every token.
        skipped: ids of either side that are left out beforehand, as the released code does, so that the positions
            after one are counted without it.
    """

    def __init__(
        self,
        student: Sequence[str],
        teacher: Sequence[str],
        skipped: tuple[Collection[int], Collection[int]] = ((), ()),
    ) -> None:
        self.distances = EditDistances(student, teacher)
        self.skipped = [np.array(sorted(ids), np.int64) for ids in skipped]

    @classmethod
    def of(cls, tokenizers: TokenizerPair, *, official: bool) -> EditCosts:
        """Between raw strings, with their markers of blanks, as MCW-KD has them."""
        sides = (tokenizers.student, tokenizers.teacher)
        ours, theirs = (side.special if official else () for side in sides)
        return cls(texts(sides[0], "raw"), texts(sides[1], "raw"), (ours, theirs))

    def __call__(self, student: Ids, teacher: Ids) -> Tensor:
        """What edits cost on both directions' paths, of ids [N] and [M]: [k, 3], as `edit_costs` takes it."""
        ours, theirs = (side[~np.isin(side, ids)] for side, ids in zip((student, teacher), self.skipped, strict=True))
        costs = self.distances(ours, theirs)  # [M', N']
        forward, backward = warp(costs), warp(np.ascontiguousarray(costs.T))[:, ::-1]
        paths = np.concatenate([forward, backward])
        return torch.from_numpy(np.column_stack([paths, costs[paths[:, 0], paths[:, 1]]]).astype(np.int64))
