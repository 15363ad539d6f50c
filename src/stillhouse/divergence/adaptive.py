"""Adaptive KL: forward KL weighs the gap on the teacher's head, reverse KL the gap on its tail."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stillhouse.divergence.base import TeacherDivergence
from stillhouse.divergence.rows import Pair


@dataclass(frozen=True)
class AdaptiveKL(TeacherDivergence):
    """w KL(p||q) + (1 - w) KL(q||p), w the share of sum |p - q| that lies on the teacher's head. (arXiv:2404.02657)

    With the vocabulary sorted by ascending p (equal p: by ascending id), the tail is {cumulative mass <= mu}, the head
    the rest, so a token that crosses mu is in the head. w is detached, and 1/2 where p = q.

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


def _ascending(p: Tensor) -> Tensor:
    """The probabilities of each row in ascending order: [N, V]."""
    # NumPy sorts with the machine's vector instructions: 5 ns an element where torch's CPU sort takes 110.
    looks = p.is_cpu and not torch.compiler.is_compiling()
    return torch.from_numpy(np.sort(p.numpy(), axis=-1)) if looks else p.sort(-1).values


def _tail_size(ascending: Tensor, mu: float, *, with_bound: bool) -> Tensor:
    """How many tokens have a cumulative mass of at most `mu` (below it where not `with_bound`): [N, 1]."""
    mass = ascending.cumsum(-1).clamp_(max=1.0)  # [N, V], and 1 at the end however the sum rounds
    return torch.searchsorted(mass, mass.new_full((len(mass), 1), mu), right=with_bound)


def _last_ids(p: Tensor, mu: float) -> Tensor:
    """The head of TAID's port [N, V]: as many of the last ids as tokens have a cumulative mass of at least `mu`."""
    return torch.arange(p.shape[-1], device=p.device) >= _tail_size(_ascending(p), mu, with_bound=False)


def _head_gap(p: Tensor, gap: Tensor, mu: float) -> Tensor:
    """The sum of `gap` [N, V] over the head of each row of p: [N, 1]."""
    ascending = _ascending(p)
    tail = _tail_size(ascending, mu, with_bound=True)  # [N, 1]
    size = p.shape[-1] - tail  # [N, 1]
    boundary = ascending.gather(-1, tail.clamp(max=p.shape[-1] - 1))  # [N, 1] the head's least, where it has any
    below = ascending.gather(-1, (tail - 1).clamp(min=0))  # [N, 1] the tail's greatest, where it has any
    torn = (below == boundary) & (tail > 0) & (size > 0)  # [N, 1] the cut is amid equal probabilities
    # On an accelerator to look for torn rows would stop and wait for the device.
    whole = p.is_cpu and not torch.compiler.is_compiling() and not bool(torn.any())
    in_head = (p >= boundary) & (size > 0) if whole else _head_of_equals(p, boundary, size)  # [N, V]
    return (gap * in_head).sum(-1, keepdim=True)


def _head_of_equals(p: Tensor, boundary: Tensor, size: Tensor) -> Tensor:
    """The `size` [N, 1] likeliest tokens of p [N, V], of those that equal `boundary` [N, 1] the highest ids: [N, V]."""
    above, equal = p > boundary, p == boundary
    from_the_end = equal.flip(-1).cumsum(-1).flip(-1)  # [N, V]
    return above | (equal & (from_the_end <= size - above.sum(-1, keepdim=True)))
