"""Cross-entropy, the two Kullback-Leibler divergences and the total variation distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.divergence.base import Divergence, TeacherDivergence
from stillhouse.divergence.rows import Pair, Rows


@dataclass(frozen=True)
class CrossEntropy(Divergence):
    """-log q[label] at T=1, whatever the temperature of the distillation beside it. Gradient q - onehot(label)."""

    name = "cross_entropy"
    needs_teacher = False
    needs_labels = True

    def value_and_gradient(self, rows: Rows) -> tuple[Tensor, Tensor]:
        labels = rows.labels.unsqueeze(-1)  # [N, 1]
        gradient = rows.student.softmax(1.0).probabilities.clone()  # [N, V]
        gradient.scatter_add_(-1, labels, gradient.new_full(labels.shape, -1.0))
        return rows.cross_entropy(), gradient


@dataclass(frozen=True)
class TemperedCrossEntropy(Divergence):
    """-log q[label] at temperature T: the forward KL to a teacher sure of the label. Gradient (q - onehot) / T."""

    name = "tempered_cross_entropy"
    needs_teacher = False
    needs_labels = True
    temperature: float

    def value_and_gradient(self, rows: Rows) -> tuple[Tensor, Tensor]:
        labels = rows.labels.unsqueeze(-1)  # [N, 1]
        gradient = rows.student.softmax(self.temperature).probabilities / self.temperature  # [N, V]
        gradient.scatter_add_(-1, labels, gradient.new_full(labels.shape, -1.0 / self.temperature))
        return rows.surprise(self.temperature).squeeze(-1), gradient


@dataclass(frozen=True)
class ForwardKL(TeacherDivergence):
    """KL(p||q) = sum p (log p - log q). Gradient (q - p) / T. (Hinton et al., 2015, arXiv:1503.02531)"""

    name = "forward_kl"
    allows_zeros = True

    def value_and_slope(self, pair: Pair) -> tuple[Tensor, Tensor]:
        return -pair.log_ratio.mul_(pair.teacher_common).sum(-1), -pair.teacher_common


@dataclass(frozen=True)
class ReverseKL(TeacherDivergence):
    """KL(q||p) = sum q (log q - log p). Gradient q (d - KL) / T. (Gu et al., MiniLLM, arXiv:2306.08543)"""

    name = "reverse_kl"

    def value_and_slope(self, pair: Pair) -> tuple[Tensor, Tensor]:
        terms = pair.log_ratio.mul_(pair.student_common)  # [N, V] q d
        return terms.sum(-1), terms.add_(pair.student_common)


@dataclass(frozen=True)
class TotalVariation(TeacherDivergence):
    """sum |p - q| / 2. Gradient q (s - sum q s) / 2T, s = sign(q - p). (Wen et al., f-distill, arXiv:2307.15190)"""

    name = "tvd"
    allows_zeros = True

    def value_and_slope(self, pair: Pair) -> tuple[Tensor, Tensor]:
        difference = torch.sub(pair.student_common, pair.teacher_common, out=pair.log_ratio)  # [N, V]
        slope = difference.sign().mul_(pair.student_common).mul_(0.5)  # [N, V]
        return difference.abs_().sum(-1).mul_(0.5), slope
