"""ToDi: forward KL where the student is below the teacher, reverse KL where it is above, token by token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stillhouse.divergence.base import TeacherDivergence
from stillhouse.divergence.rows import Pair


@dataclass(frozen=True)
class ToDi(TeacherDivergence):
    """sum (1 - b) p (log p - log q) + b q (log q - log p), b = sigmoid(scale d) detached.

    Slope b q (d + 1) - (1 - b) p. At scale 1, where b = q / (p + q), the value is exactly KL(p||q) + KL(q||p), though
    the gradient is not, and b (p + q) - p = q - p. (Jung et al., ToDi, arXiv:2505.16297)
    """

    name = "todi"
    scale: float

    def value_and_slope(self, pair: Pair) -> tuple[Tensor, Tensor]:
        p, q, d = pair.teacher_common, pair.student_common, pair.log_ratio
        upward = (d if self.scale == 1.0 else d * self.scale).sigmoid()  # [N, V] b
        # balance = b q - (1 - b) p = b (p + q) - p, so the value is sum d * balance
        balance = q - p if self.scale == 1.0 else (p + q).mul_(upward).sub_(p)  # [N, V]
        reverse_slope = upward.mul_(q).mul_(d)  # [N, V] b q d
        return d.mul_(balance).sum(-1), balance.add_(reverse_slope)
