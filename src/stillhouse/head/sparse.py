"""Logits at a few tokens of each row: at given ids, or at the k likeliest; differentiable, memory N x k.

One row of the head is read for each logit asked for, so a gather takes N x k x d steps, not N x V x d. To find the
likeliest takes all products once, a block of rows at a time and without gradient; the gradient is the gather's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stillhouse.divergence import Rows
from stillhouse.head.blocks import Blocks, pieces
from stillhouse.head.lm_head import Finish, Head
from stillhouse.head.products import Gradients, Leaves, Products, compute_dtype, statistics_dtype


class TopK(NamedTuple):
    """The k likeliest tokens of each row, the likeliest first."""

    values: Tensor  # [N, k] logits, fp32 (fp64 for fp64)
    ids: Tensor  # [N, k] int64


def top_k(hidden: Tensor, head: Head, k: int, blocks: Blocks | None = None) -> TopK:
    """The k highest logits of each row of `hidden` [N, d]; see `Predictions.top_k`."""
    if not 1 <= k <= head.vocabulary:
        raise ValueError(f"k must be from 1 to the {head.vocabulary} tokens of the vocabulary, got {k}")
    ids = survey(hidden, head, k, entropies=False, blocks=blocks).ids
    return TopK(gather(hidden, head, ids, blocks), ids)


class Survey(NamedTuple):
    """What one look at each row tells, without gradient."""

    ids: Tensor  # [N, k] int64, the likeliest tokens, the likeliest first
    entropy: Tensor  # [N] in nats at temperature 1; [0] where it was not asked for


@torch.no_grad()
def survey(hidden: Tensor, head: Head, k: int, *, entropies: bool = True, blocks: Blocks | None = None) -> Survey:
    """The k likeliest tokens of each row of `hidden` [N, d], and its entropy; see `Predictions.survey`."""
    blocks, dtype = blocks or Blocks.on(hidden.device), compute_dtype(hidden)
    ids = torch.empty(len(hidden), k, dtype=torch.long, device=hidden.device)  # [N, k]
    entropy = torch.empty(len(hidden) if entropies else 0, dtype=statistics_dtype(hidden), device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        products = Products((hidden, head.weight, head.bias), head, dtype)
        for rows in pieces(len(hidden), blocks.rows):
            block = products.of(rows)  # [B, V]
            # Scale and soft-cap keep the order (a negative scale turns it around), so the bare products will do. They
            # even know more: in fp32 a soft-cap makes equals of logits far above it.
            if k:
                ids[rows] = block.topk(k, largest=head.scale > 0.0).indices
            for sub in blocks.within(len(block) if entropies else 0, head.vocabulary):
                entropy[rows][sub] = Rows(head.finishing.forward(block[sub])).entropy()
    return Survey(ids, entropy)


def gather(hidden: Tensor, head: Head, ids: Tensor, blocks: Blocks | None = None) -> Tensor:
    """Logits of `hidden` [N, d] at `ids` [N, k]: [N, k]; see `Predictions.gather`."""
    _check(hidden, head, ids)
    plan = _Plan(head.finishing, compute_dtype(hidden), blocks or Blocks.on(hidden.device))
    return _Gather.apply(plan, ids.long(), hidden, head.weight, head.bias)  # pyright: ignore[reportReturnType]


def _check(hidden: Tensor, head: Head, ids: Tensor) -> None:
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"ids must be integers, got {ids.dtype}")
    if ids.ndim != 2 or len(ids) != len(hidden):
        raise ValueError(f"ids must be [{len(hidden)}, k], got {list(ids.shape)}")
    # On an accelerator to look would stop and wait for the device, and there the gather itself asserts.
    if ids.is_cpu and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < head.vocabulary:
        raise ValueError(f"ids must be from 0 to {head.vocabulary - 1}, got {int(ids.min())} to {int(ids.max())}")


@dataclass(frozen=True)
class _Plan:
    finish: Finish
    dtype: torch.dtype  # of the products
    blocks: Blocks

    def pieces(self, shape: torch.Size, size: int) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of pieces of [N, k] whose rows of the head, `size` long each, keep to `blocks.elements`."""
        count, k = shape
        columns = max(1, min(k, self.blocks.elements // max(size, 1)))
        for rows in self.blocks.within(count, columns * size):
            for part in pieces(k, columns):
                yield rows, part


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, ids: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        logits = torch.empty(ids.shape, dtype=statistics_dtype(hidden), device=hidden.device)  # [N, k]
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, columns in plan.pieces(ids.shape, hidden.shape[1]):
                chosen = weight[ids[rows, columns]].to(plan.dtype)  # [b, c, d]
                products = torch.bmm(chosen, hidden[rows].to(plan.dtype).unsqueeze(-1)).squeeze(-1)  # [b, c]
                if bias is not None:
                    products = products + bias[ids[rows, columns]].to(plan.dtype)
                logits[rows, columns] = plan.finish.forward(products)
        ctx.plan = plan
        # Only a soft-cap's derivative needs them; else whoever asked may write into what he got.
        ctx.save_for_backward(ids, None if plan.finish.softcap is None else logits, hidden, weight, bias)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ids, logits, *leaves = ctx.saved_tensors
        # A row's part of dH may come in several pieces: they are added in fp32.
        gradients = Gradients(tuple(leaves), ctx.needs_input_grad[2:], statistics_dtype(leaves[0]))
        gradient = ctx.plan.finish.backward_(upstream[0].clone(), logits)  # [N, k] by the products
        with torch.autocast(leaves[0].device.type, enabled=False):
            _scatter(ctx.plan, gradients, tuple(leaves), ids, gradient)
        return None, None, *gradients.finished()


def _scatter(plan: _Plan, gradients: Gradients, leaves: Leaves, ids: Tensor, gradient: Tensor) -> None:
    """Add to `gradients` what `gradient` [N, k], by the products at `ids` [N, k], gives."""
    hidden, weight, _ = leaves
    size = hidden.shape[1]
    for rows, columns in plan.pieces(ids.shape, size):
        here, by_product = ids[rows, columns], gradient[rows, columns]  # [b, c]
        if gradients.hidden is not None:
            chosen = weight[here].to(plan.dtype)  # [b, c, d]
            gradients.hidden[rows] += torch.bmm(by_product.to(plan.dtype).unsqueeze(1), chosen).squeeze(1)
        if gradients.weight is not None:
            outer = by_product.unsqueeze(-1) * hidden[rows].to(plan.dtype).unsqueeze(1)  # [b, c, d] in fp32
            gradients.weight.index_add_(0, here.flatten(), outer.view(-1, size))
        if gradients.bias is not None:
            gradients.bias.index_add_(0, here.flatten(), by_product.flatten())
