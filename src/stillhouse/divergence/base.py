"""What every divergence is: a value and a gradient for each row, and a callable that autograd understands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stillhouse.divergence.rows import Pair, Rows, check_labels


class Divergence(ABC):
    """A loss of each row of logits, with its gradient by the student's logits in closed form.

    Attributes:
        needs_teacher: whether it compares with a teacher's logits.
        needs_labels: whether it looks at the token that came next.
        allows_zeros: whether it is finite, and so defined, where the teacher gives a token no probability at all.
        any_vocabularies: whether the two rows may be over different tokens.
    """

    name: str
    needs_teacher: bool = True
    needs_labels: bool = False
    allows_zeros: bool = False
    any_vocabularies: bool = False

    def part(self, rows: slice) -> Divergence:
        """The same of a run of the rows: another only where it knows something of each row."""
        return self

    @abstractmethod
    def value_and_gradient(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Values [N] in nats and their gradients by the student's logits [N, V], fp32 (fp64 for fp64 logits).

        The gradient is fresh: the caller may write into it. Raises ValueError where `rows` lacks what is needed.
        """

    def __call__(
        self, student_logits: Tensor, teacher_logits: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Values [N] in nats, differentiable once by `student_logits` [N, V]; the teacher gets no gradient.

        Raises ValueError where shapes do not fit, a label [N] is no id of the vocabulary, or what is needed is missing.
        """
        if labels is not None and student_logits.ndim == 2 and not labels.is_cpu:
            check_labels(labels, student_logits.shape[-1])
        return _Rowwise.apply(student_logits, teacher_logits, labels, self)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class TeacherDivergence(Divergence):
    """A divergence of the student's from the teacher's distribution, both at one temperature."""

    temperature: float

    @abstractmethod
    def value_and_slope(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Values F [N] and slopes dF/d(log q) [N, V]; `pair.log_ratio` may be written into and become the slope."""

    def value_and_gradient(self, rows: Rows) -> tuple[Tensor, Tensor]:
        pair = rows.pair(self.temperature)
        values, slope = self.value_and_slope(pair)
        # log q = z/T - logsumexp(z/T), so dF/dz = (slope - q sum(slope)) / T.
        gradient = slope.addcmul_(pair.student, slope.sum(-1, keepdim=True), value=-1.0)  # [N, V]
        return values, gradient if self.temperature == 1.0 else gradient.div_(self.temperature)


class _Rowwise(torch.autograd.Function):
    """The bridge to autograd: the gradient is taken in the forward pass and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor | None, divergence: Divergence
    ) -> Tensor:
        values, gradient = divergence.value_and_gradient(
            Rows(student_logits, teacher_logits, labels, divergence.any_vocabularies)
        )
        ctx.save_for_backward(gradient)
        ctx.dtype = student_logits.dtype
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[0].unsqueeze(-1)).to(ctx.dtype), None, None, None
