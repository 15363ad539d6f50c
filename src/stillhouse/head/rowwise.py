"""Losses of whole rows of logits, taken a block of rows at a time, with the gradient taken there and then.

Letters: N predictions, V tokens, d hidden size, B rows of a block (one matrix product), n rows of a sub-block (one
pass of element-wise work). A *row* is one prediction. `product` is hidden @ weight.T before scale and soft-cap.

    for each block of B rows:      logits of student and teacher     (two GEMMs)
        for each sub-block of n:   values and d loss / d logits      (closed forms, in cache; fp32)
        dH, dW                                                       (two GEMMs; dW in fp32)

Nothing of size [N, V] ever exists: the peak is one [B, V] block a side, the sub-block's temporaries, and dW.

A teacher with other tokens has its block translated between the products and the element-wise work; where both sides
are cut to the tokens they share, what needs the teacher sees the cut blocks and the rest the student's whole one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from stillhouse.head.blocks import Blocks, pieces
from stillhouse.head.elementwise import ALONE, MONITORS, Elementwise, Monitor, Term, compiled, evaluate
from stillhouse.head.fused import fused, supports
from stillhouse.head.lm_head import Finish, Head
from stillhouse.head.predictions import Predictions
from stillhouse.head.products import Gradients, Leaves, Products, Wants, compute_dtype, statistics_dtype
from stillhouse.head.translation import FLOOR


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
    weights: Tensor | None = None,
) -> RowwiseLoss:
    """Sum over predictions of `terms`, exact, with memory that does not grow with N times V.

    Gradients go to the student's hidden states, head weight and bias; the teacher gets none.

    Args:
        student: N predictions.
        teacher: N predictions of the same tokens, or None where no term needs a teacher.
        terms: What to sum.
        monitors: Statistics of the same rows to report, without gradient.
        blocks: Block sizes, and whether to compile; by default the rule for the device, eager.
        weights: [N], what each row's part of the loss is multiplied by; its `values` are not. None: 1.

    Raises:
        ValueError: student and teacher have different numbers of rows or of tokens, or a needed teacher is missing.

    A teacher's `translation` is applied; its `pairing` is not: that is for whoever chooses the rows.
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
        weights=weights,
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
    ours, theirs, translation = student.head.vocabulary, teacher.head.vocabulary, teacher.translation
    if translation is not None:
        ours, theirs = ours if translation.columns is None else translation.vocabulary, translation.vocabulary
    if ours != theirs and not all(term.divergence.any_vocabularies for term in terms if term.divergence.needs_teacher):
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
    weights: Tensor | None = None


class _Rowwise(torch.autograd.Function):
    """Values and gradients in the forward; the backward only scales what is already there."""

    @staticmethod
    def forward(ctx: Any, work: _Work, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        asked = work.wants_gradient and bool(work.terms)  # monitors alone have none
        wants_h, wants_w, wants_b = (asked and needed for needed in ctx.needs_input_grad[1:])
        with torch.autocast(hidden.device.type, enabled=False):
            values, sums = _Pass(work, (hidden, weight, bias), (wants_h, wants_w, wants_b)).run()
        gradients = sums.finished()  # the pass and its blocks of logits are gone by now
        ctx.present = [gradient is not None for gradient in gradients]
        ctx.save_for_backward(*(gradient for gradient in gradients if gradient is not None))
        weighted = values if work.weights is None else values * work.weights  # [terms + monitors, N]
        total = sum(
            (term.weight * weighted[index].sum() for index, term in enumerate(work.terms)),
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
        blocks = sum(1 for _ in pieces(len(hidden), work.blocks.rows))
        self.gradients = Gradients(leaves, wants, work.compute_dtype, blocks)
        count = len(work.terms) + len(work.monitors)
        dtype = statistics_dtype(hidden)
        self.values = torch.zeros(count, len(hidden), dtype=dtype, device=hidden.device)  # [terms + monitors, N]
        finish = None if work.teacher is None else work.teacher.head.finishing
        self.elementwise = Elementwise(
            work.terms, work.monitors, work.head.finishing, finish, wants_gradient=self.gradients.wanted
        )
        self.teacher = None if work.teacher is None else _TeacherLogits(work.teacher, self.elementwise)
        if self.teacher is not None and work.teacher is not None and work.teacher.translation is not None:
            self.elementwise = replace(self.elementwise, teacher=Finish())

    def run(self) -> tuple[Tensor, Gradients]:
        """Values [terms + monitors, N], and the sums of the gradients."""
        for block in pieces(len(self.work.labels), self.work.blocks.rows):
            self._block(block)
        return self.values, self.gradients

    def _block(self, block: slice) -> None:
        product, work = self.products.of(block), self.elementwise.part(block)  # [B, V]
        theirs = None if self.teacher is None else self.teacher.of(block)  # [B, V]
        labels, values = self.work.labels[block], list(self.values[:, block])  # [B], of [B] each
        columns = None if self.teacher is None else self.teacher.columns
        if columns is None:
            product = self._done(work, product, theirs, labels, values)
        else:
            product = self._in_two(work, product, theirs, labels, values, columns)
        if self.gradients.wanted:
            if self.work.weights is not None:
                product.mul_(self.work.weights[block].unsqueeze(-1))
            self.gradients.add(self.products, block, product, self.work.blocks)

    def _in_two(
        self,
        work: Elementwise,
        product: Tensor,
        theirs: Tensor | None,
        labels: Tensor,
        values: list[Tensor],
        columns: Tensor,
    ) -> Tensor:
        """What needs the teacher over `columns` alone, the rest over all; the gradient of both by the products."""
        alone, together = work.parted()
        count = len(work.terms)
        needing = [term.divergence.needs_teacher for term in work.terms]
        needing += [monitor not in ALONE for monitor in work.monitors]
        shared = product.index_select(1, columns)  # [B, V]
        shared = self._done(together, shared, theirs, torch.zeros_like(labels), _chosen(values, needing, True))
        product = self._done(alone, product, None, labels, _chosen(values, needing, False))
        if work.wants_gradient and any(needing[:count]):
            if all(needing[:count]):
                product.zero_()
            product.index_add_(1, columns, shared)
        return product

    def _done(
        self, elementwise: Elementwise, product: Tensor, theirs: Tensor | None, labels: Tensor, values: list[Tensor]
    ) -> Tensor:
        """Fill `values`, [B] each; the gradient by the products [B, V]."""
        if not elementwise.terms and not elementwise.monitors:
            return product
        large = not self.work.blocks.compile and product.numel() >= self.work.blocks.kernel_from
        if large and supports(elementwise, product, theirs):
            found, _ = fused(elementwise, product, theirs, labels)  # the gradient is over the product
            for row, value in zip(values, found, strict=True):
                row.copy_(value)
            return product
        return self._by_pieces(elementwise, product, theirs, labels, values)

    def _by_pieces(
        self, elementwise: Elementwise, product: Tensor, theirs: Tensor | None, labels: Tensor, values: list[Tensor]
    ) -> Tensor:
        """`_done` a sub-block at a time."""
        function = compiled if self.work.blocks.compile else evaluate
        for sub in self.work.blocks.within(len(product), product.shape[1]):
            rival = None if theirs is None else theirs[sub]  # [n, V]
            found, gradient = function(elementwise.part(sub), product[sub], rival, labels[sub])
            for row, value in zip(values, found, strict=True):
                row[sub] = value
            if gradient is not None and gradient.shape == product.shape and gradient.dtype == product.dtype:
                product = gradient  # one sub-block is the whole block: nothing to copy
            elif gradient is not None:
                product[sub] = gradient  # the product is not needed any more
        return product


def _chosen(values: list[Tensor], flags: list[bool], flag: bool) -> list[Tensor]:
    return [value for value, its in zip(values, flags, strict=True) if its is flag]


class _TeacherLogits:
    """The teacher's side of a block: bare products, or logits that are translated already.

    In the head's own dtype: a teacher computes as it was loaded, whatever the student's autocast.
    """

    def __init__(self, teacher: Predictions, elementwise: Elementwise) -> None:
        head = teacher.head
        self.finish = head.finishing
        self.products = Products((teacher.hidden, head.weight, head.bias), head, head.weight.dtype)
        self.translation = None if teacher.translation is None else teacher.translation.to(teacher.hidden.device)
        self.columns = None if self.translation is None else self.translation.columns
        # Where the teacher gives a token no probability, a divergence is infinite or is not; then it counts as any.
        allows = all(term.divergence.allows_zeros for term in elementwise.terms if term.divergence.needs_teacher)
        self.empty = FLOOR if allows and set(elementwise.monitors) <= set(MONITORS.values()) else -torch.inf

    def of(self, rows: slice) -> Tensor:
        """[B, V]"""
        product = self.products.of(rows)
        if self.translation is None:
            return product
        return self.translation.logits(product, self.finish, self.empty)
