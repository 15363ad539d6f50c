"""A user's own loss of rows of logits, with no closed form: autograd takes its gradient, a sub-block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillhouse.divergence.base import Divergence
from stillhouse.divergence.rows import Rows

# (student_logits [n, V], teacher_logits [n, V] or None, labels [n] or None) -> values [n]
RowFunction = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


def from_function(
    fn: RowFunction, name: str = "custom", needs_teacher: bool = True, needs_labels: bool = False
) -> Divergence:
    """A divergence that may stand wherever a built one may, beside closed forms as well.

        def squared(student_logits, teacher_logits, labels):
            return (student_logits.softmax(-1) - teacher_logits.softmax(-1)).square().sum(-1)  # [n]

        rowwise_loss(student, teacher, [Term("kd", divergence.from_function(squared))])

    Args:
        fn: From student_logits [n, V], teacher_logits [n, V] (None unless `needs_teacher`) and labels [n] (None unless
            `needs_labels`) to values [n]. Logits are fp32, or fp64 where a side is, scaled and soft-capped; n is any
            number of rows, so a row's value may depend on that row only. It must be differentiable by student_logits;
            to anything else that it holds no gradient flows.
        name: What it is called in messages.
        needs_teacher: Whether it takes the teacher's logits.
        needs_labels: Whether it takes labels.

    Taking its values raises ValueError where `fn` gives no [n], values that do not depend on student_logits by any
    gradient, or values with a gradient to something else (a parameter), which would be lost without a word.
    """
    return _FromFunction(fn, name, needs_teacher, needs_labels)


@dataclass(frozen=True)
class _FromFunction(Divergence):
    fn: RowFunction
    name: str
    needs_teacher: bool
    needs_labels: bool

    def value_and_gradient(self, rows: Rows) -> tuple[Tensor, Tensor]:
        teacher = rows.teacher.logits if self.needs_teacher else None
        labels = rows.labels if self.needs_labels else None
        with torch.enable_grad():
            student = rows.student.logits.detach().requires_grad_()  # [n, V] a leaf on the same memory
            values = self.fn(student, teacher, labels)
            self._check(values, student)
            (gradient,) = torch.autograd.grad(values.sum(), student, allow_unused=True)
        if gradient is None:
            raise self._no_gradient()
        # A copy: what autograd gives may be an expanded scalar or a tensor that `fn` keeps.
        return values.detach().to(student.dtype), gradient.clone(memory_format=torch.contiguous_format)

    def _check(self, values: Any, student: Tensor) -> None:
        if not isinstance(values, Tensor) or values.shape != student.shape[:1]:
            found = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"'{self.name}' must give one value a row, [{len(student)}], but gave {found}")
        if not values.requires_grad:
            raise self._no_gradient()
        others = [tuple(leaf.shape) for leaf in _leaves(values) if leaf is not student]
        if others:
            raise ValueError(
                f"'{self.name}' has a gradient to something of shape {list(others[0])} besides the student's logits, "
                "which would be lost; detach it"
            )

    def _no_gradient(self) -> ValueError:
        return ValueError(f"no gradient flows from the values of '{self.name}' to student_logits; does it detach them?")


def _leaves(values: Tensor) -> Iterator[Tensor]:
    """What the graph behind `values` accumulates gradients in."""
    seen, stack = set(), [values.grad_fn]
    while stack:
        node: Any = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack.extend(following for following, _ in node.next_functions)
