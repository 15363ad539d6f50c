"""GOLD's distance between merged rows: shared tokens by a Jensen-Shannon divergence, the others rank by rank.

A merged row is a row of probabilities times a factor: what a group of tokens has of probability when it begins (or
ends) with each token of the vocabulary and otherwise is the text. It does not sum to 1, so none of the divergences of
whole rows fits, and its value moves with the factor as well as with the logits.

Letters: n rows; V_s, V_t tokens; a = c q the student's merged row, b the teacher's; K tokens that both have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# What probabilities are at least, as in the released code, before their logarithm is taken.
LEAST = 1e-8


class Distance(NamedTuple):
    """Of n merged rows."""

    shared: Tensor  # [n] the divergence over the tokens that both have
    apart: Tensor  # [n] the sum over ranks of the others
    gradient: Tensor  # [n, V_s] of the weighted sum of both, by the student's logits
    slope: Tensor  # [n] of the same, by the logarithm of the student's factor


@dataclass(frozen=True)
class MergedRows:
    """`shared_weight` JSD over shared tokens + `apart_weight` sum_r |a_(r) - b_(r)| over the others.

    (Patiño et al., GOLD, in TRL; ranks from Boizard et al., ULD, arXiv:2402.12030)

    Attributes:
        shared: [K] ids of the student and [K] of the teacher, token by token.
        apart: the other ids of either side.
        beta: the teacher's weight in the mixture; 0 is KL(b||a) and 1 is KL(a||b).
    """

    shared: tuple[Tensor, Tensor]
    apart: tuple[Tensor, Tensor]
    beta: float
    shared_weight: float
    apart_weight: float
    temperature: float
    teacher_temperature: float

    def __call__(self, student: Tensor, teacher: Tensor, student_factor: Tensor, teacher_factor: Tensor) -> Distance:
        """Logits [n, V_s] and [n, V_t], and logarithms of the factors [n] of either side."""
        q = (student / self.temperature).softmax(-1)  # [n, V_s]
        a = q * student_factor.exp().unsqueeze(-1)
        b = (teacher / self.teacher_temperature).softmax(-1).mul_(teacher_factor.exp().unsqueeze(-1))  # [n, V_t]
        slopes = torch.zeros_like(a)  # [n, V_s] by a
        jsd, by_shared = divergence(a.index_select(1, self.shared[0]), b.index_select(1, self.shared[1]), self.beta)
        slopes.index_copy_(1, self.shared[0], by_shared.mul_(self.shared_weight))
        ranked, by_apart = ranks(a.index_select(1, self.apart[0]), b.index_select(1, self.apart[1]))
        slopes.index_copy_(1, self.apart[0], by_apart.mul_(self.apart_weight))
        slopes.mul_(a)
        slope = slopes.sum(-1)
        gradient = slopes.addcmul_(q, slope.unsqueeze(-1), value=-1.0)
        return Distance(jsd, ranked, gradient if self.temperature == 1.0 else gradient.div_(self.temperature), slope)


def divergence(a: Tensor, b: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """beta KL(b||m) + (1 - beta) KL(a||m), m = (1 - beta) a + beta b, of parts of rows: [n], and by a: [n, K].

    a and b [n, K] need not sum to 1; a is at least LEAST, below which it gets no gradient. Both are written into.
    """
    free = a > LEAST  # [n, K]
    a, b = a.clamp_min_(LEAST), b.clamp_min_(LEAST)
    lead = (a / b).log_()  # [n, K] log a - log b
    if beta == 0.0:
        return (lead * b).sum(-1).neg_(), (b / a).neg_().mul_(free)
    if beta == 1.0:
        return (lead * a).sum(-1), (lead + 1.0).mul_(free)
    # Both logarithms from the mixture over the teacher's part, as in `mixtures`.
    over_b = ((a / b).mul_(1.0 - beta).add_(beta)).log_()  # [n, K] log m - log b
    slope = (lead - over_b).mul_(1.0 - beta)
    values = (slope * a).sum(-1) - beta * (over_b * b).sum(-1)
    return values, slope.mul_(free)


def ranks(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """sum over ranks r of |a_(r) - b_(r)|, the shorter side filled with 0: [n], and its gradient by a: [n, A].

    a [n, A] and b [n, B] are not negative; b is sorted in place.
    """
    order, highest, others = _sorted(a, b)  # ascending: [n, A], [n, A], [n, B]
    both = min(a.shape[1], b.shape[1])
    # Ranks count from the highest; what only one side has is compared with 0.
    ours, theirs = a.shape[1] - both, b.shape[1] - both
    highest[:, ours:] -= others[:, theirs:]
    values = highest.abs().sum(-1) + others[:, :theirs].sum(-1)
    return values, torch.zeros_like(a).scatter_(1, order, highest.sign_())


def _sorted(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The order of a, a in it, and b in its own; ascending.

    On a CPU by numpy, which sorts a row with vector instructions: a tenth of torch's time.
    """
    if not a.is_cpu:
        values, order = a.sort(-1)
        return order, values, b.sort(-1).values
    order = torch.from_numpy(a.numpy().argsort(axis=-1))  # [n, A]
    b.numpy().sort(axis=-1)
    return order, a.gather(1, order), b
