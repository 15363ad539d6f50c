"""Losses of whole rows of logits, taken a block of rows at a time, with the gradient taken there and then.

Letters: N predictions, V tokens, d hidden size, B rows of a block (one matrix product), n rows of a sub-block (one
pass of element-wise work). A *row* is one prediction. `product` is hidden @ weight.T before scale and soft-cap.

    for each block of B rows:      logits of student and teacher     (two GEMMs)
        for each sub-block of n:   values and d loss / d logits      (closed forms, in cache; fp32)
        dH, dW                                                       (two GEMMs; dW in fp32)

Nothing of size [N, V] ever exists: the peak is one [B, V] block a side, the sub-block's temporaries, and dW.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stillhouse.head.blocks import Blocks, pieces
from stillhouse.head.elementwise import Elementwise, Monitor, Term, compiled, evaluate
from stillhouse.head.fused import fused, supports
from stillhouse.head.lm_head import Head
from stillhouse.head.predictions import Predictions
from stillhouse.head.products import Gradients, Leaves, Products, Wants, compute_dtype, statistics_dtype


@dataclass
class RowwiseLoss:
    """What `rowwise_loss` gives.

    Attributes:
        loss: scalar, the weighted sum over terms and rows; differentiable.
        values: for each term and monitor, its value in every row, [N], without gradient.
    """

    loss: Tensor
    values: dict[str, Tensor] = field(default_factory=dict)


def rowwise_loss(
    student: Predictions,
    teacher: Predictions | None,
    terms: Sequence[Term],
    monitors: Mapping[str, Monitor] | None = None,
    blocks: Blocks | None = None,
) -> RowwiseLoss:
    """Sum over predictions of `terms`, exact, with memory that does not grow with N times V.

    Gradients go to the student's hidden states, head weight and bias; the teacher gets none.

    Args:
        student: N predictions.
        teacher: N predictions of the same tokens, or None where no term needs a teacher.
        terms: What to sum.
        monitors: Statistics of the same rows to report, without gradient.
        blocks: Block sizes, and whether to compile; by default the rule for the device, eager.

    Raises:
        ValueError: student and teacher have different numbers of rows or of tokens, or a needed teacher is missing.
    """
    _check(student, teacher, terms)
    head = student.head
    work = _Work(
        head=head,
        teacher=teacher.detach() if teacher is not None else None,
        labels=student.labels,
        terms=tuple(terms),
        monitors=tuple((monitors or {}).values()),
        blocks=blocks or Blocks.on(student.hidden.device),
        compute_dtype=compute_dtype(student.hidden),
        wants_gradient=torch.is_grad_enabled(),
    )
    loss, *values = _Rowwise.apply(work, student.hidden, head.weight, head.bias)  # type: ignore[misc]
    names = [term.name for term in terms] + list(monitors or {})
    return RowwiseLoss(loss, dict(zip(names, values, strict=True)))


def _check(student: Predictions, teacher: Predictions | None, terms: Sequence[Term]) -> None:
    if teacher is None:
        needing = [term.name for term in terms if term.divergence.needs_teacher]
        if needing:
            raise ValueError(f"{', '.join(needing)} needs a teacher's predictions")
        return
    if len(student) != len(teacher):
        raise ValueError(f"{len(student)} student rows but {len(teacher)} teacher rows")
    ours, theirs = student.head.vocabulary, teacher.head.vocabulary
    if ours != theirs:
        raise ValueError(f"student predicts {ours} tokens, teacher {theirs}: cut both to the same")


@dataclass
class _Work:
    head: Head
    teacher: Predictions | None
    labels: Tensor
    terms: tuple[Term, ...]
    monitors: tuple[Monitor, ...]
    blocks: Blocks
    compute_dtype: torch.dtype
    wants_gradient: bool


class _Rowwise(torch.autograd.Function):
    """Values and gradients in the forward; the backward only scales what is already there."""

    @staticmethod
    def forward(ctx: Any, work: _Work, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        wants_h, wants_w, wants_b = (work.wants_gradient and needed for needed in ctx.needs_input_grad[1:])
        with torch.autocast(hidden.device.type, enabled=False):
            values, sums = _Pass(work, (hidden, weight, bias), (wants_h, wants_w, wants_b)).run()
        gradients = sums.finished()  # the pass and its blocks of logits are gone by now
        ctx.present = [gradient is not None for gradient in gradients]
        ctx.save_for_backward(*(gradient for gradient in gradients if gradient is not None))
        total = sum(
            (term.weight * values[index].sum() for index, term in enumerate(work.terms)),
            start=values.new_zeros(()),
        )
        parts = values.unbind(0)
        ctx.mark_non_differentiable(*parts)
        return total, *parts

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = iter(ctx.saved_tensors)
        # In place: dW is as large as the head. A second backward over the same graph is refused by autograd itself,
        # because the saved tensors' version has changed.
        scaled = [next(saved).mul_(outputs[0]) if present else None for present in ctx.present]
        return None, *scaled


class _Pass:
    """One run over all blocks, filling values and gradients."""

    def __init__(self, work: _Work, leaves: Leaves, wants: Wants) -> None:
        self.work = work
        hidden = leaves[0]
        self.products = Products(leaves, work.head, work.compute_dtype)
        self.teacher = None if work.teacher is None else _teacher_products(work.teacher)
        blocks = sum(1 for _ in pieces(len(hidden), work.blocks.rows))
        self.gradients = Gradients(leaves, wants, work.compute_dtype, blocks)
        count = len(work.terms) + len(work.monitors)
        dtype = statistics_dtype(hidden)
        self.values = torch.zeros(count, len(hidden), dtype=dtype, device=hidden.device)  # [terms + monitors, N]
        self.elementwise = Elementwise(
            work.terms,
            work.monitors,
            work.head.finishing,
            None if work.teacher is None else work.teacher.head.finishing,
            self.gradients.wanted,
        )

    def run(self) -> tuple[Tensor, Gradients]:
        """Values [terms + monitors, N], and the sums of the gradients."""
        for block in pieces(len(self.work.labels), self.work.blocks.rows):
            self._block(block)
        return self.values, self.gradients

    def _block(self, block: slice) -> None:
        work = self.work
        product = self.products.of(block)  # [B, V]
        teacher_product = None if self.teacher is None else self.teacher.of(block)  # [B, V]
        labels, values = work.labels[block], self.values[:, block]  # [B], [terms + monitors, B]
        large = not work.blocks.compile and product.numel() >= work.blocks.kernel_from
        if large and supports(self.elementwise, product, teacher_product):
            found, _ = fused(self.elementwise, product, teacher_product, labels)  # the gradient is over the product
            for row, value in zip(values, found, strict=True):
                row.copy_(value)
        else:
            product = self._by_pieces(product, teacher_product, labels, values)
        if self.gradients.wanted:
            self.gradients.add(self.products, block, product, work.blocks)

    def _by_pieces(self, product: Tensor, teacher_product: Tensor | None, labels: Tensor, values: Tensor) -> Tensor:
        """Fill `values` [terms + monitors, B] a sub-block at a time; the gradient by the products [B, V]."""
        work = self.work
        function = compiled if work.blocks.compile else evaluate
        for sub in work.blocks.within(len(product), work.head.vocabulary):
            theirs = None if teacher_product is None else teacher_product[sub]
            found, gradient = function(self.elementwise, product[sub], theirs, labels[sub])
            for row, value in zip(values, found, strict=True):
                row[sub] = value
            if gradient is not None and gradient.shape == product.shape and gradient.dtype == product.dtype:
                product = gradient  # one sub-block is the whole block: nothing to copy
            elif gradient is not None:
                product[sub] = gradient  # the product is not needed any more
        return product


def _teacher_products(teacher: Predictions) -> Products:
    """In the head's own dtype: a teacher computes as it was loaded, whatever the student's autocast."""
    head = teacher.head
    return Products((teacher.hidden, head.weight, head.bias), head, head.weight.dtype)
