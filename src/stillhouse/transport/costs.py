"""What it costs to stand a row of one side beside a row of the other: matrices [M, N], differentiable by both sides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

TINY = 1e-7  # added to denominators, as MCW-KD's code does


def distances(rows: Tensor, columns: Tensor) -> Tensor:
    """Euclidean distances, by one matrix product: [M, k], [N, k] -> [M, N].

    What lies below the rounding of the product is 0, and has no gradient.
    """
    origin = columns.detach().mean(0)  # distances do not know of it, and small differences of long rows keep digits
    rows, columns = rows - origin, columns - origin
    lengths = rows.square().sum(-1, keepdim=True) + columns.square().sum(-1)  # [M, N]
    squared = torch.addmm(lengths, rows, columns.mT, alpha=-2.0)
    noise = squared.detach() <= 8.0 * torch.finfo(squared.dtype).eps * lengths.detach()
    return squared.masked_fill(noise, 1.0).sqrt().masked_fill(noise, 0.0)


def kl_divergences(rows: Tensor, columns: Tensor, floor: float = TINY) -> Tensor:
    """sum_k p log(p / (q + floor)) of every two rows of probabilities: [M, k], [N, k] -> [M, N]."""
    log_q = (columns + floor).log()
    origin = log_q.detach().mean(0)  # in both terms, whose difference is small beside them: it keeps digits
    # A probability that has come down to 0 is worth 0, and its slope is finite.
    log_p = rows.clamp(min=torch.finfo(rows.dtype).tiny).log()
    own = (rows * (log_p - origin)).sum(-1, keepdim=True)  # [M, 1]
    return torch.addmm(own, rows, (log_q - origin).mT, alpha=-1.0)


def salience_gaps(rows: Tensor, columns: Tensor) -> Tensor:
    """|sigmoid(a) - sigmoid(b)| of numbers: [M], [N] -> [M, N]."""
    return (rows.sigmoid().unsqueeze(1) - columns.sigmoid()).abs()


def context_windows(rows: Tensor, reach: int) -> Tensor:
    """The mean of each row and up to `reach` rows on either side, fewer at the ends: [L, d] -> [L, d]."""
    return _Windows.apply(rows, reach)  # pyright: ignore[reportReturnType]


class _Windows(torch.autograd.Function):
    """A row counts in the windows of the rows that count in its own, so backwards it is the same sum of windows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, reach: int) -> Tensor:
        at = torch.arange(len(rows), device=rows.device)
        counts = 1 + at.clamp(max=reach) + at.flip(0).clamp(max=reach)  # [L]
        ctx.reach, ctx.counts = reach, counts.unsqueeze(-1).to(rows.dtype)
        return _window_sums(rows, reach).div_(ctx.counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _window_sums(upstream[0] / ctx.counts, ctx.reach), None


def _window_sums(rows: Tensor, reach: int) -> Tensor:
    """Sums over windows of 2 reach + 1 rows, nothing beyond the ends: made of sums of 1, 2, 4, ... rows."""
    length, width, size, start = len(rows), 2 * reach + 1, 1, 0
    runs = pad(rows, (0, 0, reach, reach))  # [L + 2 reach, d]; row i: the sum of `size` rows from i on
    found = torch.zeros_like(rows)
    while width:
        if width & 1:
            found += runs[start : start + length]
            start += size
        width >>= 1
        if width:
            runs = runs[:-size] + runs[size:]
            size *= 2
    return found


def cosine_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """1 - cos of every two rows: [M, d], [N, d] -> [M, N]."""
    rows, columns = (side / (side.norm(dim=-1, keepdim=True) + TINY) for side in (rows, columns))
    return 1.0 - rows @ columns.mT


def divided_by_maximum(costs: Tensor) -> Tensor:
    """Costs over their highest, which is followed by gradients; costs up to 1e-7 stay: [M, N]."""
    if not costs.numel():
        return costs
    highest = costs.amax()
    return costs / torch.where(highest > TINY, highest + TINY, torch.ones_like(highest))


def edit_costs(paths: Tensor, rows: int, columns: int) -> Tensor:
    """The mean of two matrices that are 0 but for the pairs of a path: fp32 [M, N].

    Args:
        paths: [k, 3] integers, (row, column, cost): one direction's path, no pair twice, and the other's.
        rows, columns: M and N; pairs beyond are left out.
    """
    costs = torch.zeros(rows * columns, dtype=torch.float32, device=paths.device)
    at_row, at_column, cost = paths.long().unbind(-1)
    inside = (at_row < rows) & (at_column < columns)
    flat = torch.where(inside, at_row * columns + at_column, 0)
    return costs.index_add_(0, flat, torch.where(inside, cost, 0) / 2.0).view(rows, columns)
