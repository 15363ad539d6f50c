"""The policy gradient of PPO, as a loss of each row: what a token that was drawn is worth, times its likelihood."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stillhouse.divergence.base import Divergence
from stillhouse.divergence.rows import Rows

_MOST = 80.0  # of log rho: exp does not overflow in fp32


@dataclass(frozen=True, eq=False)
class ClippedPolicyGradient(Divergence):
    """max(-A rho, -A clip(rho, 1 - cliprange, 1 + cliprange)), rho = w q[y] / q_old[y], y the label that was drawn.

    Gradient -A rho (onehot(y) - q) / T, or 0 where the clipped side is the larger. A label that the old q gave nothing
    (another model drew it) has rho = 0. (Schulman et al., PPO, arXiv:1707.06347; Gu et al., MiniLLM, arXiv:2306.08543)

    Attributes:
        temperature: that y was drawn at.
        cliprange: how far rho may move before a token teaches nothing more.
        advantage: [N] A.
        log_probability: [N] log q_old[y].
        importance: [N] w.
    """

    name = "clipped_policy_gradient"
    needs_teacher = False
    needs_labels = True
    temperature: float
    cliprange: float
    advantage: Tensor
    log_probability: Tensor
    importance: Tensor

    def part(self, rows: slice) -> ClippedPolicyGradient:
        own = {name: getattr(self, name)[rows] for name in ("advantage", "log_probability", "importance")}
        return replace(self, **own)

    def value_and_gradient(self, rows: Rows) -> tuple[Tensor, Tensor]:
        q = rows.student.softmax(self.temperature).probabilities  # [N, V]
        advantage, old, importance = (
            part.to(q.dtype) for part in (self.advantage, self.log_probability, self.importance)
        )
        drawn = old > -torch.inf
        moved = -rows.surprise(self.temperature).squeeze(-1) - torch.where(drawn, old, 0.0)  # [N] log (q / q_old)
        ratio = torch.where(drawn, moved.clamp_max(_MOST).exp() * importance, 0.0)  # [N] rho
        free = -advantage * ratio
        clipped = -advantage * ratio.clamp(1.0 - self.cliprange, 1.0 + self.cliprange)
        # A comparison with NaN is false: written so, NaN stays in the gradient and is caught.
        slope = torch.where(free < clipped, 0.0, free)  # [N] dF / d(log q[y])
        labels = rows.labels.unsqueeze(-1)
        gradient = q * -slope.unsqueeze(-1)  # [N, V]
        gradient.scatter_add_(-1, labels, slope.unsqueeze(-1))
        return torch.maximum(free, clipped), gradient if self.temperature == 1.0 else gradient.div_(self.temperature)
