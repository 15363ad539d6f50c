"""Universal logit distillation: probabilities compared rank by rank, whatever tokens they are of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stillhouse.divergence.base import Divergence
from stillhouse.divergence.rows import Rows

_LOW = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True)
class RankDistance(Divergence):
    """sum over ranks r of |p_(r) - q_(r)|, p_(1) >= p_(2) >= ..., the shorter row filled with 0.

    Gradient q (s - sum q s) / T, s = sign(q_(r) - p_(r)) at the rank r of each token; of equal q the lowest id comes
    first. With `top_k` above 0 only so many of the highest ranks count, and `left_out` bounds what that leaves out.
    (Boizard et al., ULD, arXiv:2402.12030)
    """

    name = "uld"
    allows_zeros = True
    any_vocabularies = True
    temperature: float
    top_k: float

    def value_and_gradient(self, rows: Rows) -> tuple[Tensor, Tensor]:
        q = rows.student.softmax(self.temperature).probabilities  # [N, V_s]
        p = rows.teacher.softmax(self.temperature).probabilities  # [N, V_t]
        count = self._count(q, p)
        ranked, order = _ranked(q, min(count, q.shape[-1]))  # [N, K_s], [N, K_s]
        shorter = min(ranked.shape[-1], p.shape[-1])
        theirs = _highest(p, shorter if count >= p.shape[-1] else count)  # [N, K_t]
        gap = ranked.clone()  # [N, K_s]
        gap[:, :shorter] -= theirs[:, :shorter]
        # What is beyond the student's last rank is the teacher's alone, without a gradient, and needs no order.
        beyond = theirs[:, shorter:].sum(-1)  # [N]
        if count >= p.shape[-1] > shorter:
            beyond = (p.sum(-1) - theirs.sum(-1)).clamp_(min=0.0)
        values = gap.abs().sum(-1) + beyond  # [N]
        sign = gap.sign_()
        mean = (ranked * sign).sum(-1, keepdim=True)  # [N, 1] sum q s
        fresh = torch.zeros_like if order.shape[-1] < q.shape[-1] else torch.empty_like
        gradient = fresh(q).scatter_(-1, order, sign).sub_(mean).mul_(q)  # [N, V_s]
        return values, gradient if self.temperature == 1.0 else gradient.div_(self.temperature)

    def left_out(self, rows: Rows) -> Tensor:
        """At most what the ranks beyond `top_k` would add to the value: the probability of both sides there, [N].

        0 <= sum |p_(r) - q_(r)| <= sum p_(r) + sum q_(r) over those ranks.
        """
        q, p = (side.softmax(self.temperature).probabilities for side in (rows.student, rows.teacher))
        tails = torch.zeros_like(q[:, 0])  # [N]
        for side in (q, p):
            tails += (1.0 - _highest(side, min(self._count(q, p), side.shape[-1])).sum(-1)).clamp_(min=0.0)
        return tails

    def _count(self, q: Tensor, p: Tensor) -> int:
        """How many ranks are compared."""
        every = max(q.shape[-1], p.shape[-1])
        return min(int(self.top_k), every) if self.top_k else every


def _in_numpy(rows: Tensor) -> bool:
    # NumPy sorts with the machine's vector instructions: 7 ns an element (12 with its place) where torch's takes 140.
    return rows.is_cpu and not torch.compiler.is_compiling()


def _highest(p: Tensor, count: int) -> Tensor:
    """The `count` highest of each row, in descending order: [N, count]."""
    if not _in_numpy(p):
        return p.topk(count, -1).values
    values, width = p.numpy(), p.shape[-1]
    if count < width:
        values = np.partition(values, width - count, axis=-1)[:, width - count :]
    return torch.from_numpy(np.sort(values, axis=-1)[:, ::-1].copy())


def _ranked(q: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of each row in descending order, equals by ascending id, and their ids: [N, count] each."""
    if not (_in_numpy(q) and q.dtype == torch.float32):
        values, order = q.sort(stable=True, dim=-1, descending=True)
        return values[:, :count], order[:, :count]
    width = q.shape[-1]
    # The bits of floats that are not negative are in the floats' order: one integer holds a probability and its id.
    keys = q.contiguous().numpy().view(np.uint32).astype(np.uint64)  # [N, V]
    keys <<= np.uint64(32)
    keys |= _LOW - np.arange(width, dtype=np.uint64)
    keys = keys.view(np.int64)  # sorted faster than unsigned; NaN alone may be negative, and makes its row NaN anyway
    if count < width:
        keys = np.partition(keys, width - count, axis=-1)[:, width - count :]
    keys = np.sort(keys, axis=-1)[:, ::-1].view(np.uint64)
    values = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
    order = (_LOW - (keys & _LOW)).astype(np.int64)
    return torch.from_numpy(values), torch.from_numpy(order)
