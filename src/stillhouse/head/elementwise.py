"""The element-wise half of a row loss: from the products of both sides to values and the gradient by the products.

It is one pure function of tensors, so that `torch.compile` may fuse it (`Blocks.compile`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from stillhouse.divergence import Divergence, Rows
from stillhouse.head.lm_head import Finish

Monitor = Callable[[Rows], Tensor]
MONITORS: Mapping[str, Monitor] = {
    "ce": Rows.cross_entropy,
    "accuracy": Rows.accuracy,
    "agreement": Rows.agreement,
    "entropy": Rows.entropy,
}
ALONE = (Rows.cross_entropy, Rows.accuracy, Rows.entropy)  # those that need no teacher; a caller's own may


@dataclass(frozen=True)
class Term:
    """One part of a loss: `weight` times the sum over rows of `divergence`, reported under `name`."""

    name: str
    divergence: Divergence
    weight: float = 1.0


@dataclass(frozen=True)
class Elementwise:
    """What is computed of a sub-block.

    Attributes:
        terms: the loss.
        monitors: what else is reported of each row.
        student: what is between the student's products and logits.
        teacher: the same of the teacher, or None where there is none.
        wants_gradient: whether a gradient is asked for.
    """

    terms: tuple[Term, ...]
    monitors: tuple[Monitor, ...]
    student: Finish
    teacher: Finish | None
    wants_gradient: bool

    def part(self, rows: slice) -> Elementwise:
        """The work of a run of the rows."""
        divergences = [term.divergence.part(rows) for term in self.terms]
        if all(part is term.divergence for part, term in zip(divergences, self.terms, strict=True)):
            return self
        terms = zip(self.terms, divergences, strict=True)
        return replace(self, terms=tuple(replace(term, divergence=part) for term, part in terms))

    def parted(self) -> tuple[Elementwise, Elementwise]:
        """What the student alone tells, and what needs the teacher."""
        alone, together = (
            replace(
                self,
                terms=tuple(term for term in self.terms if term.divergence.needs_teacher is needs),
                monitors=tuple(monitor for monitor in self.monitors if (monitor not in ALONE) is needs),
            )
            for needs in (False, True)
        )
        return replace(alone, teacher=None), together


def evaluate(
    work: Elementwise, product: Tensor, teacher_product: Tensor | None, labels: Tensor
) -> tuple[list[Tensor], Tensor | None]:
    """Values of each term and monitor, [n] each, and the gradient of their weighted sum by `product` [n, V] or None.

    Args:
        product: [n, V], the student's hidden @ weight.T
        teacher_product: [n, V] or None.
        labels: [n]
    """
    logits = work.student.forward(product)  # [n, V]
    teacher_logits = None
    if work.teacher is not None and teacher_product is not None:
        teacher_logits = work.teacher.forward(teacher_product)  # [n, V]
    rows = Rows(logits, teacher_logits, labels, any(term.divergence.any_vocabularies for term in work.terms))
    values: list[Tensor] = []
    total: Tensor | None = None
    for term in work.terms:
        value, gradient = term.divergence.value_and_gradient(rows)  # [n], [n, V]
        values.append(value)
        if work.wants_gradient:
            gradient = gradient.mul_(term.weight) if term.weight != 1.0 else gradient
            total = gradient if total is None else total.add_(gradient)
    values += [monitor(rows) for monitor in work.monitors]
    return values, None if total is None else work.student.backward_(total, logits)


def compiled(
    work: Elementwise, product: Tensor, teacher_product: Tensor | None, labels: Tensor
) -> tuple[list[Tensor], Tensor | None]:
    """`evaluate` through `torch.compile`; one compilation serves any number of rows from 2 on."""
    for tensor in (product, teacher_product, labels):
        if tensor is not None:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return _compile()(work, product, teacher_product, labels)


@cache
def _compile() -> Any:
    return torch.compile(_evaluate_and_round)


def _evaluate_and_round(
    work: Elementwise, product: Tensor, teacher_product: Tensor | None, labels: Tensor
) -> tuple[list[Tensor], Tensor | None]:
    """`evaluate` with the gradient in the dtype of the products, so that one kernel writes it as the GEMMs read it."""
    values, gradient = evaluate(work, product, teacher_product, labels)
    return values, None if gradient is None else gradient.to(product.dtype)
