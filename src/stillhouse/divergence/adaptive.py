"""Adaptive KL: forward KL weighs the gap on the teacher's head, reverse KL the gap on its tail."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.divergence.base import TeacherDivergence
from stillhouse.divergence.rows import Pair

_FIRST_TOP_K = 64
_GROWTH = 8
_RESOLVED = 1e-6  # a smaller mass is not told from the rounding of 1 - (the mass above it)


@dataclass(frozen=True)
class AdaptiveKL(TeacherDivergence):
    """w KL(p||q) + (1 - w) KL(q||p), w the share of sum |p - q| that lies on the teacher's head. (arXiv:2404.02657)

    With the vocabulary sorted by ascending p (equal p: by ascending id), the tail is {cumulative mass <= mu}, the head
    the rest, so a token that crosses mu is in the head. w is detached, and 1/2 where p = q. Unlike the others it waits
    for an accelerator, once for each top-k that it needs.

    `taid_port` gives the numbers of TAID's port: K, the count of {cumulative mass >= mu}, is right, but its head is the
    *last K ids*; w is not detached; and KL(p||q) is the cross-entropy -sum p log q.
    """

    name = "adaptive_kl"
    mu: float
    taid_port: bool

    def value_and_slope(self, pair: Pair) -> tuple[Tensor, Tensor]:
        gap = torch.sub(pair.student, pair.teacher).abs_()  # [N, V]
        total = gap.sum(-1, keepdim=True)  # [N, 1]
        if self.taid_port:
            in_head = _last_ids(pair.teacher, self.mu)  # [N, V]
            head = (gap * in_head).sum(-1, keepdim=True)
        else:
            in_head = None
            head = _head_gap(pair.teacher, gap, self.mu)  # [N, 1]
        vanished = total <= torch.finfo(total.dtype).tiny
        weight = torch.where(vanished, 0.5, head / total)  # [N, 1]

        p, q, d = pair.teacher_common, pair.student_common, pair.log_ratio
        forward = -torch.mul(p, d, out=gap).sum(-1, keepdim=True)  # [N, 1]
        terms = d.mul_(q)  # [N, V]
        reverse = terms.sum(-1, keepdim=True)  # [N, 1]
        slope = terms.add_(q).mul_(1.0 - weight).addcmul_(p, weight, value=-1.0)  # [N, V]
        if in_head is not None:
            forward = forward + torch.special.entr(p).sum(-1, keepdim=True)
            # dw/d(log q) = q sign(q - p) (1[head] - w) / total
            per_gap = (forward - reverse) / total.masked_fill(vanished, torch.inf)  # [N, 1]
            signed_q = (pair.student - pair.teacher).sign_().mul_(pair.student)  # [N, V]
            slope.addcmul_(signed_q, (in_head.to(q.dtype) - weight).mul_(per_gap))
        return torch.lerp(reverse, forward, weight).squeeze(-1), slope


def _cumulative_from_below(top: Tensor, *, complete: bool) -> Tensor:
    """The mass of each token and of all that are less likely: [N, k], for the k largest probabilities, descending.

    In fp64, since a sum over the vocabulary is compared with a bound. A part of the vocabulary is summed from its large
    end; the whole from its small end, where even a tiny bound is met exactly.
    """
    top = top.double()
    if complete:
        return top.flip(-1).cumsum_(-1).flip(-1).clamp_(max=1.0)
    return 1.0 - (top.cumsum(-1) - top)


def _top(p: Tensor, mu: float, *, with_boundary: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The most likely tokens of each row, descending: probabilities, ids, and whether in the head, each [N, k].

    k is 64, times 8 until every row's head has ended: a whole sort costs 25 times a top-64.
    """
    k = min(_FIRST_TOP_K, p.shape[-1]) if mu > _RESOLVED else p.shape[-1]
    while True:
        top, ids = p.topk(k)  # [N, k]
        complete = k == p.shape[-1]
        mass = _cumulative_from_below(top, complete=complete)  # [N, k]
        in_head = mass >= mu if with_boundary else mass > mu
        if complete or not bool(in_head[:, -1].any()):
            return top, ids, in_head
        k = min(k * _GROWTH, p.shape[-1])


def _last_ids(p: Tensor, mu: float) -> Tensor:
    """The head of TAID's port [N, V]: as many of the last ids as there are tokens in the real head."""
    size = _top(p, mu, with_boundary=True)[2].sum(-1, keepdim=True)  # [N, 1]
    return torch.arange(p.shape[-1], device=p.device) >= p.shape[-1] - size


def _head_gap(p: Tensor, gap: Tensor, mu: float) -> Tensor:
    """The sum of `gap` [N, V] over the head of each row of p: [N, 1]."""
    top, ids, in_head = _top(p, mu, with_boundary=False)  # [N, k]
    head = (gap.gather(-1, ids) * in_head).sum(-1, keepdim=True)  # [N, 1]
    # Where the head ends amid equal probabilities, top-k's choice among them is arbitrary; the definition's is not.
    ends = in_head[:, :-1] & ~in_head[:, 1:]  # [N, k - 1]
    torn = (ends & (top[:, :-1] == top[:, 1:])).any(-1)  # [N]
    if bool(torn.any()):
        size = in_head[torn].sum(-1, keepdim=True)  # [n, 1]
        head[torn] = (gap[torn] * _head_of_equals(p[torn], top[torn].gather(-1, size - 1), size)).sum(-1, keepdim=True)
    return head


def _head_of_equals(p: Tensor, boundary: Tensor, size: Tensor) -> Tensor:
    """The `size` [n, 1] likeliest tokens of p [n, V], of those that equal `boundary` [n, 1] the highest ids: [n, V]."""
    above, equal = p > boundary, p == boundary
    from_the_end = equal.flip(-1).cumsum(-1).flip(-1)  # [n, V]
    return above | (equal & (from_the_end <= size - above.sum(-1, keepdim=True)))
