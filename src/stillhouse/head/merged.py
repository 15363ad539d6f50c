"""A loss of merged rows: pairs of rows over unlike vocabularies, each times a factor of its own.

As `rowwise`, a block of rows at a time with the gradient in the forward pass; besides hidden states, head weight and
bias it goes to the factor of every student row, which comes from the likelihoods of other rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stillhouse.divergence.gold import Distance
from stillhouse.head.blocks import Blocks, pieces
from stillhouse.head.predictions import Predictions
from stillhouse.head.products import Gradients, Products, compute_dtype, statistics_dtype

# (student logits [n, V_s], teacher logits [n, V_t], log factors [n] and [n]) -> Distance
Measure = Callable[[Tensor, Tensor, Tensor, Tensor], Distance]


class MergedLoss(NamedTuple):
    """Sums over M merged rows."""

    loss: Tensor  # scalar, differentiable
    shared: Tensor  # [M] without gradient
    apart: Tensor  # [M] without gradient


def merged_loss(
    student: Predictions,
    teacher: Predictions,
    factors: tuple[Tensor, Tensor],
    measure: Measure,
    weights: tuple[Tensor, float, float],
    blocks: Blocks | None = None,
) -> MergedLoss:
    """sum over M rows of weight (shared_weight shared + apart_weight apart); the teacher gets no gradient.

    Args:
        student: M rows, over V_s tokens.
        teacher: M rows, over V_t.
        factors: logarithms [M] of either side's factors; the student's gets a gradient.
        measure: the distance of n rows.
        weights: of every row [M], and what `measure` weighs its two parts by.
        blocks: block sizes; by default the rule for the device.

    Raises:
        ValueError: student and teacher have different numbers of rows.
    """
    if len(student) != len(teacher):
        raise ValueError(f"{len(student)} student rows but {len(teacher)} teacher rows")
    head, (ours, theirs) = student.head, factors
    blocks = blocks or Blocks.on(student.hidden.device)
    work = _Work(student, teacher.detach(), theirs, measure, weights, blocks, torch.is_grad_enabled())
    found = _Merged.apply(work, ours, student.hidden, head.weight, head.bias)
    return MergedLoss(*found)  # pyright: ignore[reportGeneralTypeIssues]


@dataclass
class _Work:
    student: Predictions
    teacher: Predictions
    teacher_factor: Tensor
    measure: Measure
    weights: tuple[Tensor, float, float]
    blocks: Blocks
    wants_gradient: bool


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, work: _Work, factor: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, ...]:
        leaves, dtype = (hidden, weight, bias), compute_dtype(hidden)
        wants_h, wants_w, wants_b = (work.wants_gradient and needed for needed in ctx.needs_input_grad[2:])
        blocks = sum(1 for _ in pieces(len(hidden), work.blocks.rows))
        values = torch.zeros(2, len(hidden), dtype=statistics_dtype(hidden), device=hidden.device)  # [2, M]
        slopes = torch.zeros_like(values[0])  # [M]
        with torch.autocast(hidden.device.type, enabled=False):
            gradients = Gradients(leaves, (wants_h, wants_w, wants_b), dtype, blocks)
            products = Products(leaves, work.student.head, dtype)
            theirs = work.teacher.head
            others = Products((work.teacher.hidden, theirs.weight, theirs.bias), theirs, theirs.weight.dtype)
            for rows in pieces(len(hidden), work.blocks.rows):
                product = _block(work, rows, (products.of(rows), others.of(rows)), factor, values, slopes)
                if gradients.wanted:
                    gradients.add(products, rows, product, work.blocks)
        found = (slopes if work.wants_gradient else None, *gradients.finished())
        ctx.present = [part is not None for part in found]
        ctx.save_for_backward(*(part for part in found if part is not None))
        of_rows, shared_weight, apart_weight = work.weights
        shared, apart = values.unbind(0)
        ctx.mark_non_differentiable(shared, apart)
        loss = (of_rows * (shared_weight * shared + apart_weight * apart)).sum()
        return loss, shared, apart

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = iter(ctx.saved_tensors)
        # In place: dW is as large as the head.
        return None, *(next(saved).mul_(outputs[0]) if present else None for present in ctx.present)


def _block(
    work: _Work, rows: slice, products: tuple[Tensor, Tensor], factor: Tensor, values: Tensor, slopes: Tensor
) -> Tensor:
    """Fill `values` [2, M] and `slopes` [M] at `rows`; the gradient by the student's products [B, V_s], over them."""
    product, others = products
    ours, theirs = work.student.head.finishing, work.teacher.head.finishing
    for sub in work.blocks.within(len(product), product.shape[1] + others.shape[1]):
        at = slice(rows.start + sub.start, rows.start + sub.stop)
        logits = ours.forward(product[sub])  # [n, V_s]
        measured = work.measure(
            logits, theirs.forward(others[sub]), factor[at].to(logits.dtype), work.teacher_factor[at].to(logits.dtype)
        )
        values[0, at], values[1, at] = measured.shared, measured.apart
        weight = work.weights[0][at].to(logits.dtype)
        slopes[at] = measured.slope * weight
        if work.wants_gradient:
            product[sub] = ours.backward_(measured.gradient.mul_(weight.unsqueeze(-1)), logits)
    return product
