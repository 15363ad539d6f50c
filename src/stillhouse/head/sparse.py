"""Logits at a few tokens of each row: at given ids, or at the k likeliest; differentiable, memory N x k.

One row of the head is read for each logit asked for, so a gather takes N x k x d steps, not N x V x d, and its gradient
as many. To find the likeliest takes all products once, a block of rows at a time, and their logits are of those.
Their gradient is the gather's, or, for a k that is no small part of V, products of blocks that are 0 elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stillhouse.divergence import Rows
from stillhouse.head.blocks import Blocks, pieces
from stillhouse.head.lm_head import Head
from stillhouse.head.products import Gradients, Leaves, Plan, Products, Wants, compute_dtype, statistics_dtype

# Tokens of the vocabulary for each logit, up to which products are faster than reading rows: measured on a CPU, where
# both dtypes meet between 80 and 150.
DENSE_TO = 100


class TopK(NamedTuple):
    """The k likeliest tokens of each row, the likeliest first."""

    values: Tensor  # [N, k] logits, fp32 (fp64 for fp64)
    ids: Tensor  # [N, k] int64


def top_k(hidden: Tensor, head: Head, k: int, blocks: Blocks | None = None) -> TopK:
    """The k highest logits of each row of `hidden` [N, d]; see `Predictions.top_k`."""
    if not 1 <= k <= head.vocabulary:
        raise ValueError(f"k must be from 1 to the {head.vocabulary} tokens of the vocabulary, got {k}")
    plan = Plan.of(hidden, head, 1.0, blocks)
    return TopK(*_TopK.apply(plan, k, hidden, head.weight, head.bias))  # pyright: ignore[reportGeneralTypeIssues]


class Survey(NamedTuple):
    """What one look at each row tells, without gradient."""

    ids: Tensor  # [N, k] int64, the likeliest tokens, the likeliest first
    values: Tensor  # [N, k] their logits, fp32 (fp64 for fp64)
    entropy: Tensor  # [N] in nats at temperature 1; [0] where it was not asked for


@torch.no_grad()
def survey(hidden: Tensor, head: Head, k: int, *, entropies: bool = True, blocks: Blocks | None = None) -> Survey:
    """The k likeliest tokens of each row of `hidden` [N, d], and its entropy; see `Predictions.survey`."""
    blocks, dtype = blocks or Blocks.on(hidden.device), compute_dtype(hidden)
    ids = torch.empty(len(hidden), k, dtype=torch.long, device=hidden.device)  # [N, k]
    values = torch.empty(len(hidden), k, dtype=statistics_dtype(hidden), device=hidden.device)  # [N, k]
    entropy = torch.empty(len(hidden) if entropies else 0, dtype=statistics_dtype(hidden), device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        products = Products((hidden, head.weight, head.bias), head, dtype)
        for rows in pieces(len(hidden), blocks.rows):
            block = products.of(rows)  # [B, V]
            # Scale and soft-cap keep the order (a negative scale turns it around), so the bare products will do. They
            # even know more: in fp32 a soft-cap makes equals of logits far above it.
            if k:
                highest = block.topk(k, largest=head.scale > 0.0)
                ids[rows], values[rows] = highest.indices, head.finishing.forward(highest.values)
            for sub in blocks.within(len(block) if entropies else 0, head.vocabulary):
                entropy[rows][sub] = Rows(head.finishing.forward(block[sub])).entropy()
    return Survey(ids, values, entropy)


def gather(hidden: Tensor, head: Head, ids: Tensor, blocks: Blocks | None = None) -> Tensor:
    """Logits of `hidden` [N, d] at `ids` [N, k]: [N, k]; see `Predictions.gather`."""
    _check(hidden, head, ids)
    plan = Plan.of(hidden, head, 1.0, blocks)
    return _Gather.apply(plan, ids.long(), hidden, head.weight, head.bias)  # pyright: ignore[reportReturnType]


def _check(hidden: Tensor, head: Head, ids: Tensor) -> None:
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"ids must be integers, got {ids.dtype}")
    if ids.ndim != 2 or len(ids) != len(hidden):
        raise ValueError(f"ids must be [{len(hidden)}, k], got {list(ids.shape)}")
    # On an accelerator to look would stop and wait for the device, and there the gather itself asserts.
    if ids.is_cpu and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < head.vocabulary:
        raise ValueError(f"ids must be from 0 to {head.vocabulary - 1}, got {int(ids.min())} to {int(ids.max())}")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, ids: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        logits = torch.empty(ids.shape, dtype=statistics_dtype(hidden), device=hidden.device)  # [N, k]
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, columns in _pieces(plan.blocks, ids.shape, hidden.shape[1]):
                chosen = weight[ids[rows, columns]].to(plan.dtype)  # [b, c, d]
                products = torch.bmm(chosen, hidden[rows].to(plan.dtype).unsqueeze(-1)).squeeze(-1)  # [b, c]
                if bias is not None:
                    products = products + bias[ids[rows, columns]].to(plan.dtype)
                logits[rows, columns] = plan.finish.forward(products)
        _keep(ctx, plan, ids, logits, (hidden, weight, bias))
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, *_gradients(ctx, upstream[0], dense=False)


class _TopK(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: Plan, k: int, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        found = survey(hidden, plan.head(weight, bias), k, entropies=False, blocks=plan.blocks)
        _keep(ctx, plan, found.ids, found.values, (hidden, weight, bias))
        return found.values, found.ids

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        k = upstream[0].shape[1]
        return None, None, *_gradients(ctx, upstream[0], dense=ctx.plan.vocabulary <= DENSE_TO * k)


def _keep(ctx: Any, plan: Plan, ids: Tensor, logits: Tensor, leaves: Leaves) -> None:
    """What `_gradients` asks for."""
    ctx.plan = plan
    # Only a soft-cap's derivative needs the logits; else whoever asked may write into what he got.
    ctx.save_for_backward(ids, None if plan.finish.softcap is None else logits, *leaves)


def _gradients(ctx: Any, upstream: Tensor, *, dense: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dH, dW and db from `upstream` [N, k], by products with whole blocks or row by row of the head."""
    ids, logits, *saved = ctx.saved_tensors
    plan, leaves = ctx.plan, tuple(saved)
    gradient = plan.finish.backward_(upstream.clone(), logits)  # [N, k] by the products
    with torch.autocast(leaves[0].device.type, enabled=False):
        return (_multiplied if dense else _scattered)(plan, leaves, ctx.needs_input_grad[2:], ids, gradient)


def _scattered(
    plan: Plan, leaves: Leaves, wants: Wants, ids: Tensor, gradient: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What `gradient` [N, k], by the products at `ids` [N, k], gives: one row of the head is read for each."""
    hidden, weight, _ = leaves
    # A row's part of dH may come in several pieces: they are added in fp32.
    gradients, size = Gradients(leaves, wants, statistics_dtype(hidden)), hidden.shape[1]
    for rows, columns in _pieces(plan.blocks, ids.shape, size):
        here, by_product = ids[rows, columns], gradient[rows, columns]  # [b, c]
        if gradients.hidden is not None:
            chosen = weight[here].to(plan.dtype)  # [b, c, d]
            gradients.hidden[rows] += torch.bmm(by_product.to(plan.dtype).unsqueeze(1), chosen).squeeze(1)
        if gradients.weight is not None:
            outer = by_product.unsqueeze(-1) * hidden[rows].to(plan.dtype).unsqueeze(1)  # [b, c, d] in fp32
            gradients.weight.index_add_(0, here.flatten(), outer.view(-1, size))
        if gradients.bias is not None:
            gradients.bias.index_add_(0, here.flatten(), by_product.flatten())
    return gradients.finished()


def _multiplied(
    plan: Plan, leaves: Leaves, wants: Wants, ids: Tensor, gradient: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same where no row has an id twice: each block of rows as [B, V], 0 where nobody asked."""
    products, rows_at_once = plan.products(leaves), min(len(ids), plan.blocks.rows)
    count = math.ceil(len(ids) / max(1, rows_at_once))
    gradients = Gradients(leaves, wants, plan.dtype, count)
    block = products.hidden.new_zeros(rows_at_once, plan.vocabulary)  # [B, V]
    for rows in pieces(len(ids), rows_at_once):
        here = block[: len(ids[rows])]
        here.scatter_(1, ids[rows], gradient[rows].to(plan.dtype))
        gradients.add(products, rows, here, plan.blocks)
        here.scatter_(1, ids[rows], 0.0)
    return gradients.finished()


def _pieces(blocks: Blocks, shape: torch.Size, size: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of pieces of [N, k] whose rows of the head, `size` long each, keep to `blocks.elements`."""
    count, k = shape
    columns = max(1, min(k, blocks.elements // max(size, 1)))
    for rows in blocks.within(count, columns * size):
        for part in pieces(k, columns):
            yield rows, part
