"""Losses of whole rows of logits, taken a block of rows at a time, with the gradient taken there and then.

Letters: N predictions, V tokens, d hidden size, B rows of a block (one matrix product), n rows of a sub-block (one
pass of element-wise work). A *row* is one prediction. `product` is hidden @ weight.T before scale and soft-cap.

    for each block of B rows:      logits of student and teacher     (two GEMMs)
        for each sub-block of n:   values and d loss / d logits      (closed forms, in cache; fp32)
        dH, dW                                                       (two GEMMs; dW in fp32)

Nothing of size [N, V] ever exists: the peak is one [B, V] block a side, the sub-block's temporaries, and dW.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stillhouse.divergence import Divergence, Rows
from stillhouse.head.lm_head import Head
from stillhouse.head.predictions import Predictions

Monitor = Callable[[Rows], Tensor]
MONITORS: Mapping[str, Monitor] = {
    "accuracy": Rows.accuracy,
    "agreement": Rows.agreement,
    "entropy": Rows.entropy,
}


@dataclass(frozen=True)
class Term:
    """One part of a loss: `weight` times the sum over rows of `divergence`, reported under `name`."""

    name: str
    divergence: Divergence
    weight: float = 1.0


@dataclass(frozen=True)
class Blocks:
    """How many rows a matrix product takes, and how many elements the element-wise work inside it.

    Larger products are faster until logits fall out of memory; smaller element-wise pieces stay in the CPU's cache
    (fresh large temporaries cost three times as much an element there). A GPU wants few launches instead.
    """

    rows: int = 256
    elements: int = 800_000
    vocabulary_tile: int = 2_048

    @classmethod
    def on(cls, device: torch.device) -> Blocks:
        """The rule for `device`."""
        return cls() if device.type == "cpu" else cls(rows=1_024, elements=1 << 27, vocabulary_tile=1 << 30)


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
        blocks: Block sizes; by default the rule for the device.

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
        monitors=dict(monitors or {}),
        blocks=blocks or Blocks.on(student.hidden.device),
        compute_dtype=_compute_dtype(student.hidden),
        wants_gradient=torch.is_grad_enabled(),
    )
    loss, *values = _Rowwise.apply(work, student.hidden, head.weight, head.bias)  # type: ignore[misc]
    names = [term.name for term in terms] + list(work.monitors)
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


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of the matrix products: autocast's where it is on, as for any linear layer."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


@dataclass
class _Work:
    head: Head
    teacher: Predictions | None
    labels: Tensor
    terms: tuple[Term, ...]
    monitors: dict[str, Monitor]
    blocks: Blocks
    compute_dtype: torch.dtype
    wants_gradient: bool


class _Rowwise(torch.autograd.Function):
    """Values and gradients in the forward; the backward only scales what is already there."""

    @staticmethod
    def forward(ctx: Any, work: _Work, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        wants_h, wants_w, wants_b = (work.wants_gradient and needed for needed in ctx.needs_input_grad[1:])
        with torch.autocast(hidden.device.type, enabled=False):
            pass_ = _Pass(work, hidden.detach(), weight.detach(), bias, (wants_h, wants_w, wants_b))
            pass_.run()
        gradients = pass_.gradients()
        ctx.present = [gradient is not None for gradient in gradients]
        ctx.save_for_backward(*(gradient for gradient in gradients if gradient is not None))
        total = sum(
            (term.weight * pass_.values[index].sum() for index, term in enumerate(work.terms)),
            start=pass_.values.new_zeros(()),
        )
        values = pass_.values.unbind(0)
        ctx.mark_non_differentiable(*values)
        return total, *values

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = iter(ctx.saved_tensors)
        # In place: dW is as large as the head. A second backward over the same graph is refused by autograd itself,
        # because the saved tensors' version has changed.
        scaled = [next(saved).mul_(outputs[0]) if present else None for present in ctx.present]
        return None, *scaled


class _Pass:
    """One run over all blocks, filling values and gradients."""

    def __init__(
        self, work: _Work, hidden: Tensor, weight: Tensor, bias: Tensor | None, wants: tuple[bool, bool, bool]
    ) -> None:
        self.work, self.wants, self.bias = work, wants, bias
        self.hidden = hidden.to(work.compute_dtype)  # [N, d]
        self.dtype_out = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        # One cast for the whole run, not one a block (a no-op where the dtypes agree).
        self.head = Head(
            weight.to(work.compute_dtype),
            None if bias is None else bias.detach().to(work.compute_dtype),
            work.head.scale,
            work.head.softcap,
            work.head.vocabulary,
        )
        rows = hidden.shape[0]
        statistics = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        count = len(work.terms) + len(work.monitors)
        self.values = torch.zeros(count, rows, dtype=statistics, device=hidden.device)  # [terms + monitors, N]
        self.d_hidden = torch.zeros_like(self.hidden) if wants[0] else None  # [N, d]
        self.d_weight = torch.zeros_like(weight, dtype=statistics) if wants[1] else None  # [V', d]
        self.d_bias = torch.zeros_like(bias, dtype=statistics) if wants[2] and bias is not None else None  # [V']

    def run(self) -> None:
        rows = self.hidden.shape[0]
        for start in range(0, rows, self.work.blocks.rows):
            self._block(slice(start, min(start + self.work.blocks.rows, rows)))

    def gradients(self) -> list[Tensor | None]:
        """dH, dW and db in the dtypes of what they are gradients of."""
        found = (self.d_hidden, self.d_weight, self.d_bias)
        return [None if g is None else g.to(dtype) for g, dtype in zip(found, self.dtype_out, strict=True)]

    def _block(self, block: slice) -> None:
        work = self.work
        product = self.head.linear(self.hidden[block])  # [B, V]
        teacher = work.teacher
        teacher_product = None if teacher is None else _teacher_product(teacher, block)  # [B, V]
        step = max(1, work.blocks.elements // self.head.vocabulary)
        for start in range(0, product.shape[0], step):
            self._sub_block(block.start, slice(start, start + step), product, teacher_product)
        if any(self.wants):
            self._backward_gemms(block, product)

    def _sub_block(self, offset: int, sub: slice, product: Tensor, teacher_product: Tensor | None) -> None:
        """Values of these rows, and their gradient written over `product`, which is not needed any more."""
        work, here = self.work, slice(offset + sub.start, min(offset + sub.stop, offset + product.shape[0]))
        logits = self.head.finish(product[sub])  # [n, V]
        teacher_logits = None
        if teacher_product is not None and work.teacher is not None:
            teacher_logits = work.teacher.head.finish(teacher_product[sub])  # [n, V]
        rows = Rows(logits, teacher_logits, work.labels[here])
        total: Tensor | None = None
        for index, term in enumerate(work.terms):
            value, gradient = term.divergence.value_and_gradient(rows)  # [n], [n, V]
            self.values[index, here] = value
            if not any(self.wants):
                continue
            gradient = gradient.mul_(term.weight) if term.weight != 1.0 else gradient
            total = gradient if total is None else total.add_(gradient)
        for index, monitor in enumerate(work.monitors.values(), start=len(work.terms)):
            self.values[index, here] = monitor(rows).to(self.values.dtype)
        if total is not None:
            product[sub] = self.head.unfinish_(total, logits)

    def _backward_gemms(self, block: slice, gradient: Tensor) -> None:
        hidden, vocabulary = self.hidden[block], self.head.vocabulary
        if self.d_hidden is not None:
            torch.mm(gradient, self.head.weight[:vocabulary], out=self.d_hidden[block])
        if self.d_weight is not None:
            for start in range(0, vocabulary, self.work.blocks.vocabulary_tile):
                tile = slice(start, min(start + self.work.blocks.vocabulary_tile, vocabulary))
                self.d_weight[tile] += gradient[:, tile].T @ hidden  # [tile, d], added in fp32
        if self.d_bias is not None:
            self.d_bias[:vocabulary] += gradient.sum(0, dtype=self.d_bias.dtype)


def _teacher_product(teacher: Predictions, block: slice) -> Tensor:
    """[B, V] in the head's own dtype: a teacher computes as it was loaded, whatever the student's autocast."""
    return teacher.head.linear(teacher.hidden[block].to(teacher.head.weight.dtype))
